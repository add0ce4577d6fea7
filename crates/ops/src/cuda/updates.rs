//! Kernels that update all parameters in place.

use super::memory::{Elements, activations};
use super::program::{Argument, Program, launch};
use super::table::{Entry, TENSORS, Table};
use candle_core::{CudaDevice, DType, Error, Result, Tensor};

/// Elements of a group of threads: `CHUNK` in the kernels' source.
const CHUNK: usize = 2048;
/// Threads of a group: `CREW` in the kernels' source.
const CREW: usize = 256;

/// Runs the kernel `name` on `updates`, which are a parameter, its buffer and its gradient each, with the given factors.
///
/// # Errors
/// When a tensor is not contiguous or has a wrong type, or the kernel cannot be started.
pub(crate) fn update(
    device: &CudaDevice,
    name: &'static str,
    updates: &[[&Tensor; 3]],
    factors: &[Argument<'_>],
) -> Result<()> {
    // The kernel is compiled for one type of gradients beside f32.
    let narrow = |[.., gradient]: &[&Tensor; 3]| gradient.dtype() == DType::BF16;
    let narrow = updates.iter().any(narrow);
    let program = Program::packed(if narrow { DType::BF16 } else { DType::F32 }, 1);
    for updates in updates.chunks(TENSORS) {
        let mut table = Table([Entry::default(); TENSORS]);
        let mut chunks = 0;
        for (entry, [parameter, buffer, gradient]) in table.0.iter_mut().zip(updates) {
            let gradient = activations(name, gradient)?;
            let count = parameter.elem_count();
            *entry = Entry {
                parameter: Elements::of(name, parameter, DType::F32)?.address,
                buffer: Elements::of(name, buffer, DType::F32)?.address,
                gradient: gradient.address,
                count: u32::try_from(count).map_err(Error::wrap)?,
                chunks_before: u32::try_from(chunks).map_err(Error::wrap)?,
                wide: (gradient.dtype == DType::F32).into(),
                unused: 0,
            };
            chunks += count.div_ceil(CHUNK);
        }
        let arguments = [Argument::Table(&table), updates.len().into(), chunks.into()];
        let arguments = [&arguments[..], factors].concat();
        launch(device, program, name, chunks * CREW, &arguments)?;
    }
    Ok(())
}
