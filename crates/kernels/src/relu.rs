//! ReLU of values of any shape.

use crate::activation::Activation;
use crate::element::Element;
use rayon::prelude::*;

/// Elements of a task.
const PART: usize = 1 << 15;

/// Replaces every value by `max(value, 0)`.
pub fn forward<E: Element>(values: &mut [E]) {
    values
        .par_iter_mut()
        .with_min_len(PART)
        .for_each(|value| *value = E::from_real(Activation::Relu.apply(value.to_real())));
}

/// Replaces the gradient of the results `y` by that of the inputs.
///
/// # Panics
/// When the lengths differ.
pub fn backward<E: Element>(y: &[E], gradient: &mut [E]) {
    assert_eq!(y.len(), gradient.len());
    gradient
        .par_chunks_mut(PART)
        .zip(y.par_chunks(PART))
        .for_each(|(gradient, y)| {
            for (gradient, y) in gradient.iter_mut().zip(y) {
                let value = Activation::Relu.gradient(y.to_real(), gradient.to_real());
                *gradient = E::from_real(value);
            }
        });
}
