//! Matrix products over borrowed slices, by the `gemm` library, one thread a product.

use candle_core::WithDType;
use rayon::prelude::*;

/// A matrix that reads a slice: element `(r, c)` lies at `r * row_stride + c * column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A row-major matrix of `rows` by `columns` at the start of `data`.
    pub(crate) fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::with_row_stride(data, rows, columns, columns)
    }

    /// A row-major matrix whose rows lie `row_stride` apart.
    pub(crate) fn with_row_stride(
        data: &'a [T],
        rows: usize,
        columns: usize,
        row_stride: usize,
    ) -> Self {
        let matrix = Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        };
        assert!(matrix.last() < data.len() || rows * columns == 0);
        matrix
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

    /// The columns from `start` up to `end`.
    fn columns(self, start: usize, end: usize) -> Self {
        assert!(start <= end && end <= self.columns);
        Self {
            data: &self.data[(start * self.column_stride).min(self.data.len())..],
            columns: end - start,
            ..self
        }
    }

    fn last(&self) -> usize {
        self.rows.saturating_sub(1) * self.row_stride
            + self.columns.saturating_sub(1) * self.column_stride
    }
}

/// What becomes of the values that a destination held before a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onto {
    /// They are overwritten.
    Nothing,
    /// The product is added to them.
    Sum,
}

/// `destination = [destination +] left · right`, on the calling thread. The destination is
/// row-major and whole.
pub(crate) fn matmul<T: WithDType>(
    destination: &mut [T],
    onto: Onto,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
) {
    assert_eq!(destination.len(), left.rows * right.columns);
    let columns = right.columns;
    // SAFETY: `destination` is borrowed mutably and holds `left.rows` rows of `columns` elements.
    unsafe { product(destination.as_mut_ptr(), columns, onto, left, right) }
}

/// Columns of the destination that one part of [`par_matmul`] computes.
const COLUMNS_A_PART: usize = 256;

/// As [`matmul`], over all threads: each part of [`COLUMNS_A_PART`] columns is a product of its
/// own, so the result does not depend on the number of threads.
pub(crate) fn par_matmul<T: WithDType>(
    destination: &mut [T],
    onto: Onto,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
) {
    assert_eq!(destination.len(), left.rows * right.columns);
    let columns = right.columns;
    let address = Address(destination.as_mut_ptr());
    let parts = columns.div_ceil(COLUMNS_A_PART);
    (0..parts).into_par_iter().for_each(|part| {
        let start = part * COLUMNS_A_PART;
        let end = (start + COLUMNS_A_PART).min(columns);
        let right = right.columns(start, end);
        // SAFETY: `destination` is borrowed mutably for the whole call; this part writes the
        // columns `start..end` of each of its rows, which no other part touches.
        unsafe { product(address.get().add(start), columns, onto, left, right) }
    });
}

/// A pointer that may go to other threads.
struct Address<T>(*mut T);

// SAFETY: it is only used in `par_matmul`, whose parts write disjoint elements.
unsafe impl<T: Send> Sync for Address<T> {}

impl<T> Address<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

/// # Safety
/// `destination` must be valid for reads and writes of `left.rows` rows of `right.columns` elements
/// that lie `stride` apart, and nothing else may access those elements meanwhile.
unsafe fn product<T: WithDType>(
    destination: *mut T,
    stride: usize,
    onto: Onto,
    left: Matrix<'_, T>,
    right: Matrix<'_, T>,
) {
    assert_eq!(left.columns, right.rows, "inner dimensions");
    let (rows, columns, depth) = (left.rows, right.columns, left.columns);
    if rows * columns == 0 {
        return;
    }
    assert!(depth == 0 || left.last() < left.data.len());
    assert!(depth == 0 || right.last() < right.data.len());
    // SAFETY: the destination is the caller's promise; both operands were just checked to end
    // inside their slices, which outlive the call.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            destination,
            1,
            stride as isize,
            onto == Onto::Sum,
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            T::one(), // factor of the destination
            T::one(), // factor of the product
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
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

    fn numbers(count: usize, seed: u64) -> Vec<f64> {
        let stream = random::Stream::new(seed, random::Purpose::Synthetic, 0);
        (0..count as u64)
            .map(|i| f64::from(random::unit(stream.words(i)[0])) - 0.5)
            .collect()
    }

    fn transpose(data: &[f64], rows: usize, columns: usize) -> Vec<f64> {
        (0..rows * columns)
            .map(|i| data[(i % rows) * columns + i / rows])
            .collect()
    }

    proptest! {
        #[test]
        fn agrees_with_three_loops(m in 1_usize..20, n in 1_usize..600, k in 0_usize..20, seed in 0_u64..100) {
            let left = numbers(m * k, seed);
            let right = numbers(k * n, seed + 1);
            let expected = plain(&left, &right, m, n, k);
            let left_t = transpose(&left, m, k);
            let right_t = transpose(&right, k, n);
            let mut out = vec![f64::NAN; m * n];
            par_matmul(&mut out, Onto::Nothing, Matrix::new(&left, m, k), Matrix::new(&right, k, n));
            for (a, b) in out.iter().zip(&expected) { prop_assert!((a - b).abs() < 1e-12); }
            matmul(&mut out, Onto::Sum, Matrix::new(&left_t, k, m).transposed(), Matrix::new(&right_t, n, k).transposed());
            for (a, b) in out.iter().zip(&expected) { prop_assert!((a - 2.0 * b).abs() < 1e-12); }
        }
    }
}
