//! Dropout with a counter-based mask.

use crate::element::Element;
use crate::instruction_set::arch;
use crate::simd::Real;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use rng::{Stream, unit};

/// Elements of a task; a multiple of the four values that a block of random words gives.
const PART: usize = 1 << 14;

/// Sets value `i` to 0 if the `i`-th random value in `[0, 1)` of `layer` in `stream` is less than `probability`, and
/// divides it by `1 - probability` otherwise. The first value is number `first`.
pub fn apply<E: Element>(
    probability: f32,
    stream: Stream,
    layer: u16,
    first: u64,
    values: &mut [E],
) {
    // A block of words that begins before the first value.
    let before = (first % 4) as usize;
    let (start, values) = values.split_at_mut(match before {
        0 => 0,
        before => values.len().min(4 - before),
    });
    let block = |number| u64::from(layer) << 48 | number;
    if !start.is_empty() {
        let mut values = [E::default(); 4];
        let part = before..before + start.len();
        values[part.clone()].copy_from_slice(start);
        arch().dispatch(Mask {
            probability,
            stream,
            first: block(first / 4),
            values: &mut values,
        });
        start.copy_from_slice(&values[part]);
    }
    let first = first.div_ceil(4);
    values
        .par_chunks_mut(PART)
        .enumerate()
        .for_each(|(part, values)| {
            arch().dispatch(Mask {
                probability,
                stream,
                first: block(first + (part * PART / 4) as u64),
                values,
            });
        });
}

/// Masks values with the blocks of random words from `first` on, four values for each.
struct Mask<'a, E> {
    probability: f32,
    stream: Stream,
    first: u64,
    values: &'a mut [E],
}

impl<E: Element> WithSimd for Mask<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        /// Blocks of random words that are generated at once.
        const MANY: usize = 16;
        let scale = E::Real::from_f64(1.0 / (1.0 - f64::from(self.probability)));
        for (values, first) in self
            .values
            .chunks_mut(4 * MANY)
            .zip((self.first..).step_by(MANY))
        {
            let words = self.stream.words_of::<MANY>(first);
            for (values, n) in values.chunks_mut(4).zip(0..) {
                for (value, words) in values.iter_mut().zip(&words) {
                    let kept = unit(words[n]) >= self.probability;
                    *value = match kept {
                        true => E::from_real(value.to_real() * scale),
                        false => E::default(),
                    };
                }
            }
        }
    }
}
