//! Blocks of a matrix product.
//!
//! The inner dimension is cut into steps of [`DEPTH`] elements. For each element of the result, a step adds the products
//! of even elements, in order, and those of odd elements, in order, each rounded once; then the two sums are added to each
//! other, and to the result so far. Denormal operands and sums count as zeros of the same sign. This is what the
//! instruction `TDPBF16PS` computes (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2). An element
//! does not depend on the block in which it is computed.
//!
//! The manual does not say whether a sum of products that would be rounded up to the smallest normal value, 2^-126, from
//! less than 2^-126 - 2^-151 counts as denormal. Here it does not.

use super::portable;
use crate::shards;
use half::bf16;

/// Elements of the inner dimension in a step.
pub(crate) const DEPTH: usize = 32;

/// Rows of a tile of the left operand and of the result.
pub(crate) const ROWS: usize = 16;

/// Columns of a block.
pub(crate) const COLUMNS: usize = 32;

/// Elements of the right operand in a step: see [`Block::right`].
pub(crate) const STEP_ELEMENTS: usize = DEPTH * COLUMNS;

/// Columns of a tile of the right operand.
pub(crate) const TILE_COLUMNS: usize = 16;

/// Rows of the left operand that are a constant number of elements apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    /// The first element of the first row.
    pub(crate) start: usize,
    /// The number of rows, 1 to [`ROWS`].
    pub(crate) count: usize,
}

/// A block of a product: two tiles of rows, by [`COLUMNS`] columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<'a> {
    /// The left operand.
    pub(crate) left: &'a [bf16],
    /// Elements from a row of it to the next.
    pub(crate) stride: usize,
    /// The rows.
    pub(crate) rows: [Rows; 2],
    /// For each step the first of its [`DEPTH`] contiguous elements in a row, counted from the start of the row.
    pub(crate) steps: &'a [usize],
    /// The right operand: for each step `[2, 16, 16, 2]`, that is two tiles of 16 columns, pairs of neighbouring elements
    /// of the inner dimension, columns, and the two elements.
    pub(crate) right: &'a [bf16],
}

/// The results of a block, `[2, ROWS, COLUMNS]`.
#[derive(Clone)]
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[[f32; COLUMNS]; ROWS]; 2]);

impl Sums {
    /// All zeros.
    pub(crate) fn zero() -> Self {
        Self([[[0.0; COLUMNS]; ROWS]; 2])
    }

    /// Adds the elements of `other`.
    pub(crate) fn add(&mut self, other: &Self) {
        let sums = self.0.as_flattened_mut().as_flattened_mut();
        shards::add(sums, other.0.as_flattened().as_flattened());
    }

    /// The rows of a block that has `rows` of them, in order.
    pub(crate) fn rows(&self, rows: [Rows; 2]) -> impl Iterator<Item = &[f32; COLUMNS]> {
        let tiles = self.0.iter().zip(rows);
        tiles.flat_map(|(tile, rows)| &tile[..rows.count])
    }
}

/// Computes blocks on one thread.
pub(crate) struct Unit {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    amx: Option<super::amx::Tiles>,
}

impl Unit {
    /// The matrix unit, or the portable code where there is none.
    pub(crate) fn new() -> Self {
        Self {
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            amx: super::amx::Tiles::new(),
        }
    }

