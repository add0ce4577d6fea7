//! Convolution in Winograd's transform domain, where it takes fewer multiplications.
//!
//! The output is cut into tiles of `M` by `M`. With the matrices `A`, `B`, `G` of
//! [`cook_toom`](crate::cook_toom), a tile `d` of the input (`T` by `T`, `T = M + kernel - 1`) and
//! a kernel `g` give the tile `y` of the output:
//!
//! `U = G g G'`, `V = B d B'`, `Q = sum over input channels of U * V`, `y = A' Q A`,
//!
//! with `*` the elementwise product: `T^2` multiplications for `M^2 kernel^2`. The gradients are the
//! transposes of these maps:
//!
//! `dQ = A dy A'`, `dV = sum over output channels of U * dQ`, `dd = B' dV B` (tiles overlap and add up),
//! `dU = sum over tiles of V * dQ`, `dg = G' dU G`.
//!
//! (A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015.) For each of the
//! `T^2` points of a tile the sums over channels are a matrix product, between `V`
//! `[tiles, in_channels]` and `U` `[in_channels, out_channels]`.
//!
//! The images are processed in blocks, so that a block's `V` and `Q` stay in the cache, and each block in
//! three parallel loops: transforms of tiles, products of points, inverse transforms. Blocks follow one
//! another, so the order of every sum does not depend on the number of threads. Vectors run along the
//! channels.

use super::epilogue;
use super::geometry::Geometry;
use super::weights;
use crate::cook_toom::{Inputs, Kernel, Matrix, Outputs, contract_tile, expand_tile};
use crate::instruction_set::arch;
use crate::parts::{Parts, Shared};
use crate::product::{Left, Onto, Product, Right, panel_width, panels};
use crate::scratch::Scratch;
use crate::shards::{Shards, par_add};
use crate::simd::Real;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::marker::PhantomData;

/// Rows of a block's matrix products: enough to amortise reading `U`, few enough that `V` and `Q` of a block stay
/// in the last-level cache. The backward pass also adds to `dU` for every block.
const FORWARD_ROWS: usize = 96;
const BACKWARD_ROWS: usize = 192;

/// Output tiles for kernels of 3 and of 5.
const TILES_OF_3: [usize; 3] = [4, 6, 7];
const TILES_OF_5: [usize; 2] = [4, 6];

/// A way to compute one convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    g: Geometry,
    /// Height and width of an output tile.
    tile: usize,
}

impl Plan {
    /// The plan with the fewest multiplications; `None` for kernels without tiles.
    pub(crate) fn new(g: &Geometry) -> Option<Self> {
        let tiles: &[usize] = match g.kernel {
            3 => &TILES_OF_3,
            5 => &TILES_OF_5,
            _ => return None,
        };
        tiles
            .iter()
            .map(|tile| Self { g: *g, tile: *tile })
            .min_by_key(|plan| plan.tiles() * plan.points())
    }

    /// Whether the plan is faster than the direct algorithm. The transforms cost about as much as 16 multiply-adds
    /// for each value.
    pub(crate) fn is_faster(&self) -> bool {
        let g = &self.g;
        let direct = g.batch * g.positions() * g.weights();
        let values = g.batch * self.tiles() * self.points() * (g.in_channels + g.out_channels);
        self.multiply_adds() + 16 * values < direct
    }

    /// Multiply-adds in the matrix products of one pass.
    pub(crate) fn multiply_adds(&self) -> usize {
        let channels = self.g.in_channels * self.g.out_channels;
        self.g.batch * self.tiles() * self.points() * channels
    }

    /// Height and width of an input tile.
    #[inline]
    fn side(&self) -> usize {
        self.tile + self.g.kernel - 1
    }

    /// Points of an input tile.
    #[inline]
    fn points(&self) -> usize {
        self.side() * self.side()
    }

    #[inline]
    fn tile_rows(&self) -> usize {
        self.g.out_height().div_ceil(self.tile)
    }

    #[inline]
    fn tile_columns(&self) -> usize {
        self.g.out_width().div_ceil(self.tile)
    }

    /// Tiles of an image.
    #[inline]
    fn tiles(&self) -> usize {
        self.tile_rows() * self.tile_columns()
    }

