//! Max-pooling whose windows may overlap.
//!
//! The forward pass records the index of each maximum, so that the backward pass adds every gradient to exactly one
//! input, also if values are equal. Vectors run along the channels.

use crate::instruction_set::arch;
use crate::parts::{Parts, par_parts};
use crate::simd::Real;
use crate::windows::{Pool, Windows};

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
        let x = &x[index * image..][..image];
        maxima(*windows, channels, x, y, argmax.take(index));
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
        let part = index * pooled..(index + 1) * pooled;
        let (grad_y, argmax) = (&grad_y[part.clone()], &argmax[part]);
        spread(*windows, channels, grad_y, argmax, grad_x);
    })
}

/// The maxima of an image's windows, and the index of each.
pub(crate) fn maxima<T: Real>(
    windows: Windows,
    channels: usize,
    x: &[T],
    y: &mut [T],
    argmax: &mut [u8],
) {
    arch().dispatch(
        #[inline(always)]
        || {
            let argmax = argmax.chunks_exact_mut(channels);
            for (window, (y, argmax)) in y.chunks_exact_mut(channels).zip(argmax).enumerate() {
                for (index, pixel) in windows.pixels_of(window).enumerate() {
                    let x = &x[pixel * channels..][..channels];
                    if index == 0 {
                        y.copy_from_slice(x);
                        argmax.fill(0);
                        continue;
                    }
                    for ((maximum, argmax), value) in y.iter_mut().zip(argmax.iter_mut()).zip(x) {
                        // The second condition is true for a NaN alone. No branch, so that it vectorises.
                        #[allow(clippy::eq_op)]
                        let larger = (*value > *maximum) | (*value != *value);
                        *maximum = if larger { *value } else { *maximum };
                        *argmax = if larger { index as u8 } else { *argmax };
                    }
                }
            }
        },
    );
}

/// Adds the gradient of each maximum to its input; the gradient of other inputs is 0.
pub(crate) fn spread<T: Real>(
    windows: Windows,
    channels: usize,
    grad_y: &[T],
    argmax: &[u8],
    grad_x: &mut [T],
) {
    arch().dispatch(
        #[inline(always)]
        || {
            let Pool { kernel, stride } = windows.pool;
            for (pixel, grad_x) in grad_x.chunks_exact_mut(channels).enumerate() {
                let (y, x) = (pixel / windows.width, pixel % windows.width);
                grad_x.fill(T::zero());
                for row in windows.rows_around(y) {
                    for column in windows.columns_around(x) {
                        let index = (y - row * stride) * kernel + x - column * stride;
                        let window = (row * windows.columns() + column) * channels;
                        let grad_y = &grad_y[window..][..channels];
                        let argmax = &argmax[window..][..channels];
                        for ((to, grad), at) in grad_x.iter_mut().zip(grad_y).zip(argmax) {
                            *to += if *at == index as u8 { *grad } else { T::zero() };
                        }
                    }
                }
            }
        },
    );
}
