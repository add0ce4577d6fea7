//! Batches from a data set in GPU memory.

use crate::cuda::{Argument, Elements, Program, empty, launch};
use candle_core::{DType, Result, Tensor, bail};
use std::ops::Range;

/// One image of a batch and its transform: crop, flip and cutout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// The index of the image in the set.
    pub image: u32,
    /// Row of the image at which the crop starts; negative in the padding.
    pub top: i8,
    /// Column of the image at which the crop starts; negative in the padding.
    pub left: i8,
    /// Whether the crop is flipped horizontally.
    pub flipped: bool,
    /// Whether the padding reflects the image; otherwise it is black.
    pub reflected: bool,
    /// The rectangle that cutout sets to 0: top, left, and bottom and right, which are exclusive.
    pub cutout: [u8; 4],
}

impl View {
    /// The layout that the kernel reads.
    fn words(self) -> [u32; 3] {
        let offset = |value: i8| (i32::from(value) + 128) as u32;
        let view = offset(self.top)
            | offset(self.left) << 8
            | u32::from(self.flipped) << 16
            | u32::from(self.reflected) << 17;
        [self.image, view, u32::from_le_bytes(self.cutout)]
    }
}

/// The transforms of many batches on a GPU: words as the kernel reads them, `[count, 3]` of `u32`.
pub struct Views(Tensor);

/// A data set in the memory of a GPU, from which batches are made.
pub struct GpuDataset {
    /// `[count, channels, height, width]` of `u8`.
    images: Tensor,
    /// `[channels, 256]` of `f32`.
    normalised: Tensor,
}

impl GpuDataset {
    /// `images` `[count, channels, height, width]` of `u8`, and `normalised` `[channels, 256]` of `f32`, the normalised
    /// value of each byte by channel; both on one GPU.
    ///
    /// # Errors
    /// When they have other shapes or types, or are not on a GPU.
    pub fn new(images: Tensor, normalised: Tensor) -> Result<Self> {
        let (_, channels, ..) = images.dims4()?;
        let types = (images.dtype(), normalised.dtype());
        if normalised.dims() != [channels, 256]
            || types != (DType::U8, DType::F32)
            || !images.device().is_cuda()
        {
            bail!(
                "images of shape {:?} and normalised values of shape {:?}, of types {types:?}, do not fit",
                images.shape(),
                normalised.shape()
            );
        }
        Ok(Self {
            images: images.contiguous()?,
            normalised: normalised.contiguous()?,
        })
    }

    /// Copies the transforms of many batches to the GPU.
    ///
    /// # Errors
    /// When an image is not in the set, or there is no memory.
    pub fn views(&self, views: &[View]) -> Result<Views> {
        let count = self.images.dim(0)?;
        if let Some(view) = views.iter().find(|view| view.image as usize >= count) {
            bail!("there is no image {} among {count}", view.image);
        }
        let words = views.iter().flat_map(|view| view.words()).collect();
        let shape = (views.len(), 3);
        Tensor::from_vec(words, shape, self.images.device()).map(Views)
    }

    /// The images of `range` of `views`, cropped, flipped, with cutout and normalised by one kernel:
    /// `[range, height, width, channels]` of `dtype`, which is `f32` or `bf16`.
    ///
    /// # Errors
    /// When the range is outside, or there is no memory.
    pub fn batch(&self, views: &Views, range: Range<usize>, dtype: DType) -> Result<Tensor> {
        let (_, channels, height, width) = self.images.dims4()?;
        if !matches!(dtype, DType::F32 | DType::BF16) {
            bail!("views: images are f32 or bf16, not {dtype:?}");
        }
        let views = views.0.narrow(0, range.start, range.len())?;
        let views = Elements::of("views", &views, DType::U32)?;
        let images = Elements::of("views", &self.images, DType::U8)?;
        let normalised = Elements::of("views", &self.normalised, DType::F32)?;
        let y = empty(images.device, dtype, (range.len(), height, width, channels))?;
        let program = Program::packed(dtype, width * channels);
        let packs = program.packs(y.elements().count());
        let memory = [images, views, normalised].map(Argument::singly);
        let sizes = [packs, channels, height, width].map(Into::into);
        let arguments = [&memory[..], &[(&y).into()], &sizes].concat();
        launch(images.device, program, "views", packs, &arguments)?;
        Ok(y.tensor())
    }
}
