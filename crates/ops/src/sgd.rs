//! One step of stochastic gradient descent, in place.

use crate::storage::{Element, contiguous, contiguous_mut, with_float};
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};
pub use kernels::sgd::Sgd;
use std::sync::{Mutex, PoisonError};

/// `slope = gradient_scale gradient + weight_decay parameter`, `buffer = momentum buffer + slope`, then
/// `parameter -= learning_rate buffer`, or with Nesterov's momentum
/// `parameter -= learning_rate (slope + momentum buffer)`, for tensors of one shape. A momentum buffer is zero before the
/// first step. `updates` are a parameter, its momentum buffer and its gradient each.
///
/// # Errors
/// When the shapes differ, a tensor is not contiguous, or they are neither all `f32` nor all `f64`. On a GPU: when
/// parameters and momentum buffers are not `f32`, or a gradient is neither `f32` nor `bf16`.
pub fn sgd_step(sgd: Sgd, updates: &[[&Tensor; 3]]) -> Result<()> {
    for [parameter, buffer, gradient] in updates {
        if parameter.shape() != gradient.shape() || parameter.shape() != buffer.shape() {
            bail!(
                "sgd: a parameter of shape {:?} has a gradient of shape {:?} and a momentum buffer of shape {:?}",
                parameter.shape(),
                gradient.shape(),
                buffer.shape()
            );
        }
    }
    #[cfg(feature = "cuda")]
    if let Some(device) = updates
        .first()
        .and_then(|[parameter, ..]| crate::cuda::gpu(parameter))
    {
        return cuda::step(device, sgd, updates);
    }
    for [parameter, buffer, gradient] in updates {
        let gradient = gradient.contiguous()?;
        parameter.inplace_op2(&gradient, &Step { sgd, buffer })?;
    }
    Ok(())
}

/// The step, with the parameter borrowed mutably.
struct Step<'a> {
    sgd: Sgd,
    buffer: &'a Tensor,
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
            self.buffer.inplace_op1(&Both {
                sgd: self.sgd,
                parameter: Mutex::new(parameter),
                gradient,
            })
        })
    }
}

/// The step, with parameter and momentum buffer both borrowed mutably: candle's operations in place change one tensor,
/// so there are two, one inside the other, and one pass over memory.
struct Both<'a, T> {
    sgd: Sgd,
    parameter: Mutex<&'a mut [T]>,
    gradient: &'a [T],
}

impl<T: Element> InplaceOp1 for Both<'_, T> {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn cpu_fwd(&self, buffer: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let buffer = contiguous_mut::<T>(self.name(), buffer, layout)?;
        let mut parameter = self
            .parameter
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        kernels::sgd::step(self.sgd, &mut parameter, buffer, self.gradient);
        Ok(())
    }
}

/// On a GPU: one kernel for all parameters.
#[cfg(feature = "cuda")]
mod cuda {
    use super::Sgd;
    use crate::cuda::{Program, update};
    use candle_core::{CudaDevice, DType, Result, Tensor};

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
        let factors = [
            (sgd.learning_rate as f32).into(),
            (sgd.momentum as f32).into(),
            (sgd.weight_decay as f32).into(),
            (sgd.gradient_scale as f32).into(),
            u32::from(sgd.nesterov).into(),
        ];
        update(device, program, "sgd", updates, &factors)
    }
}
