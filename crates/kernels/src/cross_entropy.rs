//! Softmax cross-entropy, computed in double precision.

use crate::shards::Shards;
use crate::simd::Real;
use std::ops::Range;

/// The sum over the rows of `logits` `[batch, classes]` of `-log softmax(row)[label]`. Where there is a `gradient`
/// `[batch, classes]`, it becomes that of the mean over the batch with labels smoothed by `label_smoothing`:
/// `(softmax(logits) - smoothed one-hot(labels)) / batch`, where the smoothed label of a class is
/// `1 - label_smoothing + label_smoothing / classes` for the row's label and `label_smoothing / classes` for others.
///
/// The maximum of each row is subtracted first, so that large logits do not overflow. The losses are
/// summed over the `shards`, whose images the rows are; the gradient is that of the mean over the batch of all ranks.
///
/// # Panics
/// When a length does not fit, or a label is not below `classes`.
pub fn sum<T: Real>(
    logits: &[T],
    labels: &[u32],
    classes: usize,
    label_smoothing: f64,
    shards: Shards,
    mut gradient: Option<&mut [T]>,
) -> f64 {
    assert_eq!(logits.len(), labels.len() * classes);
    assert_eq!(labels.len(), shards.images().len());
    let other = label_smoothing / classes as f64;
    let correct = 1.0 - label_smoothing + other;
    let batch = shards.batch() as f64;
    let mut sum_of = |images: Range<usize>| {
        let mut sum = 0.0;
        for (row, label) in images.clone().zip(&labels[images]) {
            let at = row * classes..(row + 1) * classes;
            let row = &logits[at.clone()];
            let offset = log_sum_exp(row);
            sum += offset - row[*label as usize].to_f64();
            let Some(gradient) = &mut gradient else {
                continue;
            };
            for ((to, value), class) in gradient[at].iter_mut().zip(row).zip(0..) {
                let target = if class == *label { correct } else { other };
                *to = T::from_f64((libm::exp(value.to_f64() - offset) - target) / batch);
            }
        }
        sum
    };
    shards
        .sum(&mut sum_of, |sum, other| *sum += other)
        .unwrap_or(0.0)
}

/// `log(sum(exp(row)))`.
fn log_sum_exp<T: Real>(row: &[T]) -> f64 {
    let values = || row.iter().map(|value| value.to_f64());
    let maximum = values().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = values().map(|value| libm::exp(value - maximum)).sum();
    maximum + libm::log(sum)
}
