//! Results that threads write in parts.

use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

/// A result in parts of equal length. A part is zeroed when it is taken, if at all, and filled while it is in the
/// cache. Zeroing the result as a whole would be one more pass over memory.
pub(crate) struct Parts<T> {
    values: Vec<T>,
    /// Points to the first of the values.
    first: Shared<T>,
    part: usize,
    taken: Vec<AtomicBool>,
}

impl<T: Default + Copy> Parts<T> {
    /// `count` parts of `part` values.
    pub(crate) fn new(count: usize, part: usize) -> Self {
        let mut values = Vec::with_capacity(count * part);
        Self {
            first: Shared::from_pointer(values.as_mut_ptr()),
            values,
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
        // SAFETY: all its values are initialised before it is returned.
        let part = unsafe { self.take_uninit(index) };
        part.fill(MaybeUninit::new(T::default()));
        // SAFETY: as was just done.
        unsafe { part.assume_init_mut() }
    }

    /// Part number `index`, not initialised.
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
        // SAFETY: part `index` is inside the allocation, aligned for `T`, and taken once.
        unsafe {
            let part = self.first.pointer().add(index * self.part);
            std::slice::from_raw_parts_mut(part.cast(), self.part)
        }
    }

    /// Values in a part.
    pub(crate) fn part(&self) -> usize {
        self.part
    }

    /// All parts, in order.
    ///
    /// # Panics
    /// When some were not taken.
    pub(crate) fn into_vec(mut self) -> Vec<T> {
        let all = self.taken.iter_mut().all(|taken| *taken.get_mut());
        assert!(all, "a part was not taken");
        // SAFETY: all parts are inside the allocation, and each was initialised when it was taken, or by
        // the caller.
        unsafe { self.values.set_len(self.taken.len() * self.part) }
        self.values
    }
}

/// A result of `count` parts of `part` values, filled by all threads.
pub(crate) fn par_parts<T: Default + Copy + Send + Sync>(
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

/// A pointer that the parts of a parallel loop share; each writes elements of its own.
pub(crate) struct Shared<T>(*mut T);

// SAFETY: whoever dereferences the pointer promises, in an `unsafe` block, that no other thread
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
