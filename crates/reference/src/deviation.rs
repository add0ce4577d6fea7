//! Deviations of tensors from reference values.

use candle_core::{DType, Device, Result, Tensor, bail};
use serde::Deserialize;

/// The reference values of a tensor: its shape, norm and first elements.
#[derive(Debug, Deserialize)]
pub struct Statistics {
    shape: Vec<usize>,
    l2: f64,
    first8: Vec<f64>,
}

/// The deviation of a tensor from its reference values.
#[derive(Clone, Debug, PartialEq)]
pub struct Deviation {
    /// The tensor.
    pub what: String,
    /// The relative error of the L2 norm.
    pub norm: f64,
    /// The largest error of the first elements, relative to the element, or to the root mean square of all elements
    /// where that is larger.
    pub values: f64,
}

impl Deviation {
    /// Whether the norm is within `tolerance` and single elements are within ten times that. False for NaN.
    #[must_use]
    pub fn is_within(&self, tolerance: f64) -> bool {
        self.norm <= tolerance && self.values <= 10.0 * tolerance
    }

    /// That of `tensor`, on any device and of any type.
    ///
    /// # Errors
    /// When the shape differs, or the tensor cannot be read.
    pub fn of(what: &str, tensor: &Tensor, expected: &Statistics) -> Result<Self> {
        if tensor.dims() != expected.shape {
            let (found, wanted) = (tensor.shape(), &expected.shape);
            bail!("{what} has shape {found:?}, not {wanted:?}");
        }
        let values = elements(tensor)?;
        let typical = expected.l2 / (values.len() as f64).sqrt();
        Ok(Self {
            what: what.to_owned(),
            norm: (norm(&values) - expected.l2).abs() / expected.l2,
            values: largest(&values, &expected.first8, typical),
        })
    }

    /// That of all elements, where all are known. Errors are relative to `typical` where elements are smaller.
    #[must_use]
    pub fn of_values(what: &str, found: &[f64], expected: &[f64], typical: f64) -> Self {
        Self {
            what: what.to_owned(),
            norm: (norm(found) - norm(expected)).abs() / norm(expected),
            values: largest(found, expected, typical),
        }
    }
}

/// A tensor's elements in double precision, in row-major order.
///
/// # Errors
/// When the tensor cannot be read.
pub fn elements(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor
        .to_device(&Device::Cpu)?
        .flatten_all()?
        .to_dtype(DType::F64)?
        .to_vec1::<f64>()
}

/// The bits of a tensor's elements in `f32`, in row-major order.
///
/// # Errors
/// When the tensor cannot be read.
pub fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    let values = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    let values = values.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// The largest relative error of the elements that are known; infinite if one is NaN.
fn largest(found: &[f64], expected: &[f64], typical: f64) -> f64 {
    let values = found.iter().zip(expected);
    let errors = values
        .map(|(found, expected)| (found - expected).abs() / expected.abs().max(typical))
        .map(|error| if error.is_nan() { f64::INFINITY } else { error });
    errors.fold(0.0, f64::max)
}

/// The L2 norm of the difference of two tensors, relative to the norm of `expected`.
///
/// # Errors
/// When the shapes differ, or a tensor cannot be read.
pub fn relative_error(found: &Tensor, expected: &Tensor) -> Result<f64> {
    if found.dims() != expected.dims() {
        bail!(
            "cannot compare shape {:?} with {:?}",
            found.shape(),
            expected.shape()
        );
    }
    let (found, expected) = (elements(found)?, elements(expected)?);
    let difference = found
        .iter()
        .zip(&expected)
        .map(|(found, expected)| found - expected);
    let difference: Vec<f64> = difference.collect();
    Ok(norm(&difference) / norm(&expected))
}
