//! The generator of the weights and inputs of `make_golden.py`.

use candle_core::{DType, Device, Result, Tensor};

/// `count` values in `-bound..bound`: `splitmix64` and `uniform` of `make_golden.py`.
#[must_use]
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

/// The same values on a CPU, in `f32`, rounded to `bf16`, so that tests in all precisions compute with the same.
///
/// # Errors
/// When the device is out of memory.
pub fn narrow(seed: u64, shape: &[usize], bound: f32) -> Result<Tensor> {
    let values = uniform(seed, shape.iter().product(), bound);
    let values = Tensor::from_vec(values, shape, &Device::Cpu)?;
    values.to_dtype(DType::BF16)?.to_dtype(DType::F32)
}