    /// Images of a block whose products have about `rows` rows, a multiple of `images`.
    #[inline]
    fn block(&self, rows: usize, images: usize) -> usize {
        let block = rows.div_ceil(self.tiles()).next_multiple_of(images);
        block.clamp(1, self.g.batch)
    }
}

/// Calls `$function::<M, R, T>(arguments)` with the plan's constants.
macro_rules! with_tile {
    ($plan:expr, $function:ident($($argument:expr),*)) => {
        match ($plan.tile, $plan.g.kernel) {
            (4, 3) => $function::<_, 4, 3, 6>($($argument),*),
            (6, 3) => $function::<_, 6, 3, 8>($($argument),*),
            (7, 3) => $function::<_, 7, 3, 9>($($argument),*),
            (4, 5) => $function::<_, 4, 5, 8>($($argument),*),
            (6, 5) => $function::<_, 6, 5, 10>($($argument),*),
            (tile, kernel) => unreachable!("no plan has tiles of {tile} for a kernel of {kernel}"),
        }
    };
}

/// The convolution of all images; `weight` is `[out_channels, in_channels, kernel, kernel]`.
pub(crate) fn forward<T: Real>(
    plan: &Plan,
    x: &[T],
    weight: &[T],
    outputs: &epilogue::Outputs<'_, T>,
) {
    with_tile!(plan, forward_tiles(plan, x, weight, outputs));
}

/// The gradient of the weight; that of the input goes to `grad_x`, if given.
pub(crate) fn backward<T: Real>(
    plan: &Plan,
    shards: Shards,
    x: &[T],
    weight: &[T],
    gradients: &epilogue::Gradients<'_, T>,
    grad_x: Option<&Parts<T>>,
) -> Vec<T> {
    with_tile!(
        plan,
        backward_tiles(plan, shards, x, weight, gradients, grad_x)
    )
}

/// The layout of `points` matrices of `rows` by `columns`, each in a plane of its own.
#[derive(Clone, Copy)]
struct Planes {
    /// Elements from a row to the next.
    stride: usize,
    /// Elements from a plane to the next. A cache line more than the rows, so that the points of a tile do not
    /// fall into the same set of the cache.
    plane: usize,
    points: usize,
}

impl Planes {
    fn new<T: Real>(points: usize, rows: usize, columns: usize) -> Self {
        let line = 64 / size_of::<T>();
        let stride = columns.next_multiple_of(line);
        Self {
            stride,
            plane: rows * stride + line,
            points,
        }
    }

    fn scratch<T: Real>(&self) -> Scratch<T> {
        Scratch::new(self.points * self.plane)
    }
}

/// Tiles of images `[height, width, channels]`, and the layout of their transforms.
#[derive(Clone, Copy)]
struct Tiling {
    height: usize,
    width: usize,
    channels: usize,
    /// Zeros around the image.
    padding: usize,
    /// Pixels from a tile to the next.
    step: usize,
    tile_rows: usize,
    tile_columns: usize,
    planes: Planes,
}

impl Tiling {
    /// The input's tiles, with planes for `images` images.
    fn of_inputs<T: Real>(plan: &Plan, images: usize) -> Self {
        let g = &plan.g;
        let sizes = (g.height, g.width, g.in_channels);
        Self::new::<T>(plan, images, sizes, g.padding)
    }

    /// The output's tiles, with planes for `images` images.
    fn of_outputs<T: Real>(plan: &Plan, images: usize) -> Self {
        let g = &plan.g;
        let sizes = (g.out_height(), g.out_width(), g.out_channels);
        Self::new::<T>(plan, images, sizes, 0)
    }

    fn new<T: Real>(
        plan: &Plan,
        images: usize,
        (height, width, channels): (usize, usize, usize),
        padding: usize,
    ) -> Self {
        Self {
            height,
            width,
            channels,
            padding,
            step: plan.tile,
            tile_rows: plan.tile_rows(),
            tile_columns: plan.tile_columns(),
            planes: Planes::new::<T>(plan.points(), images * plan.tiles(), channels),
        }
    }

    #[inline]
    fn tiles(&self) -> usize {
        self.tile_rows * self.tile_columns
    }

