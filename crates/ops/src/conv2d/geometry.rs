//! The sizes of a convolution.

use candle_core::{Result, Shape, bail};

/// The sizes of one convolution and of the pooling behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Geometry {
    pub(crate) batch: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) kernel: usize,
    pub(crate) padding: usize,
}

impl Geometry {
    /// From the shapes of the images and of the weight.
    ///
    /// # Errors
    /// When they do not fit each other.
    pub(crate) fn new(x: &Shape, weight: &Shape, padding: usize) -> Result<Self> {
        let (batch, height, width, in_channels) = x.dims4()?;
        let (out_channels, weight_channels, kernel, kernel_width) = weight.dims4()?;
        if weight_channels != in_channels || kernel != kernel_width {
            bail!("conv2d: an input of shape {x:?} does not fit a weight of shape {weight:?}");
        }
        if kernel == 0 || kernel > height + 2 * padding || kernel > width + 2 * padding {
            bail!(
                "conv2d: a kernel of {kernel} does not fit an input of shape {x:?} with padding {padding}"
            );
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

    pub(crate) fn out_height(&self) -> usize {
        self.height + 2 * self.padding + 1 - self.kernel
    }

    pub(crate) fn out_width(&self) -> usize {
        self.width + 2 * self.padding + 1 - self.kernel
    }

    /// Output positions of an image.
    pub(crate) fn positions(&self) -> usize {
        self.out_height() * self.out_width()
    }

    /// Elements of an input image.
    pub(crate) fn image(&self) -> usize {
        self.height * self.width * self.in_channels
    }

    /// Elements of an output image, before pooling.
    pub(crate) fn out_image(&self) -> usize {
        self.positions() * self.out_channels
    }

    /// Offsets inside the kernel.
    pub(crate) fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Elements of the weight.
    pub(crate) fn weights(&self) -> usize {
        self.taps() * self.in_channels * self.out_channels
    }
}
