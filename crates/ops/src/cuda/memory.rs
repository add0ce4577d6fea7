//! Memory of a GPU.

use crate::operation::{Output, tensor};
use candle_core::backend::BackendDevice;
use candle_core::cuda::cudarc::driver::DevicePtr;
use candle_core::cuda::{CudaStorage, CudaStorageSlice};
use candle_core::{CudaDevice, DType, Device, Error, Result, Shape, Storage, Tensor, bail};

/// Elements of a tensor that kernels and libraries can count.
const MOST: usize = i32::MAX as usize;

/// The elements of a contiguous tensor on a GPU. The memory outlives what a kernel does with it, because freeing it is
/// ordered behind the kernel on the same stream. Nothing else accesses it meanwhile, for the same reason.
#[derive(Clone, Copy)]
pub(crate) struct Elements<'a> {
    pub(crate) device: &'a CudaDevice,
    pub(crate) dtype: DType,
    pub(crate) shape: &'a Shape,
    pub(super) address: u64,
}

impl<'a> Elements<'a> {
    /// The elements of a tensor, which must be of the type `dtype`.
    ///
    /// # Errors
    /// When the tensor is not contiguous, has another type or is on another device.
    pub(crate) fn of(operation: &str, tensor: &'a Tensor, dtype: DType) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cuda(storage), Device::Cuda(device)) = (&*storage, tensor.device()) else {
            bail!("{operation}: all tensors must be on the GPU");
        };
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("{operation} needs a contiguous tensor, got {layout:?}");
        };
        if tensor.dtype() != dtype {
            return Err(Error::UnexpectedDType {
                msg: "unexpected dtype",
                expected: dtype,
                got: tensor.dtype(),
            });
        }
        Ok(Self {
            device,
            dtype,
            shape: tensor.shape(),
            address: address(storage)? + (start * dtype.size_in_bytes()) as u64,
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.shape.elem_count()
    }
}

/// The elements of activations, which are `f32` or `bf16`.
///
/// # Errors
/// When they have another type, or the tensor is not contiguous or on another device.
pub(crate) fn activations<'a>(operation: &str, x: &'a Tensor) -> Result<Elements<'a>> {
    match x.dtype() {
        dtype @ (DType::F32 | DType::BF16) => Elements::of(operation, x, dtype),
        other => bail!("{operation} computes in f32 and bf16 on a GPU, not in {other:?}"),
    }
}

/// Where a storage begins.
fn address(storage: &CudaStorage) -> Result<u64> {
    let stream = storage.device.cuda_stream();
    Ok(match &storage.slice {
        CudaStorageSlice::U8(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::U32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F64(slice) => slice.device_ptr(&stream).0,
        _ => bail!("no kernel reads this type"),
    })
}

/// Memory for a result.
pub(crate) struct Buffer {
    storage: CudaStorage,
    shape: Shape,
    dtype: DType,
    address: u64,
}

/// Uninitialised memory.
///
/// # Errors
/// When the tensor has too many elements for the kernels, or the GPU is out of memory.
pub(crate) fn empty(device: &CudaDevice, dtype: DType, shape: impl Into<Shape>) -> Result<Buffer> {
    let shape = shape.into();
    let count = shape.elem_count();
    if count > MOST {
        bail!(
            "a tensor of {count} elements is too large for the GPU's kernels; use a smaller batch"
        );
    }
    // SAFETY: callers have a kernel or a library write all of it before it is read, on the one stream on which
    // everything is ordered.
    let storage = unsafe { device.alloc_uninit(&shape, dtype)? };
    Ok(Buffer {
        address: address(&storage)?,
        storage,
        shape,
        dtype,
    })
}

impl Buffer {
    pub(crate) fn elements(&self) -> Elements<'_> {
        Elements {
            device: &self.storage.device,
            dtype: self.dtype,
            shape: &self.shape,
            address: self.address,
        }
    }

    pub(crate) fn output(self) -> Output {
        (Storage::Cuda(self.storage), self.shape)
    }

    pub(crate) fn tensor(self) -> Tensor {
        tensor(self.output())
    }
}
