//! One step of stochastic gradient descent, in place.

#[cfg(feature = "cuda")]
use crate::norm::Factor;
use crate::norm::GradientScale;
use crate::storage::{in_place, with_dtype};
use candle_core::{Result, Tensor, bail};
pub use kernels::sgd::Sgd;

/// `slope = gradient_scale gradient + weight_decay parameter`, `buffer = momentum buffer + slope`, then
/// `parameter -= learning_rate buffer`, or with Nesterov's momentum
/// `parameter -= learning_rate (slope + momentum buffer)`, for tensors of one shape. A momentum buffer is zero before the
/// first step. `updates` are a parameter, its momentum buffer and its gradient each.
///
/// # Errors
/// When the shapes differ, a tensor is not contiguous, they are neither all `f32` nor all `f64`, or the scale is on another
/// device. On a GPU: when parameters and momentum buffers are not `f32`, or a gradient is neither `f32` nor `bf16`.
pub fn sgd_step(sgd: Sgd, gradient_scale: &GradientScale, updates: &[[&Tensor; 3]]) -> Result<()> {
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
    if updates.is_empty() {
        return Ok(());
    }
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(device) = updates[0][0].device() {
        use crate::cuda::Argument;
        let factors = [sgd.learning_rate, sgd.momentum, sgd.weight_decay];
        let [rate, momentum, decay] = factors.map(|factor| (factor as f32).into());
        let scale = match &gradient_scale.0 {
            Factor::Cuda(scale) => Some(scale.elements()),
            Factor::Host(1.0) => None,
            Factor::Host(_) => bail!("sgd: the gradient scale is not on the GPU"),
        };
        let nesterov = u32::from(sgd.nesterov).into();
        let [scale, values] = [Argument::maybe(scale), Argument::step_values()];
        let factors = [rate, momentum, decay, nesterov, scale, values];
        return crate::cuda::update(device, "sgd", updates, &factors);
    }
    let scale = gradient_scale.on_host()?;
    for [parameter, buffer, gradient] in updates {
        let gradient = &gradient.contiguous()?;
        with_dtype!("sgd", gradient.dtype(), T => {
            // Candle's operations in place change one tensor, so there are two, one inside the other.
            in_place::<T>("sgd", parameter, gradient, |parameter, _| {
                in_place::<T>("sgd", buffer, gradient, |buffer, gradient| {
                    kernels::sgd::step(sgd, scale, parameter, buffer, gradient);
                    Ok(())
                })
            })?;
        });
    }
    Ok(())
}
