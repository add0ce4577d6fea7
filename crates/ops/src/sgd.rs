//! One step of stochastic gradient descent, in place.

use crate::storage::{contiguous, with_float};
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, WithDType, bail};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// The factors of a step, as in `torch.optim.SGD` with dampening 0 and no Nesterov term.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Step size.
    pub learning_rate: f64,
    /// How much of the last direction is kept.
    pub momentum: f64,
    /// The parameter's share that is added to its gradient.
    pub weight_decay: f64,
}

/// Elements that one task handles.
const PART: usize = 1 << 15;

/// `velocity = momentum velocity + (gradient + weight_decay parameter)`, then
/// `parameter -= learning_rate velocity`, for three tensors of one shape. A velocity of zeros is
/// the state before the first step. `updates` are a parameter, its velocity and its gradient each.
///
/// # Errors
/// When the shapes differ, a tensor is not contiguous, or they are neither all `f32` nor all `f64`. On a
/// GPU: when parameters and velocities are not `f32`, or a gradient is neither `f32` nor `bf16`.
pub fn sgd_step(sgd: Sgd, updates: &[[&Tensor; 3]]) -> Result<()> {
    for [parameter, velocity, gradient] in updates {
        check(parameter, velocity, gradient)?;
    }
    #[cfg(feature = "cuda")]
    if let Some(device) = updates
        .first()
        .and_then(|[parameter, ..]| crate::cuda::gpu(parameter))
    {
        return cuda::step(device, sgd, updates);
    }
    for [parameter, velocity, gradient] in updates {
        let gradient = gradient.contiguous()?;
        parameter.inplace_op2(&gradient, &Step { sgd, velocity })?;
    }
    Ok(())
}

/// # Errors
/// When the shapes differ.
fn check(parameter: &Tensor, velocity: &Tensor, gradient: &Tensor) -> Result<()> {
    if parameter.shape() != gradient.shape() || parameter.shape() != velocity.shape() {
        bail!(
            "sgd: a parameter of shape {:?} has a gradient of shape {:?} and a velocity of shape {:?}",
            parameter.shape(),
            gradient.shape(),
            velocity.shape()
        );
    }
    Ok(())
}

/// The elements of a contiguous tensor, to be changed.
fn contiguous_mut<'a, T: Element>(
    operation: &str,
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<&'a mut [T]> {
    match (layout.contiguous_offsets(), T::slice_mut(storage)) {
        (Some((start, end)), Some(values)) => Ok(&mut values[start..end]),
        _ => bail!("{operation} needs contiguous tensors of one type, got {layout:?}"),
    }
}

/// A type whose storage can be borrowed mutably.
trait Element: WithDType {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Element for f32 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }
}

impl Element for f64 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F64(values) => Some(values),
            _ => None,
        }
    }
}

/// The step, with the parameter borrowed mutably.
struct Step<'a> {
    sgd: Sgd,
    velocity: &'a Tensor,
}

impl InplaceOp2 for Step<'_> {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        parameter_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<()> {
        with_float!(self.name(), gradient, T => {
            let gradient = contiguous::<T>(self.name(), gradient, gradient_layout)?;
            let parameter = contiguous_mut::<T>(self.name(), parameter, parameter_layout)?;
            self.velocity.inplace_op1(&Both {
                sgd: self.sgd,
                parameter: Mutex::new(parameter),
                gradient,
            })
        })
    }
}

/// The step, with parameter and velocity both borrowed mutably: an operation in place changes one tensor,
/// so there are two, one inside the other, and memory is gone through once.
struct Both<'a, T> {
    sgd: Sgd,
    parameter: Mutex<&'a mut [T]>,
    gradient: &'a [T],
}

