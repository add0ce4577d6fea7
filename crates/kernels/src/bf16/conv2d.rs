//! Convolution at stride 1 of `bf16` images, without unrolling them: neighbouring pixels of a zero-padded image are rows
//! of the left operand, a pixel apart.
//!
//! The inner dimension is, for each row of the kernel, the elements of the pixels under that row, which are contiguous. Its
//! end is padded to a whole step: there, the weight is zero. (So an infinite or NaN element also reaches results whose
//! window ends less than a step before it, as NaN.) The gradient of the input is a convolution with the flipped
//! weight. In the gradient of the weight the inner dimension is the pixels of all images, in order.

use super::block::{Block, COLUMNS, DEPTH, ROWS, Rows, Sums, Unit};
use super::operands::{Right, Transposed, interleave, pairs, row_pairs};
use crate::conv2d::Geometry;
use crate::conv2d::epilogue::{Gradients, Outputs};
use crate::element::Element;
use crate::parts::{Parts, par_parts};
use crate::scratch::Scratch;
use crate::shards::Shards;
use half::bf16;
use rayon::prelude::*;

/// Maximum elements of the transposed images that are in memory at a time (but at least one image for each thread).
const TRANSPOSED: usize = 1 << 21;

/// The sums of a convolution over padded images `[height, width, channels]`.
struct Sliding {
    /// Elements of a row of a padded image.
    row: usize,
    /// Elements of a padded image, and of the step that may begin at its end.
    padded: usize,
    out_channels: usize,
    /// Tiles of pixels, each with the position of its first result.
    tiles: Vec<[(Rows, usize); 2]>,
    steps: Vec<usize>,
}

/// How a row of pixels is distributed over tiles: as evenly as possible.
fn tile_width(width: usize) -> usize {
    width.div_ceil(width.div_ceil(ROWS))
}

/// Steps of the inner dimension for a row of the kernel.
fn row_steps(kernel: usize, channels: usize) -> usize {
    (kernel * channels).div_ceil(DEPTH)
}

impl Sliding {
    /// For `[out_height, out_width, out_channels]` results of a square kernel over `channels` channels.
    fn new(
        (out_height, out_width, out_channels): (usize, usize, usize),
        kernel: usize,
        channels: usize,
    ) -> Self {
        let row = (out_width + kernel - 1) * channels;
        let width = tile_width(out_width);
        let tiles = (0..out_height).flat_map(|y| {
            (0..out_width).step_by(width).map(move |x| {
                let rows = Rows {
                    start: y * row + x * channels,
                    count: width.min(out_width - x),
                };
                (rows, y * out_width + x)
            })
        });
        let steps = (0..kernel)
            .flat_map(|y| (0..row_steps(kernel, channels)).map(move |step| y * row + step * DEPTH));
        Self {
            row,
            padded: (out_height + kernel - 1) * row + DEPTH,
            out_channels,
            tiles: pairs(&tiles.collect::<Vec<_>>()),
            steps: steps.collect(),
        }
    }

    /// The weight: `value` gives the element for an output channel, a row and a column of the kernel, and an input channel.
    fn weight(
        &self,
        kernel: usize,
        channels: usize,
        value: impl Fn(usize, [usize; 2], usize) -> f32 + Sync,
    ) -> Right {
        let pairs_of_row = row_steps(kernel, channels) * DEPTH / 2;
        Right::new(self.out_channels, self.steps.len(), |pair, first, to| {
            let y = pair / pairs_of_row;
            for half in 0..2 {
                let at = pair % pairs_of_row * 2 + half;
                let (x, channel) = (at / channels, at % channels);
                if x < kernel {
                    for (column, to) in (first..self.out_channels).zip(&mut *to) {
                        to[half] = bf16::from_real(value(column, [y, x], channel));
                    }
                }
            }
        })
    }

    /// Writes an image's sums `[out_height, out_width, out_channels]`.
    fn compute(&self, padded: &[bf16], channels: usize, weight: &Right, to: &mut [f32]) {
        let unit = Unit::new();
        for panel in 0..weight.panels() {
            let first = panel * COLUMNS;
            let columns = COLUMNS.min(self.out_channels - first);
            for tiles in &self.tiles {
                let mut sums = Sums::zero();
                let block = Block {
                    left: padded,
                    stride: channels,
                    rows: tiles.map(|(rows, _)| rows),
                    steps: &self.steps,
                    right: weight.panel(panel, 0),
                };
                unit.add(&block, &mut sums);
                for ((rows, position), sums) in tiles.iter().zip(&sums.0) {
                    let to = to[position * self.out_channels..].chunks_mut(self.out_channels);
                    for (to, sums) in to.zip(&sums[..rows.count]) {
                        to[first..first + columns].copy_from_slice(&sums[..columns]);
                    }
                }
            }
        }
    }

