//! A fully connected layer in `bf16`.
//!
//! The products are arranged so that the weight, which is the largest operand, is read in its own layout: `y' = W x'` has
//! it on the left, `dx = dy W` on the right, a panel of columns at a time.

use super::block::{Block, COLUMNS, DEPTH, ROWS, Sums, Unit};
use super::operands::{Right, Transposed, interleave, row_pairs};
use crate::element::Element;
use crate::linear::Sizes;
use crate::parts::Shared;
use crate::scratch::Scratch;
use crate::shards::Shards;
use half::bf16;
use rayon::prelude::*;
use std::iter;
use std::ops::Range;

/// Steps of the inner dimension for which all panels are multiplied before the next ones, so that the operands stay in the
/// second-level cache.
const CACHED_STEPS: usize = 32;

/// Adds `left · right` to the blocks of `sums`, for the rows `rows` of the left operand, each panel of the right one and
/// `steps` of the inner dimension.
fn product(
    (left, stride): (&[bf16], usize),
    rows: [super::block::Rows; 2],
    (right, steps): (&Right, Range<usize>),
    sums: &mut [Sums],
) {
    let unit = Unit::new();
    for first in steps.clone().step_by(CACHED_STEPS) {
        let steps: Vec<usize> = (first..steps.end.min(first + CACHED_STEPS))
            .map(|step| step * DEPTH)
            .collect();
        for (panel, sums) in sums.iter_mut().enumerate() {
            let block = Block {
                left,
                stride,
                rows,
                steps: &steps,
                right: right.panel(panel, first),
            };
            unit.add(&block, sums);
        }
    }
}

/// Rows of `bf16` with a length that is a multiple of [`DEPTH`], padded with zeros; and that length.
fn padded_rows<T: Copy>(
    values: &[T],
    (rows, columns): (usize, usize),
    convert: impl Fn(T) -> bf16,
) -> (Scratch<bf16>, usize) {
    let stride = columns.next_multiple_of(DEPTH);
    let mut padded = Scratch::new(rows * stride);
    for row in 0..rows {
        let (to, end) = padded[row * stride..][..stride].split_at_mut(columns);
        for (to, from) in to.iter_mut().zip(&values[row * columns..][..columns]) {
            *to = convert(*from);
        }
        end.fill(bf16::ZERO);
    }
    (padded, stride)
}

/// The sums `x · weight'`, `[batch, outputs]`, for `x` `[batch, inputs]` and `weight` `[outputs, inputs]`. `finish` is
/// called for each with its column, and gives the result.
pub(crate) fn forward<T: Copy + Default + Send + Sync>(
    Sizes {
        batch,
        inputs,
        outputs,
    }: Sizes,
    x: &[bf16],
    weight: &[f32],
    finish: impl Fn(f32, usize) -> T + Sync,
) -> Vec<T> {
    assert!(x.len() == batch * inputs && weight.len() == outputs * inputs);
    let right = Right::new(batch, inputs.div_ceil(DEPTH), |pair, first, to| {
        let rows = x.chunks_exact(inputs.max(1)).skip(first);
        for (to, row) in to.iter_mut().zip(rows) {
            for (to, from) in to.iter_mut().zip(&row[(2 * pair).min(inputs)..]) {
                *to = *from;
            }
        }
    });
    let mut y = vec![T::default(); batch * outputs];
    let destination = Shared::new(&mut y);
    (0..outputs.div_ceil(2 * ROWS))
        .into_par_iter()
        .for_each(|block| {
            let first = block * 2 * ROWS;
            let count = (2 * ROWS).min(outputs - first);
            let (left, stride) =
                padded_rows(&weight[first * inputs..], (count, inputs), bf16::from_real);
            // One pair of tiles.
            let rows = row_pairs(count, stride)[0];
            let mut sums = vec![Sums::zero(); right.panels()];
            let all = (&right, 0..right.steps());
            product((&left, stride), rows, all, &mut sums);
            for row in 0..batch {
                let column = row % COLUMNS;
                let sums = sums[row / COLUMNS].rows(rows).map(|sums| sums[column]);
                for (output, sum) in (first..first + count).zip(sums) {
                    let value = finish(sum, output);
                    let index = row * outputs + output;
                    // SAFETY: inside `y`, and only this block has this output.
                    unsafe { destination.pointer().add(index).write(value) }
                }
            }
        });
    y
}

