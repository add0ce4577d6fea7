//! Two-dimensional convolution with stride 1, its bias and its rectifier in one operation.
//!
//! All three passes are matrix products over unrolled images ("im2col": K. Chellapilla, S. Puri and
//! P. Simard, "High performance convolutional neural networks for document processing", 2006). With
//! `col` the matrix `[in_channels * kernel * kernel, out_height * out_width]` of an image's patches,
//!
//! - forward: `y = W col + b` for each image,
//! - input gradient: `dcol = W' dy`, folded back onto the image by adding overlaps,
//! - weight gradient: `dW = sum over images of dy col'`.
//!
//! Images are independent of one another in the first two. In the third, the work is cut into
//! blocks of input channels and groups of images by [`WeightParts`], from the shapes alone; the
//! groups are summed in order.

use crate::Activation;
use crate::matmul::{Matrix, Onto, matmul};
use crate::relu::{rectify, relu_gradient};
use crate::storage::{contiguous, with_float};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail,
};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Convolves `x` `[batch, in_channels, height, width]` with `weight`
/// `[out_channels, in_channels, kernel, kernel]` at stride 1, with `padding` zeros on every side,
/// adds `bias` `[out_channels]` and applies `activation`. Gives
/// `[batch, out_channels, height + 2 padding - kernel + 1, width + 2 padding - kernel + 1]`.
///
/// # Errors
/// When the shapes do not fit one another, or the tensors are neither all `f32` nor all `f64`.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    padding: usize,
    activation: Activation,
) -> Result<Tensor> {
    let operation = Conv2d {
        padding,
        activation,
    };
    x.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias.contiguous()?, operation)
}

/// The sizes of one convolution.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    batch: usize,
    in_channels: usize,
    height: usize,
    width: usize,
    out_channels: usize,
    kernel: usize,
    padding: usize,
}

impl Geometry {
    fn new(x: &Shape, weight: &Shape, padding: usize) -> Result<Self> {
        let (batch, in_channels, height, width) = x.dims4()?;
        let (out_channels, weight_channels, kernel, kernel_width) = weight.dims4()?;
        if weight_channels != in_channels || kernel != kernel_width {
            bail!("conv2d: an input of shape {x:?} does not fit a weight of shape {weight:?}");
        }
        if kernel == 0 || kernel > height + 2 * padding || kernel > width + 2 * padding {
            bail!(
                "conv2d: a kernel of {kernel} does not fit an input of shape {x:?} with padding {padding}"
            );
        }
        Ok(Self {
            batch,
            in_channels,
            height,
            width,
            out_channels,
            kernel,
            padding,
        })
    }

    fn out_height(&self) -> usize {
        self.height + 2 * self.padding + 1 - self.kernel
    }

    fn out_width(&self) -> usize {
        self.width + 2 * self.padding + 1 - self.kernel
    }

    /// Output positions of an image.
    fn positions(&self) -> usize {
        self.out_height() * self.out_width()
    }

    /// Elements of an input image.
    fn image(&self) -> usize {
        self.in_channels * self.height * self.width
    }

    /// Products that make one output value.
    fn patch(&self) -> usize {
        self.in_channels * self.kernel * self.kernel
    }

    fn x_shape(&self) -> Shape {
        Shape::from((self.batch, self.in_channels, self.height, self.width))
    }

    fn weight_shape(&self) -> Shape {
        Shape::from((
            self.out_channels,
            self.in_channels,
            self.kernel,
            self.kernel,
        ))
    }

    fn y_shape(&self) -> Shape {
        Shape::from((
            self.batch,
            self.out_channels,
            self.out_height(),
            self.out_width(),
        ))
    }

    /// For kernel offset `k` along an axis of `size` inputs: the range of outputs that read an
    /// input inside the image, and the input that the first of them reads.
    fn inside(&self, k: usize, size: usize, out_size: usize) -> (std::ops::Range<usize>, usize) {
        let start = self.padding.saturating_sub(k).min(out_size);
        let end = (size + self.padding).saturating_sub(k).min(out_size);
        (
            start..end.max(start),
            (start + k).saturating_sub(self.padding),
        )
    }
}