    /// An image `[height, width, channels]` with `padding` zeros on each side; with fewer than none, without its margin.
    fn pad(
        &self,
        image: &[bf16],
        (width, channels): (usize, usize),
        padding: isize,
    ) -> Scratch<bf16> {
        let mut padded = Scratch::new(self.padded);
        padded.fill(bf16::ZERO);
        let pixels = self.row / channels;
        let columns = (0..pixels as isize).map(|x| x - padding);
        let inside = columns.filter(|x| (0..width as isize).contains(x)).count();
        let (from, to) = ((-padding).max(0) as usize, padding.max(0) as usize);
        for (y, row) in padded.chunks_exact_mut(self.row).enumerate() {
            let Some(source) = (y as isize - padding).try_into().ok() else {
                continue;
            };
            let Some(image) = image.chunks_exact(width * channels).nth(source) else {
                continue;
            };
            row[to * channels..][..inside * channels]
                .copy_from_slice(&image[from * channels..][..inside * channels]);
        }
        padded
    }
}

/// The sums of the images `x` `[batch, height, width, in_channels]` with `weight`
/// `[out_channels, in_channels, kernel, kernel]`.
pub(crate) fn forward(g: &Geometry, x: &[bf16], weight: &[f32], outputs: &Outputs<'_, bf16>) {
    let (taps, channels) = (g.taps(), g.in_channels);
    let sliding = Sliding::new(
        (g.out_height(), g.out_width(), g.out_channels),
        g.kernel,
        channels,
    );
    let weight = sliding.weight(g.kernel, channels, |output, [y, x], input| {
        weight[(output * channels + input) * taps + y * g.kernel + x]
    });
    (0..g.batch).into_par_iter().for_each(|image| {
        outputs.image(image, |sums| {
            let x = &x[image * g.image()..][..g.image()];
            let padded = sliding.pad(x, (g.width, channels), g.padding as isize);
            sliding.compute(&padded, channels, &weight, sums);
        });
    });
}

/// The gradient of the weight; that of the input goes to `grad_x`, if given.
pub(crate) fn backward(
    g: &Geometry,
    shards: Shards,
    x: &[bf16],
    weight: &[f32],
    gradients: &Gradients<'_, bf16>,
    grad_x: Option<&Parts<bf16>>,
) -> Vec<f32> {
    let taps = g.taps();
    let input = grad_x.map(|grad_x| {
        let sliding = Sliding::new((g.height, g.width, g.in_channels), g.kernel, g.out_channels);
        let flipped = sliding.weight(g.kernel, g.out_channels, |input, [y, x], output| {
            let tap = taps - 1 - (y * g.kernel + x);
            weight[(output * g.in_channels + input) * taps + tap]
        });
        (grad_x, sliding, flipped)
    });
    // The size of a group does not matter to the sums. Each thread has an image.
    let cached = TRANSPOSED / transposed_image(g).max(1);
    let group = cached.max(rayon::current_num_threads());
    let sums = shards.sum(
        |shard| {
            let mut sums = WeightSums::new(g);
            for start in shard.clone().step_by(group) {
                let images = start..(start + group).min(shard.end);
                // The gradients of the sums, of all images of the group.
                let grad_sums = par_parts(images.len(), g.out_image(), |index, to| {
                    let image = start + index;
                    gradients.image(image, |grad_y| {
                        for (to, from) in to.iter_mut().zip(grad_y) {
                            *to = bf16::from_real(*from);
                        }
                    });
                    if let Some((grad_x, sliding, flipped)) = &input {
                        let padding = g.kernel as isize - 1 - g.padding as isize;
                        let padded = sliding.pad(to, (g.out_width(), g.out_channels), padding);
                        let mut sums = Scratch::new(g.image());
                        sliding.compute(&padded, g.out_channels, flipped, &mut sums);
                        for (to, from) in grad_x.take(image).iter_mut().zip(&*sums) {
                            *to = bf16::from_real(*from);
                        }
                    }
                });
                sums.add(&x[start * g.image()..], &grad_sums);
            }
            sums
        },
        |sum, other| {
            let blocks = sum.blocks.par_iter_mut().zip(&other.blocks);
            blocks.for_each(|(sum, other)| sum.add(other));
        },
    );
    sums.unwrap_or_else(|| WeightSums::new(g)).into_weight()
}

/// Steps of the inner dimension for an image.
fn steps(g: &Geometry) -> usize {
    g.positions().div_ceil(DEPTH)
}

/// Elements of a row of the transposed images for each image: the output positions, and as many rows of the image more
/// as the kernel has below its first one.
fn length(g: &Geometry) -> usize {
    let below = (g.kernel - 1) * g.out_width();
    (below + steps(g) * DEPTH).next_multiple_of(DEPTH)
}

