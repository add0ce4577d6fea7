//! Average pooling whose windows may overlap. Vectors run along the channels.

use crate::instruction_set::arch;
use crate::parts::par_parts;
use crate::simd::Real;
use crate::windows::{Pool, Windows};
use pulp::{Simd, WithSimd};

/// The averages over the windows of `batch` images `x`, `[batch, rows, columns, channels]`.
///
/// # Panics
/// When `x` has another length.
#[must_use]
pub fn forward<T: Real>(windows: &Windows, (batch, channels): (usize, usize), x: &[T]) -> Vec<T> {
    let image = windows.pixels() * channels;
    assert_eq!(x.len(), batch * image);
    par_parts(batch, windows.count() * channels, |index, y| {
        arch().dispatch(Averages {
            windows: *windows,
            channels,
            x: &x[index * image..][..image],
            y,
        });
    })
}

/// The gradient of the images, from that of the result.
///
/// # Panics
/// When `grad_y` has another length.
#[must_use]
pub fn backward<T: Real>(
    windows: &Windows,
    (batch, channels): (usize, usize),
    grad_y: &[T],
) -> Vec<T> {
    let pooled = windows.count() * channels;
    assert_eq!(grad_y.len(), batch * pooled);
    par_parts(batch, windows.pixels() * channels, |index, grad_x| {
        arch().dispatch(Spread {
            windows: *windows,
            channels,
            grad_y: &grad_y[index * pooled..][..pooled],
            grad_x,
        });
    })
}

/// The averages of the windows of an image.
struct Averages<'a, T> {
    windows: Windows,
    channels: usize,
    /// `[height, width, channels]`
    x: &'a [T],
    /// `[rows, columns, channels]`
    y: &'a mut [T],
}

impl<T: Real> WithSimd for Averages<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (windows, channels) = (self.windows, self.channels);
        let Pool { kernel, stride } = windows.pool;
        let count = T::from_f64((kernel * kernel) as f64);
        for (window, y) in self.y.chunks_exact_mut(channels).enumerate() {
            let top = window / windows.columns() * stride;
            let left = window % windows.columns() * stride;
            y.fill(T::zero());
            for offset in 0..kernel * kernel {
                let pixel = (top + offset / kernel) * windows.width + left + offset % kernel;
                let x = &self.x[pixel * channels..][..channels];
                for (sum, value) in y.iter_mut().zip(x) {
                    *sum += *value;
                }
            }
            for sum in y {
                *sum /= count;
            }
        }
    }
}

/// The gradient of [`Averages`]: every pixel sums up the windows that contain it.
struct Spread<'a, T> {
    windows: Windows,
    channels: usize,
    /// `[rows, columns, channels]`
    grad_y: &'a [T],
    /// `[height, width, channels]`
    grad_x: &'a mut [T],
}

impl<T: Real> WithSimd for Spread<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (windows, channels) = (self.windows, self.channels);
        let count = T::from_f64((windows.pool.kernel * windows.pool.kernel) as f64);
        for (pixel, grad_x) in self.grad_x.chunks_exact_mut(channels).enumerate() {
            grad_x.fill(T::zero());
            for row in windows.rows_around(pixel / windows.width) {
                for column in windows.columns_around(pixel % windows.width) {
                    let window = (row * windows.columns() + column) * channels;
                    let grad_y = &self.grad_y[window..][..channels];
                    for (sum, grad) in grad_x.iter_mut().zip(grad_y) {
                        *sum += *grad;
                    }
                }
            }
            for sum in grad_x {
                *sum /= count;
            }
        }
    }
}