/// Unrolls the channels of `image` (`[channels, height, width]`) into `col`
/// (`[channels * kernel * kernel, positions]`).
fn unroll<T: WithDType>(g: &Geometry, image: &[T], col: &mut [T]) {
    let (out_height, out_width) = (g.out_height(), g.out_width());
    let planes = image.chunks_exact(g.height * g.width);
    let rows = col.chunks_exact_mut(g.kernel * g.kernel * g.positions());
    for (plane, rows) in planes.zip(rows) {
        for (offset, row) in rows.chunks_exact_mut(g.positions()).enumerate() {
            let (ys, first_y) = g.inside(offset / g.kernel, g.height, out_height);
            let (xs, first_x) = g.inside(offset % g.kernel, g.width, out_width);
            row[..ys.start * out_width].fill(T::zero());
            row[ys.end * out_width..].fill(T::zero());
            for (line, y) in ys.clone().zip(first_y..) {
                let line = &mut row[line * out_width..][..out_width];
                line[..xs.start].fill(T::zero());
                line[xs.end..].fill(T::zero());
                line[xs.clone()].copy_from_slice(&plane[y * g.width + first_x..][..xs.len()]);
            }
        }
    }
}

/// Adds `col` back onto the channels of `image`: the transpose of [`unroll`].
fn fold<T: WithDType>(g: &Geometry, col: &[T], image: &mut [T]) {
    let (out_height, out_width) = (g.out_height(), g.out_width());
    let planes = image.chunks_exact_mut(g.height * g.width);
    let rows = col.chunks_exact(g.kernel * g.kernel * g.positions());
    for (plane, rows) in planes.zip(rows) {
        for (offset, row) in rows.chunks_exact(g.positions()).enumerate() {
            let (ys, first_y) = g.inside(offset / g.kernel, g.height, out_height);
            let (xs, first_x) = g.inside(offset % g.kernel, g.width, out_width);
            for (line, y) in ys.zip(first_y..) {
                let line = &row[line * out_width..][xs.clone()];
                let target = &mut plane[y * g.width + first_x..][..xs.len()];
                for (target, value) in target.iter_mut().zip(line) {
                    *target += *value;
                }
            }
        }
    }
}

/// Working memory of one call, reused by the tasks that a thread runs after one another: fresh
/// pages would cost more than the unrolling itself.
struct Scratch<T> {
    size: usize,
    free: Mutex<Vec<Vec<T>>>,
}

impl<T: WithDType> Scratch<T> {
    fn new(size: usize) -> Self {
        Self {
            size,
            free: Mutex::new(Vec::new()),
        }
    }

    /// Runs `task` with `size` elements that hold anything.
    fn with<R>(&self, task: impl FnOnce(&mut [T]) -> R) -> R {
        let free = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = free().pop();
        let mut buffer = taken.unwrap_or_else(|| vec![T::zero(); self.size]);
        let result = task(&mut buffer);
        free().push(buffer);
        result
    }
}

