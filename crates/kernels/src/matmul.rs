//! Products of matrices too large for the caches, over all threads.
//!
//! The right operand, which should be the smaller one, is first packed in panels. Then the threads compute
//! blocks of the destination. A thread copies a block's rows of the left operand to addresses at which they
//! do not evict one another from the first-level cache, or packs them in tiles if its columns are
//! contiguous. The right panels stay in the second-level cache meanwhile.

use crate::instruction_set::arch;
use crate::parts::Shared;
use crate::product::{DEPTH, Left, Onto, Product, ROWS, Right, VECTORS, panel_width, panels};
use crate::scratch::Scratch;
use crate::shards::{self, Shards};
use crate::simd::Real;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Rows and columns of a block of the destination.
const BLOCK_ROWS: usize = 8 * ROWS;
const BLOCK_COLUMNS: usize = 256;

/// Elements from a copied left row to the next: a cache line more than the rows have, since addresses a
/// power of two apart fall into one set of the cache.
const ROW_STRIDE: usize = DEPTH + 16;

/// Columns of a transposed matrix that are packed at once: a cache line or two of each row.
const PART: usize = 16;

/// A view of a slice as a matrix: element `(r, c)` is at `r * row_stride + c * column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T: Real> Matrix<'a, T> {
    /// A row-major matrix of `rows` by `columns` at the start of `data`.
    pub(crate) fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        assert!(rows * columns <= data.len());
        Self {
            data,
            rows,
            columns,
            row_stride: columns,
            column_stride: 1,
        }
    }

    /// The transpose, over the same data.
    pub(crate) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// Rows in a tile of [`Pack`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Height {
    /// Those of a register tile.
    Rows,
    /// As many as a register tile has columns.
    Panel,
}

/// Packs some rows and columns of a matrix in tiles, `[tile, column, row in the tile]`; the last tile is padded
/// with zeros.
struct Pack<'a, T> {
    matrix: Matrix<'a, T>,
    rows: Range<usize>,
    columns: Range<usize>,
    height: Height,
    to: &'a mut [T],
}

impl<T: Real> WithSimd for Pack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        // Two copies, each compiled for a constant height.
        match self.height {
            Height::Rows => self.tiles_of(ROWS),
            Height::Panel => self.tiles_of(VECTORS * T::lanes::<S>()),
        }
    }
}

impl<T: Real> Pack<'_, T> {
    #[inline(always)]
    fn tiles_of(self, height: usize) {
        let Matrix {
            data,
            row_stride,
            column_stride,
            ..
        } = self.matrix;
        let data = &data[self.rows.start * row_stride + self.columns.start * column_stride..];
        let (rows, columns) = (self.rows.len(), self.columns.len());
        let to = &mut self.to[..rows.next_multiple_of(height) * columns];
        if row_stride == 1 {
            for column in 0..columns {
                let from = &data[column * column_stride..][..rows];
                let tiles = to.chunks_exact_mut(height * columns);
                for (from, tile) in from.chunks(height).zip(tiles) {
                    let to = &mut tile[column * height..][..height];
                    if from.len() == height {
                        to.copy_from_slice(from);
                    } else {
                        to[..from.len()].copy_from_slice(from);
                        to[from.len()..].fill(T::zero());
                    }
                }
            }
            return;
        }
        for (tile, to) in to.chunks_exact_mut(height * columns).enumerate() {
            let first = tile * height;
            if rows - first < height {
                to.fill(T::zero());
            }
            for (part, to) in to.chunks_mut(height * PART).enumerate() {
                for row in 0..height.min(rows - first) {
                    let from = &data[(first + row) * row_stride + part * PART..];
                    for (to, from) in to.chunks_exact_mut(height).zip(from) {
                        to[row] = *from;
                    }
                }
            }
        }
    }
}

