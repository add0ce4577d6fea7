//! The generator of the weights and inputs of `make_golden.py`.

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
