//! Reading the reference values that `make_golden.py` made with PyTorch in float64.

use candle_core::{DType, Result, Tensor};
use serde::Deserialize;

/// What is known of a tensor: its shape, norm and first values.
#[derive(Deserialize)]
pub struct Statistics {
    pub shape: Vec<usize>,
    pub l2: f64,
    pub first8: Vec<f64>,
}

/// `splitmix64` and `uniform` of `make_golden.py`.
pub fn uniform(seed: u64, count: usize, bound: f32) -> Vec<f32> {
    (1..=count as u64)
        .map(|i| {
            let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(i));
            let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            let u = ((z ^ (z >> 31)) >> 40) as f64 / 2_f64.powi(24);
            (2.0 * u - 1.0) as f32 * bound
        })
        .collect()
}

/// Norms agree to 1e-4 of themselves, single values to 1e-3 of themselves, or of the values' root
/// mean square where they are smaller than that.
pub fn assert_agrees(what: &str, tensor: &Tensor, expected: &Statistics) -> Result<()> {
    assert_eq!(tensor.dims(), expected.shape, "{what}");
    let values = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let l2 = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    assert!(
        (l2 - expected.l2).abs() <= 1e-4 * expected.l2,
        "{what}: norm {l2}, not {}",
        expected.l2
    );
    let typical = expected.l2 / (values.len() as f64).sqrt();
    for (place, (value, expected)) in values.iter().zip(&expected.first8).enumerate() {
        assert!(
            (value - expected).abs() <= 1e-3 * expected.abs().max(typical),
            "{what}[{place}]: {value}, not {expected}"
        );
    }
    Ok(())
}
