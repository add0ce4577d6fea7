//! One step of stochastic gradient descent, in place.

use crate::storage::{in_place, with_dtype};
use candle_core::{Result, Tensor, bail};
pub use kernels::sgd::Sgd;

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
    if let Some([parameter, ..]) = updates.first()
        && let candle_core::Device::Cuda(device) = parameter.device()
    {
        let factors = [
            sgd.learning_rate,
            sgd.momentum,
            sgd.weight_decay,
            sgd.gradient_scale,
        ];
        let [rate, momentum, decay, scale] = factors.map(|factor| (factor as f32).into());
        let nesterov = u32::from(sgd.nesterov).into();
        let factors = [rate, momentum, decay, scale, nesterov];
        return crate::cuda::update(device, "sgd", updates, &factors);
    }
    for [parameter, buffer, gradient] in updates {
        let gradient = &gradient.contiguous()?;
        with_dtype!("sgd", gradient.dtype(), T => {
            // Candle's operations in place change one tensor, so there are two, one inside the other.
            in_place::<T>("sgd", parameter, gradient, |parameter, _| {
                in_place::<T>("sgd", buffer, gradient, |buffer, gradient| {
                    kernels::sgd::step(sgd, parameter, buffer, gradient);
                    Ok(())
                })
            })?;
        });
    }
    Ok(())
}
