//! Max-pooling whose windows may overlap.
//!
//! The forward pass records the index of each maximum, so that the backward pass adds every gradient to exactly one
//! input, also if values are equal. Vectors run along the channels.

use crate::instruction_set::arch;
use crate::parts::{Parts, par_parts};
use crate::simd::Real;
use crate::windows::{Pool, Windows};
use pulp::{Simd, WithSimd};

/// The maxima of the windows of `batch` images `x`, `[batch, rows, columns, channels]`, and for each its index in the
/// window, row by row. Of equal values the first is the maximum; a NaN is larger than any value, as in PyTorch.
///
/// # Panics
/// When `x` has another length.
#[must_use]
pub fn forward<T: Real>(
    windows: &Windows,
    (batch, channels): (usize, usize),
    x: &[T],
) -> (Vec<T>, Vec<u8>) {
    let image = windows.pixels() * channels;
    assert_eq!(x.len(), batch * image);
    let argmax = Parts::new(batch, windows.count() * channels);
    let y = par_parts(batch, windows.count() * channels, |index, y| {
        arch().dispatch(Maxima {
            windows: *windows,
            channels,
            x: &x[index * image..][..image],
            y,
            argmax: argmax.take(index),
        });
    });
    (y, argmax.into_vec())
}

/// The gradient of the images, from that of the result and the indices that [`forward`] returned.
///
/// # Panics
/// When a slice has another length.
#[must_use]
pub fn backward<T: Real>(
    windows: &Windows,
    (batch, channels): (usize, usize),
    grad_y: &[T],
    argmax: &[u8],
) -> Vec<T> {
    let pooled = windows.count() * channels;
    assert!(grad_y.len() == batch * pooled && argmax.len() == batch * pooled);
    par_parts(batch, windows.pixels() * channels, |index, grad_x| {
        arch().dispatch(Spread {
            windows: *windows,
            channels,
            grad_y: &grad_y[index * pooled..][..pooled],
            argmax: &argmax[index * pooled..][..pooled],
            grad_x,
        });
    })
}

/// The maxima of an image's windows, and the index of each.
pub(crate) struct Maxima<'a, T> {
    pub(crate) windows: Windows,
    pub(crate) channels: usize,
    pub(crate) x: &'a [T],
    pub(crate) y: &'a mut [T],
    pub(crate) argmax: &'a mut [u8],
}

impl<T: Real> WithSimd for Maxima<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (windows, channels, x) = (self.windows, self.channels, self.x);
        let Pool { kernel, stride } = windows.pool;
        let outputs = self
            .y
            .chunks_exact_mut(channels)
            .zip(self.argmax.chunks_exact_mut(channels));
        for (window, (y, argmax)) in outputs.enumerate() {
            let top = window / windows.columns() * stride;
            let left = window % windows.columns() * stride;
            for index in 0..kernel * kernel {
                let pixel = (top + index / kernel) * windows.width + left + index % kernel;
                let x = &x[pixel * channels..][..channels];
                if index == 0 {
                    y.copy_from_slice(x);
                    argmax.fill(0);
                    continue;
                }
                for ((maximum, argmax), value) in y.iter_mut().zip(argmax.iter_mut()).zip(x) {
                    // The second condition holds for a NaN alone. No branch, so that it vectorises.
                    #[allow(clippy::eq_op)]
                    let larger = (*value > *maximum) | (*value != *value);
                    *maximum = if larger { *value } else { *maximum };
                    *argmax = if larger { index as u8 } else { *argmax };
                }
            }
        }
    }
}

/// Adds the gradient of each maximum to its input; the gradient of other inputs is 0.
pub(crate) struct Spread<'a, T> {
    pub(crate) windows: Windows,
    pub(crate) channels: usize,
    pub(crate) grad_y: &'a [T],
    pub(crate) argmax: &'a [u8],
    pub(crate) grad_x: &'a mut [T],
}

impl<T: Real> WithSimd for Spread<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (windows, channels) = (self.windows, self.channels);
        let Pool { kernel, stride } = windows.pool;
        for (pixel, grad_x) in self.grad_x.chunks_exact_mut(channels).enumerate() {
            let (row, column) = (pixel / windows.width, pixel % windows.width);
            grad_x.fill(T::zero());
            for window_row in windows.rows_around(row) {
                for window_column in windows.columns_around(column) {
                    let index =
                        (row - window_row * stride) * kernel + column - window_column * stride;
                    let window = (window_row * windows.columns() + window_column) * channels;
                    let grad_y = &self.grad_y[window..][..channels];
                    let argmax = &self.argmax[window..][..channels];
                    for ((to, grad), at) in grad_x.iter_mut().zip(grad_y).zip(argmax) {
                        *to += if *at == index as u8 { *grad } else { T::zero() };
                    }
                }
            }
        }
    }
}