    /// Adds a block of the product to `sums`. Rows beyond a tile's count are unspecified afterwards.
    ///
    /// # Panics
    /// When an operand is too short.
    pub(crate) fn add(&self, block: &Block<'_>, sums: &mut Sums) {
        let last_step = block.steps.iter().copied().max();
        for Rows { start, count } in block.rows {
            assert!((1..=ROWS).contains(&count));
            let last_row = (count - 1).checked_mul(block.stride);
            let end = [Some(start), last_step, last_step.map(|_| DEPTH)]
                .into_iter()
                .flatten();
            let end = end.fold(last_row, |sum, offset| sum?.checked_add(offset));
            assert!(end.is_some_and(|end| end <= block.left.len()));
        }
        assert!(block.steps.len() * STEP_ELEMENTS <= block.right.len());
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        if let Some(amx) = &self.amx {
            // SAFETY: the operands have all elements that the block names, as was just checked.
            unsafe { amx.add(block, sums) }
            return;
        }
        portable::add(block, sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flushed(value: f32) -> f32 {
        match value.is_subnormal() {
            true => 0_f32.copysign(value),
            false => value,
        }
    }

    /// What the module's documentation says, element by element.
    fn plain(block: &Block<'_>, sums: &mut Sums) {
        for (tile, rows) in block.rows.into_iter().enumerate() {
            for row in 0..rows.count {
                for column in 0..COLUMNS {
                    let sum = &mut sums.0[tile][row][column];
                    for (step, offset) in block.steps.iter().enumerate() {
                        let left = &block.left[rows.start + row * block.stride + offset..];
                        let mut parts = [0_f32; 2];
                        for element in 0..DEPTH {
                            let right = step * STEP_ELEMENTS
                                + column / 16 * (STEP_ELEMENTS / 2)
                                + element / 2 * 32
                                + column % 16 * 2
                                + element % 2;
                            let [a, b] = [left[element], block.right[right]]
                                .map(|value| flushed(value.to_f32()));
                            let part = &mut parts[element % 2];
                            *part = flushed(a.mul_add(b, *part));
                        }
                        let added = flushed(parts[0] + parts[1]);
                        *sum = flushed(flushed(*sum) + added);
                    }
                }
            }
        }
    }

    /// Values whose exponents are between `low` and `high`, and some zeros.
    fn values(seed: u64, count: usize, (low, high): (u32, u32)) -> Vec<bf16> {
        let stream = rng::Stream::new(seed, rng::Purpose::Synthetic, 0);
        let value = |index| {
            let [word, exponent, kind, _] = stream.words(index);
            let exponent = low + exponent % (high - low + 1);
            let bits = (word & 0x8000) | (exponent << 7) | (word & 0x7f);
            bf16::from_bits(if kind % 8 == 0 { 0 } else { bits as u16 })
        };
        (0..count as u64).map(value).collect()
    }

    fn same(found: &Sums, expected: &Sums, rows: [Rows; 2]) -> bool {
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        let found = found.rows(rows).flatten();
        found.zip(expected.rows(rows).flatten()).all(same)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

        /// Each operand has its own range of exponents: ordinary ones, those whose products are denormal, denormals alone, and
        /// those that overflow. The portable code on this machine's instruction set, and the unit or its emulation.
        #[test]
        fn blocks_have_the_bits_of_the_plain_sum(
            ranges in prop::array::uniform2(prop::sample::select(vec![
                (120_u32, 134_u32), (67, 187), (0, 70), (0, 0), (180, 254), (60, 80), (70, 75), (50, 127),
            ])),
            counts in prop::array::uniform2(1_usize..=ROWS),
            steps in 0_usize..6,
            seed: u64,
        ) {
            let stride = 37;
            let [left, right] = ranges;
            let initial = values(seed.wrapping_add(2), 2 * ROWS * COLUMNS, left);
            let left = values(seed, 32 * stride + 6 * DEPTH, left);
            let right = values(seed.wrapping_add(1), steps * STEP_ELEMENTS, right);
            let offsets: Vec<usize> = (0..steps).map(|step| step * 5 % 7 * DEPTH / 2).collect();
            let block = Block {
                left: &left,
                stride,
                rows: [Rows { start: 3, count: counts[0] }, Rows { start: 16 * stride, count: counts[1] }],
                steps: &offsets,
                right: &right,
            };
            let mut expected = Sums::zero();
            for (to, from) in expected.0.as_flattened_mut().as_flattened_mut().iter_mut().zip(&initial) {
                *to = from.to_f32() * 1.000_01;
            }
            let (mut found, mut ported) = (expected.clone(), expected.clone());
            plain(&block, &mut expected);
            portable::add(&block, &mut ported);
            prop_assert!(same(&ported, &expected, block.rows), "portable");
            Unit::new().add(&block, &mut found);
            prop_assert!(same(&found, &expected, block.rows), "unit");
        }
    }
}
