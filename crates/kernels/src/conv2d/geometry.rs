//! The sizes of a convolution.

use crate::shape_error::ShapeError;
use crate::windows::{Pool, Windows};

/// The sizes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Images.
    pub batch: usize,
    /// Height of an image.
    pub height: usize,
    /// Width of an image.
    pub width: usize,
    /// Channels of an image.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Height and width of the kernel.
    pub kernel: usize,
    /// Zeros on each side of an image.
    pub padding: usize,
}

impl Geometry {
    /// From the shapes of the images, `[batch, height, width, in_channels]`, and of the weight,
    /// `[out_channels, in_channels, kernel, kernel]`, with `padding` zeros on each side of an image.
    ///
    /// # Errors
    /// When they do not fit each other.
    pub fn new(x: [usize; 4], weight: [usize; 4], padding: usize) -> Result<Self, ShapeError> {
        let [batch, height, width, in_channels] = x;
        let [out_channels, weight_channels, kernel, kernel_width] = weight;
        if weight_channels != in_channels || kernel != kernel_width {
            return Err(ShapeError::Weight { x, weight });
        }
        if kernel == 0 || kernel > height + 2 * padding || kernel > width + 2 * padding {
            return Err(ShapeError::Kernel { kernel, x, padding });
        }
        Ok(Self {
            batch,
            height,
            width,
            in_channels,
            out_channels,
            kernel,
            padding,
        })
    }

    /// The windows of a pooling behind the convolution.
    ///
    /// # Errors
    /// When none fits.
    pub fn windows(&self, pool: Option<Pool>) -> Result<Option<Windows>, ShapeError> {
        pool.map(|pool| Windows::new(pool, self.out_height(), self.out_width()))
            .transpose()
    }

    /// Height of the output, before pooling.
    #[inline]
    #[must_use]
    pub fn out_height(&self) -> usize {
        self.height + 2 * self.padding + 1 - self.kernel
    }

    /// Width of the output, before pooling.
    #[inline]
    #[must_use]
    pub fn out_width(&self) -> usize {
        self.width + 2 * self.padding + 1 - self.kernel
    }

    /// Output positions of an image.
    #[inline]
    #[must_use]
    pub fn positions(&self) -> usize {
        self.out_height() * self.out_width()
    }

    /// Elements of an input image.
    #[inline]
    #[must_use]
    pub fn image(&self) -> usize {
        self.height * self.width * self.in_channels
    }

    /// Elements of an output image, before pooling.
    #[inline]
    #[must_use]
    pub fn out_image(&self) -> usize {
        self.positions() * self.out_channels
    }

    /// Offsets inside the kernel.
    #[inline]
    #[must_use]
    pub fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Elements of the weight.
    #[inline]
    #[must_use]
    pub fn weights(&self) -> usize {
        self.taps() * self.in_channels * self.out_channels
    }
}
