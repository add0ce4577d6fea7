//! The windows of a pooling operation.

use crate::shape_error::ShapeError;
use std::ops::Range;

/// Windows of `kernel` by `kernel`, `stride` apart, without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    /// Height and width of a window, 1 to 15.
    pub kernel: usize,
    /// Distance between windows, at least 1.
    pub stride: usize,
}

/// The windows that fit into an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Their size and distance.
    pub pool: Pool,
    /// Height of the image.
    pub height: usize,
    /// Width of the image.
    pub width: usize,
}

impl Windows {
    /// The windows of an image of `height` by `width`.
    ///
    /// # Errors
    /// When no window fits, or the pool's sizes are outside their ranges.
    pub fn new(pool: Pool, height: usize, width: usize) -> Result<Self, ShapeError> {
        let Pool { kernel, stride } = pool;
        if kernel == 0 || kernel > 15 || stride == 0 || kernel > height || kernel > width {
            return Err(ShapeError::Window {
                kernel,
                stride,
                height,
                width,
            });
        }
        Ok(Self {
            pool,
            height,
            width,
        })
    }

    /// Rows of windows: the output's height.
    #[inline]
    #[must_use]
    pub fn rows(&self) -> usize {
        (self.height - self.pool.kernel) / self.pool.stride + 1
    }

    /// Columns of windows: the output's width.
    #[inline]
    #[must_use]
    pub fn columns(&self) -> usize {
        (self.width - self.pool.kernel) / self.pool.stride + 1
    }

    /// The rows of windows that contain the row `at` of the image.
    #[inline]
    pub(crate) fn rows_around(&self, at: usize) -> Range<usize> {
        self.around(at, self.rows())
    }

    /// The columns of windows that contain the column `at` of the image.
    #[inline]
    pub(crate) fn columns_around(&self, at: usize) -> Range<usize> {
        self.around(at, self.columns())
    }

    #[inline]
    fn around(&self, at: usize, count: usize) -> Range<usize> {
        let Pool { kernel, stride } = self.pool;
        let first = (at + 1).saturating_sub(kernel).div_ceil(stride);
        first..(at / stride + 1).min(count)
    }

    /// Windows of an image.
    #[inline]
    #[must_use]
    pub fn count(&self) -> usize {
        self.rows() * self.columns()
    }

    /// Pixels of an image.
    #[inline]
    #[must_use]
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }
}
