//! Stochastic gradient descent with momentum.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var, bail};
use candle_nn::Optimizer;
use ops::GradientScale;

/// `torch.optim.SGD` with momentum and weight decay, after `torch.nn.utils.clip_grad_norm_`: see [`ops::sgd_step`] for
/// the formula.
pub struct Sgd {
    /// Each parameter with its momentum buffer.
    parameters: Vec<(Var, Tensor)>,
    factors: ops::Sgd,
    /// Whether weight decay applies to biases, the parameters of one dimension; it does by default.
    pub(crate) decay_biases: bool,
    /// The largest norm of all gradients together: larger ones are scaled down as by
    /// `torch.nn.utils.clip_grad_norm_`. No clipping at 0, the default.
    pub(crate) clip_grad_norm: f64,
}

impl Sgd {
    /// The momentum buffers, in the order of the parameters.
    pub fn momentum_buffers(&self) -> impl Iterator<Item = &Tensor> {
        self.parameters.iter().map(|(_, buffer)| buffer)
    }

    /// Restores saved momentum buffers, in the order of the parameters.
    ///
    /// # Errors
    /// When their number or a shape is not that of the parameters.
    pub fn with_momentum_buffers(mut self, buffers: Vec<Tensor>) -> Result<Self> {
        let shapes = self
            .parameters
            .iter()
            .map(|(parameter, _)| parameter.shape());
        if !shapes.eq(buffers.iter().map(Tensor::shape)) {
            bail!("the momentum buffers do not have the shapes of the parameters");
        }
        for ((_, buffer), saved) in self.parameters.iter_mut().zip(buffers) {
            *buffer = saved;
        }
        Ok(self)
    }
}

impl Optimizer for Sgd {
    type Config = ops::Sgd;

    fn new(variables: Vec<Var>, factors: ops::Sgd) -> Result<Self> {
        let with_buffer = |variable: Var| Ok((variable.clone(), variable.zeros_like()?));
        Ok(Self {
            parameters: variables
                .into_iter()
                .map(with_buffer)
                .collect::<Result<_>>()?,
            factors,
            decay_biases: true,
            clip_grad_norm: 0.0,
        })
    }

    fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let updates = self.parameters.iter().filter_map(|(parameter, buffer)| {
            let gradient = gradients.get(parameter)?;
            Some([parameter.as_tensor(), buffer, gradient])
        });
        let (decayed, undecayed): (Vec<_>, Vec<_>) =
            updates.partition(|[parameter, ..]| self.decay_biases || parameter.rank() > 1);
        let scale = if self.clip_grad_norm > 0.0 {
            let all = decayed.iter().chain(&undecayed);
            let gradients: Vec<&Tensor> = all.map(|[.., gradient]| *gradient).collect();
            GradientScale::clipping(&gradients, self.clip_grad_norm)?
        } else {
            GradientScale::ONE
        };
        let mut factors = self.factors;
        ops::sgd_step(factors, &scale, &decayed)?;
        factors.weight_decay = 0.0;
        ops::sgd_step(factors, &scale, &undecayed)
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
    fn clipping_and_decay_without_biases_match_pytorch() -> Result<()> {
        let device = &Device::Cpu;
        let weight = Var::from_tensor(&Tensor::new(&[[1.0_f64, -2.0]], device)?)?;
        let bias = Var::from_tensor(&Tensor::new(&[0.5_f64], device)?)?;
        let factors = ops::Sgd {
            learning_rate: 0.1,
            momentum: 0.9,
            weight_decay: 0.01,
            ..ops::Sgd::default()
        };
        let mut sgd = Sgd::new(vec![weight.clone(), bias.clone()], factors)?;
        (sgd.decay_biases, sgd.clip_grad_norm) = (false, 1.0);
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
            // A loss with these gradients.
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

    #[test]
    fn momentum_buffers_of_other_shapes_are_refused() -> Result<()> {
        let device = &Device::Cpu;
        let sgd = || {
            let weight = Var::from_tensor(&Tensor::new(&[1_f32, 2.0], device)?)?;
            Sgd::new(vec![weight], ops::Sgd::default())
        };
        let buffer = Tensor::new(&[3_f32, 4.0], device)?;
        let restored = sgd()?.with_momentum_buffers(vec![buffer.clone()])?;
        assert_eq!(restored.momentum_buffers().count(), 1);
        assert!(sgd()?.with_momentum_buffers(Vec::new()).is_err());
        assert!(
            sgd()?
                .with_momentum_buffers(vec![buffer.narrow(0, 0, 1)?])
                .is_err()
        );
        Ok(())
    }
}
