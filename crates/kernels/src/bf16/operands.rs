//! Operands of products, arranged for the matrix unit.

use super::block::{COLUMNS, DEPTH, ROWS, Rows, STEP_ELEMENTS, TILE_COLUMNS};
use crate::scratch::Scratch;
use half::bf16;
use rayon::prelude::*;

/// A right operand: for each panel of [`COLUMNS`] columns the steps of the inner dimension, each as in
/// [`Block::right`](super::block::Block::right).
pub(crate) struct Right {
    values: Scratch<bf16>,
    panels: usize,
    steps: usize,
}

impl Right {
    /// A matrix of `columns` columns in `steps` steps. `pair` is called for each panel and pair of elements of the inner
    /// dimension with the number of the pair and the first column, and writes the pairs of the columns, or zeros where the
    /// matrix has none.
    pub(crate) fn new(
        columns: usize,
        steps: usize,
        pair: impl Fn(usize, usize, &mut [[bf16; 2]; COLUMNS]) + Sync,
    ) -> Self {
        let panels = columns.div_ceil(COLUMNS);
        let mut values = Scratch::new(panels * steps * STEP_ELEMENTS);
        values
            .par_chunks_mut((steps * STEP_ELEMENTS).max(1))
            .enumerate()
            .for_each(|(panel, to)| {
                for (step, to) in to.chunks_exact_mut(STEP_ELEMENTS).enumerate() {
                    for row in 0..DEPTH / 2 {
                        let mut pairs = [[bf16::ZERO; 2]; COLUMNS];
                        pair(step * DEPTH / 2 + row, panel * COLUMNS, &mut pairs);
                        let tiles = to.chunks_exact_mut(STEP_ELEMENTS / 2);
                        for (to, pairs) in tiles.zip(pairs.chunks_exact(TILE_COLUMNS)) {
                            to[row * 2 * TILE_COLUMNS..][..2 * TILE_COLUMNS]
                                .copy_from_slice(pairs.as_flattened());
                        }
                    }
                }
            });
        Self {
            values,
            panels,
            steps,
        }
    }

    /// The number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.panels
    }

    /// The number of steps.
    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    /// A panel, from step number `first` on.
    pub(crate) fn panel(&self, panel: usize, first: usize) -> &[bf16] {
        &self.values
            [(panel * self.steps + first) * STEP_ELEMENTS..(panel + 1) * self.steps * STEP_ELEMENTS]
    }
}

/// Writes pairs of elements of two rows. The second one may be shorter, or both, and ends in zeros then.
pub(crate) fn interleave([even, odd]: [&[bf16]; 2], to: &mut [[bf16; 2]; COLUMNS]) {
    if let (Some(even), Some(odd)) = (even.first_chunk::<COLUMNS>(), odd.first_chunk::<COLUMNS>()) {
        for ((to, even), odd) in to.iter_mut().zip(even).zip(odd) {
            *to = [*even, *odd];
        }
        return;
    }
    for (half, row) in [even, odd].into_iter().enumerate() {
        for (to, from) in to.iter_mut().zip(row) {
            to[half] = *from;
        }
    }
}

/// The rows of tiles, two by two: `count` rows, `stride` elements apart. Where the last tile has no other, it is repeated.
pub(crate) fn row_pairs(count: usize, stride: usize) -> Vec<[Rows; 2]> {
    let tile = |first: usize| Rows {
        start: first * stride,
        count: ROWS.min(count - first),
    };
    let tiles: Vec<_> = (0..count).step_by(ROWS).map(tile).collect();
    pairs(&tiles)
}

/// The items two by two; the last one twice where it has no other.
pub(crate) fn pairs<T: Copy>(items: &[T]) -> Vec<[T; 2]> {
    let pair = |items: &[T]| [items[0], items[items.len() - 1]];
    items.chunks(2).map(pair).collect()
}

/// A left operand with contiguous rows: the transposes of matrices, concatenated along the rows.
pub(crate) struct Transposed {
    values: Scratch<bf16>,
    /// Elements from a row to the next: an odd number of cache lines, so that rows do not evict one another.
    stride: usize,
}

impl Transposed {
    /// `rows` rows of `length` elements, a multiple of [`DEPTH`]. `column` is called for a position in the rows and a
    /// first row, and writes the elements there of [`ROWS`] rows, or zeros where the matrix has none.
    pub(crate) fn new(
        rows: usize,
        length: usize,
        column: impl Fn(usize, usize, &mut [bf16; ROWS]) + Sync,
    ) -> Self {
        let stride = length + DEPTH * usize::from((length / DEPTH).is_multiple_of(2));
        let mut values = Scratch::new(rows * stride);
        values
            .par_chunks_mut((ROWS * stride).max(1))
            .enumerate()
            .for_each(|(tile, to)| {
                for start in (0..length).step_by(DEPTH) {
                    let mut columns = [[bf16::ZERO; ROWS]; DEPTH];
                    for (position, elements) in (start..).zip(&mut columns) {
                        column(position, tile * ROWS, elements);
                    }
                    for (row, to) in to.chunks_exact_mut(stride).enumerate() {
                        for (to, elements) in to[start..].iter_mut().zip(&columns) {
                            *to = elements[row];
                        }
                    }
                }
            });
        Self { values, stride }
    }

    /// The elements, and the distance of the rows.
    pub(crate) fn rows(&self) -> (&[bf16], usize) {
        (&self.values, self.stride)
    }
}
