//! Matrix products on one thread, without copies of the operands.
//!
//! A register tile of [`ROWS`] by two vectors of the destination is kept in registers while the
//! inner dimension runs through (K. Goto and R. van de Geijn, "Anatomy of high-performance matrix
//! multiplication", 2008): every step loads two vectors of the right operand, and one value of the left
//! operand for each row. The left operand has any strides, so a transpose costs nothing. The right one
//! has contiguous rows, or is packed in panels ([`panels`]) as wide as a tile, so that it is read in the
//! order of memory.
//!
//! Each element of the destination is the sum over the inner dimension in order: it does not depend
//! on how rows and columns are distributed over threads.

use crate::instruction_set::arch;
use crate::simd::Real;
use pulp::{Simd, WithSimd};

/// Rows of a register tile: 24 sums, two vectors and a broadcast value fill 32 registers.
pub(crate) const ROWS: usize = 12;

/// Rows of a register tile where there are 16 registers.
const FEW_ROWS: usize = 6;

/// Rows of a register tile where lanes of the left operand's rows are multiplied: 16 sums, 8 vectors and those of the
/// left operand fit 32 registers.
const LANE_ROWS: usize = 8;

/// Lanes of a vector on the instruction sets that multiply by a lane.
const MAX_LANES: usize = 4;

/// Vectors in a row of a register tile.
pub(crate) const VECTORS: usize = 2;

/// Steps of the inner dimension in one pass: the left rows of a tile and the right panel then stay in the
/// first-level cache.
pub(crate) const DEPTH: usize = 512;

/// A matrix on the left: element `(row, k)` is at `row * row_stride + k * depth_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) row_stride: usize,
    pub(crate) depth_stride: usize,
}

impl<'a, T> Left<'a, T> {
    /// A matrix with contiguous rows, `stride` apart.
    pub(crate) fn rows(data: &'a [T], stride: usize) -> Self {
        Self {
            data,
            row_stride: stride,
            depth_stride: 1,
        }
    }

    /// The transpose of a matrix with contiguous rows, `stride` apart.
    pub(crate) fn transposed(data: &'a [T], stride: usize) -> Self {
        Self {
            data,
            row_stride: 1,
            depth_stride: stride,
        }
    }
}

/// A matrix on the right: the columns of a register tile are contiguous.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a, T> {
    data: &'a [T],
    /// Elements from a row to the next.
    depth_stride: usize,
    /// Elements from the columns of a register tile to the next ones.
    panel_stride: usize,
    /// Whether rows are padded to complete panels.
    filled: bool,
}

impl<'a, T: Real> Right<'a, T> {
    /// A matrix with contiguous rows, `stride` apart.
    pub(crate) fn rows(data: &'a [T], stride: usize) -> Self {
        Self {
            data,
            depth_stride: stride,
            panel_stride: panel_width::<T>(),
            filled: false,
        }
    }

    /// A matrix of `depth` rows in panels: the first [`panel_width`] columns of all rows, then the next
    /// ones; the last panel is padded with zeros.
    pub(crate) fn panels(data: &'a [T], depth: usize) -> Self {
        let width = panel_width::<T>();
        Self {
            data,
            depth_stride: width,
            panel_stride: width * depth,
            filled: true,
        }
    }

    /// The rows from `start` on.
    pub(crate) fn rows_from(self, start: usize) -> Self {
        Self {
            data: &self.data[(start * self.depth_stride).min(self.data.len())..],
            ..self
        }
    }

    /// The columns from panel number `panel` on.
    pub(crate) fn panels_from(self, panel: usize) -> Self {
        Self {
            data: &self.data[(panel * self.panel_stride).min(self.data.len())..],
            ..self
        }
    }
}

/// What happens to the previous values of a destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onto {
    /// They are overwritten.
    Nothing,
    /// The product is added to them.
    Sum,
}

/// Columns of a panel on this machine.
pub(crate) fn panel_width<T: Real>() -> usize {
    struct Width<T>(std::marker::PhantomData<T>);
    impl<T: Real> WithSimd for Width<T> {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            VECTORS * T::lanes::<S>()
        }
    }
    arch().dispatch(Width::<T>(std::marker::PhantomData))
}

/// Elements of a matrix of `depth` rows and `columns` columns, packed in panels.
pub(crate) fn panels<T: Real>(depth: usize, columns: usize) -> usize {
    let width = panel_width::<T>();
    columns.div_ceil(width) * width * depth
}

