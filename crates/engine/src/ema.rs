//! The exponential moving average (EMA) of the weights.

use crate::named_tensors::{NamedTensors, copied_weights, named};
use candle_core::{Result, Tensor};
use models::Network;

/// The average that `torch.optim.swa_utils.AveragedModel` keeps with `get_ema_multi_avg_fn(decay)`, updated after every
/// step. It starts with the weights after the first step.
pub(crate) struct Ema {
    decay: f64,
    /// In the order of the parameters; `None` before the first step.
    average: Option<Vec<Tensor>>,
}

impl Ema {
    /// An average that keeps the fraction `decay` of itself in a step; `average` is that of a checkpoint.
    pub(crate) fn new(decay: f64, average: Option<Vec<Tensor>>) -> Self {
        Self { decay, average }
    }

    /// Updates the average with the current weights of `network`.
    pub(crate) fn update(&mut self, network: &Network) -> Result<()> {
        let Some(average) = &self.average else {
            let weights = copied_weights(network)?.into_iter();
            self.average = Some(weights.map(|(_, weight)| weight).collect());
            return Ok(());
        };
        let variables = network.variables().iter();
        let pairs: Vec<[&Tensor; 2]> = average
            .iter()
            .zip(variables)
            .map(|(average, (_, variable))| [average, variable.as_tensor()])
            .collect();
        ops::ema_step(self.decay, &pairs)
    }

    /// Copies of the weights that it and its evaluation will still need memory for.
    pub(crate) fn copies_to_come(&self) -> usize {
        match self.average {
            None => 2,
            Some(_) => 1,
        }
    }

    /// The average under the names of the parameters of `network`.
    pub(crate) fn named(&self, network: &Network) -> Option<NamedTensors> {
        Some(named(network, self.average.as_ref()?))
    }

    /// The architecture of `network` with the average as its weights.
    pub(crate) fn network(&self, network: &Network) -> Result<Option<Network>> {
        let average = self.named(network);
        let network = average.map(|average| Network::new(network.architecture(), average));
        network.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use models::{Architecture, initial_parameters};
    use run::settings::WeightInit;

    /// The first bias of a network.
    fn bias(network: &Network) -> Result<Vec<f32>> {
        network.variables()[1].1.to_vec1()
    }

    #[test]
    fn it_starts_with_the_first_weights_and_follows_them() -> Result<()> {
        let architecture: Architecture = "lenet".parse().unwrap();
        let parameters = initial_parameters(architecture, WeightInit::Pytorch, 0, &Device::Cpu)?;
        let network = Network::new(architecture, parameters)?;
        let first = bias(&network)?;
        let mut ema = Ema::new(0.75, None);
        assert!(ema.network(&network)?.is_none());
        ema.update(&network)?;
        let variable = &network.variables()[1].1;
        variable.set(&(variable.as_tensor() + 1.0)?)?;
        let averaged = |ema: &Ema| -> Result<Vec<f32>> {
            match ema.network(&network)? {
                Some(network) => bias(&network),
                None => candle_core::bail!("there is no average"),
            }
        };
        // A copy: the step did not change it.
        assert_eq!(averaged(&ema)?, first);
        ema.update(&network)?;
        for (found, first) in averaged(&ema)?.iter().zip(&first) {
            assert!((found - (first + 0.25)).abs() < 1e-6, "{found} {first}");
        }
        Ok(())
    }
}
