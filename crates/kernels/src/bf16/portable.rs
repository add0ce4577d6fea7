//! Blocks of a matrix product without the matrix unit, with its bits.

use super::block::{Block, COLUMNS, DEPTH, RIGHT, ROWS, Rows, Sums, TILE_COLUMNS};
use crate::instruction_set::arch;
use half::bf16;
use pulp::{Simd, WithSimd};

/// Pairs of elements of the inner dimension in a step.
const PAIRS: usize = DEPTH / 2;

/// Rows whose sums are in registers at a time.
const TALL: usize = 4;

/// Vectors of columns whose sums are in registers at a time.
const WIDE: usize = 2;

/// Adds a block of the product to `sums`.
pub(super) fn add(block: &Block<'_>, sums: &mut Sums) {
    arch().dispatch(Add { block, sums });
}

struct Add<'a, 'b> {
    block: &'a Block<'b>,
    sums: &'a mut Sums,
}

/// The right operand of a step: for each pair of elements, the even and the odd one of all columns.
struct Right([[[f32; COLUMNS]; 2]; PAIRS]);

impl WithSimd for Add<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Block {
            left, stride, rows, ..
        } = *self.block;
        let mut right = Right([[[0.0; COLUMNS]; 2]; PAIRS]);
        let steps = self.block.right.chunks_exact(RIGHT);
        for (offset, from) in self.block.steps.iter().zip(steps) {
            let smallest_right = widen_right(from, &mut right);
            for (Rows { start, count }, sums) in rows.into_iter().zip(&mut self.sums.0) {
                let mut wide = [[0.0; DEPTH]; ROWS];
                let mut smallest_left = f32::INFINITY;
                for (row, to) in wide[..count].iter_mut().enumerate() {
                    let from = &left[start + row * stride + offset..][..DEPTH];
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = widen(*from);
                        smallest_left = smallest_left.min(magnitude(*to));
                    }
                }
                // Products are multiples of the last place of the smallest one, and so are their sums. Values of `bf16`
                // have 8 significant bits, so where the smallest product is at least 2^-110, no sum is denormal.
                let normal = smallest_left * smallest_right >= SAFE;
                for first in (0..count).step_by(TALL) {
                    for column in (0..COLUMNS).step_by(WIDE * S::F32_LANES) {
                        let sums = &mut sums[first..];
                        let left = &wide[first..];
                        match normal {
                            true => rows_of::<_, false>(simd, left, &right, column, sums),
                            false => rows_of::<_, true>(simd, left, &right, column, sums),
                        }
                    }
                }
            }
        }
    }
}

/// 2^-110.
const SAFE: f32 = f32::from_bits((127 - 110) << 23);

/// A value in `f32`; denormal ones as zero.
#[inline(always)]
fn widen(value: bf16) -> f32 {
    let bits = u32::from(value.to_bits()) << 16;
    // Denormal values have no exponent.
    let mask = if bits & 0x7f80_0000 == 0 {
        0x8000_0000
    } else {
        u32::MAX
    };
    f32::from_bits(bits & mask)
}

/// The magnitude of a value, infinite for 0.
#[inline(always)]
fn magnitude(value: f32) -> f32 {
    if value == 0.0 {
        f32::INFINITY
    } else {
        value.abs()
    }
}

/// Separates even and odd elements. Returns the smallest magnitude that is not 0.
#[inline(always)]
fn widen_right(from: &[bf16], to: &mut Right) -> f32 {
    let mut smallest = [f32::INFINITY; TILE_COLUMNS];
    for (tile, from) in from.chunks_exact(RIGHT / 2).enumerate() {
        for (pair, from) in from.chunks_exact(2 * TILE_COLUMNS).enumerate() {
            let [even, odd] = &mut to.0[pair];
            let columns = tile * TILE_COLUMNS..(tile + 1) * TILE_COLUMNS;
            let to = even[columns.clone()].iter_mut().zip(&mut odd[columns]);
            let from = from.as_chunks::<2>().0;
            for (((even, odd), from), smallest) in to.zip(from).zip(&mut smallest) {
                [*even, *odd] = from.map(widen);
                *smallest = smallest.min(magnitude(*even).min(magnitude(*odd)));
            }
        }
    }
    smallest.into_iter().fold(f32::INFINITY, f32::min)
}

/// Denormal values as zero.
#[inline(always)]
fn flush<S: Simd>(simd: S, value: S::f32s) -> S::f32s {
    let denormal = simd.less_than_f32s(simd.abs_f32s(value), simd.splat_f32s(f32::MIN_POSITIVE));
    let zero = simd.and_f32s(value, simd.splat_f32s(-0.0));
    simd.select_f32s(denormal, zero, value)
}

/// Adds one step to up to [`TALL`] rows and [`WIDE`] vectors of columns from `column` on.
#[inline(always)]
fn rows_of<S: Simd, const FLUSH: bool>(
    simd: S,
    left: &[[f32; DEPTH]],
    right: &Right,
    column: usize,
    sums: &mut [[f32; COLUMNS]],
) {
    let zero = simd.splat_f32s(0.0);
    let mut parts = [[[zero; 2]; WIDE]; TALL];
    let rows = TALL.min(left.len());
    let load = |from: &[f32; COLUMNS], vector: usize| {
        let start = column + vector * S::F32_LANES;
        simd.partial_load_f32s(&from[start..start + S::F32_LANES])
    };
    for (pair, right) in right.0.iter().enumerate() {
        let right = [0, 1].map(|odd| [0, 1].map(|vector| load(&right[odd], vector)));
        for (parts, left) in parts.iter_mut().zip(&left[..rows]) {
            for (odd, right) in right.iter().enumerate() {
                let left = simd.splat_f32s(left[2 * pair + odd]);
                for (parts, right) in parts.iter_mut().zip(right) {
                    let sum = simd.mul_add_f32s(left, *right, parts[odd]);
                    parts[odd] = if FLUSH { flush(simd, sum) } else { sum };
                }
            }
        }
    }
    for (parts, sums) in parts.iter().zip(sums) {
        for (vector, [even, odd]) in parts.iter().enumerate() {
            let start = column + vector * S::F32_LANES;
            let to = &mut sums[start..start + S::F32_LANES];
            let added = flush(simd, simd.add_f32s(*even, *odd));
            let sum = flush(simd, simd.partial_load_f32s(to));
            simd.partial_store_f32s(to, flush(simd, simd.add_f32s(sum, added)));
        }
    }
}