/// `destination = [destination +] left · right` for `rows` by `columns` results over an inner
/// dimension of `depth`; the destination's rows are contiguous and `stride` apart.
pub(crate) struct Product<'a, T> {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) depth: usize,
    pub(crate) left: Left<'a, T>,
    pub(crate) right: Right<'a, T>,
    pub(crate) onto: Onto,
}

impl<T: Real> Product<'_, T> {
    /// Computes the product on the calling thread.
    pub(crate) fn into(self, destination: &mut [T], stride: usize) {
        if self.rows * self.columns == 0 {
            return;
        }
        assert!(self.columns <= stride);
        assert!((self.rows - 1) * stride + self.columns <= destination.len());
        // SAFETY: the destination is borrowed mutably, and its length was checked for every row.
        unsafe { self.write(destination.as_mut_ptr(), stride) }
    }

    /// As [`Product::into`], to memory of which other threads may write other parts.
    ///
    /// # Safety
    /// `destination` must be valid for reads and writes of `rows` runs of `columns` elements,
    /// `stride` apart, and nobody else may access those meanwhile. They must be initialised where the product
    /// is added to them.
    pub(crate) unsafe fn write(self, destination: *mut T, stride: usize) {
        let (rows, columns, depth) = (self.rows, self.columns, self.depth);
        if rows * columns == 0 {
            return;
        }
        if depth > 0 {
            let left = self.left;
            let last = (rows - 1) * left.row_stride + (depth - 1) * left.depth_stride;
            assert!(last < left.data.len(), "the left operand is too short");
            let right = self.right;
            let width = panel_width::<T>();
            let full = (columns - 1) / width;
            let rest = if right.filled {
                width
            } else {
                columns - full * width
            };
            let end = full * right.panel_stride + (depth - 1) * right.depth_stride + rest;
            assert!(end <= right.data.len(), "the right operand is too short");
        }
        arch().dispatch(Run {
            product: self,
            destination,
            stride,
        });
    }
}

struct Run<'a, T> {
    product: Product<'a, T>,
    destination: *mut T,
    stride: usize,
}

impl<T: Real> WithSimd for Run<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Product {
            rows,
            columns,
            depth,
            left,
            right,
            onto,
        } = self.product;
        let mut start = 0;
        loop {
            let length = DEPTH.min(depth - start);
            let onto = if start == 0 { onto } else { Onto::Sum };
            let mut row = 0;
            while row < rows {
                // SAFETY: `start < depth` or both are 0, and `row < rows`: offsets inside the
                // operands, which `Product::write` checked; where `depth` is 0, nothing is read.
                let operands = unsafe {
                    Operands {
                        depth: length,
                        left: left
                            .data
                            .as_ptr()
                            .wrapping_add(row * left.row_stride + start * left.depth_stride),
                        left_row: left.row_stride,
                        left_depth: left.depth_stride,
                        right: right.data.as_ptr().wrapping_add(start * right.depth_stride),
                        right_depth: right.depth_stride,
                        right_panel: right.panel_stride,
                        destination: self.destination.add(row * self.stride),
                        stride: self.stride,
                        columns,
                        onto,
                    }
                };
                let left_over = rows - row;
                // SAFETY: each arm takes no more rows than are left over.
                row += unsafe {
                    match left_over {
                        LANE_ROWS.. if T::multiplies_by_lane::<S>() && left.depth_stride == 1 => {
                            operands.row::<S, LANE_ROWS>(simd)
                        }
                        ROWS.. if S::REGISTER_COUNT >= 32 => operands.row::<S, ROWS>(simd),
                        FEW_ROWS.. if S::REGISTER_COUNT < 32 => operands.row::<S, FEW_ROWS>(simd),
                        8.. => operands.row::<S, 8>(simd),
                        4.. => operands.row::<S, 4>(simd),
                        2.. => operands.row::<S, 2>(simd),
                        _ => operands.row::<S, 1>(simd),
                    }
                };
            }
            start += length;
            if start >= depth {
                break;
            }
        }
    }
}

/// A row of register tiles.
struct Operands<T> {
    depth: usize,
    left: *const T,
    left_row: usize,
    left_depth: usize,
    right: *const T,
    right_depth: usize,
    right_panel: usize,
    destination: *mut T,
    stride: usize,
    columns: usize,
    onto: Onto,
}

