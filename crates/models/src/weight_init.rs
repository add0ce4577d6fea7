//! Weight initialisation.

use crate::architecture::Architecture;
use candle_core::{Device, Result, Tensor};
use rng::{Purpose, Stream, unit};
use run::settings::WeightInit;

/// The bound of the uniform distribution of a parameter's elements. PyTorch's default is that of `reset_parameters` of
/// `nn.Linear` (`kaiming_uniform_` with `a = sqrt(5)`). Kaiming's is `nn.init.kaiming_uniform_` with
/// `nonlinearity="relu"`, which keeps the variance of activations through ReLU, and with `nonlinearity="linear"` for the
/// last layer, which has no ReLU.
fn bound(weight_init: WeightInit, fan_in: usize, is_bias: bool, is_last: bool) -> f32 {
    let fan_in = fan_in as f32;
    match (weight_init, is_bias) {
        (WeightInit::Pytorch, _) => 1.0 / fan_in.sqrt(),
        (WeightInit::Kaiming, true) => 0.0,
        (WeightInit::Kaiming, false) if is_last => (3.0 / fan_in).sqrt(),
        (WeightInit::Kaiming, false) => (6.0 / fan_in).sqrt(),
    }
}

/// Initial weights by name, in the network's order. Each element is a function of the seed, the parameter's index and
/// the element's index.
///
/// # Errors
/// When a tensor cannot be made on the device.
pub fn initial_parameters(
    architecture: Architecture,
    weight_init: WeightInit,
    seed: u64,
    device: &Device,
) -> Result<Vec<(String, Tensor)>> {
    initial_parameters_from(0, architecture, weight_init, seed, device)
}

/// Weight and bias of the last layer, as in [`initial_parameters`].
///
/// # Errors
/// When a tensor cannot be made on the device.
pub fn initial_last_layer(
    architecture: Architecture,
    weight_init: WeightInit,
    seed: u64,
    device: &Device,
) -> Result<Vec<(String, Tensor)>> {
    let last = architecture.parameters().len().saturating_sub(2);
    initial_parameters_from(last, architecture, weight_init, seed, device)
}

fn initial_parameters_from(
    first: usize,
    architecture: Architecture,
    weight_init: WeightInit,
    seed: u64,
    device: &Device,
) -> Result<Vec<(String, Tensor)>> {
    let parameters = architecture.parameters();
    let last = parameters.len().saturating_sub(2);
    let parameters = parameters.into_iter().zip(0_u32..).skip(first);
    parameters
        .map(|(parameter, index)| {
            let stream = Stream::new(seed, Purpose::Initialisation, index);
            let is_bias = parameter.shape.len() == 1;
            let bound = bound(
                weight_init,
                parameter.fan_in,
                is_bias,
                index as usize >= last,
            );
            let count = parameter.shape.iter().product::<usize>();
            let values: Vec<f32> = (0..count.div_ceil(4) as u64)
                .flat_map(|block| stream.words(block))
                .take(count)
                .map(|word| (2.0 * unit(word) - 1.0) * bound)
                .collect();
            let tensor = Tensor::from_vec(values, parameter.shape, device)?;
            Ok((parameter.name, tensor))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bounds of PyTorch 2.15 for a weight with `fan_in` 64:
    /// `w = torch.empty(9000, 64); nn.init.kaiming_uniform_(w, nonlinearity="relu"); w.abs().max()` is 0.3062,
    /// with `nonlinearity="linear"` 0.2165, and `nn.Linear(64, 9000).weight.abs().max()` 0.1250.
    #[test]
    fn bounds_match_pytorch() {
        for (bound, expected) in [
            (bound(WeightInit::Kaiming, 64, false, false), 0.3062),
            (bound(WeightInit::Kaiming, 64, false, true), 0.2165),
            (bound(WeightInit::Pytorch, 64, false, false), 0.1250),
            (bound(WeightInit::Pytorch, 64, true, true), 0.1250),
        ] {
            assert!((bound - expected).abs() < 1e-4, "{bound}, not {expected}");
        }
        assert_eq!(bound(WeightInit::Kaiming, 64, true, false), 0.0);
    }

    #[test]
    fn weights_are_uniform_within_the_bound() -> Result<()> {
        for weight_init in [WeightInit::Pytorch, WeightInit::Kaiming] {
            let architecture: Architecture = "small-alexnet".parse().unwrap();
            let parameters = initial_parameters(architecture, weight_init, 0, &Device::Cpu)?;
            for ((name, tensor), parameter) in parameters.iter().zip(architecture.parameters()) {
                let values = tensor.flatten_all()?.to_vec1::<f32>()?;
                let is_last = name.starts_with("fc_layer1.6");
                let bound = bound(
                    weight_init,
                    parameter.fan_in,
                    name.ends_with(".bias"),
                    is_last,
                );
                assert!(values.iter().all(|v| v.abs() <= bound), "{name}");
                if values.len() > 1000 && bound > 0.0 {
                    let n = values.len() as f64;
                    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
                    let square = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n;
                    let deviation = f64::from(bound) / 3_f64.sqrt();
                    // Five standard errors of a uniform distribution's mean and variance.
                    assert!(mean.abs() < 5.0 * deviation / n.sqrt(), "{name}: {mean}");
                    let ratio = square / deviation.powi(2);
                    assert!(
                        (ratio - 1.0).abs() < 5.0 * 0.9 / n.sqrt(),
                        "{name}: {ratio}"
                    );
                }
            }
        }
        Ok(())
    }

    #[test]
    fn the_last_layer_is_that_of_a_whole_network() -> Result<()> {
        let architecture: Architecture = "lenet".parse().unwrap();
        let (init, device) = (WeightInit::Kaiming, &Device::Cpu);
        let last = initial_last_layer(architecture, init, 3, device)?;
        let whole = initial_parameters(architecture, init, 3, device)?;
        assert_eq!(last.len(), 2);
        for ((name, tensor), (expected_name, expected)) in last.iter().zip(&whole[8..]) {
            assert_eq!(name, expected_name);
            let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
            assert_eq!(values(tensor)?, values(expected)?);
        }
        Ok(())
    }

    #[test]
    fn weights_depend_on_the_seed() -> Result<()> {
        let bias = |seed| -> Result<Vec<f32>> {
            let architecture = "small-alexnet".parse().unwrap();
            initial_parameters(architecture, WeightInit::Pytorch, seed, &Device::Cpu)?[1]
                .1
                .to_vec1()
        };
        assert_eq!(bias(1)?, bias(1)?);
        assert_ne!(bias(1)?, bias(2)?);
        Ok(())
    }
}
