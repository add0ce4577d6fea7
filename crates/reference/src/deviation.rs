//! How far a tensor is from what it should be.

use crate::{Error, numbers};
use candle_core::Tensor;
use serde::Deserialize;

/// What is known of a tensor: its shape, norm and first values.
#[derive(Deserialize)]
pub(crate) struct Statistics {
    shape: Vec<usize>,
    l2: f64,
    first8: Vec<f64>,
}

/// How far a tensor is from the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Deviation {
    /// Which tensor.
    pub what: String,
    /// Of its norm, as a share of the norm.
    pub norm: f64,
    /// The largest of its first values, as a share of the value, or of the root mean square of all values
    /// where the value is smaller than that.
    pub values: f64,
}

impl Deviation {
    /// Norms agree to `tolerance`, single values to ten times that. False where a number is none.
    #[must_use]
    pub fn is_within(&self, tolerance: f64) -> bool {
        self.norm <= tolerance && self.values <= 10.0 * tolerance
    }

    pub(crate) fn of(what: &str, tensor: &Tensor, expected: &Statistics) -> Result<Self, Error> {
        if tensor.dims() != expected.shape {
            let (found, wanted) = (tensor.shape(), &expected.shape);
            let text = format!("{what} has shape {found:?}, not {wanted:?}");
            return Err(candle_core::Error::Msg(text).into());
        }
        let values = numbers(tensor)?;
        let l2 = values.iter().map(|v| v * v).sum::<f64>().sqrt();
        let typical = expected.l2 / (values.len() as f64).sqrt();
        Ok(Self {
            what: what.to_owned(),
            norm: (l2 - expected.l2).abs() / expected.l2,
            values: largest(&values, &expected.first8, typical),
        })
    }

    pub(crate) fn of_values(what: &str, found: &[f64], expected: &[f64], typical: f64) -> Self {
        let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        Self {
            what: what.to_owned(),
            norm: (norm(found) - norm(expected)).abs() / norm(expected),
            values: largest(found, expected, typical),
        }
    }
}

/// The largest deviation of the values that are known; infinite where one is not a number.
fn largest(found: &[f64], expected: &[f64], typical: f64) -> f64 {
    let shares = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (found - expected).abs() / expected.abs().max(typical));
    shares.fold(0.0, |largest, share| {
        if share.is_nan() {
            f64::INFINITY
        } else {
            largest.max(share)
        }
    })
}

/// The norm of the difference of two tensors as a share of the norm of `expected`.
///
/// # Errors
/// When they have different shapes, or cannot be read.
pub fn relative_error(found: &Tensor, expected: &Tensor) -> candle_core::Result<f64> {
    if found.dims() != expected.dims() {
        candle_core::bail!(
            "{:?} is compared with {:?}",
            found.shape(),
            expected.shape()
        );
    }
    let (found, expected) = (numbers(found)?, numbers(expected)?);
    let mut difference = 0.0;
    let mut whole = 0.0;
    for (found, expected) in found.iter().zip(&expected) {
        difference += (found - expected).powi(2);
        whole += expected.powi(2);
    }
    Ok((difference / whole).sqrt())
}
