//! One step of stochastic gradient descent, in place.

use crate::storage::{contiguous, with_float};
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, WithDType, bail};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// The factors of a step, as in `torch.optim.SGD` with dampening 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Step size.
    pub learning_rate: f64,
    /// How much of the last direction is kept.
    pub momentum: f64,
    /// The parameter's share that is added to its gradient.
    pub weight_decay: f64,
    /// Whether the step goes along the gradient and the momentum that it leads to, as Nesterov's does.
    pub nesterov: bool,
    /// What gradients are multiplied by first.
    pub gradient_scale: f64,
}

impl Default for Sgd {
    /// Nothing moves, and gradients are taken as they are.
    fn default() -> Self {
        Self {
            learning_rate: 0.0,
            momentum: 0.0,
            weight_decay: 0.0,
            nesterov: false,
            gradient_scale: 1.0,
        }
    }
}

/// Elements that one task handles.
const PART: usize = 1 << 15;

/// `slope = gradient_scale gradient + weight_decay parameter`, `velocity = momentum velocity + slope`, then
/// `parameter -= learning_rate velocity`, or with Nesterov's momentum
/// `parameter -= learning_rate (slope + momentum velocity)`, for three tensors of one shape. A velocity of zeros is
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
        let scale = T::from_f64(self.sgd.gradient_scale);
        parameter
            .par_chunks_mut(PART)
            .zip(velocity.par_chunks_mut(PART))
            .zip(self.gradient.par_chunks(PART))
            .for_each(|((parameter, velocity), gradient)| {
                let elements = parameter.iter_mut().zip(velocity).zip(gradient);
                if self.sgd.nesterov {
                    for ((p, v), g) in elements {
                        let slope = scale * *g + decay * *p;
                        *v = momentum * *v + slope;
                        *p -= rate * (slope + momentum * *v);
                    }
                } else {
                    for ((p, v), g) in elements {
                        *v = momentum * *v + (scale * *g + decay * *p);
                        *p -= rate * *v;
                    }
                }
            });
        Ok(())
    }
}

/// `average += (1 - decay) (parameter - average)` for pairs of an average and its parameter, in place: what
/// `torch.optim.swa_utils.get_ema_multi_avg_fn(decay)` does at each step.
///
/// # Errors
/// When the shapes differ, a tensor is not contiguous, or they are neither all `f32` nor all `f64`; on a GPU all
/// must be `f32`.
pub fn average_step(decay: f64, pairs: &[[&Tensor; 2]]) -> Result<()> {
    for [average, parameter] in pairs {
        check(average, average, parameter)?;
    }
    #[cfg(feature = "cuda")]
    if let Some(device) = pairs
        .first()
        .and_then(|[average, _]| crate::cuda::gpu(average))
    {
        return cuda::average(device, decay, pairs);
    }
    for [average, parameter] in pairs {
        average.inplace_op2(&parameter.contiguous()?, &Average { decay })?;
    }
    Ok(())
}

struct Average {
    decay: f64,
}

impl InplaceOp2 for Average {
    fn name(&self) -> &'static str {
        "average"
    }

    fn cpu_fwd(
        &self,
        average: &mut CpuStorage,
        average_layout: &Layout,
        parameter: &CpuStorage,
        parameter_layout: &Layout,
    ) -> Result<()> {
        with_float!(self.name(), parameter, T => {
            let parameter = contiguous::<T>(self.name(), parameter, parameter_layout)?;
            let average = contiguous_mut::<T>(self.name(), average, average_layout)?;
            let share = T::from_f64(1.0 - self.decay);
            average
                .par_chunks_mut(PART)
                .zip(parameter.par_chunks(PART))
                .for_each(|(average, parameter)| {
                    for (a, p) in average.iter_mut().zip(parameter) {
                        *a += share * (*p - *a);
                    }
                });
            Ok(())
        })
    }
}

/// The square root of the sum of all squares of all `tensors`, summed in double precision in an order that does
/// not depend on threads. A GPU is waited for.
///
/// # Errors
/// When a tensor is neither `f32` nor `f64`, or, on a GPU, `bf16`.
pub fn norm<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<f64> {
    let sums = tensors.into_iter().map(|tensor| {
        #[cfg(feature = "cuda")]
        if let Some(device) = crate::cuda::gpu(tensor) {
            return cuda::squares(device, tensor);
        }
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else {
            bail!("norm: a tensor lies on a device that is not known");
        };
        with_float!("norm", storage, T => {
            let values = contiguous::<T>("norm", storage, layout)?;
            let parts: Vec<f64> = values
                .par_chunks(PART)
                .map(|part| {
                    let values = part.iter().map(|value| value.to_f64());
                    values.map(|value| value * value).sum()
                })
                .collect();
            Ok(parts.iter().sum::<f64>())
        })
    });
    Ok(sums.sum::<Result<f64>>()?.sqrt())
}

/// On a GPU: one kernel for all parameters.
#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    use super::Sgd;
    use crate::cuda::{Argument, Program, launch, room, slice, with_activations};
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
        let program = if narrow {
            Program::packed::<half::bf16>(1)
        } else {
            Program::packed::<f32>(1)
        };
        for updates in updates.chunks(TENSORS) {
            let (table, chunks) = table(device, updates)?;
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
                    (sgd.gradient_scale as f32).into(),
                    u32::from(sgd.nesterov).into(),
                ],
            )?;
        }
        Ok(())
    }

    pub(super) fn average(device: &CudaDevice, decay: f64, pairs: &[[&Tensor; 2]]) -> Result<()> {
        for pairs in pairs.chunks(TENSORS) {
            // The kernel does not look at gradients.
            let updates: Vec<_> = pairs
                .iter()
                .map(|[average, parameter]| [*parameter, *average, *parameter])
                .collect();
            let (table, chunks) = table(device, &updates)?;
            launch(
                device,
                Program::packed::<f32>(1),
                "average",
                chunks * CREW,
                &[
                    Argument::table(&table),
                    updates.len().into(),
                    chunks.into(),
                    ((1.0 - decay) as f32).into(),
                ],
            )?;
        }
        Ok(())
    }

    /// Threads that sum squares: enough for a GPU, and few sums for the host to add.
    const SUMMING: usize = 1 << 14;

    /// The sum of a tensor's squares.
    pub(super) fn squares(device: &CudaDevice, tensor: &Tensor) -> Result<f64> {
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let count = tensor.elem_count();
        let threads = count.min(SUMMING);
        if threads == 0 {
            return Ok(0.0);
        }
        with_activations!("norm", tensor.dtype(), T => {
            let view = slice::<T>("norm", &storage, layout)?;
            let mut sums = room::<f64>(device, threads)?;
            launch(
                device,
                Program::packed::<T>(1),
                "squares",
                threads,
                &[
                    Argument::read_singly(device, &view),
                    Argument::write(device, &mut sums),
                    count.into(),
                    threads.into(),
                ],
            )?;
            Ok(device.clone_dtoh(&sums)?.iter().sum())
        })
    }

    /// What one launch works on, and in how many chunks.
    fn table(device: &CudaDevice, updates: &[[&Tensor; 3]]) -> Result<(Table, usize)> {
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
                count: u32::try_from(parameter.elem_count()).map_err(candle_core::Error::wrap)?,
                chunks_before: u32::try_from(chunks).map_err(candle_core::Error::wrap)?,
                wide: wide.into(),
                unused: 0,
            };
            chunks += parameter.elem_count().div_ceil(CHUNK);
        }
        Ok((table, chunks))
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
