//! Two-dimensional convolution with stride 1, and its bias, activation and max-pooling in one operation.

#[cfg(feature = "cuda")]
mod cuda;

use crate::arithmetic::Arithmetic;
use crate::operation::{Gradients, Inputs, Operation, Output, in_graph, shards};
use crate::storage::{gradients, output, with_dtype, with_slices};
use candle_core::{DType, Error, Result, Shape, Tensor, bail};
use kernels::conv2d::{ConvAlgorithm, Geometry};
use kernels::{Activation, Pool, Shards};
use std::sync::OnceLock;

/// A convolution layer without its weight and bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Zeros on every side of the images.
    pub padding: usize,
    /// What follows the bias.
    pub activation: Activation,
    /// The max-pooling that follows the activation.
    pub pool: Option<Pool>,
}

impl Conv2d {
    /// Multiply-adds in the matrix products of one pass (forward, input gradient or weight gradient) over `x`
    /// `[batch, height, width, in_channels]` with `weight` `[out_channels, in_channels, kernel, kernel]`. Winograd's
    /// algorithm takes fewer than the sum that defines the convolution.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn multiply_adds(
        &self,
        algorithm: ConvAlgorithm,
        x: impl Into<Shape>,
        weight: impl Into<Shape>,
    ) -> Result<u64> {
        let g = self.geometry(&x.into(), &weight.into())?;
        Ok(self.kernel(g, algorithm)?.multiply_adds() as u64)
    }

    fn geometry(&self, x: &Shape, weight: &Shape) -> Result<Geometry> {
        let (batch, height, width, in_channels) = x.dims4()?;
        let weight: [usize; 4] = weight.dims4()?.into();
        Geometry::new([batch, height, width, in_channels], weight, self.padding)
            .map_err(Error::wrap)
    }

    fn kernel(&self, g: Geometry, algorithm: ConvAlgorithm) -> Result<kernels::conv2d::Conv2d> {
        kernels::conv2d::Conv2d::new(g, algorithm, self.activation, self.pool).map_err(Error::wrap)
    }
}

/// Convolves `x` `[batch, height, width, in_channels]` at stride 1 with `weight`
/// `[out_channels, in_channels, kernel, kernel]`, adds `bias` `[out_channels]`, applies the activation and pools. Gives
/// `[batch, height', width', out_channels]`, where `height'` is `height + 2 padding - kernel + 1` before pooling.
///
/// # Errors
/// When the shapes do not fit, or the tensors are not all `f32`, all `f64`, or `x` in `bf16` with weight and bias in
/// `f32`. On a GPU there is no `f64`.
pub fn conv2d(
    arithmetic: impl Into<Arithmetic>,
    layer: Conv2d,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<Tensor> {
    let layer = ConvLayer::new(layer, arithmetic.into(), None);
    in_graph(layer, [x, weight, bias])
}

/// One use of a convolution layer.
pub(crate) struct ConvLayer {
    layer: Conv2d,
    arithmetic: Arithmetic,
    /// Those of the batch, if there are several.
    shards: Option<Shards>,
    saved: OnceLock<Saved>,
}

/// What is saved for the backward pass.
enum Saved {
    /// For each result, the index of the maximum in its window; empty without pooling.
    Cpu { argmax: Vec<u8> },
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::Saved>),
}

impl ConvLayer {
    pub(crate) fn new(layer: Conv2d, arithmetic: Arithmetic, shards: Option<Shards>) -> Self {
        Self {
            layer,
            arithmetic,
            shards,
            saved: OnceLock::new(),
        }
    }
}

impl Operation for ConvLayer {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn computes_bf16(&self) -> bool {
        true
    }

    fn forward(&self, inputs: Inputs) -> Result<Output> {
        let [x, weight, bias] = inputs;
        let g = self.layer.geometry(x.shape(), weight.shape())?;
        if bias.dims() != [g.out_channels] {
            bail!(
                "conv2d: {:?} is not the shape of a bias for {} channels",
                bias.shape(),
                g.out_channels
            );
        }
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let (y, saved) = cuda::forward((self.layer, self.arithmetic), &g, inputs)?;
            let _ = self.saved.set(Saved::Cuda(saved.into()));
            return Ok(y);
        }
        let kernel = self.layer.kernel(g, self.arithmetic.conv_algorithm)?;
        if x.dtype() == DType::BF16 {
            let (y, argmax) = with_slices("conv2d", [x], |[x]| {
                with_slices("conv2d", [weight, bias], |[weight, bias]| {
                    kernel.forward_bf16(x, weight, bias)
                })
            })??;
            let _ = self.saved.set(Saved::Cpu { argmax });
            return Ok(output(y, kernel.output_shape().to_vec()));
        }
        with_dtype!("conv2d", x.dtype(), T => {
            let (y, argmax) = with_slices::<T, _, 3>("conv2d", inputs, |[x, weight, bias]| {
                kernel.forward(x, weight, bias)
            })?;
            let _ = self.saved.set(Saved::Cpu { argmax });
            Ok(output(y, kernel.output_shape().to_vec()))
        })
    }

    fn backward(&self, inputs: Inputs, results: [&Tensor; 2], wants_x: bool) -> Result<Gradients> {
        let [y, grad_y] = results;
        let [x, weight, _] = inputs;
        let g = self.layer.geometry(x.shape(), weight.shape())?;
        let argmax = match self.saved.get() {
            Some(Saved::Cpu { argmax }) => argmax,
            #[cfg(feature = "cuda")]
            Some(Saved::Cuda(saved)) => {
                let layer = (self.layer, self.arithmetic);
                return cuda::backward(saved, layer, &g, (x, y, grad_y), wants_x);
            }
            None => bail!("conv2d: backward before forward"),
        };
        let shards = shards("conv2d", self.shards, g.batch)?;
        let kernel = self
            .layer
            .kernel(g, self.arithmetic.conv_algorithm)?
            .sharded(shards);
        if x.dtype() == DType::BF16 {
            let found = with_slices("conv2d", [x, y, grad_y], |[x, y, grad_y]| {
                with_slices("conv2d", [weight], |[weight]| {
                    kernel.backward_bf16((x, weight), (y, argmax), grad_y, wants_x)
                })
            })??;
            return Ok(gradients(found, inputs));
        }
        with_dtype!("conv2d", x.dtype(), T => {
            let tensors = [x, weight, y, grad_y];
            let found = with_slices::<T, _, 4>("conv2d", tensors, |[x, weight, y, grad_y]| {
                kernel.backward((x, weight), (y, argmax), grad_y, wants_x)
            })?;
            Ok(gradients(found, inputs))
        })
    }
}
