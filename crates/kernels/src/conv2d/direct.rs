//! Convolution by matrix products over unrolled images.
//!
//! ("im2col": K. Chellapilla, S. Puri and P. Simard, "High performance convolutional neural networks
//! for document processing", 2006.) With `col` the matrix
//! `[positions, kernel * kernel * in_channels]` of an image's patches and `W` the weight as
//! `[kernel * kernel * in_channels, out_channels]`,
//!
//! - forward: `y = col W`,
//! - input gradient: `dcol = dy W'`, folded back onto the image by adding overlaps,
//! - weight gradient: `dW = sum over images of col' dy`.
//!
//! A few rows of the output are computed at a time, so that their part of `col` stays in the cache. The third
//! product has [`GROUPS`] partial sums over the images of a shard, which are added in order at the end.

use super::epilogue::{Gradients, Outputs};
use super::geometry::Geometry;
use super::weights;
use crate::parts::Parts;
use crate::product::{Left, Onto, Product, Right};
use crate::scratch::Scratch;
use crate::shards::{Shards, par_add};
use crate::simd::Real;
use rayon::prelude::*;
use std::ops::Range;

/// Maximum elements of `col` at a time (but at least one row of the output).
const COL: usize = 1 << 17;

/// Partial sums of the weight gradient: a constant, so that the order of additions is fixed.
const GROUPS: usize = 8;

/// Row blocks of an output image.
#[inline]
fn bands(g: &Geometry) -> impl Iterator<Item = Range<usize>> {
    let row = g.out_width() * g.taps() * g.in_channels;
    let rows = (COL / row.max(1)).clamp(1, g.out_height());
    let height = g.out_height();
    (0..height)
        .step_by(rows)
        .map(move |start| start..(start + rows).min(height))
}

/// Elements of `col` for the largest band.
#[inline]
fn col_length(g: &Geometry) -> usize {
    let rows = bands(g).map(|band| band.len()).max().unwrap_or(0);
    rows * g.out_width() * g.taps() * g.in_channels
}

/// For kernel offset `k` and output `o` along an axis of `size` inputs: the input, if it is inside the image.
#[inline]
fn input(g: &Geometry, o: usize, k: usize, size: usize) -> Option<usize> {
    (o + k).checked_sub(g.padding).filter(|at| *at < size)
}

/// The columns of a kernel row that are inside the image for output column `x`, and the input of the first
/// of them.
#[inline]
fn inside(g: &Geometry, x: usize) -> (Range<usize>, usize) {
    let start = g.padding.saturating_sub(x).min(g.kernel);
    let end = (g.width + g.padding).saturating_sub(x).min(g.kernel);
    if end <= start {
        return (start..start, 0);
    }
    (start..end, x + start - g.padding)
}

/// The patches of a band of output rows.
fn unroll<T: Real>(g: &Geometry, image: &[T], band: Range<usize>, col: &mut [T]) {
    let segment = g.kernel * g.in_channels;
    let mut segments = col.chunks_exact_mut(segment);
    for y in band {
        for x in 0..g.out_width() {
            let (columns, first) = inside(g, x);
            for ky in 0..g.kernel {
                let Some(to) = segments.next() else {
                    return;
                };
                let (start, end) = (columns.start * g.in_channels, columns.end * g.in_channels);
                match input(g, y, ky, g.height) {
                    Some(row) => {
                        let from = &image[(row * g.width + first) * g.in_channels..];
                        to[..start].fill(T::zero());
                        to[start..end].copy_from_slice(&from[..end - start]);
                        to[end..].fill(T::zero());
                    }
                    None => to.fill(T::zero()),
                }
            }
        }
    }
}

/// Adds the patches of a band onto the image.
fn fold<T: Real>(g: &Geometry, col: &[T], band: Range<usize>, image: &mut [T]) {
    let segment = g.kernel * g.in_channels;
    let mut segments = col.chunks_exact(segment);
    for y in band {
        for x in 0..g.out_width() {
            let (columns, first) = inside(g, x);
            for ky in 0..g.kernel {
                let Some(from) = segments.next() else {
                    return;
                };
                let Some(row) = input(g, y, ky, g.height) else {
                    continue;
                };
                let from = &from[columns.start * g.in_channels..columns.end * g.in_channels];
                let to = &mut image[(row * g.width + first) * g.in_channels..][..from.len()];
                for (to, from) in to.iter_mut().zip(from) {
                    *to += *from;
                }
            }
        }
    }
}

