//! The common parts of the operations on an NVIDIA GPU: views of candle's storage, our own kernels, and the libraries.
//! Built with the feature `cuda`.
//!
//! All work is put on candle's stream of the device, and operations return before it is done. On one stream, no memory
//! is reused before the work on it is done.

mod device;
mod graph;
mod per_device;
mod product;
mod program;
mod sum_rows;
mod table;
mod updates;
mod workspace;

pub use device::{DeviceError, Memory, is_out_of_memory, memory, name, open};
pub(crate) use graph::{Cudnn, Pass, Task, cudnn};
pub(crate) use product::{Product, Stored, product};
pub(crate) use program::{Argument, Program, launch};
pub(crate) use sum_rows::sum_rows;
pub(crate) use updates::update;
pub(crate) use workspace::with_workspace;

use candle_core::cuda::cudarc::cublaslt::sys::cudaDataType;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use candle_core::cuda::{CudaDType, CudaStorage};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};

/// Elements of a tensor that kernels and libraries can count.
const MOST: usize = i32::MAX as usize;

/// A type of activations.
pub(crate) trait Activations: CudaDType + DeviceRepr + Copy + 'static {
    /// Its name in CUDA's matrix products.
    const CUDA_TYPE: cudaDataType;
    const DTYPE: DType;
    /// Elements of 16 bytes.
    const PACK: usize;
}

impl Activations for f32 {
    const CUDA_TYPE: cudaDataType = cudaDataType::CUDA_R_32F;
    const DTYPE: DType = DType::F32;
    const PACK: usize = 4;
}

impl Activations for half::bf16 {
    const CUDA_TYPE: cudaDataType = cudaDataType::CUDA_R_16BF;
    const DTYPE: DType = DType::BF16;
    const PACK: usize = 8;
}

/// Runs `$body` with `$t` as the type of activations `$dtype`.
macro_rules! with_activations {
    ($operation:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            other => candle_core::bail!(
                "{} computes in f32 and bf16 on a GPU, not in {other:?}",
                $operation
            ),
        }
    };
}
pub(crate) use with_activations;

/// The GPU of a tensor; `None` if it is on another device.
pub(crate) fn gpu(tensor: &Tensor) -> Option<&CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Some(device),
        _ => None,
    }
}

/// The elements of a contiguous tensor on a GPU.
///
/// # Errors
/// When the tensor is not contiguous, has another type or is on another device.
pub(crate) fn slice<'a, T: CudaDType>(
    operation: &str,
    storage: &'a Storage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    match storage {
        Storage::Cuda(storage) => contiguous(operation, storage, layout),
        _ => bail!("{operation}: all tensors must be on the GPU"),
    }
}

/// The elements of a contiguous tensor.
///
/// # Errors
/// When the tensor is not contiguous or has another type.
pub(crate) fn contiguous<'a, T: CudaDType>(
    operation: &str,
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{operation} needs a contiguous tensor, got {layout:?}");
    };
    Ok(storage.as_cuda_slice::<T>()?.slice(start..end))
}

/// Memory for `count` elements, of any content.
///
/// # Errors
/// When they are too many for the kernels, or there is no memory.
pub(crate) fn room<T: DeviceRepr>(device: &CudaDevice, count: usize) -> Result<CudaSlice<T>> {
    if count > MOST {
        bail!(
            "a tensor of {count} elements is too large for the GPU's kernels; use a smaller batch"
        );
    }
    // SAFETY: callers have a kernel or a library write all of it before it is read, on the one stream on which
    // everything is ordered.
    unsafe { device.alloc::<T>(count) }
}

/// A tensor of computed values.
pub(crate) fn tensor<T: CudaDType>(
    slice: CudaSlice<T>,
    shape: impl Into<Shape>,
    device: &CudaDevice,
) -> Tensor {
    let storage = CudaStorage::wrap_cuda_slice(slice, device.clone());
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// Values from the host.
pub(crate) fn upload<T: DeviceRepr + 'static>(
    device: &CudaDevice,
    values: &[T],
) -> Result<CudaSlice<T>> {
    device.clone_htod(values)
}

/// `x` in the element type `T` of activations: as it is, or converted from `f32`.
///
/// # Errors
/// When `x` is on no GPU, not contiguous, or of another type.
pub(crate) fn to_activations<T: Activations>(x: &Tensor) -> Result<Tensor> {
    if x.dtype() == T::DTYPE {
        return Ok(x.clone());
    }
    let Some(device) = gpu(x) else {
        bail!("the type of activations is converted on a GPU");
    };
    let (storage, layout) = x.storage_and_layout();
    let y = from_f32::<T>(device, &slice::<f32>("conversion", &storage, layout)?)?;
    Ok(tensor(y, x.shape(), device))
}

/// `x` in the element type `T` of activations.
///
/// # Errors
/// When there is no memory.
pub(crate) fn from_f32<T: Activations>(
    device: &CudaDevice,
    x: &CudaView<'_, f32>,
) -> Result<CudaSlice<T>> {
    let count = x.len();
    let mut y = room::<T>(device, count)?;
    let program = Program::packed::<T>(count);
    let packs = program.packs(count);
    launch(
        device,
        program,
        "narrow_all",
        packs,
        &[
            Argument::read(device, x),
            Argument::write(device, &mut y),
            packs.into(),
        ],
    )?;
    Ok(y)
}
