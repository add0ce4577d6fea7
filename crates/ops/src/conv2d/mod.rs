//! Two-dimensional convolution with stride 1, and its bias, activation and max-pooling in one operation.

#[cfg(feature = "cuda")]
mod cuda;

use crate::arithmetic::Arithmetic;
use crate::parametric::{ParameterGradients, Parametric, graph_gradients};
use crate::storage::{contiguous, slice, with_dtype, with_float};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape, Tensor, WithDType, bail};
use kernels::conv2d::{ConvAlgorithm, Geometry};
use kernels::{Activation, Pool};
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
/// When the shapes do not fit, or the tensors are neither all `f32` nor all `f64`. On a GPU: when `x` is neither `f32` nor
/// `bf16`, or weight and bias are not `f32`.
pub fn conv2d(
    arithmetic: impl Into<Arithmetic>,
    layer: Conv2d,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<Tensor> {
    let operation = Operation::new(layer, arithmetic.into());
    x.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias.contiguous()?, operation)
}

/// One use of a convolution layer.
pub(crate) struct Operation {
    layer: Conv2d,
    arithmetic: Arithmetic,
    saved: OnceLock<Saved>,
}

/// What is saved for the backward pass.
enum Saved {
    /// For each result, the index of the maximum in its window; empty without pooling.
    Cpu { argmax: Vec<u8> },
    #[cfg(feature = "cuda")]
    Cuda(cuda::Saved),
}

impl Operation {
    pub(crate) fn new(layer: Conv2d, arithmetic: Arithmetic) -> Self {
        Self {
            layer,
            arithmetic,
            saved: OnceLock::new(),
        }
    }

    fn checked(&self, x: &Layout, weight: &Layout, bias: &Layout) -> Result<Geometry> {
        let g = self.layer.geometry(x.shape(), weight.shape())?;
        if bias.dims() != [g.out_channels] {
            bail!(
                "conv2d: {:?} is not the shape of a bias for {} channels",
                bias.shape(),
                g.out_channels
            );
        }
        Ok(g)
    }
}

impl CustomOp3 for Operation {
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
        let g = self.checked(x_layout, weight_layout, bias_layout)?;
        let kernel = self.layer.kernel(g, self.arithmetic.conv_algorithm)?;
        with_float!("conv2d", x, T => {
            let (y, argmax) = kernel.forward::<T>(
                contiguous("conv2d", x, x_layout)?,
                contiguous("conv2d", weight, weight_layout)?,
                contiguous("conv2d", bias, bias_layout)?,
            );
            let _ = self.saved.set(Saved::Cpu { argmax });
            Ok((T::to_cpu_storage_owned(y), Shape::from(kernel.output_shape().to_vec())))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let g = self.checked(x_layout, weight_layout, bias_layout)?;
        let shape = self
            .layer
            .kernel(g, self.arithmetic.conv_algorithm)?
            .output_shape();
        let (y, saved) = cuda::forward(
            (self.layer, self.arithmetic),
            &g,
            [(x, x_layout), (weight, weight_layout), (bias, bias_layout)],
        )?;
        let _ = self.saved.set(Saved::Cuda(saved));
        Ok((y, Shape::from(shape.to_vec())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        grad_y: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        graph_gradients(self, [x, weight, bias], y, grad_y)
    }
}

impl Parametric for Operation {
    fn backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        y: &Tensor,
        grad_y: &Tensor,
        wants_x: bool,
    ) -> Result<ParameterGradients> {
        let g = self.layer.geometry(x.shape(), weight.shape())?;
        match self.saved.get() {
            None => bail!("conv2d: backward before forward"),
            Some(Saved::Cpu { argmax }) => with_dtype!("conv2d", x.dtype(), T => {
                let kernel = self.layer.kernel(g, self.arithmetic.conv_algorithm)?;
                let gradients = {
                    let ((x, x_layout), (weight, weight_layout)) =
                        (x.storage_and_layout(), weight.storage_and_layout());
                    let ((y, y_layout), (grad_y, grad_layout)) =
                        (y.storage_and_layout(), grad_y.storage_and_layout());
                    kernel.backward::<T>(
                        (slice("conv2d", &x, x_layout)?, slice("conv2d", &weight, weight_layout)?),
                        (slice("conv2d", &y, y_layout)?, argmax),
                        slice("conv2d", &grad_y, grad_layout)?,
                        wants_x,
                    )
                };
                ParameterGradients::from_vecs(gradients, x, weight)
            }),
            #[cfg(feature = "cuda")]
            Some(Saved::Cuda(saved)) => {
                let layer = (self.layer, self.arithmetic);
                cuda::backward(saved, layer, &g, (x, y, grad_y), wants_x)
            }
        }
    }
}