/// `left · right`, row-major, the same bits for any number of threads. The inner dimension is the images of `shards`, over
/// which the products are summed.
pub(crate) fn par_sharded_matmul<T: Real>(
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
    shards: Shards,
) -> Vec<T> {
    let length = left.rows * right.columns;
    let mut product = Vec::with_capacity(length);
    // SAFETY: the allocation has the product's length, and every element is written before the length is set.
    unsafe {
        write(
            &Shared::from_pointer(product.as_mut_ptr()),
            left,
            right,
            shards,
        );
        product.set_len(length);
    }
    product
}

/// `left · right` into a row-major destination.
pub(crate) fn par_matmul_into<T: Real>(
    destination: &mut [T],
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
) {
    assert_eq!(destination.len(), left.rows * right.columns);
    let shards = Shards::one(left.columns);
    // SAFETY: the destination has the product's length, and is borrowed for the whole call.
    unsafe { write(&Shared::new(destination), left, right, shards) }
}

/// Writes every element of `left · right`, without reading any first.
///
/// # Safety
/// The destination must be valid for writes of `left.rows * right.columns` elements, which nothing else may access.
unsafe fn write<T: Real>(
    destination: &Shared<T>,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
    shards: Shards,
) {
    assert_eq!(left.columns, right.rows, "inner dimensions");
    assert_eq!(left.columns, shards.images().len(), "images of the shards");
    let (rows, columns, depth) = (left.rows, right.columns, left.columns);
    if depth == 0 {
        for index in 0..rows * columns {
            // SAFETY: inside the destination.
            unsafe { destination.pointer().add(index).write(T::zero()) }
        }
    }
    if rows * columns * depth == 0 {
        return;
    }
    let width = panel_width::<T>();
    let mut packed = Scratch::new(panels::<T>(depth, columns));
    packed
        .par_chunks_mut(width * depth)
        .enumerate()
        .for_each(|(panel, to)| {
            let start = panel * width;
            arch().dispatch(Pack {
                matrix: right.transposed(),
                rows: start..columns.min(start + width),
                columns: 0..depth,
                height: Height::Panel,
                to,
            });
        });
    let right = Right::panels(&packed, depth);

    let (down, across) = (rows.div_ceil(BLOCK_ROWS), columns.div_ceil(BLOCK_COLUMNS));
    (0..down * across).into_par_iter().for_each(|block| {
        let (first_row, first_column) =
            (block / across * BLOCK_ROWS, block % across * BLOCK_COLUMNS);
        let mut block = Block {
            left,
            right: right.panels_from(first_column / width),
            rows: first_row..rows.min(first_row + BLOCK_ROWS),
            columns: BLOCK_COLUMNS.min(columns - first_column),
            left_here: Scratch::new(BLOCK_ROWS * ROW_STRIDE),
        };
        // SAFETY: the rows and columns of this block are inside the destination, and no other block has them. Those of a
        // partial sum are inside its memory.
        unsafe {
            let to = destination
                .pointer()
                .add(first_row * columns + first_column);
            if shards.is_one() {
                block.multiply(0..depth, to, columns);
                return;
            }
            let count = block.rows.len() * block.columns;
            let sum = shards.sum(
                |images| {
                    let mut product = Scratch::new(count);
                    block.multiply(images, product.as_mut_ptr(), block.columns);
                    product
                },
                |sum, product| shards::add(sum, &product),
            );
            let sum = sum.iter().flat_map(|sum| sum.chunks_exact(block.columns));
            for (row, from) in sum.enumerate() {
                to.add(row * columns)
                    .copy_from_nonoverlapping(from.as_ptr(), from.len());
            }
        }
    });
}

/// A block of the destination.
struct Block<'a, T> {
    left: Matrix<'a, T>,
    /// The right operand, from the block's first column on.
    right: Right<'a, T>,
    /// Of the left operand.
    rows: Range<usize>,
    columns: usize,
    /// Memory for the copy of the left operand's rows.
    left_here: Scratch<T>,
}

