//! Two-dimensional convolution with stride 1, and its bias, rectifier and pooling in one operation.
//!
//! How the sums are computed is a matter of [`direct`] and [`winograd`]; what follows them, of
//! [`finish`].

#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod direct;
mod finish;
mod geometry;
mod weights;
mod winograd;

use crate::max_pool2d::{Pool, Windows};
use crate::scratch::Parts;
use crate::simd::Real;
use crate::storage::{slice, with_dtype};
use crate::tape::ParameterGradients;
use crate::{Activation, Arithmetic};
use candle_core::{Result, Shape, Tensor, bail};
use finish::{Gradients, Outputs};
#[cfg(feature = "cuda")]
pub(crate) use geometry::Geometry;
#[cfg(not(feature = "cuda"))]
use geometry::Geometry;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How convolutions are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Convolution {
    /// As the sum that defines them.
    Direct,
    /// In a transform domain where that takes less time; with rounding errors a few times as large.
    #[default]
    Fast,
}

impl Convolution {
    /// All ways.
    pub const ALL: [Self; 2] = [Self::Direct, Self::Fast];

    /// The name on the command line and in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fast => "fast",
        }
    }
}

impl fmt::Display for Convolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no way to compute a convolution.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no way to compute convolutions: use `direct` or `fast`")]
pub struct UnknownConvolution(String);

impl FromStr for Convolution {
    type Err = UnknownConvolution;

    fn from_str(name: &str) -> std::result::Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|convolution| convolution.name() == name)
            .ok_or_else(|| UnknownConvolution(name.to_owned()))
    }
}

/// What a convolution layer does, its weight and bias excepted.
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
    /// Multiplications with additions in the matrix products of one pass (forward, input gradient or
    /// weight gradient) over `x` `[batch, height, width, in_channels]` with `weight`
    /// `[out_channels, in_channels, kernel, kernel]`: what is left of the sum that defines the convolution.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn multiply_adds(
        &self,
        convolution: Convolution,
        x: impl Into<Shape>,
        weight: impl Into<Shape>,
    ) -> Result<u64> {
        let g = Geometry::new(&x.into(), &weight.into(), self.padding)?;
        Ok(match Way::new(&g, convolution) {
            Way::Direct => (g.batch * g.positions() * g.weights()) as u64,
            Way::Winograd(plan) => plan.multiply_adds() as u64,
        })
    }
}

/// A convolution that has been computed, with what its gradient needs to know.
pub(crate) struct Computed {
    layer: Conv2d,
    arithmetic: Arithmetic,
    kept: Kept,
}

/// What was kept for the gradient, where it was computed.
enum Kept {
    /// For each result, the place of the maximum in its window; empty where there is no pooling.
    Cpu { argmax: Vec<u8> },
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::Kept>),
}

/// The way that is taken for a convolution.
enum Way {
    Direct,
    Winograd(winograd::Plan),
}

impl Way {
    fn new(g: &Geometry, convolution: Convolution) -> Self {
        match convolution {
            Convolution::Direct => Self::Direct,
            Convolution::Fast => winograd::Plan::new(g)
                .filter(winograd::Plan::pays)
                .map_or(Self::Direct, Self::Winograd),
        }
    }
}

impl Computed {
    /// Convolves `x` `[batch, height, width, in_channels]` with `weight`
    /// `[out_channels, in_channels, kernel, kernel]`, adds `bias` `[out_channels]`, applies the activation
    /// and pools. Gives `[batch, height', width', out_channels]`.
    pub(crate) fn forward(
        layer: Conv2d,
        arithmetic: Arithmetic,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
    ) -> Result<(Tensor, Self)> {
        let g = Geometry::new(x.shape(), weight.shape(), layer.padding)?;
        if bias.dims() != [g.out_channels] {
            bail!(
                "conv2d: {:?} is no bias for {} channels",
                bias.shape(),
                g.out_channels
            );
        }
        let windows = finish::windows(&g, layer.pool)?;
        #[cfg(feature = "cuda")]
        if let Some(device) = crate::cuda::gpu(x) {
            let (y, kept) =
                cuda::forward(layer, arithmetic, device, &g, (x, weight, bias), windows)?;
            let kept = Kept::Cuda(Box::new(kept));
            let computed = Self {
                layer,
                arithmetic,
                kept,
            };
            return Ok((y, computed));
        }
        let (rows, columns) = windows.map_or((g.out_height(), g.out_width()), |windows| {
            (windows.rows(), windows.columns())
        });
        let shape = (g.batch, rows, columns, g.out_channels);
        let (y, argmax) = with_dtype!("conv2d", x.dtype(), T => {
            let (y, argmax) = compute::<T>(&g, arithmetic.convolution, (x, weight, bias), layer, windows)?;
            (Tensor::from_vec(y, shape, x.device())?, argmax)
        });
        let computed = Self {
            layer,
            arithmetic,
            kept: Kept::Cpu { argmax },
        };
        Ok((y, computed))
    }