/// The convolution of all images; `weight` is `[out_channels, in_channels, kernel, kernel]`.
pub(crate) fn forward<T: Real>(g: &Geometry, x: &[T], weight: &[T], outputs: &Outputs<'_, T>) {
    let patch = g.taps() * g.in_channels;
    let weight = weights::taps_in_out(g, weight);
    (0..g.batch).into_par_iter().for_each(|image| {
        let mut col = Scratch::new(col_length(g));
        outputs.image(image, |y| {
            for band in bands(g) {
                let positions = band.start * g.out_width()..band.end * g.out_width();
                unroll(g, &x[image * g.image()..][..g.image()], band, &mut col);
                let y = &mut y[positions.start * g.out_channels..];
                Product {
                    rows: positions.len(),
                    columns: g.out_channels,
                    depth: patch,
                    left: Left::rows(&col, patch),
                    right: Right::rows(&weight, g.out_channels),
                    onto: Onto::Nothing,
                }
                .into(y, g.out_channels);
            }
        });
    });
}

/// The gradient of the weight; that of the input goes to `grad_x`, if given.
pub(crate) fn backward<T: Real>(
    g: &Geometry,
    shards: Shards,
    x: &[T],
    weight: &[T],
    gradients: &Gradients<'_, T>,
    grad_x: Option<&Parts<T>>,
) -> Vec<T> {
    let patch = g.taps() * g.in_channels;
    let arranged = grad_x.is_some().then(|| weights::out_taps_in(g, weight));
    let total = shards.sum(
        |shard| {
            let group = shard.len().div_ceil(GROUPS).max(1);
            let groups = shard.len().div_ceil(group);
            let mut sums: Vec<Scratch<T>> =
                (0..groups).map(|_| Scratch::new(g.weights())).collect();
            sums.par_iter_mut().enumerate().for_each(|(index, sum)| {
                sum.fill(T::zero());
                let mut col = Scratch::new(col_length(g));
                let start = shard.start + index * group;
                for image in start..(start + group).min(shard.end) {
                    let x = &x[image * g.image()..][..g.image()];
                    gradients.image(image, |grad_y| {
                        let mut grad_x = grad_x.map(|grad_x| grad_x.take(image));
                        for band in bands(g) {
                            let positions = band.start * g.out_width()..band.end * g.out_width();
                            let grad_y = &grad_y[positions.start * g.out_channels..]
                                [..positions.len() * g.out_channels];
                            unroll(g, x, band.clone(), &mut col);
                            Product {
                                rows: patch,
                                columns: g.out_channels,
                                depth: positions.len(),
                                left: Left::transposed(&col, patch),
                                right: Right::rows(grad_y, g.out_channels),
                                onto: Onto::Sum,
                            }
                            .into(sum, g.out_channels);
                            if let (Some(grad_x), Some(weight)) = (&mut grad_x, &arranged) {
                                Product {
                                    rows: positions.len(),
                                    columns: patch,
                                    depth: g.out_channels,
                                    left: Left::rows(grad_y, g.out_channels),
                                    right: Right::rows(weight, patch),
                                    onto: Onto::Nothing,
                                }
                                .into(&mut col, patch);
                                fold(g, &col, band, grad_x);
                            }
                        }
                    });
                }
            });
            let mut total = Scratch::new(g.weights());
            total.fill(T::zero());
            total
                .par_chunks_mut(1 << 14)
                .enumerate()
                .for_each(|(part, total)| {
                    for sum in &sums {
                        for (total, value) in total.iter_mut().zip(&sum[part << 14..]) {
                            *total += *value;
                        }
                    }
                });
            total
        },
        |sum, total| par_add(sum, &total),
    );
    match total {
        Some(total) => weights::from_taps_in_out(g, &total),
        None => vec![T::zero(); g.weights()],
    }
}
