//! Stochastic gradient descent with momentum over all parameters of a network.

use crate::recipe::DecayOn;
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var, bail};
use candle_nn::Optimizer;

/// `torch.optim.SGD` with momentum and weight decay: see [`ops::sgd_step`] for the formula.
pub struct Sgd {
    /// Each parameter with its velocity (PyTorch's momentum buffer).
    parameters: Vec<(Var, Tensor)>,
    factors: ops::Sgd,
    decay_on: DecayOn,
    clip_norm: f64,
}

/// What PyTorch adds to a norm before it divides by it.
const CLIP_EPSILON: f64 = 1e-6;

impl Sgd {
    /// Weight decay for these parameters alone.
    #[must_use]
    pub fn with_decay_on(mut self, decay_on: DecayOn) -> Self {
        self.decay_on = decay_on;
        self
    }

    /// Gradients scaled down in each step so that the norm of all of them together is at most `norm`, as
    /// `torch.nn.utils.clip_grad_norm_` does; as they are where `norm` is 0.
    #[must_use]
    pub fn with_clip_norm(mut self, norm: f64) -> Self {
        self.clip_norm = norm;
        self
    }

    /// The velocities, in the order of the parameters.
    pub fn velocities(&self) -> impl Iterator<Item = &Tensor> {
        self.parameters.iter().map(|(_, velocity)| velocity)
    }

    /// Takes over saved velocities, in the order of the parameters.
    ///
    /// # Errors
    /// When their number or a shape is not that of the parameters.
    pub fn with_velocities(mut self, velocities: Vec<Tensor>) -> Result<Self> {
        if velocities.len() != self.parameters.len() {
            bail!(
                "{} velocities do not fit {} parameters",
                velocities.len(),
                self.parameters.len()
            );
        }
        for ((parameter, velocity), saved) in self.parameters.iter_mut().zip(velocities) {
            if saved.shape() != parameter.shape() {
                bail!(
                    "a velocity of shape {:?} does not fit {:?}",
                    saved.shape(),
                    parameter.shape()
                );
            }
            *velocity = saved;
        }
        Ok(self)
    }
}

impl Optimizer for Sgd {
    type Config = ops::Sgd;

    fn new(variables: Vec<Var>, factors: ops::Sgd) -> Result<Self> {
        let parameters = variables
            .into_iter()
            .map(|variable| {
                let velocity = variable.zeros_like()?;
                Ok((variable, velocity))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            parameters,
            factors,
            decay_on: DecayOn::All,
            clip_norm: 0.0,
        })
    }

    fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let updates = self.parameters.iter().filter_map(|(parameter, velocity)| {
            let gradient = gradients.get(parameter)?;
            Some([parameter.as_tensor(), velocity, gradient])
        });
        // Biases are the parameters of one dimension.
        let (decayed, spared): (Vec<_>, Vec<_>) = updates
            .partition(|[parameter, ..]| self.decay_on == DecayOn::All || parameter.rank() > 1);
        let mut factors = self.factors;
        if self.clip_norm > 0.0 {
            let all = decayed.iter().chain(&spared);
            let norm = ops::norm(all.map(|[.., gradient]| *gradient))?;
            factors.gradient_scale = (self.clip_norm / (norm + CLIP_EPSILON)).min(1.0);
        }
        ops::sgd_step(factors, &decayed)?;
        factors.weight_decay = 0.0;
        ops::sgd_step(factors, &spared)
    }

    fn learning_rate(&self) -> f64 {
        self.factors.learning_rate
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.factors.learning_rate = learning_rate;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    /// A weight and a bias after each step of
    /// `torch.optim.SGD([{"params": [p], "weight_decay": 0.01}, {"params": [b], "weight_decay": 0.0}], lr=0.1, momentum=0.9)`
    /// from `p = [[1, -2]]`, `b = [0.5]`, with `torch.nn.utils.clip_grad_norm_([p, b], 1.0)` before it.
    #[test]
    fn clipping_and_decay_on_weights_are_pytorchs() -> Result<()> {
        let device = &Device::Cpu;
        let weight = Var::from_tensor(&Tensor::new(&[[1.0_f64, -2.0]], device)?)?;
        let bias = Var::from_tensor(&Tensor::new(&[0.5_f64], device)?)?;
        let factors = ops::Sgd {
            learning_rate: 0.1,
            momentum: 0.9,
            weight_decay: 0.01,
            ..ops::Sgd::default()
        };
        let mut sgd = Sgd::new(vec![weight.clone(), bias.clone()], factors)?
            .with_decay_on(DecayOn::Weights)
            .with_clip_norm(1.0);
        for (weights, biases, expected) in [
            (
                [0.5_f64, 1.0],
                [2.0_f64],
                [
                    0.977_178_220_500_206_1,
                    -2.041_643_558_999_587_6,
                    0.412_712_882_000_824_5,
                ],
            ),
            (
                [-1.0, 0.25],
                [0.1],
                [
                    1.052_222_257_406_941_8,
                    -2.101_221_322_709_479_4,
                    0.324_498_394_133_861_56,
                ],
            ),
            (
                [0.3, -0.2],
                [-0.5],
                [
                    1.088_709_668_365_596_8,
                    -2.132_740_088_725_673,
                    0.295_105_355_053_594_86,
                ],
            ),
        ] {
            // The loss whose gradients these numbers are.
            let loss = ((weight.as_tensor() * Tensor::new(&[weights], device)?)?.sum_all()?
                + (bias.as_tensor() * Tensor::new(&biases, device)?)?.sum_all()?)?;
            sgd.step(&loss.backward()?)?;
            let found = Tensor::cat(&[&weight.flatten_all()?, bias.as_tensor()], 0)?;
            let found = found.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
            }
        }
        Ok(())
    }
}
