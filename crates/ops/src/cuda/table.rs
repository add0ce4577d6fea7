//! The tensors of an update, as kernels that update all parameters take them.

use super::slice;
use candle_core::cuda::CudaDType;
use candle_core::cuda::cudarc::driver::{DevicePtr, DeviceRepr};
use candle_core::{CudaDevice, DType, Error, Result, Tensor, bail};

/// Tensors of one launch: `TENSORS` in the kernels' source.
pub(super) const TENSORS: usize = 32;
/// Elements of a group of threads: `CHUNK` in the kernels' source.
const CHUNK: usize = 2048;
/// Threads of a group: `CREW` in the kernels' source.
pub(super) const CREW: usize = 256;

/// One parameter: `entry` in the kernels' source.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Entry {
    parameter: u64,
    buffer: u64,
    gradient: u64,
    count: u32,
    chunks_before: u32,
    wide: u32,
    unused: u32,
}

/// The tensors of one launch: `tensors` in the kernels' source.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Table([Entry; TENSORS]);

// SAFETY: integers in the layout of the kernels' structure.
unsafe impl DeviceRepr for Table {}

/// The table of at most [`TENSORS`] updates (a parameter, its buffer and its gradient each), and its chunks.
pub(super) fn table(device: &CudaDevice, updates: &[[&Tensor; 3]]) -> Result<(Table, usize)> {
    let mut table = Table([Entry::default(); TENSORS]);
    let mut chunks = 0;
    for (entry, [parameter, buffer, gradient]) in table.0.iter_mut().zip(updates) {
        let wide = match gradient.dtype() {
            DType::F32 => true,
            DType::BF16 => false,
            other => bail!("sgd: a gradient is f32 or bf16 on a GPU, not {other:?}"),
        };
        *entry = Entry {
            parameter: address::<f32>(device, parameter)?,
            buffer: address::<f32>(device, buffer)?,
            gradient: if wide {
                address::<f32>(device, gradient)?
            } else {
                address::<half::bf16>(device, gradient)?
            },
            count: u32::try_from(parameter.elem_count()).map_err(Error::wrap)?,
            chunks_before: u32::try_from(chunks).map_err(Error::wrap)?,
            wide: wide.into(),
            unused: 0,
        };
        chunks += parameter.elem_count().div_ceil(CHUNK);
    }
    Ok((table, chunks))
}

/// The address of a contiguous tensor. Its memory outlives the kernel, because freeing it is ordered behind the kernel on
/// the same stream. Nothing else accesses a parameter or buffer meanwhile, for the same reason.
fn address<T: CudaDType>(device: &CudaDevice, tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let view = slice::<T>("sgd", &storage, layout)?;
    Ok(view.device_ptr(&device.cuda_stream()).0)
}
