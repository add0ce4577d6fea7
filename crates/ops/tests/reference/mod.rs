//! Reading the reference values that `make_golden.py` made with PyTorch in float64.

use candle_core::{DType, Result, Tensor};
use serde::Deserialize;

mod uniform;
pub(crate) use uniform::uniform;

/// What is known of a tensor: its shape, norm and first values.
#[derive(Deserialize)]
pub(crate) struct Statistics {
    pub(crate) shape: Vec<usize>,
    pub(crate) l2: f64,
    pub(crate) first8: Vec<f64>,
}

/// Norms agree to `tolerance` of themselves, single values to ten times that of themselves, or of the
/// values' root mean square where they are smaller than that.
pub(crate) fn assert_agrees(
    what: &str,
    tensor: &Tensor,
    expected: &Statistics,
    tolerance: f64,
) -> Result<()> {
    assert_eq!(tensor.dims(), expected.shape, "{what}");
    let values = tensor
        .flatten_all()?
        .to_dtype(DType::F64)?
        .to_vec1::<f64>()?;
    let l2 = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    assert!(
        (l2 - expected.l2).abs() <= tolerance * expected.l2,
        "{what}: norm {l2}, not {}",
        expected.l2
    );
    let typical = expected.l2 / (values.len() as f64).sqrt();
    for (place, (value, expected)) in values.iter().zip(&expected.first8).enumerate() {
        assert!(
            (value - expected).abs() <= 10.0 * tolerance * expected.abs().max(typical),
            "{what}[{place}]: {value}, not {expected}"
        );
    }
    Ok(())
}
