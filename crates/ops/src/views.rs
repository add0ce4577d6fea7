//! Batches from a data set in GPU memory.

use crate::cuda::{Argument, Program, launch, room, slice, tensor, upload, with_activations};
use candle_core::cuda::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, DType, Device, Result, Tensor, bail};
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

/// The transforms of many batches, on a GPU.
pub struct Views(CudaSlice<u32>);

/// Images `[count, channels, height, width]` of `u8` on a GPU, and their normalisation.
pub struct Images {
    bytes: Tensor,
    /// `[channels, 256]`.
    numbers: Tensor,
}

impl Images {
    /// `bytes` `[count, channels, height, width]` of `u8`, and `numbers` `[channels, 256]` of `f32`, the normalised
    /// value of each byte by channel; both on one GPU.
    ///
    /// # Errors
    /// When they have other shapes or types, or are not on a GPU.
    pub fn new(bytes: Tensor, numbers: Tensor) -> Result<Self> {
        let (_, channels, ..) = bytes.dims4()?;
        let types = (bytes.dtype(), numbers.dtype());
        if numbers.dims() != [channels, 256]
            || types != (DType::U8, DType::F32)
            || !bytes.device().is_cuda()
        {
            bail!(
                "images of shape {:?} and numbers of shape {:?}, of types {types:?}, do not fit",
                bytes.shape(),
                numbers.shape()
            );
        }
        Ok(Self {
            bytes: bytes.contiguous()?,
            numbers: numbers.contiguous()?,
        })
    }

    /// Copies the transforms of many batches to the GPU.
    ///
    /// # Errors
    /// When an image is not in the set, or there is no memory.
    pub fn views(&self, views: &[View]) -> Result<Views> {
        let count = self.bytes.dim(0)?;
        if let Some(view) = views.iter().find(|view| view.image as usize >= count) {
            bail!("there is no image {} among {count}", view.image);
        }
        let words: Vec<u32> = views.iter().flat_map(|view| view.words()).collect();
        Ok(Views(upload(self.device()?, &words)?))
    }

    /// The images of `range` of `views`, cropped, flipped, with cutout and normalised by one kernel: `[range, height, width, channels]` of `dtype`, which is `f32` or `bf16`.
    ///
    /// # Errors
    /// When the range is outside, or there is no memory.
    pub fn batch(&self, views: &Views, range: Range<usize>, dtype: DType) -> Result<Tensor> {
        let (_, channels, height, width) = self.bytes.dims4()?;
        let device = self.device()?;
        if range.start > range.end || 3 * range.end > views.0.len() {
            bail!("there are {} views, not {range:?}", views.0.len() / 3);
        }
        let words = views.0.slice(3 * range.start..3 * range.end);
        let (bytes, bytes_layout) = self.bytes.storage_and_layout();
        let (numbers, numbers_layout) = self.numbers.storage_and_layout();
        let bytes = slice::<u8>("views", &bytes, bytes_layout)?;
        let numbers = slice::<f32>("views", &numbers, numbers_layout)?;
        with_activations!("views", dtype, T => {
            let length = range.len() * channels * height * width;
            let mut y = room::<T>(device, length)?;
            let program = Program::packed::<T>(width * channels);
            let packs = program.packs(length);
            launch(
                device,
                program,
                "views",
                packs,
                &[
                    Argument::read_singly(device, &bytes),
                    Argument::read_singly(device, &words),
                    Argument::read_singly(device, &numbers),
                    Argument::write(device, &mut y),
                    packs.into(),
                    channels.into(),
                    height.into(),
                    width.into(),
                ],
            )?;
            Ok(tensor(y, (range.len(), height, width, channels), device))
        })
    }

    fn device(&self) -> Result<&CudaDevice> {
        match self.bytes.device() {
            Device::Cuda(device) => Ok(device),
            _ => bail!("the images are not on a GPU"),
        }
    }
}
