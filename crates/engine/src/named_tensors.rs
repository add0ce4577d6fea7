//! Tensors by the names of a network's parameters.

use candle_core::{Device, Result, Tensor};
use models::Network;
use sha2::{Digest, Sha256};

/// Tensors with the names of a network's parameters, in the order of PyTorch's `state_dict`.
pub(crate) type NamedTensors = Vec<(String, Tensor)>;

/// The weights of a network. They share its memory, so that later steps change them.
pub(crate) fn weights(network: &Network) -> NamedTensors {
    let variables = network.variables().iter();
    variables
        .map(|(name, variable)| (name.clone(), variable.as_detached_tensor()))
        .collect()
}

/// A copy of the weights of a network.
pub(crate) fn copied_weights(network: &Network) -> Result<NamedTensors> {
    map(weights(network), |weight| weight.copy())
}

fn map(tensors: NamedTensors, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<NamedTensors> {
    let tensors = tensors.into_iter();
    tensors
        .map(|(name, tensor)| Ok((name, change(&tensor)?)))
        .collect()
}

/// One tensor per parameter, under the names of the parameters.
pub(crate) fn named<'a>(
    network: &Network,
    tensors: impl IntoIterator<Item = &'a Tensor>,
) -> NamedTensors {
    let names = network.variables().iter().map(|(name, _)| name.clone());
    names.zip(tensors.into_iter().cloned()).collect()
}

/// The tensors in the memory of a device.
pub(crate) fn to_device(tensors: NamedTensors, device: &Device) -> Result<NamedTensors> {
    map(tensors, |tensor| tensor.to_device(device))
}

/// SHA-256, in hexadecimal, of all values in the order of the tensors, little-endian.
pub(crate) fn sha256(tensors: &NamedTensors) -> Result<String> {
    let mut hasher = Sha256::new();
    for (_, tensor) in tensors {
        let tensor = tensor.to_device(&Device::Cpu)?;
        hasher.update(safetensors::View::data(&tensor));
    }
    let digest = hasher.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A value of an `f32` tensor that is infinite or NaN, if there is one.
pub(crate) fn non_finite_value(tensor: &Tensor) -> Result<Option<f64>> {
    // The sum of squares of finite weights is finite, except for values that no usable network has. The values are
    // searched only where it is not.
    let squares = tensor.sqr()?.sum_all()?.to_scalar::<f32>()?;
    if squares.is_finite() {
        return Ok(None);
    }
    let mut values = tensor.flatten_all()?.to_vec1::<f32>()?.into_iter();
    Ok(values.find(|value| !value.is_finite()).map(f64::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Result<Tensor> {
        Tensor::from_slice(values, values.len(), &Device::Cpu)
    }

    /// `hashlib.sha256(struct.pack("<3f", 1.0, -2.0, 0.5)).hexdigest()`
    #[test]
    fn the_digest_is_of_little_endian_values_in_order() -> Result<()> {
        let tensors = vec![
            ("b".to_owned(), tensor(&[1.0, -2.0])?),
            ("a".to_owned(), tensor(&[0.5])?),
        ];
        assert_eq!(
            sha256(&tensors)?,
            "2ce4bdb6b34a50ac7092eb9fee94337a27498e9eb9bae44192f15b88831b2422"
        );
        Ok(())
    }

    #[test]
    fn only_infinite_values_and_nan_are_found() -> Result<()> {
        assert_eq!(non_finite_value(&tensor(&[1.0, -2.0])?)?, None);
        // The squares of these are infinite.
        assert_eq!(non_finite_value(&tensor(&[1e30, 1e30])?)?, None);
        let found = non_finite_value(&tensor(&[1e30, f32::NEG_INFINITY])?)?;
        assert_eq!(found, Some(f64::NEG_INFINITY));
        assert!(non_finite_value(&tensor(&[0.0, f32::NAN])?)?.is_some_and(f64::is_nan));
        Ok(())
    }
}
