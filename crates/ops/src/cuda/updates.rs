//! Kernels that update all parameters in place.

use super::program::{Argument, Program, launch};
use super::table::{CREW, TENSORS, table};
use candle_core::{CudaDevice, Result, Tensor};

/// Runs the kernel `name` on `updates`, which are a parameter, its buffer and its gradient each, with the given factors.
///
/// # Errors
/// When a tensor is not contiguous or has a wrong type, or the kernel cannot be started.
pub(crate) fn update(
    device: &CudaDevice,
    program: Program,
    name: &'static str,
    updates: &[[&Tensor; 3]],
    factors: &[Argument<'_>],
) -> Result<()> {
    for updates in updates.chunks(TENSORS) {
        let (table, chunks) = table(device, updates)?;
        let mut arguments = vec![Argument::table(&table), updates.len().into(), chunks.into()];
        arguments.extend(factors);
        launch(device, program, name, chunks * CREW, &arguments)?;
    }
    Ok(())
}
