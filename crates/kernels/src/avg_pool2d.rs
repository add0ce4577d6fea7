//! Average pooling whose windows may overlap. Vectors run along the channels.

use crate::instruction_set::arch;
use crate::parts::par_parts;
use crate::simd::Real;
use crate::windows::Windows;

/// The averages over the windows of `batch` images `x`, `[batch, rows, columns, channels]`.
///
/// # Panics
/// When `x` has another length.
#[must_use]
pub fn forward<T: Real>(windows: &Windows, (batch, channels): (usize, usize), x: &[T]) -> Vec<T> {
    let image = windows.pixels() * channels;
    assert_eq!(x.len(), batch * image);
    par_parts(batch, windows.count() * channels, |index, y| {
        averages(*windows, channels, &x[index * image..][..image], y);
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
        spread(
            *windows,
            channels,
            &grad_y[index * pooled..][..pooled],
            grad_x,
        );
    })
}

/// The averages `y` `[rows, columns, channels]` of the windows of an image `x` `[height, width, channels]`.
fn averages<T: Real>(windows: Windows, channels: usize, x: &[T], y: &mut [T]) {
    arch().dispatch(
        #[inline(always)]
        || {
            let count = T::from_f64((windows.pool.kernel * windows.pool.kernel) as f64);
            for (window, y) in y.chunks_exact_mut(channels).enumerate() {
                y.fill(T::zero());
                for pixel in windows.pixels_of(window) {
                    for (sum, value) in y.iter_mut().zip(&x[pixel * channels..][..channels]) {
                        *sum += *value;
                    }
                }
                for sum in y {
                    *sum /= count;
                }
            }
        },
    );
}

/// The gradient of [`averages`]: every pixel sums up the windows that contain it.
fn spread<T: Real>(windows: Windows, channels: usize, grad_y: &[T], grad_x: &mut [T]) {
    arch().dispatch(
        #[inline(always)]
        || {
            let count = T::from_f64((windows.pool.kernel * windows.pool.kernel) as f64);
            for (pixel, grad_x) in grad_x.chunks_exact_mut(channels).enumerate() {
                grad_x.fill(T::zero());
                for row in windows.rows_around(pixel / windows.width) {
                    for column in windows.columns_around(pixel % windows.width) {
                        let window = (row * windows.columns() + column) * channels;
                        let grad_y = &grad_y[window..][..channels];
                        for (sum, grad) in grad_x.iter_mut().zip(grad_y) {
                            *sum += *grad;
                        }
                    }
                }
                for sum in grad_x {
                    *sum /= count;
                }
            }
        },
    );
}
