//! Working memory for the libraries.

use super::capture::is_capturing;
use super::per_device::PerDevice;
use candle_core::cuda::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::{CudaDevice, Result};
use std::cell::RefCell;

thread_local! {
    // All calls are ordered on one stream, so they can share it.
    static WORKSPACE: PerDevice<RefCell<Option<CudaSlice<u8>>>> = const { PerDevice::new() };
}

/// Frees the libraries' working memory, which otherwise stays as large as the largest that was needed.
pub fn release_workspace(device: &CudaDevice) {
    let workspace = WORKSPACE.with(|all| all.get(device, || Ok(RefCell::default())));
    drop(workspace.map(|workspace| workspace.take()));
}

/// Runs `work` with the address of at least `bytes` of uninitialised memory.
///
/// # Errors
/// When the GPU is out of memory, or `work` fails.
pub(crate) fn with_workspace<R>(
    device: &CudaDevice,
    bytes: usize,
    work: impl FnOnce(u64) -> Result<R>,
) -> Result<R> {
    if is_capturing() {
        // A graph has its own: the shared one may be replaced by a larger one before the graph is replayed.
        // SAFETY: as below.
        let slice = unsafe { device.alloc::<u8>(bytes.max(1))? };
        return work(slice.device_ptr(&device.cuda_stream()).0);
    }
    let workspace = WORKSPACE.with(|all| all.get(device, || Ok(RefCell::default())))?;
    let mut workspace = workspace.borrow_mut();
    // The old one is freed first.
    let old = workspace.take().filter(|slice| slice.len() >= bytes);
    let slice = match old {
        Some(slice) => slice,
        // SAFETY: the libraries read only what they wrote to it.
        None => unsafe { device.alloc::<u8>(bytes.max(1))? },
    };
    let slice = workspace.insert(slice);
    work(slice.device_ptr(&device.cuda_stream()).0)
}