struct Conv2d {
    padding: usize,
    activation: Activation,
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let g = Geometry::new(x_layout.shape(), weight_layout.shape(), self.padding)?;
        if bias_layout.shape().dims() != [g.out_channels] {
            bail!(
                "conv2d: {:?} is no bias for {} channels",
                bias_layout.shape(),
                g.out_channels
            );
        }
        with_float!(self.name(), x, T => {
            let x = contiguous::<T>(self.name(), x, x_layout)?;
            let weight = contiguous::<T>(self.name(), weight, weight_layout)?;
            let bias = contiguous::<T>(self.name(), bias, bias_layout)?;
            let y = forward(&g, x, weight, bias, self.activation);
            Ok((T::to_cpu_storage_owned(y), g.y_shape()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        y: &Tensor,
        grad_y: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = Geometry::new(x.shape(), weight.shape(), self.padding)?;
        let grad_y = match self.activation {
            Activation::Identity => grad_y.contiguous()?,
            Activation::Relu => relu_gradient(y, grad_y)?,
        };
        // The images themselves need no gradient, and theirs would be the dearest of all.
        let grad_x = x
            .track_op()
            .then(|| grad_y.apply_op2_no_bwd(weight, &InputGradient(g)))
            .transpose()?;
        let grad_weight = grad_y.apply_op2_no_bwd(x, &WeightGradient(g))?;
        let grad_bias = grad_y.apply_op1_no_bwd(&BiasGradient(g))?;
        Ok((grad_x, Some(grad_weight), Some(grad_bias)))
    }
}

fn forward<T: WithDType>(
    g: &Geometry,
    x: &[T],
    weight: &[T],
    bias: &[T],
    activation: Activation,
) -> Vec<T> {
    let mut y = vec![T::zero(); g.batch * g.out_channels * g.positions()];
    let scratch = Scratch::new(g.patch() * g.positions());
    let weight = Matrix::new(weight, g.out_channels, g.patch());
    y.par_chunks_mut(g.out_channels * g.positions())
        .zip(x.par_chunks(g.image()))
        .for_each(|(y, x)| {
            scratch.with(|col| {
                unroll(g, x, col);
                let col = Matrix::new(col, g.patch(), g.positions());
                matmul(y, Onto::Nothing, weight, col);
            });
            for (plane, bias) in y.chunks_exact_mut(g.positions()).zip(bias) {
                plane.iter_mut().for_each(|value| *value += *bias);
            }
            if activation == Activation::Relu {
                rectify(y);
            }
        });
    y
}

/// From the gradient of the output and the weight: the gradient of the input.
struct InputGradient(Geometry);

impl CustomOp2 for InputGradient {
    fn name(&self) -> &'static str {
        "conv2d-input-gradient"
    }

    fn cpu_fwd(
        &self,
        grad_y: &CpuStorage,
        grad_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let g = &self.0;
        with_float!(self.name(), grad_y, T => {
            let grad_y = contiguous::<T>(self.name(), grad_y, grad_layout)?;
            let weight = contiguous::<T>(self.name(), weight, weight_layout)?;
            Ok((T::to_cpu_storage_owned(input_gradient(g, grad_y, weight)), g.x_shape()))
        })
    }
}

fn input_gradient<T: WithDType>(g: &Geometry, grad_y: &[T], weight: &[T]) -> Vec<T> {
    let mut grad_x = vec![T::zero(); g.batch * g.image()];
    let scratch = Scratch::new(g.patch() * g.positions());
    let weight = Matrix::new(weight, g.out_channels, g.patch()).transposed();
    grad_x
        .par_chunks_mut(g.image())
        .zip(grad_y.par_chunks(g.out_channels * g.positions()))
        .for_each(|(grad_x, grad_y)| {
            scratch.with(|col| {
                let grad_y = Matrix::new(grad_y, g.out_channels, g.positions());
                matmul(col, Onto::Nothing, weight, grad_y);
                fold(g, col, grad_x);
            });
        });
    grad_x
}

/// From the gradient of the output and the input: the gradient of the weight.
struct WeightGradient(Geometry);

impl CustomOp2 for WeightGradient {
    fn name(&self) -> &'static str {
        "conv2d-weight-gradient"
    }

    fn cpu_fwd(
        &self,
        grad_y: &CpuStorage,
        grad_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let g = &self.0;
        with_float!(self.name(), grad_y, T => {
            let grad_y = contiguous::<T>(self.name(), grad_y, grad_layout)?;
            let x = contiguous::<T>(self.name(), x, x_layout)?;
            Ok((T::to_cpu_storage_owned(weight_gradient(g, grad_y, x)), g.weight_shape()))
        })
    }
}

/// How the weight gradient is cut into tasks.
struct WeightParts {
    /// Input channels a task.
    channels: usize,
    /// Images a task.
    images: usize,
}

impl WeightParts {
    /// Some 200 rows of `col` a task keep the product efficient; where a layer's channels give
    /// fewer than 8 tasks, the images are split as well.
    fn new(g: &Geometry) -> Self {
        let channels = 200_usize
            .div_ceil(g.kernel * g.kernel)
            .clamp(1, g.in_channels.max(1));
        let blocks = g.in_channels.div_ceil(channels).max(1);
        let groups = 8_usize.div_ceil(blocks);
        Self {
            channels,
            images: g.batch.div_ceil(groups).max(1),
        }
    }
}

fn weight_gradient<T: WithDType>(g: &Geometry, grad_y: &[T], x: &[T]) -> Vec<T> {
    let parts = WeightParts::new(g);
    let blocks = g.in_channels.div_ceil(parts.channels);
    let groups = g.batch.div_ceil(parts.images);
    let square = g.kernel * g.kernel;
    let plane = g.height * g.width;
    let scratch = Scratch::new(parts.channels * square * g.positions());
    let sums: Vec<Vec<T>> = (0..blocks * groups)
        .into_par_iter()
        .map(|task| {
            let first = (task % blocks) * parts.channels;
            let channels = parts.channels.min(g.in_channels - first);
            let images =
                (task / blocks) * parts.images..g.batch.min((task / blocks + 1) * parts.images);
            let mut sum = vec![T::zero(); g.out_channels * channels * square];
            scratch.with(|col| {
                let col = &mut col[..channels * square * g.positions()];
                for image in images {
                    let x = &x[image * g.image() + first * plane..][..channels * plane];
                    let grad_y = &grad_y[image * g.out_channels * g.positions()..];
                    unroll(g, x, col);
                    matmul(
                        &mut sum,
                        Onto::Sum,
                        Matrix::new(grad_y, g.out_channels, g.positions()),
                        Matrix::new(col, channels * square, g.positions()).transposed(),
                    );
                }
            });
            sum
        })
        .collect();
    let mut grad_weight = vec![T::zero(); g.out_channels * g.patch()];
    for (task, sum) in sums.iter().enumerate() {
        let start = (task % blocks) * parts.channels * square;
        let length = sum.len() / g.out_channels.max(1);
        if length == 0 {
            continue;
        }
        for (row, sum) in grad_weight
            .chunks_exact_mut(g.patch())
            .zip(sum.chunks_exact(length))
        {
            for (value, part) in row[start..start + length].iter_mut().zip(sum) {
                *value += *part;
            }
        }
    }
    grad_weight
}

/// From the gradient of the output: the gradient of the bias.
struct BiasGradient(Geometry);

impl CustomOp1 for BiasGradient {
    fn name(&self) -> &'static str {
        "conv2d-bias-gradient"
    }

    fn cpu_fwd(&self, grad_y: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let g = &self.0;
        with_float!(self.name(), grad_y, T => {
            let grad_y = contiguous::<T>(self.name(), grad_y, layout)?;
            let planes = g.out_channels * g.positions();
            let grad_bias: Vec<T> = (0..g.out_channels)
                .into_par_iter()
                .map(|channel| {
                    let images = grad_y.chunks_exact(planes);
                    T::from_f64(images.map(|image| sum(&image[channel * g.positions()..][..g.positions()])).sum())
                })
                .collect();
            Ok((T::to_cpu_storage_owned(grad_bias), Shape::from(g.out_channels)))
        })
    }
}

/// The sum in double precision, in eight lanes so that it vectorises.
fn sum<T: WithDType>(values: &[T]) -> f64 {
    let mut lanes = [0.0; 8];
    let chunks = values.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|value| value.to_f64()).sum();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value.to_f64();
        }
    }
    lanes.iter().sum::<f64>() + rest
}
