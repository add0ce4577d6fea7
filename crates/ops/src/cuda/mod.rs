//! What the operations share on an NVIDIA GPU: views of candle's storage, kernels of our own, and the
//! libraries' handles. Built with the feature `cuda`.
//!
//! Everything is put on candle's stream of the device and nothing waits for it: an operation returns before
//! it is computed. One stream also means that no memory is reused before the work on it is done.

mod device;
mod graph;
mod libraries;
mod product;
mod program;

pub use device::{DeviceError, Memory, is_out_of_memory, memory, name, open};
pub(crate) use graph::{Pass, Plan, Target, Task};
pub(crate) use libraries::{Libraries, libraries};
pub(crate) use product::{Product, Stored, product};
pub(crate) use program::{Argument, GROUP, Program, launch};

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

/// Runs `$body` with `$t` standing for the type of activations `$dtype`.
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

/// The GPU of a tensor; `None` where it lies elsewhere.
pub(crate) fn gpu(tensor: &Tensor) -> Option<&CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Some(device),
        _ => None,
    }
}

/// The elements of a contiguous tensor on a GPU.
///
/// # Errors
/// When the tensor is not contiguous, has another type or lies on another device.
pub(crate) fn slice<'a, T: CudaDType>(
    operation: &str,
    storage: &'a Storage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    match storage {
        Storage::Cuda(storage) => contiguous(operation, storage, layout),
        _ => bail!("{operation}: all tensors must lie on the GPU"),
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

/// Room for `count` elements, of any content.
///
/// # Errors
/// When they are too many for the kernels, or there is no memory.
pub(crate) fn room<T: DeviceRepr>(device: &CudaDevice, count: usize) -> Result<CudaSlice<T>> {
    if count > MOST {
        bail!(
            "a tensor of {count} elements is too large for the GPU's kernels; use a smaller batch"
        );
    }
    // SAFETY: whoever asks for it has a kernel or a library write all of it before it is read, on the one
    // stream on which everything is ordered.
    unsafe { device.alloc::<T>(count) }
}

/// A tensor of what was computed.
pub(crate) fn tensor<T: CudaDType>(
    slice: CudaSlice<T>,
    shape: impl Into<Shape>,
    device: &CudaDevice,
) -> Tensor {
    let storage = CudaStorage::wrap_cuda_slice(slice, device.clone());
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// A one-dimensional tensor of numbers from the host.
pub(crate) fn upload<T: DeviceRepr + 'static>(
    device: &CudaDevice,
    values: &[T],
) -> Result<CudaSlice<T>> {
    device.clone_htod(values)
}

/// All numbers of `x`, `[..]` of `f32`, in the type of activations; as they are where that is `f32`.
///
/// # Errors
/// When `x` is not a contiguous tensor of `f32` on a GPU.
pub(crate) fn narrowed<T: Activations>(x: &Tensor) -> Result<Tensor> {
    if T::DTYPE == DType::F32 {
        return Ok(x.clone());
    }
    let Device::Cuda(device) = x.device() else {
        bail!("narrowing is done on a GPU");
    };
    let count = x.elem_count();
    let mut y = room::<T>(device, count)?;
    {
        let (storage, layout) = x.storage_and_layout();
        let x = slice::<f32>("narrowing", &storage, layout)?;
        let program = Program::packed::<T>(count);
        let packs = program.packs(count);
        launch(
            device,
            program,
            "narrow_all",
            packs,
            &[
                Argument::read(device, &x),
                Argument::write(device, &mut y),
                packs.into(),
            ],
        )?;
    }
    Ok(tensor(y, x.shape(), device))
}