/// Elements of a transposed image.
fn transposed_image(g: &Geometry) -> usize {
    g.kernel * g.in_channels * length(g)
}

/// The gradient of a weight: for each row of the kernel a product `[kernel * in_channels, out_channels]`.
struct WeightSums<'a> {
    g: &'a Geometry,
    /// For each row of the kernel, blocks of rows, and panels of columns.
    blocks: Vec<Sums>,
}

impl<'a> WeightSums<'a> {
    fn new(g: &'a Geometry) -> Self {
        let mut sums = Self {
            g,
            blocks: Vec::new(),
        };
        let (down, across) = sums.size();
        sums.blocks = vec![Sums::zero(); g.kernel * down * across];
        sums
    }

    /// Blocks of rows, and panels of columns.
    fn size(&self) -> (usize, usize) {
        let rows = self.g.kernel * self.g.in_channels;
        (
            rows.div_ceil(2 * ROWS),
            self.g.out_channels.div_ceil(COLUMNS),
        )
    }

    /// Adds the products of the images `x` and the gradients of their sums, as many as there are of the latter.
    fn add(&mut self, x: &[bf16], grad_sums: &[bf16]) {
        let g = self.g;
        let images = grad_sums.len() / g.out_image();
        let (steps, length) = (steps(g), length(g));
        let transposed = self.transposed(x, images);
        let (left, stride) = transposed.rows();
        let right = Right::new(g.out_channels, images * steps, |pair, first, to| {
            let pairs = steps * DEPTH / 2;
            let image = &grad_sums[pair / pairs * g.out_image()..][..g.out_image()];
            let pixel = |half| {
                let position = pair % pairs * 2 + half;
                let pixel = image.chunks_exact(g.out_channels).nth(position);
                pixel.map_or(&[][..], |pixel| &pixel[first..])
            };
            interleave([pixel(0), pixel(1)], to);
        });
        let rows = row_pairs(g.kernel * g.in_channels, stride);
        let (down, across) = self.size();
        let blocks = self.blocks.par_iter_mut().enumerate();
        blocks.for_each(|(index, sums)| {
            let (y, block) = (index / (down * across), index % (down * across));
            let steps = (0..images).flat_map(|image| {
                (0..steps).map(move |step| image * length + y * g.out_width() + step * DEPTH)
            });
            let block = Block {
                left,
                stride,
                rows: rows[block / across],
                steps: &steps.collect::<Vec<_>>(),
                right: right.panel(block % across, 0),
            };
            Unit::new().add(&block, sums);
        });
    }

    /// For each column of the kernel and input channel a row: for each image the pixels of that channel under that column,
    /// row by row.
    fn transposed(&self, x: &[bf16], images: usize) -> Transposed {
        let g = self.g;
        let (length, out_width) = (length(g), g.out_width());
        // For each column of the kernel the offsets of the pixels, if they are inside the image.
        let pixel = |tap: usize, position: usize| {
            let row = (position / out_width).checked_sub(g.padding);
            let column = (position % out_width + tap).checked_sub(g.padding);
            let row = row.filter(|row| *row < g.height)?;
            let column = column.filter(|column| *column < g.width)?;
            Some((row * g.width + column) * g.in_channels)
        };
        let pixels: Vec<Option<usize>> = (0..g.kernel)
            .flat_map(|tap| (0..length).map(move |position| pixel(tap, position)))
            .collect();
        let rows = g.kernel * g.in_channels;
        Transposed::new(rows, images * length, |position, first, to| {
            let (image, position) = (position / length, position % length);
            let image = &x[image * g.image()..][..g.image()];
            let mut row = first;
            let mut to = &mut to[..ROWS.min(rows - first)];
            while !to.is_empty() {
                let (tap, channel) = (row / g.in_channels, row % g.in_channels);
                let count = to.len().min(g.in_channels - channel);
                let (here, rest) = to.split_at_mut(count);
                if let Some(pixel) = pixels[tap * length + position] {
                    here.copy_from_slice(&image[pixel + channel..][..count]);
                }
                (row, to) = (row + count, rest);
            }
        })
    }

    /// The gradient, `[out_channels, in_channels, kernel, kernel]`.
    fn into_weight(self) -> Vec<f32> {
        let g = self.g;
        let (down, across) = self.size();
        par_parts(
            g.out_channels,
            g.in_channels * g.taps(),
            |output, weight| {
                for (at, to) in weight.iter_mut().enumerate() {
                    let (channel, tap) = (at / g.taps(), at % g.taps());
                    let (y, row) = (tap / g.kernel, tap % g.kernel * g.in_channels + channel);
                    let block = (y * down + row / (2 * ROWS)) * across + output / COLUMNS;
                    let sums = &self.blocks[block].0[row / ROWS % 2];
                    *to = sums[row % ROWS][output % COLUMNS];
                }
            },
        )
    }
}