    /// Calls `each` with the number of every tile of an image and the row and column of its first
    /// pixel, counted from the padding's.
    #[inline(always)]
    fn each(&self, mut each: impl FnMut(usize, usize, usize)) {
        for row in 0..self.tile_rows {
            for column in 0..self.tile_columns {
                let tile = row * self.tile_columns + column;
                each(tile, row * self.step, column * self.step);
            }
        }
    }

    /// Indices of the pixels of a tile in the image; `None` in the padding.
    #[inline(always)]
    fn pixels<const N: usize>(&self, top: usize, left: usize) -> [[Option<usize>; N]; N] {
        let inside = |at: usize, size| Some(at.wrapping_sub(self.padding)).filter(|at| *at < size);
        let mut pixels = [[None; N]; N];
        for (i, row) in pixels.iter_mut().enumerate() {
            let y = inside(top + i, self.height);
            for (j, pixel) in row.iter_mut().enumerate() {
                let x = inside(left + j, self.width);
                *pixel = y.zip(x).map(|(y, x)| (y * self.width + x) * self.channels);
            }
        }
        pixels
    }
}

/// Transforms the tiles of an image by `matrix · tile · matrix'` into the planes, from row `first` on.
struct Expand<'a, T, X, const N: usize, const P: usize> {
    transform: PhantomData<X>,
    tiling: Tiling,
    image: &'a [T],
    planes: &'a Shared<T>,
    first: usize,
}

impl<T: Real, X: Matrix<N, P>, const N: usize, const P: usize> WithSimd for Expand<'_, T, X, N, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (tiling, image, planes) = (self.tiling, self.image, self.planes);
        let zero = T::splat(simd, T::zero());
        let lanes = T::lanes::<S>();
        tiling.each(|tile, top, left| {
            let pixels: [[_; N]; N] = tiling.pixels(top, left);
            let row = (self.first + tile) * tiling.planes.stride;
            for channel in (0..tiling.channels).step_by(lanes) {
                let rest = (tiling.channels - channel).min(lanes);
                expand_tile::<T, S, X, N, P>(
                    simd,
                    |i, j| match pixels[i][j] {
                        Some(pixel) => T::load_some(simd, &image[pixel + channel..][..rest]),
                        None => zero,
                    },
                    |k, l, value| {
                        let index = (k * P + l) * tiling.planes.plane + row + channel;
                        // SAFETY: rows are as long as whole vectors, and this image's rows of all
                        // planes are written by this call alone.
                        unsafe { T::store::<S>(planes.pointer().add(index), value) }
                    },
                );
            }
        });
    }
}

/// Transforms the tiles of image number `index` of a block into the planes.
fn expand<T: Real, X: Matrix<N, P>, const N: usize, const P: usize>(
    tiling: Tiling,
    image: &[T],
    planes: &Shared<T>,
    index: usize,
) {
    arch().dispatch(Expand::<T, X, N, P> {
        transform: PhantomData,
        tiling,
        image,
        planes,
        first: index * tiling.tiles(),
    });
}

/// Transforms the tiles of an image by `matrix' · tile · matrix` out of the planes, from row `first` on.
struct Contract<'a, T, X, const N: usize, const P: usize> {
    transform: PhantomData<X>,
    tiling: Tiling,
    image: &'a mut [T],
    planes: &'a [T],
    first: usize,
    /// Whether tiles are added to the image or replace its values.
    onto: Onto,
}

impl<T: Real, X: Matrix<N, P>, const N: usize, const P: usize> WithSimd
    for Contract<'_, T, X, N, P>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (tiling, image, planes) = (self.tiling, self.image, self.planes);
        let lanes = T::lanes::<S>();
        tiling.each(|tile, top, left| {
            let pixels: [[_; N]; N] = tiling.pixels(top, left);
            let row = (self.first + tile) * tiling.planes.stride;
            for channel in (0..tiling.channels).step_by(lanes) {
                let rest = (tiling.channels - channel).min(lanes);
                contract_tile::<T, S, X, N, P>(
                    simd,
                    |k, l| {
                        let index = (k * P + l) * tiling.planes.plane + row + channel;
                        T::load_some(simd, &planes[index..index + lanes])
                    },
                    |i, j, value| {
                        let Some(pixel) = pixels[i][j] else {
                            return;
                        };
                        let to = &mut image[pixel + channel..][..rest];
                        let value = match self.onto {
                            Onto::Nothing => value,
                            Onto::Sum => <T as Real>::add(simd, T::load_some(simd, to), value),
                        };
                        T::store_some(simd, to, value);
                    },
                );
            }
        });
    }
}

