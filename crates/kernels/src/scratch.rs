//! Working memory that is reused from call to call.
//!
//! The page faults of fresh memory take longer than many kernels, so freed working memory is kept for the next one.

use crate::element::Element;
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

/// Memory that is not in use.
static FREE: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

/// Working memory, aligned to a cache line. Its content is what the previous user left.
pub(crate) struct Scratch<T> {
    lines: Vec<Line>,
    length: usize,
    _values: PhantomData<T>,
}

impl<T: Element> Scratch<T> {
    /// Memory for `length` values.
    pub(crate) fn new(length: usize) -> Self {
        let needed = (length * size_of::<T>()).div_ceil(LINE);
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = free
            .iter()
            .enumerate()
            .filter(|(_, lines)| lines.len() >= needed)
            .min_by_key(|(_, lines)| lines.len());
        // Memory that is much too large is left for larger requests.
        let found = fitting
            .filter(|(_, lines)| lines.len() <= 2 * needed + 1024)
            .map(|(index, _)| index);
        let lines = match found {
            Some(index) => free.swap_remove(index),
            None => vec![Line { _bytes: [0; LINE] }; needed],
        };
        Self {
            lines,
            length,
            _values: PhantomData,
        }
    }
}

impl<T: Element> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the lines have space for `length` values, were initialised when they were
        // allocated, and any bits are a valid value of the floating-point types.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.length) }
    }
}

impl<T: Element> DerefMut for Scratch<T> {
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
