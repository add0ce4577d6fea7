//! Transposition of the matrices of a batch: from channels-last images to channels-first ones and back.

use crate::parts::par_parts;

/// Rows and columns that are transposed at a time, so that both sides stay in the cache.
const BLOCK: usize = 16;

/// `[batch, columns, rows]` from `x` `[batch, rows, columns]`.
///
/// # Panics
/// When `x` has another length.
#[must_use]
pub fn transpose<T: Copy + Default + Send + Sync>(
    x: &[T],
    (batch, rows, columns): (usize, usize, usize),
) -> Vec<T> {
    let length = rows * columns;
    assert_eq!(x.len(), batch * length);
    par_parts(batch, length, |index, y| {
        matrix(&x[index * length..][..length], rows, columns, y);
    })
}

/// `y` `[columns, rows]` from `x` `[rows, columns]`.
fn matrix<T: Copy>(x: &[T], rows: usize, columns: usize, y: &mut [T]) {
    for row in (0..rows).step_by(BLOCK) {
        for column in (0..columns).step_by(BLOCK) {
            for c in column..(column + BLOCK).min(columns) {
                let end = (row + BLOCK).min(rows);
                for (r, to) in (row..end).zip(&mut y[c * rows + row..c * rows + end]) {
                    *to = x[r * columns + c];
                }
            }
        }
    }
}