/// Transforms all kernels by `G g G'`: from `[kernel, kernel, rows, columns]` into a matrix of `rows` by
/// `columns` for each point, packed in panels.
struct ExpandKernels<'a, T, X, const R: usize, const P: usize> {
    transform: PhantomData<X>,
    kernels: &'a [T],
    rows: usize,
    columns: usize,
    width: usize,
    panels: &'a Shared<T>,
    row: usize,
}

impl<T: Real, X: Matrix<R, P>, const R: usize, const P: usize> WithSimd
    for ExpandKernels<'_, T, X, R, P>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let (rows, columns, width, row) = (self.rows, self.columns, self.width, self.row);
        let matrix = columns.div_ceil(width) * width * rows;
        for column in (0..columns.next_multiple_of(width)).step_by(lanes) {
            let rest = columns.saturating_sub(column).min(lanes);
            let to = column / width * width * rows + row * width + column % width;
            expand_tile::<T, S, X, R, P>(
                simd,
                |i, j| {
                    let from = ((i * R + j) * rows + row) * columns + column.min(columns);
                    T::load_some(simd, &self.kernels[from..][..rest])
                },
                |k, l, value| {
                    let index = (k * P + l) * matrix + to;
                    // SAFETY: panels consist of whole vectors, and row `row` of all matrices is written
                    // by this call alone.
                    unsafe { T::store::<S>(self.panels.pointer().add(index), value) }
                },
            );
        }
    }
}

/// `U` for every point, in panels, from kernels `[kernel, kernel, rows, columns]`.
fn expand_kernels<T: Real, const R: usize, const P: usize>(
    kernels: &[T],
    rows: usize,
    columns: usize,
) -> Scratch<T> {
    let mut expanded = Scratch::new(P * P * panels::<T>(rows, columns));
    let panels = Shared::new(&mut expanded);
    (0..rows).into_par_iter().for_each(|row| {
        arch().dispatch(ExpandKernels::<_, Kernel, R, P> {
            transform: PhantomData,
            kernels,
            rows,
            columns,
            width: panel_width::<T>(),
            panels: &panels,
            row,
        });
    });
    expanded
}

/// Transforms sums over tiles by `G' dU G`: from a matrix for each point, all with `stride` between
/// rows, into row `row` of `[kernel, kernel, rows, columns]`.
struct ContractKernels<'a, T, X, const R: usize, const P: usize> {
    transform: PhantomData<X>,
    sums: &'a [T],
    layout: Planes,
    rows: usize,
    columns: usize,
    row: usize,
    kernels: &'a Shared<T>,
}

impl<T: Real, X: Matrix<R, P>, const R: usize, const P: usize> WithSimd
    for ContractKernels<'_, T, X, R, P>
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let (rows, columns, row) = (self.rows, self.columns, self.row);
        for column in (0..columns).step_by(lanes) {
            let rest = (columns - column).min(lanes);
            contract_tile::<T, S, X, R, P>(
                simd,
                |k, l| {
                    let index = (k * P + l) * self.layout.plane + row * self.layout.stride + column;
                    T::load_some(simd, &self.sums[index..][..lanes])
                },
                |i, j, value| {
                    let to = ((i * R + j) * rows + row) * columns + column;
                    // SAFETY: row `row` of every kernel offset is written by this call alone, and
                    // has `rest` columns left.
                    let to = unsafe {
                        std::slice::from_raw_parts_mut(self.kernels.pointer().add(to), rest)
                    };
                    T::store_some(simd, to, value);
                },
            );
        }
    }
}

