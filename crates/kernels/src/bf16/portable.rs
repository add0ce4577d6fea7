//! Blocks of a matrix product without the matrix unit, with its bits.

use super::block::{Block, COLUMNS, DEPTH, ROWS, Rows, STEP_ELEMENTS, Sums, TILE_COLUMNS};
use crate::element::Element;
use crate::instruction_set::arch;
use half::bf16;
use pulp::{Simd, WithSimd};

/// Pairs of elements of the inner dimension in a step.
const PAIRS: usize = DEPTH / 2;

/// Rows of the micro-kernel, whose sums are in registers.
const MR: usize = 4;

/// Vectors of columns of the micro-kernel.
const NR: usize = 2;

/// Adds a block of the product to `sums`.
pub(super) fn add(block: &Block<'_>, sums: &mut Sums) {
    arch().dispatch(Add { block, sums });
}

struct Add<'a, 'b> {
    block: &'a Block<'b>,
    sums: &'a mut Sums,
}

/// The left operand of a step: rows of one tile.
type LeftTile = [[f32; DEPTH]; ROWS];

/// The even, and the odd elements of the right operand of a step: `[2, PAIRS, TILE_COLUMNS]`.
type RightStep = [[f32; COLUMNS * PAIRS]; 2];

impl WithSimd for Add<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Block {
            left, stride, rows, ..
        } = *self.block;
        let mut right = [[0.0; COLUMNS * PAIRS]; 2];
        let mut wide = [[0.0; DEPTH]; ROWS];
        if !self.block.steps.is_empty() {
            flush_all(self.sums.0.as_flattened_mut().as_flattened_mut());
        }
        let steps = self.block.right.as_chunks::<STEP_ELEMENTS>().0;
        for (offset, from) in self.block.steps.iter().zip(steps) {
            let right_exponent = smallest_exponent(from);
            separate(from, &mut right);
            for (Rows { start, count }, sums) in rows.into_iter().zip(&mut self.sums.0) {
                // Rows that the block does not have are zeros, so that there is a constant number of them.
                let mut tile = [[bf16::ZERO; DEPTH]; ROWS];
                for (row, to) in tile[..count].iter_mut().enumerate() {
                    to.copy_from_slice(&left[start + row * stride + offset..][..DEPTH]);
                }
                let tile = tile.as_flattened();
                for (to, from) in wide.as_flattened_mut().iter_mut().zip(tile) {
                    *to = from.to_real();
                }
                let sums = &mut sums.as_chunks_mut::<MR>().0[..count.div_ceil(MR)];
                let left_exponent = smallest_exponent(tile);
                let normal = left_exponent > 0
                    && right_exponent > 0
                    && left_exponent + right_exponent >= MIN_EXPONENT_SUM;
                match normal {
                    true => step::<_, false>(simd, &wide, &right, sums),
                    false => {
                        let mut right = right;
                        flush_all(wide.as_flattened_mut());
                        flush_all(right.as_flattened_mut());
                        step::<_, true>(simd, &wide, &right, sums);
                    }
                }
            }
        }
    }
}

/// The least sum of two biased exponents from which no sum of products is denormal. A product is a multiple of the product of
/// the last places of the two smallest factors, and so are all sums. Values of `bf16` have 8 significant bits: with a
/// smallest product of at least 2^-110, the last place is 2^-124.
const MIN_EXPONENT_SUM: u16 = 2 * 127 - 110;

/// Greater than any biased exponent.
const NO_EXPONENT: u16 = 256;

/// The smallest biased exponent of the values that are not 0, [`NO_EXPONENT`] without any. That of a denormal value is 0.
#[inline(always)]
fn smallest_exponent(values: &[bf16]) -> u16 {
    // Subtracting 1 wraps 0 to the maximum, so zeros are ignored.
    let smallest = (values.iter()).fold(u16::MAX, |smallest, value| {
        smallest.min((value.to_bits() & 0x7fff).wrapping_sub(1))
    });
    (smallest.saturating_add(1) >> 7).min(NO_EXPONENT)
}

/// Separates even and odd elements.
#[inline(always)]
fn separate(from: &[bf16; STEP_ELEMENTS], [even, odd]: &mut RightStep) {
    let from = from.as_chunks::<2>().0;
    for ((even, odd), from) in even.iter_mut().zip(odd).zip(from) {
        (*even, *odd) = (from[0].to_real(), from[1].to_real());
    }
}

/// Replaces denormal values by zeros.
#[inline(always)]
fn flush_all(values: &mut [f32]) {
    for value in values {
        if value.abs() < f32::MIN_POSITIVE {
            *value = 0_f32.copysign(*value);
        }
    }
}

/// The values, denormal ones as zeros.
#[inline(always)]
fn flush<S: Simd>(simd: S, value: S::f32s) -> S::f32s {
    let denormal = simd.less_than_f32s(simd.abs_f32s(value), simd.splat_f32s(f32::MIN_POSITIVE));
    let zero = simd.and_f32s(value, simd.splat_f32s(-0.0));
    simd.select_f32s(denormal, zero, value)
}

/// Adds one step to rows of a tile, [`MR`] rows and [`NR`] vectors of columns at a time. `FLUSH`: whether sums of
/// products may be denormal.
#[inline(always)]
fn step<S: Simd, const FLUSH: bool>(
    simd: S,
    left: &LeftTile,
    right: &RightStep,
    sums: &mut [[[f32; COLUMNS]; MR]],
) {
    for (left, sums) in left.as_chunks::<MR>().0.iter().zip(sums) {
        for first in (0..COLUMNS / S::F32_LANES).step_by(NR) {
            micro_kernel::<_, FLUSH>(simd, left, right, first, sums);
        }
    }
}

/// Adds one step to [`MR`] rows and [`NR`] vectors of columns from number `first` on.
#[inline(always)]
fn micro_kernel<S: Simd, const FLUSH: bool>(
    simd: S,
    left: &[[f32; DEPTH]; MR],
    right: &RightStep,
    first: usize,
    sums: &mut [[f32; COLUMNS]; MR],
) {
    let zero = simd.splat_f32s(0.0);
    let mut parts = [[[zero; 2]; NR]; MR];
    for pair in 0..PAIRS {
        // Loops instead of `map`, whose closures are not compiled for the instruction set.
        for (odd, right) in right.iter().enumerate() {
            let mut vectors = [zero; NR];
            for (vector, to) in (first..).zip(&mut vectors) {
                let column = vector * S::F32_LANES;
                let tile = column / TILE_COLUMNS * PAIRS * TILE_COLUMNS;
                let row = &right[tile + pair * TILE_COLUMNS..][..TILE_COLUMNS];
                *to = S::as_simd_f32s(row).0[column % TILE_COLUMNS / S::F32_LANES];
            }
            for (parts, left) in parts.iter_mut().zip(left) {
                let left = simd.splat_f32s(left[2 * pair + odd]);
                for (parts, right) in parts.iter_mut().zip(&vectors) {
                    let sum = simd.mul_add_f32s(left, *right, parts[odd]);
                    parts[odd] = if FLUSH { flush(simd, sum) } else { sum };
                }
            }
        }
    }
    for (parts, sums) in parts.iter().zip(sums) {
        let sums = &mut S::as_mut_simd_f32s(sums).0[first..first + NR];
        for ([even, odd], to) in parts.iter().zip(sums) {
            let added = simd.add_f32s(*even, *odd);
            let added = if FLUSH { flush(simd, added) } else { added };
            *to = flush(simd, simd.add_f32s(*to, added));
        }
    }
}
