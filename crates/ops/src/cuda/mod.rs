//! The common parts of the operations on an NVIDIA GPU: memory, our own kernels, and the libraries. Built with the feature
//! `cuda`.
//!
//! All work is put on candle's stream of the device, and operations return before it is done. On one stream, no memory
//! is reused before the work on it is done.

mod capture;
mod cudnn;
mod device;
mod im2col;
mod libraries;
mod memory;
mod per_device;
mod product;
mod program;
mod sum_rows;
mod table;
mod updates;
mod workspace;

pub use capture::{CapturedStep, StepValues};
pub use cudnn::{EngineChoices, choose_engines, engine_choices};
pub(crate) use cudnn::{Pass, Task, convolve};
pub use device::{DeviceError, Memory, Version, capability, is_out_of_memory, memory, name, open};
pub(crate) use im2col::convolve_by_products;
pub use libraries::log_environment;
pub(crate) use memory::{Buffer, Elements, activations, empty};
pub(crate) use product::{Stored, product};
pub(crate) use program::{Argument, GROUP, Program, launch, pack};
pub(crate) use sum_rows::sum_rows;
pub(crate) use updates::{CREW, Update, launch_tables, update};
pub use workspace::release_workspace;

use candle_core::{DType, Result, Tensor};

/// `x` in the type `dtype` of activations: as it is, or converted from `f32`.
///
/// # Errors
/// When `x` is on no GPU, not contiguous, or of another type.
pub(crate) fn to_activations(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    Ok(from_f32(Elements::of("conversion", x, DType::F32)?, dtype)?.tensor())
}

/// `x` in the type `dtype` of activations.
///
/// # Errors
/// When the GPU is out of memory.
pub(crate) fn from_f32(x: Elements<'_>, dtype: DType) -> Result<Buffer> {
    let y = empty(x.device, dtype, x.shape)?;
    narrow(x, y.elements())?;
    Ok(y)
}

/// Writes `x` in `f32` to `y` in its type.
fn narrow(x: Elements<'_>, y: Elements<'_>) -> Result<()> {
    let program = Program::packed(y.dtype, x.count());
    let packs = program.packs(x.count());
    let arguments = [x.into(), y.into(), packs.into()];
    launch(x.device, program, "narrow_all", packs, &arguments)
}