fn forward_tiles<T: Real, const M: usize, const R: usize, const P: usize>(
    plan: &Plan,
    x: &[T],
    weight: &[T],
    outputs: &epilogue::Outputs<'_, T>,
) {
    let g = &plan.g;
    // The results of an image do not depend on its block, so that this may follow the threads.
    let block = plan.block(FORWARD_ROWS, rayon::current_num_threads());
    let inputs = Tiling::of_inputs::<T>(plan, block);
    let results = Tiling::of_outputs::<T>(plan, block);
    let taps = weights::taps_in_out(g, weight);
    let u = expand_kernels::<T, R, P>(&taps, g.in_channels, g.out_channels);
    let u_point = panels::<T>(g.in_channels, g.out_channels);
    let mut v = inputs.planes.scratch::<T>();
    let mut q = results.planes.scratch::<T>();
    for start in (0..g.batch).step_by(block) {
        let images = block.min(g.batch - start);
        let v_shared = Shared::new(&mut v);
        (0..images).into_par_iter().for_each(|image| {
            let x = &x[(start + image) * g.image()..][..g.image()];
            expand::<_, Inputs, P, P>(inputs, x, &v_shared, image);
        });
        q.par_chunks_mut(results.planes.plane)
            .zip(v.par_chunks(inputs.planes.plane))
            .zip(u.par_chunks(u_point))
            .for_each(|((q, v), u)| {
                Product {
                    rows: images * plan.tiles(),
                    columns: g.out_channels,
                    depth: g.in_channels,
                    left: Left::rows(v, inputs.planes.stride),
                    right: Right::panels(u, g.in_channels),
                    onto: Onto::Nothing,
                }
                .into(q, results.planes.stride);
            });
        (0..images).into_par_iter().for_each(|image| {
            outputs.image(start + image, |y| {
                arch().dispatch(Contract::<_, Outputs, M, P> {
                    tiling: results,
                    transform: PhantomData,
                    image: y,
                    planes: &q,
                    first: image * results.tiles(),
                    onto: Onto::Nothing,
                });
            });
        });
    }
}

fn backward_tiles<T: Real, const M: usize, const R: usize, const P: usize>(
    plan: &Plan,
    shards: Shards,
    x: &[T],
    weight: &[T],
    gradients: &epilogue::Gradients<'_, T>,
    grad_x: Option<&Parts<T>>,
) -> Vec<T> {
    let g = &plan.g;
    // The sums over images depend on the block: an even number, since the number of threads mostly is even.
    let block = plan.block(BACKWARD_ROWS, 2);
    let inputs = Tiling::of_inputs::<T>(plan, block);
    let results = Tiling::of_outputs::<T>(plan, block);
    let mut v = inputs.planes.scratch::<T>();
    let mut dq = results.planes.scratch::<T>();
    let sums = Planes::new::<T>(plan.points(), g.in_channels, g.out_channels);
    let mut du = sums.scratch::<T>();
    let input_gradient = grad_x.map(|grad_x| {
        let taps = weights::taps_out_in(g, weight);
        let u = expand_kernels::<T, R, P>(&taps, g.out_channels, g.in_channels);
        (grad_x, u)
    });
    let u_point = panels::<T>(g.out_channels, g.in_channels);

    let taps = shards.sum(
        |shard| {
            for start in shard.clone().step_by(block) {
                let images = block.min(shard.end - start);
                let rows = images * plan.tiles();
                let v_shared = Shared::new(&mut v);
                let dq_shared = Shared::new(&mut dq);
                (0..images).into_par_iter().for_each(|image| {
                    let x = &x[(start + image) * g.image()..][..g.image()];
                    expand::<_, Inputs, P, P>(inputs, x, &v_shared, image);
                    gradients.image(start + image, |grad_y| {
                        expand::<_, Outputs, M, P>(results, grad_y, &dq_shared, image);
                    });
                });
                // A point's `dQ` is used twice while it is in the cache, and its `dV` replaces its `V`.
                let u = input_gradient.as_ref().map(|(_, u)| &u[..]);
                du.par_chunks_mut(sums.plane)
                    .zip(dq.par_chunks(results.planes.plane))
                    .zip(v.par_chunks_mut(inputs.planes.plane))
                    .enumerate()
                    .for_each(|(point, ((du, dq), v))| {
                        Product {
                            rows: g.in_channels,
                            columns: g.out_channels,
                            depth: rows,
                            left: Left::transposed(v, inputs.planes.stride),
                            right: Right::rows(dq, results.planes.stride),
                            onto: if start == shard.start {
                                Onto::Nothing
                            } else {
                                Onto::Sum
                            },
                        }
                        .into(du, sums.stride);
                        if let Some(u) = u {
                            Product {
                                rows,
                                columns: g.in_channels,
                                depth: g.out_channels,
                                left: Left::rows(dq, results.planes.stride),
                                right: Right::panels(
                                    &u[point * u_point..][..u_point],
                                    g.out_channels,
                                ),
                                onto: Onto::Nothing,
                            }
                            .into(v, inputs.planes.stride);
                        }
                    });
                if let Some((grad_x, _)) = &input_gradient {
                    (0..images).into_par_iter().for_each(|image| {
                        arch().dispatch(Contract::<_, Inputs, P, P> {
                            tiling: inputs,
                            transform: PhantomData,
                            image: grad_x.take(start + image),
                            planes: &v,
                            first: image * inputs.tiles(),
                            onto: Onto::Sum,
                        });
                    });
                }
            }

            let mut taps = Scratch::new(g.weights());
            let kernels = Shared::new(&mut taps);
            (0..g.in_channels).into_par_iter().for_each(|row| {
                arch().dispatch(ContractKernels::<_, Kernel, R, P> {
                    transform: PhantomData,
                    sums: &du,
                    layout: sums,
                    rows: g.in_channels,
                    columns: g.out_channels,
                    row,
                    kernels: &kernels,
                });
            });
            taps
        },
        |sum, taps| par_add(sum, &taps),
    );
    match taps {
        Some(taps) => weights::from_taps_in_out(g, &taps),
        None => vec![T::zero(); g.weights()],
    }
}

