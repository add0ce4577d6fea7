//! The exponential moving average (EMA) of parameters.

use crate::storage::{contiguous, contiguous_mut, with_float};
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};

/// `ema += (1 - decay) (parameter - ema)` for pairs of an EMA and its parameter, in place: what
/// `torch.optim.swa_utils.get_ema_multi_avg_fn(decay)` does in each step.
///
/// # Errors
/// When the shapes differ, a tensor is not contiguous, or they are neither all `f32` nor all `f64`; on a GPU all must be
/// `f32`.
pub fn ema_step(decay: f64, pairs: &[[&Tensor; 2]]) -> Result<()> {
    for [ema, parameter] in pairs {
        if ema.shape() != parameter.shape() {
            bail!(
                "ema: a parameter of shape {:?} has an EMA of shape {:?}",
                parameter.shape(),
                ema.shape()
            );
        }
    }
    #[cfg(feature = "cuda")]
    if let Some(device) = pairs.first().and_then(|[ema, _]| crate::cuda::gpu(ema)) {
        return cuda::step(device, decay, pairs);
    }
    for [ema, parameter] in pairs {
        ema.inplace_op2(&parameter.contiguous()?, &Step { decay })?;
    }
    Ok(())
}

struct Step {
    decay: f64,
}

impl InplaceOp2 for Step {
    fn name(&self) -> &'static str {
        "ema"
    }

    fn cpu_fwd(
        &self,
        ema: &mut CpuStorage,
        ema_layout: &Layout,
        parameter: &CpuStorage,
        parameter_layout: &Layout,
    ) -> Result<()> {
        with_float!(self.name(), parameter, T => {
            let parameter = contiguous::<T>(self.name(), parameter, parameter_layout)?;
            let ema = contiguous_mut::<T>(self.name(), ema, ema_layout)?;
            kernels::sgd::ema_step(self.decay, ema, parameter);
            Ok(())
        })
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use crate::cuda::{Program, update};
    use candle_core::{CudaDevice, Result, Tensor};

    pub(super) fn step(device: &CudaDevice, decay: f64, pairs: &[[&Tensor; 2]]) -> Result<()> {
        // The kernel does not read gradients.
        let updates: Vec<_> = pairs
            .iter()
            .map(|[ema, parameter]| [*parameter, *ema, *parameter])
            .collect();
        let factors = [((1.0 - decay) as f32).into()];
        update(device, Program::packed::<f32>(1), "ema", &updates, &factors)
    }
}
