//! The gradients of operations with parameters.

use crate::element::Element;
use crate::shards::{self, Shards};
use crate::simd::Real;

/// The gradients of an operation with parameters. Those of the parameters have the type in which they are computed.
pub struct ParameterGradients<E: Element> {
    /// That of the input, if it was requested.
    pub x: Option<Vec<E>>,
    /// That of the weight.
    pub weight: Vec<E::Real>,
    /// That of the bias.
    pub bias: Vec<E::Real>,
}

/// The sum of the rows of `values` `[images, columns]`, of each shard in double precision.
pub(crate) fn sum_rows<T: Real>(values: &[T], columns: usize, shards: Shards) -> Vec<T> {
    let sums = shards.sum(
        |images| {
            let mut sums = vec![0.0; columns];
            let values = &values[images.start * columns..images.end * columns];
            for row in values.chunks_exact(columns.max(1)) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += value.to_f64();
                }
            }
            sums.into_iter().map(T::from_f64).collect::<Vec<_>>()
        },
        |sums, values| shards::add(sums, &values),
    );
    sums.unwrap_or_else(|| vec![T::zero(); columns])
}
