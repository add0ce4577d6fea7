//! Kernels that go through many tensors in one launch.

use super::memory::{Elements, activations};
use super::program::{Argument, Program, launch};
use super::table::{Entry, TENSORS, Table};
use candle_core::{CudaDevice, DType, Error, Result, Tensor};

/// Elements of a group of threads that updates parameters: `CHUNK` in the kernels' source.
const CHUNK: usize = 2048;
/// Threads of a group: `CREW` in the kernels' source.
pub(crate) const CREW: usize = 256;

/// A parameter with its buffer and gradient; those that a kernel does not use are null.
#[derive(Clone, Copy)]
pub(crate) struct Update<'a> {
    pub(crate) parameter: Option<Elements<'a>>,
    pub(crate) buffer: Option<Elements<'a>>,
    /// Read in its own type, `f32` or `bf16`.
    pub(crate) gradient: Elements<'a>,
}

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
    let updates = updates.iter().map(|[parameter, buffer, gradient]| {
        Ok(Update {
            parameter: Some(Elements::of(name, parameter, DType::F32)?),
            buffer: Some(Elements::of(name, buffer, DType::F32)?),
            gradient: activations(name, gradient)?,
        })
    });
    let updates: Vec<_> = updates.collect::<Result<_>>()?;
    launch_tables(device, name, &updates, CHUNK, |_| factors.to_vec())
}

/// Runs the kernel `name` on `updates`, which a group of threads goes through `chunk` elements at a time. The last arguments of a
/// launch may depend on the number of groups before it.
///
/// # Errors
/// When there are too many elements, or the kernel cannot be started.
pub(crate) fn launch_tables<'a>(
    device: &CudaDevice,
    name: &'static str,
    updates: &[Update<'a>],
    chunk: usize,
    arguments: impl Fn(usize) -> Vec<Argument<'a>>,
) -> Result<()> {
    // The kernel is compiled for one type of gradients beside f32.
    let is_narrow = |update: &Update<'_>| update.gradient.dtype == DType::BF16;
    let is_narrow = updates.iter().any(is_narrow);
    let program = Program::packed(if is_narrow { DType::BF16 } else { DType::F32 }, 1);
    let address = |memory: Option<Elements<'_>>| memory.map_or(0, |memory| memory.address);
    let mut launched = 0;
    for updates in updates.chunks(TENSORS) {
        let mut table = Table([Entry::default(); TENSORS]);
        let mut chunks = 0;
        for (entry, update) in table.0.iter_mut().zip(updates) {
            let count = update.gradient.count();
            *entry = Entry {
                parameter: address(update.parameter),
                buffer: address(update.buffer),
                gradient: update.gradient.address,
                count: u32::try_from(count).map_err(Error::wrap)?,
                chunks_before: u32::try_from(chunks).map_err(Error::wrap)?,
                wide: (update.gradient.dtype == DType::F32).into(),
                unused: 0,
            };
            chunks += count.div_ceil(chunk);
        }
        let given = [Argument::Table(&table), updates.len().into(), chunks.into()];
        let arguments = [&given[..], &arguments(launched)].concat();
        launch(device, program, name, chunks * CREW, &arguments)?;
        launched += chunks;
    }
    Ok(())
}
