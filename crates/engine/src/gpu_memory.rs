//! What fits into the memory of a GPU. A CPU's is not looked at.

use candle_core::{Device, Error, Result};

/// Whether an error says that a GPU had no memory.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
pub(crate) fn is_out_of_memory(error: &Error) -> bool {
    #[cfg(feature = "cuda")]
    return ops::cuda::is_out_of_memory(error);
    #[cfg(not(feature = "cuda"))]
    false
}

/// Whether `attempt` fits into the memory of `device`, with the libraries' working memory as large as it needs it.
///
/// # Errors
/// Those of `attempt`, apart from a lack of memory.
pub(crate) fn fits(device: &Device, attempt: impl FnOnce() -> Result<()>) -> Result<bool> {
    release_workspace(device);
    match attempt() {
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
