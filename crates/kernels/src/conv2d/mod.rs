//! Two-dimensional convolution with stride 1, with its bias, activation and max-pooling in the same pass.
//!
//! `direct` and `winograd` compute the sums, `epilogue` what follows them.

mod algorithm;
mod direct;
pub(crate) mod epilogue;
mod geometry;
mod weights;
mod winograd;

use crate::activation::Activation;
use crate::element::Element;
use crate::gradients::{ParameterGradients, sum_rows};
use crate::parts::Parts;
use crate::shape_error::ShapeError;
use crate::shards::Shards;
use crate::simd::Real;
use crate::windows::{Pool, Windows};
pub use algorithm::ConvAlgorithm;
use epilogue::{Gradients, Outputs};
pub use geometry::Geometry;
use half::bf16;

/// A convolution of given sizes, and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    geometry: Geometry,
    algorithm: ConvAlgorithm,
    activation: Activation,
    windows: Option<Windows>,
    shards: Shards,
}

impl Conv2d {
    /// A convolution, followed by `activation` and the max-pooling `pool`.
    ///
    /// # Errors
    /// When no pooling window fits.
    pub fn new(
        geometry: Geometry,
        algorithm: ConvAlgorithm,
        activation: Activation,
        pool: Option<Pool>,
    ) -> Result<Self, ShapeError> {
        let windows = geometry.windows(pool)?;
        Ok(Self {
            geometry,
            algorithm,
            activation,
            windows,
            shards: Shards::one(geometry.batch),
        })
    }

    /// The same with gradients of the parameters that are sums over `shards` of the batch.
    ///
    /// # Panics
    /// When the shards have another number of images.
    #[must_use]
    pub fn sharded(self, shards: Shards) -> Self {
        assert_eq!(shards.images().len(), self.geometry.batch);
        Self { shards, ..self }
    }

    /// The shape of the result, `[batch, height, width, out_channels]`.
    #[must_use]
    pub fn output_shape(&self) -> [usize; 4] {
        let g = &self.geometry;
        let (rows, columns) = self
            .windows
            .map_or((g.out_height(), g.out_width()), |windows| {
                (windows.rows(), windows.columns())
            });
        [g.batch, rows, columns, g.out_channels]
    }

    /// How Winograd's algorithm computes it, if that was asked for and is faster.
    fn winograd(&self) -> Option<winograd::Plan> {
        match self.algorithm {
            ConvAlgorithm::Direct => None,
            ConvAlgorithm::Winograd => {
                winograd::Plan::new(&self.geometry).filter(winograd::Plan::is_faster)
            }
        }
    }

    /// Multiply-adds in the matrix products of one pass (forward, input gradient or weight gradient): for Winograd's
    /// algorithm fewer than in the sum that defines the convolution.
    #[must_use]
    pub fn multiply_adds(&self) -> usize {
        let g = &self.geometry;
        match self.winograd() {
            None => g.batch * g.positions() * g.weights(),
            Some(plan) => plan.multiply_adds(),
        }
    }

    /// The result for the images `x`, the weight and the bias `[out_channels]`, of [`Self::output_shape`]; and with
    /// max-pooling, for each of its elements the index of the maximum in its window, row by row.
    ///
    /// # Panics
    /// When a slice has another length than the geometry says.
    #[must_use]
    pub fn forward<T: Real>(&self, x: &[T], weight: &[T], bias: &[T]) -> (Vec<T>, Vec<u8>) {
        let g = &self.geometry;
        assert!(x.len() == g.batch * g.image() && weight.len() == g.weights());
        let outputs = Outputs::new(g, bias, self.activation, self.windows);
        match self.winograd() {
            None => direct::forward(g, x, weight, &outputs),
            Some(plan) => winograd::forward(&plan, x, weight, &outputs),
        }
        outputs.into_results()
    }

    /// The same in `bf16`, whatever the algorithm: products of `bf16`, with sums, bias and activation in `f32`.
    ///
    /// # Panics
    /// As for [`Self::forward`].
    #[must_use]
    pub fn forward_bf16(&self, x: &[bf16], weight: &[f32], bias: &[f32]) -> (Vec<bf16>, Vec<u8>) {
        let g = &self.geometry;
        assert!(x.len() == g.batch * g.image() && weight.len() == g.weights());
        let outputs = Outputs::new(g, bias, self.activation, self.windows);
        crate::bf16::conv2d::forward(g, x, weight, &outputs);
        outputs.into_results()
    }

    /// The gradients, from `y` and `argmax` as [`Self::forward`] returned them and the gradient of `y`; that of `x` only
    /// if `wants_x`.
    ///
    /// # Panics
    /// When a slice has another length than the geometry says.
    #[must_use]
    pub fn backward<T: Real>(
        &self,
        (x, weight): (&[T], &[T]),
        (y, argmax): (&[T], &[u8]),
        grad_y: &[T],
        wants_x: bool,
    ) -> ParameterGradients<T> {
        self.gradients(
            (x, weight),
            (y, argmax),
            grad_y,
            wants_x,
            |gradients, grad_x| match self.winograd() {
                None => {
                    let g = &self.geometry;
                    direct::backward(g, self.shards, x, weight, gradients, grad_x)
                }
                Some(plan) => winograd::backward(&plan, self.shards, x, weight, gradients, grad_x),
            },
        )
    }

    /// The gradients of [`Self::forward_bf16`].
    ///
    /// # Panics
    /// As for [`Self::backward`].
    #[must_use]
    pub fn backward_bf16(
        &self,
        (x, weight): (&[bf16], &[f32]),
        (y, argmax): (&[bf16], &[u8]),
        grad_y: &[bf16],
        wants_x: bool,
    ) -> ParameterGradients<bf16> {
        self.gradients(
            (x, weight),
            (y, argmax),
            grad_y,
            wants_x,
            |gradients, grad_x| {
                let g = &self.geometry;
                crate::bf16::conv2d::backward(g, self.shards, x, weight, gradients, grad_x)
            },
        )
    }

    /// The gradients. `backward` computes that of the weight, and writes that of the input.
    fn gradients<E: Element>(
        &self,
        (x, weight): (&[E], &[E::Real]),
        (y, argmax): (&[E], &[u8]),
        grad_y: &[E],
        wants_x: bool,
        backward: impl FnOnce(&Gradients<'_, E>, Option<&Parts<E>>) -> Vec<E::Real>,
    ) -> ParameterGradients<E> {
        let g = &self.geometry;
        assert!(x.len() == g.batch * g.image() && weight.len() == g.weights());
        let mut sums = vec![E::Real::zero(); g.batch * g.out_channels];
        let grad_x = wants_x.then(|| Parts::new(g.batch, g.image()));
        let gradients = Gradients::new(
            g,
            self.activation,
            self.windows,
            grad_y,
            y,
            argmax,
            &mut sums,
        );
        let weight = backward(&gradients, grad_x.as_ref());
        ParameterGradients {
            x: grad_x.map(Parts::into_vec),
            weight,
            bias: sum_rows(&sums, g.out_channels, self.shards),
        }
    }
}
