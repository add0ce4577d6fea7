//! What fits into the memory of a GPU, by trial on arbitrary values. A CPU's is not looked at.

use candle_core::{DType, Device, Error, Result, Shape, Tensor};

/// Whether an error says that a GPU had no memory.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub(crate) fn is_out_of_memory(error: &Error) -> bool {
    #[cfg(feature = "cuda")]
    return ops::cuda::is_out_of_memory(error);
    #[cfg(not(feature = "cuda"))]
    false
}

/// Values between -1 and 1 with many different bits: on zeros a GPU is faster than in training.
///
/// # Errors
/// When the GPU is out of memory.
pub(crate) fn arbitrary_values(
    shape: impl Into<Shape>,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let shape = shape.into();
    let values = (0..shape.elem_count() as u32).map(|index| {
        // Knuth's multiplicative hash.
        index.wrapping_mul(2_654_435_761) as i32 as f32 / (1_u32 << 31) as f32
    });
    let values = Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu)?;
    values.to_dtype(dtype)?.to_device(device)
}

/// Whether `attempt` fits into the memory of `device`: a second time as well, when the libraries' working memory is as large as
/// its last part needs it.
///
/// # Errors
/// Those of `attempt`, apart from a lack of memory.
pub(crate) fn fits(device: &Device, attempt: impl Fn() -> Result<()>) -> Result<bool> {
    release_workspace(device);
    match attempt().and_then(|()| attempt()) {
        Err(error) if is_out_of_memory(&error) => Ok(false),
        attempted => attempted.map(|()| true),
    }
}

/// Gives back the libraries' working memory.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub(crate) fn release_workspace(device: &Device) {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(gpu) = device {
        ops::cuda::release_workspace(gpu);
    }
}

/// Free bytes of a GPU's memory; 0 for a CPU.
///
/// # Errors
/// When the driver fails.
pub(crate) fn free(device: &Device) -> Result<usize> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => Ok(ops::cuda::memory(gpu)?.free),
        _ => Ok(0),
    }
}