impl<T: Real> Block<'_, T> {
    /// Writes the product over `depth` of the inner dimension.
    ///
    /// # Safety
    /// `to` must be valid for reads and writes of the block's rows, `stride` apart, which nothing else may access.
    unsafe fn multiply(&mut self, depth: Range<usize>, to: *mut T, stride: usize) {
        let left = self.left;
        for start in depth.clone().step_by(DEPTH) {
            let depth_here = start..depth.end.min(start + DEPTH);
            let length = depth_here.len();
            let in_rows = left.column_stride == 1;
            if in_rows {
                let copies = self.left_here.chunks_exact_mut(ROW_STRIDE);
                for (row, to) in self.rows.clone().zip(copies) {
                    let from = &left.data[row * left.row_stride + start..][..length];
                    to[..length].copy_from_slice(from);
                }
            } else {
                arch().dispatch(Pack {
                    matrix: left,
                    rows: self.rows.clone(),
                    columns: depth_here,
                    height: Height::Rows,
                    to: &mut self.left_here,
                });
            }
            let right = self.right.rows_from(start);
            for (tile, row) in self.rows.clone().step_by(ROWS).enumerate() {
                let product = Product {
                    rows: ROWS.min(self.rows.end - row),
                    columns: self.columns,
                    depth: length,
                    left: if in_rows {
                        Left::rows(&self.left_here[tile * ROWS * ROW_STRIDE..], ROW_STRIDE)
                    } else {
                        Left::transposed(&self.left_here[tile * ROWS * length..], ROWS)
                    },
                    right,
                    onto: if start == depth.start {
                        Onto::Nothing
                    } else {
                        Onto::Sum
                    },
                };
                // SAFETY: the caller's.
                unsafe { product.write(to.add(tile * ROWS * stride), stride) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(left: &[f64], right: &[f64], m: usize, n: usize, k: usize) -> Vec<f64> {
        let mut out = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                for p in 0..k {
                    out[i * n + j] += left[i * k + p] * right[p * n + j];
                }
            }
        }
        out
    }

    fn uniform(count: usize, seed: u64) -> Vec<f64> {
        let stream = rng::Stream::new(seed, rng::Purpose::Synthetic, 0);
        (0..count as u64)
            .map(|i| f64::from(rng::unit(stream.words(i)[0])) - 0.5)
            .collect()
    }

    fn transpose(data: &[f64], rows: usize, columns: usize) -> Vec<f64> {
        (0..rows * columns)
            .map(|i| data[(i % rows) * columns + i / rows])
            .collect()
    }

    fn close(found: &[f64], expected: &[f64]) -> bool {
        found
            .iter()
            .zip(expected)
            .all(|(a, b)| (a - b).abs() < 1e-11)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

        #[test]
        fn agrees_with_three_loops(m in 1_usize..260, n in 1_usize..300, k in 0_usize..20, seed in 0_u64..100) {
            let left = uniform(m * k, seed);
            let right = uniform(k * n, seed + 1);
            let expected = plain(&left, &right, m, n, k);
            let left_t = transpose(&left, m, k);
            let right_t = transpose(&right, k, n);
            let out = par_sharded_matmul(Matrix::new(&left, m, k), Matrix::new(&right, k, n), Shards::one(k));
            prop_assert!(close(&out, &expected));
            let mut out = vec![f64::NAN; m * n];
            par_matmul_into(&mut out, Matrix::new(&left_t, k, m).transposed(), Matrix::new(&right_t, n, k).transposed());
            prop_assert!(close(&out, &expected));
        }

        /// Deeper than one pass.
        #[test]
        fn deep_products_agree(m in 1_usize..14, n in 1_usize..40, k in 500_usize..1100, seed in 0_u64..100) {
            let left = uniform(m * k, seed);
            let right = uniform(k * n, seed + 1);
            let out = par_sharded_matmul(Matrix::new(&left, m, k), Matrix::new(&right, k, n), Shards::one(k));
            prop_assert!(close(&out, &plain(&left, &right, m, n, k)));
        }
    }
}