/// The gradient of `x`, `[batch, inputs]`, from that of the sums, `[batch, outputs]`.
pub(crate) fn input_gradient(
    Sizes {
        batch,
        inputs,
        outputs,
    }: Sizes,
    grad_y: &[bf16],
    weight: &[f32],
) -> Vec<bf16> {
    let (left, stride) = padded_rows(grad_y, (batch, outputs), |value| value);
    let mut grad_x = vec![bf16::ZERO; batch * inputs];
    let destination = Shared::new(&mut grad_x);
    (0..inputs.div_ceil(COLUMNS))
        .into_par_iter()
        .for_each(|panel| {
            let start = panel * COLUMNS;
            let columns = COLUMNS.min(inputs - start);
            let right = Right::new(columns, outputs.div_ceil(DEPTH), |pair, _, to| {
                let rows = weight.chunks_exact(inputs).skip(2 * pair).take(2);
                for (half, row) in rows.enumerate() {
                    for (to, from) in to.iter_mut().zip(&row[start..][..columns]) {
                        to[half] = bf16::from_real(*from);
                    }
                }
            });
            let mut first = 0;
            for rows in row_pairs(batch, stride) {
                let mut sums = Sums::zero();
                product(
                    (&left, stride),
                    rows,
                    (&right, 0..right.steps()),
                    std::slice::from_mut(&mut sums),
                );
                for (row, sums) in (first..batch).zip(sums.rows(rows)) {
                    for (column, sum) in (start..).zip(&sums[..columns]) {
                        let value = bf16::from_real(*sum);
                        // SAFETY: inside `grad_x`, and only this panel has this column.
                        unsafe {
                            destination
                                .pointer()
                                .add(row * inputs + column)
                                .write(value)
                        }
                    }
                }
                first += 2 * ROWS;
            }
        });
    grad_x
}

/// The gradient of the weight, `[outputs, inputs]`: the sum over the `shards` of the batch, each of which begins with a step
/// of its own.
pub(crate) fn weight_gradient(
    Sizes {
        batch,
        inputs,
        outputs,
    }: Sizes,
    shards: Shards,
    x: &[bf16],
    grad_y: &[bf16],
) -> Vec<f32> {
    assert!(x.len() == batch * inputs && grad_y.len() == batch * outputs);
    // For each position of the inner dimension its image, if it has one.
    let padded = |images: Range<usize>| {
        let length = images.len().next_multiple_of(DEPTH);
        images.map(Some).chain(iter::repeat(None)).take(length)
    };
    let images: Vec<Option<usize>> = shards.each().flat_map(padded).collect();
    let positions = images.iter().enumerate();
    let positions: Vec<usize> = positions
        .filter_map(|(at, image)| image.map(|_| at))
        .collect();
    let transposed = Transposed::new(outputs, images.len(), |position, first, to| {
        if let Some(image) = images[position] {
            let row = &grad_y[image * outputs..][..outputs];
            for (to, from) in to.iter_mut().zip(&row[first..]) {
                *to = *from;
            }
        }
    });
    let (left, stride) = transposed.rows();
    let right = Right::new(inputs, images.len() / DEPTH, |pair, first, to| {
        let row = |half: usize| {
            let image = images[2 * pair + half];
            image.map_or(&[][..], |image| &x[image * inputs..][..inputs][first..])
        };
        interleave([row(0), row(1)], to);
    });
    let mut gradient = vec![0.0; outputs * inputs];
    let blocks = gradient.par_chunks_mut((2 * ROWS * inputs).max(1));
    let rows = row_pairs(outputs, stride);
    blocks.zip(&rows).for_each(|(to, rows)| {
        let sums = shards.sum(
            |shard| {
                let mut sums = vec![Sums::zero(); right.panels()];
                let first = positions[shard.start] / DEPTH;
                let steps = first..first + shard.len().div_ceil(DEPTH);
                product((left, stride), *rows, (&right, steps), &mut sums);
                sums
            },
            |sums, others| {
                for (sums, others) in sums.iter_mut().zip(&others) {
                    sums.add(others);
                }
            },
        );
        for (panel, sums) in sums.iter().flatten().enumerate() {
            for (to, sums) in to.chunks_exact_mut(inputs).zip(sums.rows(*rows)) {
                let to = &mut to[panel * COLUMNS..];
                let count = COLUMNS.min(to.len());
                to[..count].copy_from_slice(&sums[..count]);
            }
        }
    });
    gradient
}
