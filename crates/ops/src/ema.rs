//! The exponential moving average (EMA) of parameters.

use crate::storage::{in_place, with_dtype};
use candle_core::{Result, Tensor, bail};

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
    if let Some([ema, _]) = pairs.first()
        && let candle_core::Device::Cuda(device) = ema.device()
    {
        // The kernel does not read gradients.
        let updates = pairs
            .iter()
            .map(|[ema, parameter]| [*parameter, *ema, *parameter]);
        let factors = [((1.0 - decay) as f32).into()];
        return crate::cuda::update(device, "ema", &updates.collect::<Vec<_>>(), &factors);
    }
    for [ema, parameter] in pairs {
        with_dtype!("ema", parameter.dtype(), T => {
            in_place::<T>("ema", ema, &parameter.contiguous()?, |ema, parameter| {
                kernels::sgd::ema_step(decay, ema, parameter);
                Ok(())
            })?;
        });
    }
    Ok(())
}
