//! Working memory that is used again from call to call.
//!
//! The page faults of fresh memory cost more than many of the passes that work in it, so what an
//! operation is done with is kept for the next one.

use crate::simd::Real;
use num_traits::Zero;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// A cache line, to which working memory is aligned.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _bytes: [u8; LINE],
}

const LINE: usize = 64;

/// What nobody uses at the moment.
static FREE: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

/// Working memory for numbers. It begins at a cache line and holds whatever the last user left.
pub(crate) struct Scratch<T> {
    lines: Vec<Line>,
    length: usize,
    _numbers: PhantomData<T>,
}

impl<T: Real> Scratch<T> {
    /// Room for `length` numbers.
    pub(crate) fn new(length: usize) -> Self {
        let needed = (length * size_of::<T>()).div_ceil(LINE);
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = free
            .iter()
            .enumerate()
            .filter(|(_, lines)| lines.len() >= needed)
            .min_by_key(|(_, lines)| lines.len());
        // What is much too large is left for those who need that much.
        let found = fitting
            .filter(|(_, lines)| lines.len() <= 2 * needed + 1024)
            .map(|(place, _)| place);
        let lines = match found {
            Some(place) => free.swap_remove(place),
            None => vec![Line { _bytes: [0; LINE] }; needed],
        };
        Self {
            lines,
            length,
            _numbers: PhantomData,
        }
    }
}

impl<T: Real> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the lines hold at least `length` numbers, were initialised when they were
        // allocated, and any bits are a valid floating-point number.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.length) }
    }
}

impl<T: Real> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the lines are this value's own.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.length) }
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(lines);
    }
}

/// A result in parts of equal length, which are zeroed one by one as they are taken, if at all, to be
/// filled while they are in the cache. Zeroing the whole at first would take it through memory once more.
pub(crate) struct Parts<T> {
    numbers: Vec<T>,
    /// Points to the first of the numbers.
    first: Shared<T>,
    part: usize,
    taken: Vec<AtomicBool>,
}

impl<T: Zero + Copy> Parts<T> {
    /// `count` parts of `part` numbers.
    pub(crate) fn new(count: usize, part: usize) -> Self {
        let mut numbers = Vec::with_capacity(count * part);
        Self {
            first: Shared::from_pointer(numbers.as_mut_ptr()),
            numbers,
            part,
            taken: (0..count).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Part number `index`, all zeros.
    ///
    /// # Panics
    /// When it was taken before.
    #[allow(clippy::mut_from_ref)] // Nobody else gets this part.
    pub(crate) fn take(&self, index: usize) -> &mut [T] {
        // SAFETY: all its numbers are initialised before anybody has it.
        let part = unsafe { self.take_uninit(index) };
        part.fill(MaybeUninit::new(T::zero()));
        // SAFETY: as was just done.
        unsafe { part.assume_init_mut() }
    }

    /// Part number `index`, as the memory was found.
    ///
    /// # Safety
    /// All of it must be initialised before [`Parts::into_vec`].
    ///
    /// # Panics
    /// When it was taken before.
    #[allow(clippy::mut_from_ref)] // Nobody else gets this part.
    pub(crate) unsafe fn take_uninit(&self, index: usize) -> &mut [MaybeUninit<T>] {
        assert!(
            !self.taken[index].swap(true, Ordering::Relaxed),
            "part {index} was taken before"
        );
        // SAFETY: there is room for part `index`, which is aligned for `T` and which nobody else takes.
        unsafe {
            let part = self.first.pointer().add(index * self.part);
            std::slice::from_raw_parts_mut(part.cast(), self.part)
        }
    }

    /// Numbers of a part.
    pub(crate) fn part(&self) -> usize {
        self.part
    }

    /// All parts, one behind the other.
    ///
    /// # Panics
    /// When some were not taken.
    pub(crate) fn into_vec(mut self) -> Vec<T> {
        let all = self.taken.iter_mut().all(|taken| *taken.get_mut());
        assert!(all, "a part was not taken");
        // SAFETY: there is room for all parts, and each was initialised when it was taken, or by whoever took
        // it.
        unsafe { self.numbers.set_len(self.taken.len() * self.part) }
        self.numbers
    }
}

/// A result of `count` parts of `part` numbers, filled by all threads.
pub(crate) fn par_parts<T: Zero + Copy + Send + Sync>(
    count: usize,
    part: usize,
    fill: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let parts = Parts::new(count, part);
    (0..count)
        .into_par_iter()
        .for_each(|index| fill(index, parts.take(index)));
    parts.into_vec()
}

/// A pointer that parts of a parallel loop share; each of them writes elements of its own.
pub(crate) struct Shared<T>(*mut T);

// SAFETY: whoever dereferences the pointer promises, in an `unsafe` block, that nobody else
// accesses the same elements.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    pub(crate) fn from_pointer(pointer: *mut T) -> Self {
        Self(pointer)
    }

    pub(crate) fn pointer(&self) -> *mut T {
        self.0
    }
}