impl<T: Element> InplaceOp1 for Both<'_, T> {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn cpu_fwd(&self, velocity: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let velocity = contiguous_mut::<T>(self.name(), velocity, layout)?;
        let mut parameter = self
            .parameter
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let momentum = T::from_f64(self.sgd.momentum);
        let decay = T::from_f64(self.sgd.weight_decay);
        let rate = T::from_f64(self.sgd.learning_rate);
        parameter
            .par_chunks_mut(PART)
            .zip(velocity.par_chunks_mut(PART))
            .zip(self.gradient.par_chunks(PART))
            .for_each(|((parameter, velocity), gradient)| {
                for ((p, v), g) in parameter.iter_mut().zip(velocity).zip(gradient) {
                    *v = momentum * *v + (*g + decay * *p);
                    *p -= rate * *v;
                }
            });
        Ok(())
    }
}

/// On a GPU: one kernel for all parameters.
#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    use super::Sgd;
    use crate::cuda::{Argument, Program, launch, slice};
    use candle_core::cuda::CudaDType;
    use candle_core::cuda::cudarc::driver::{DevicePtr, DeviceRepr};
    use candle_core::{CudaDevice, DType, Result, Tensor, bail};

    /// Tensors of one launch: `TENSORS` in the kernels' source.
    const TENSORS: usize = 32;
    /// Elements that one crew of threads handles: `CHUNK` in the kernels' source.
    const CHUNK: usize = 2048;
    /// Threads of a crew: `CREW` in the kernels' source.
    const CREW: usize = 256;

    /// As in the kernels' source.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    pub(crate) struct Entry {
        parameter: u64,
        velocity: u64,
        gradient: u64,
        count: u32,
        chunks_before: u32,
        wide: u32,
        unused: u32,
    }

    /// As in the kernels' source.
    #[repr(C)]
    #[derive(Clone, Copy)]
    pub(crate) struct Table([Entry; TENSORS]);

    // SAFETY: plain numbers in the layout of the kernels' structure.
    unsafe impl DeviceRepr for Table {}

    pub(super) fn step(device: &CudaDevice, sgd: Sgd, updates: &[[&Tensor; 3]]) -> Result<()> {
        // The kernel is compiled for one type of gradients beside f32.
        let narrow = updates
            .iter()
            .any(|[.., gradient]| gradient.dtype() == DType::BF16);
        for updates in updates.chunks(TENSORS) {
            let mut table = Table([Entry::default(); TENSORS]);
            let mut chunks = 0;
            for (entry, [parameter, velocity, gradient]) in table.0.iter_mut().zip(updates) {
                let wide = match gradient.dtype() {
                    DType::F32 => true,
                    DType::BF16 => false,
                    other => bail!("sgd: a gradient is f32 or bf16 on a GPU, not {other:?}"),
                };
                *entry = Entry {
                    parameter: address::<f32>(device, parameter)?,
                    velocity: address::<f32>(device, velocity)?,
                    gradient: if wide {
                        address::<f32>(device, gradient)?
                    } else {
                        address::<half::bf16>(device, gradient)?
                    },
                    count: u32::try_from(parameter.elem_count())
                        .map_err(candle_core::Error::wrap)?,
                    chunks_before: u32::try_from(chunks).map_err(candle_core::Error::wrap)?,
                    wide: wide.into(),
                    unused: 0,
                };
                chunks += parameter.elem_count().div_ceil(CHUNK);
            }
            let program = if narrow {
                Program::packed::<half::bf16>(1)
            } else {
                Program::packed::<f32>(1)
            };
            launch(
                device,
                program,
                "sgd",
                chunks * CREW,
                &[
                    Argument::table(&table),
                    updates.len().into(),
                    chunks.into(),
                    (sgd.learning_rate as f32).into(),
                    (sgd.momentum as f32).into(),
                    (sgd.weight_decay as f32).into(),
                ],
            )?;
        }
        Ok(())
    }

    /// Where a contiguous tensor begins. Its memory outlives the kernel: what gives it back is ordered
    /// behind it, on the same stream. Nobody else looks at a parameter or velocity meanwhile, for the
    /// same reason.
    fn address<T: CudaDType>(device: &CudaDevice, tensor: &Tensor) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        let view = slice::<T>("sgd", &storage, layout)?;
        Ok(view.device_ptr(&device.cuda_stream()).0)
    }
}
