//! Stochastic gradient descent with momentum over all parameters of a network.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var, bail};
use candle_nn::Optimizer;

/// `torch.optim.SGD` with momentum and weight decay: see [`ops::sgd_step`] for the formula.
pub struct Sgd {
    /// Each parameter with its velocity (PyTorch's momentum buffer).
    parameters: Vec<(Var, Tensor)>,
    factors: ops::Sgd,
}

impl Sgd {
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
        })
    }

    fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let updates: Vec<[&Tensor; 3]> = self
            .parameters
            .iter()
            .filter_map(|(parameter, velocity)| {
                let gradient = gradients.get(parameter)?;
                Some([parameter.as_tensor(), velocity, gradient])
            })
            .collect();
        ops::sgd_step(self.factors, &updates)
    }

    fn learning_rate(&self) -> f64 {
        self.factors.learning_rate
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.factors.learning_rate = learning_rate;
    }
}
