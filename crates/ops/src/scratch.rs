//! Working memory that is used again from call to call.
//!
//! The page faults of fresh memory cost more than many of the passes that work in it, so what an
//! operation is done with is kept for the next one.

use crate::simd::Real;
use num_traits::Zero;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
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

/// So many zeros, written by all threads: one alone would make the others wait, as most results are
/// larger than the caches.
pub(crate) fn zeros<T: Zero + Copy + Send>(length: usize) -> Vec<T> {
    const PART: usize = 1 << 16;
    let mut zeros = Vec::with_capacity(length);
    zeros.spare_capacity_mut()[..length]
        .par_chunks_mut(PART)
        .for_each(|part| {
            for place in part {
                place.write(T::zero());
            }
        });
    // SAFETY: there is room for `length` elements, and all of them were just written.
    unsafe { zeros.set_len(length) }
    zeros
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

    pub(crate) fn pointer(&self) -> *mut T {
        self.0
    }
}
