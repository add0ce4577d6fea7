//! Working memory for the libraries.

use super::per_device::PerDevice;
use candle_core::cuda::cudarc::driver::CudaSlice;
use candle_core::{CudaDevice, Result};
use std::cell::RefCell;

thread_local! {
    // All calls are ordered on one stream, so they can share it.
    static WORKSPACE: PerDevice<RefCell<Option<CudaSlice<u8>>>> = const { PerDevice::new() };
}

/// Runs `work` with at least `bytes` of memory of any content.
///
/// # Errors
/// When there is no memory, or `work` fails.
pub(crate) fn with_workspace<R>(
    device: &CudaDevice,
    bytes: usize,
    work: impl FnOnce(&mut CudaSlice<u8>) -> Result<R>,
) -> Result<R> {
    let workspace = WORKSPACE.with(|all| all.get(device, || Ok(RefCell::new(None))))?;
    let mut workspace = workspace.borrow_mut();
    let fits = workspace.as_ref().is_some_and(|slice| slice.len() >= bytes);
    if !fits {
        // The old one is freed first.
        *workspace = None;
        // SAFETY: the libraries read only what they wrote to it.
        *workspace = Some(unsafe { device.alloc::<u8>(bytes.max(1))? });
    }
    match workspace.as_mut() {
        Some(slice) => work(slice),
        None => candle_core::bail!("there is no workspace"),
    }
}