#[cfg(test)]
mod tests {
    use super::super::direct;
    use super::*;
    use crate::activation::Activation;
    use proptest::prelude::*;

    fn uniform(count: usize, seed: u64) -> Vec<f64> {
        let stream = rng::Stream::new(seed, rng::Purpose::Synthetic, 0);
        (0..count as u64)
            .map(|i| f64::from(rng::unit(stream.words(i)[0])) - 0.5)
            .collect()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!(
                (found - expected).abs() < 1e-10,
                "[{index}]: {found}, not {expected}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        /// Tiles of every size, also larger than the image; any number of channels.
        #[test]
        fn all_tiles_agree_with_the_direct_algorithm(
            batch in 1_usize..4, in_channels in 1_usize..20, out_channels in 1_usize..20,
            (kernel, tile) in prop_oneof![
                prop::sample::select(&TILES_OF_3).prop_map(|tile| (3_usize, tile)),
                prop::sample::select(&TILES_OF_5).prop_map(|tile| (5_usize, tile)),
            ],
            padding in 0_usize..6, extra_height in 0_usize..12, extra_width in 0_usize..12, seed in 0_u64..1000
        ) {
            let least = kernel.saturating_sub(2 * padding).max(1);
            let g = Geometry {
                batch, in_channels, out_channels, kernel, padding,
                height: least + extra_height,
                width: least + extra_width,
            };
            let plan = Plan { g, tile };
            let x = uniform(batch * g.image(), seed);
            let weight = uniform(g.weights(), seed + 1);
            let bias = uniform(out_channels, seed + 2);
            let run = |forward: &dyn Fn(&epilogue::Outputs<'_, f64>)| {
                let outputs = epilogue::Outputs::new(&g, &bias, Activation::Identity, None);
                forward(&outputs);
                outputs.into_results().0
            };
            let y = run(&|outputs| forward(&plan, &x, &weight, outputs));
            let expected = run(&|outputs| direct::forward(&g, &x, &weight, outputs));
            assert_close(&y, &expected);

            let grad_y = uniform(y.len(), seed + 3);
            let mut sums = vec![0.0; batch * out_channels];
            let grad_x = [(); 2].map(|()| Parts::new(batch, g.image()));
            let gradients = epilogue::Gradients::new(&g, Activation::Identity, None, &grad_y, &y, &[], &mut sums);
            let found = backward(&plan, Shards::one(batch), &x, &weight, &gradients, Some(&grad_x[0]));
            let expected = direct::backward(&g, Shards::one(batch), &x, &weight, &gradients, Some(&grad_x[1]));
            assert_close(&found, &expected);
            let [found, expected] = grad_x.map(Parts::into_vec);
            assert_close(&found, &expected);
        }
    }
}
