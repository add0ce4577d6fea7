//! Initial weights.

use crate::architecture::Architecture;
use candle_core::{Device, Result, Tensor};
use random::{Purpose, Stream, unit};

/// PyTorch's default for convolutions and linear layers: weights and biases uniform in
/// `±1/sqrt(fan_in)` (`nn.Linear.reset_parameters`: Kaiming's uniform bound with `a = sqrt(5)`
/// comes to just that). By name, in the network's order. Each number is a function of the seed,
/// the parameter's place and the element's index.
///
/// # Errors
/// When a tensor cannot be made on the device.
pub fn initial_parameters(
    architecture: Architecture,
    seed: u64,
    device: &Device,
) -> Result<Vec<(String, Tensor)>> {
    let parameters = architecture.parameters().into_iter().zip(0_u32..);
    parameters
        .map(|(parameter, number)| {
            let stream = Stream::new(seed, Purpose::Initialisation, number);
            let bound = 1.0 / (parameter.fan_in as f32).sqrt();
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

    #[test]
    fn weights_fill_pytorchs_range_evenly() -> Result<()> {
        let parameters = initial_parameters(Architecture::SmallAlexNet, 0, &Device::Cpu)?;
        for ((name, tensor), parameter) in parameters
            .iter()
            .zip(Architecture::SmallAlexNet.parameters())
        {
            let values = tensor.flatten_all()?.to_vec1::<f32>()?;
            let bound = 1.0 / (parameter.fan_in as f32).sqrt();
            assert!(values.iter().all(|v| v.abs() <= bound), "{name}");
            if values.len() > 1000 {
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
        Ok(())
    }

    #[test]
    fn the_seed_decides() -> Result<()> {
        let bias = |seed| -> Result<Vec<f32>> {
            initial_parameters(Architecture::SmallAlexNet, seed, &Device::Cpu)?[1]
                .1
                .to_vec1()
        };
        assert_eq!(bias(1)?, bias(1)?);
        assert_ne!(bias(1)?, bias(2)?);
        Ok(())
    }
}