impl<T: Real> Operands<T> {
    /// Computes `N` rows, all columns; gives `N`.
    ///
    /// # Safety
    /// All pointers must be valid for what the sizes say, with `N` rows.
    #[inline(always)]
    unsafe fn row<S: Simd, const N: usize>(&self, simd: S) -> usize {
        let width = VECTORS * T::lanes::<S>();
        let full = self.columns / width;
        for panel in 0..full {
            // SAFETY: a full panel of the operands.
            unsafe { self.tile::<S, N, false>(simd, panel, width) }
        }
        if full * width < self.columns {
            // SAFETY: the rest of the columns, fewer than a panel.
            unsafe { self.tile::<S, N, true>(simd, full, self.columns - full * width) }
        }
        N
    }

    /// One register tile: `N` rows, the first `columns` columns of panel number `panel`.
    ///
    /// # Safety
    /// As for [`Operands::row`]; `PART` must be set where the panel is not full.
    #[inline(always)]
    unsafe fn tile<S: Simd, const N: usize, const PART: bool>(
        &self,
        simd: S,
        panel: usize,
        columns: usize,
    ) {
        let lanes = T::lanes::<S>();
        let right = self.right.wrapping_add(panel * self.right_panel);
        let load = |from: *const T, vector: usize| {
            let from = from.wrapping_add(vector * lanes);
            if PART {
                let count = columns.saturating_sub(vector * lanes).min(lanes);
                // SAFETY: only the columns that are there.
                T::load_some(simd, unsafe { std::slice::from_raw_parts(from, count) })
            } else {
                // SAFETY: a full panel.
                unsafe { T::load::<S>(from) }
            }
        };
        let mut sums = [[T::splat(simd, T::zero()); VECTORS]; N];
        let row = |k: usize| -> [_; VECTORS] {
            let row = right.wrapping_add(k * self.right_depth);
            std::array::from_fn(|vector| load(row, vector))
        };
        let mut k = 0;
        if T::multiplies_by_lane::<S>() && self.left_depth == 1 && N <= LANE_ROWS {
            while k + lanes <= self.depth {
                let right: [_; MAX_LANES] =
                    std::array::from_fn(|lane| row(if lane < lanes { k + lane } else { k }));
                for (n, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: steps `k` to `k + lanes` of row `n` of the left operand.
                    let left = unsafe { T::load::<S>(self.left.add(n * self.left_row + k)) };
                    for (lane, right) in right.into_iter().enumerate().take(lanes) {
                        for (sum, right) in sums.iter_mut().zip(right) {
                            *sum = T::fma_lane(simd, left, lane, right, *sum);
                        }
                    }
                }
                k += lanes;
            }
        } else if T::multiplies_by_lane::<S>() && self.left_row == 1 && N.is_multiple_of(lanes) {
            while k < self.depth {
                let right = row(k);
                for (block, sums) in sums.chunks_exact_mut(lanes).enumerate() {
                    // SAFETY: step `k` of `lanes` of the `N` rows of the left operand.
                    let left =
                        unsafe { T::load::<S>(self.left.add(block * lanes + k * self.left_depth)) };
                    for (lane, sums) in sums.iter_mut().enumerate() {
                        for (sum, right) in sums.iter_mut().zip(right) {
                            *sum = T::fma_lane(simd, left, lane, right, *sum);
                        }
                    }
                }
                k += 1;
            }
        }
        for k in k..self.depth {
            let right = row(k);
            for (n, sums) in sums.iter_mut().enumerate() {
                // SAFETY: row `n` and step `k` of the left operand.
                let left = unsafe { *self.left.add(n * self.left_row + k * self.left_depth) };
                let left = T::splat(simd, left);
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = <T as Real>::fma(simd, left, right, *sum);
                }
            }
        }
        for (n, sums) in sums.into_iter().enumerate() {
            // SAFETY: row `n` of the destination.
            let row = unsafe {
                self.destination
                    .add(n * self.stride + panel * VECTORS * lanes)
            };
            for (vector, sum) in sums.into_iter().enumerate() {
                let sum = match self.onto {
                    Onto::Nothing => sum,
                    Onto::Sum => <T as Real>::add(simd, sum, load(row, vector)),
                };
                let to = row.wrapping_add(vector * lanes);
                if PART {
                    let count = columns.saturating_sub(vector * lanes).min(lanes);
                    // SAFETY: only the columns that are there, which may not be initialised yet; a vector
                    // is its lanes, one behind the other.
                    unsafe {
                        (&raw const sum)
                            .cast::<T>()
                            .copy_to_nonoverlapping(to, count)
                    }
                } else {
                    // SAFETY: a full panel.
                    unsafe { T::store::<S>(to, sum) }
                }
            }
        }
    }
}