    /// The gradients, from that of the result `y`; that of `x` only where it is wanted.
    pub(crate) fn backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        y: &Tensor,
        grad_y: &Tensor,
        wants_x: bool,
    ) -> Result<ParameterGradients> {
        let g = Geometry::new(x.shape(), weight.shape(), self.layer.padding)?;
        match &self.kept {
            Kept::Cpu { argmax } => with_dtype!("conv2d", x.dtype(), T => {
                self.gradients::<T>(&g, (x, weight), (y, argmax), grad_y, wants_x)
            }),
            #[cfg(feature = "cuda")]
            Kept::Cuda(kept) => {
                let Some(device) = crate::cuda::gpu(y) else {
                    bail!("conv2d: forward and backward on different devices");
                };
                let windows = finish::windows(&g, self.layer.pool)?;
                let (layer, arithmetic) = (self.layer, self.arithmetic);
                cuda::backward(
                    kept,
                    (layer, arithmetic),
                    device,
                    &g,
                    (y, grad_y),
                    windows,
                    wants_x,
                )
            }
        }
    }

    fn gradients<T: Real>(
        &self,
        g: &Geometry,
        (x, weight): (&Tensor, &Tensor),
        (y, argmax): (&Tensor, &[u8]),
        grad_y: &Tensor,
        wants_x: bool,
    ) -> Result<ParameterGradients> {
        let mut sums = vec![T::zero(); g.batch * g.out_channels];
        let grad_x = wants_x.then(|| Parts::new(g.batch, g.image()));
        let grad_weight = {
            let ((x, x_layout), (weight, weight_layout)) =
                (x.storage_and_layout(), weight.storage_and_layout());
            let ((y, y_layout), (grad_y, grad_layout)) =
                (y.storage_and_layout(), grad_y.storage_and_layout());
            let x = slice::<T>("conv2d", &x, x_layout)?;
            let weight = slice::<T>("conv2d", &weight, weight_layout)?;
            let gradients = Gradients::new(
                g,
                self.layer.activation,
                finish::windows(g, self.layer.pool)?,
                slice::<T>("conv2d", &grad_y, grad_layout)?,
                slice::<T>("conv2d", &y, y_layout)?,
                argmax,
                &mut sums,
            );
            match Way::new(g, self.arithmetic.convolution) {
                Way::Direct => direct::backward(g, x, weight, &gradients, grad_x.as_ref()),
                Way::Winograd(plan) => {
                    winograd::backward(&plan, x, weight, &gradients, grad_x.as_ref())
                }
            }
        };
        let mut grad_bias = vec![0.0; g.out_channels];
        for sums in sums.chunks_exact(g.out_channels.max(1)) {
            for (total, sum) in grad_bias.iter_mut().zip(sums) {
                *total += sum.to_f64();
            }
        }
        let grad_bias: Vec<T> = grad_bias.into_iter().map(T::from_f64).collect();
        Ok(ParameterGradients {
            x: grad_x
                .map(|grad_x| Tensor::from_vec(grad_x.into_vec(), x.shape(), x.device()))
                .transpose()?,
            weight: Tensor::from_vec(grad_weight, weight.shape(), x.device())?,
            bias: Tensor::from_vec(grad_bias, g.out_channels, x.device())?,
        })
    }
}

fn compute<T: Real>(
    g: &Geometry,
    convolution: Convolution,
    (x, weight, bias): (&Tensor, &Tensor, &Tensor),
    layer: Conv2d,
    windows: Option<Windows>,
) -> Result<(Vec<T>, Vec<u8>)> {
    let ((x, x_layout), (weight, weight_layout), (bias, bias_layout)) = (
        x.storage_and_layout(),
        weight.storage_and_layout(),
        bias.storage_and_layout(),
    );
    let x = slice::<T>("conv2d", &x, x_layout)?;
    let weight = slice::<T>("conv2d", &weight, weight_layout)?;
    let bias = slice::<T>("conv2d", &bias, bias_layout)?;
    let outputs = Outputs::new(g, bias, layer.activation, windows);
    match Way::new(g, convolution) {
        Way::Direct => direct::forward(g, x, weight, &outputs),
        Way::Winograd(plan) => winograd::forward(&plan, x, weight, &outputs),
    }
    Ok(outputs.into_results())
}
