//! What follows the sums of a convolution while an image's results are still in the cache: bias, ReLU and
//! max-pooling; and in the backward pass their gradients, before those of the sums.

use super::geometry::Geometry;
use crate::activation::Activation;
use crate::element::Element;
use crate::instruction_set::arch;
use crate::max_pool2d::{Maxima, Spread};
use crate::parts::{Parts, Shared};
use crate::scratch::Scratch;
use crate::simd::Real;
use crate::windows::Windows;
use pulp::{Simd, WithSimd};
use std::mem::MaybeUninit;

/// The results of a convolution.
pub(crate) struct Outputs<'a, E: Element> {
    g: &'a Geometry,
    bias: &'a [E::Real],
    activation: Activation,
    /// The windows, and for each of their maxima its index in the window.
    pooling: Option<(Windows, Parts<u8>)>,
    y: Parts<E>,
}

impl<'a, E: Element> Outputs<'a, E> {
    /// Memory for the results of all images.
    pub(crate) fn new(
        g: &'a Geometry,
        bias: &'a [E::Real],
        activation: Activation,
        windows: Option<Windows>,
    ) -> Self {
        assert_eq!(bias.len(), g.out_channels);
        let positions = windows.map_or(g.positions(), |windows| windows.count());
        let image = positions * g.out_channels;
        Self {
            g,
            bias,
            activation,
            pooling: windows.map(|windows| (windows, Parts::new(g.batch, image))),
            y: Parts::new(g.batch, image),
        }
    }

    /// Computes the results of image number `image` from its sums `[height, width, out_channels]`, which `fill`
    /// writes. To be called once for each image.
    pub(crate) fn image(&self, image: usize, fill: impl FnOnce(&mut [E::Real])) {
        let mut sums = Scratch::new(self.g.out_image());
        fill(&mut sums);
        // Bias and ReLU are monotonic, so they may follow the pooling.
        if let Some((windows, argmax)) = &self.pooling {
            let mut maxima = Scratch::new(self.y.part());
            arch().dispatch(Maxima {
                windows: *windows,
                channels: self.g.out_channels,
                x: &sums,
                y: &mut maxima,
                argmax: argmax.take(image),
            });
            sums = maxima;
        }
        arch().dispatch(Finish {
            bias: self.bias,
            activation: self.activation,
            sums: &sums,
            // SAFETY: `Finish` writes all of them.
            y: unsafe { self.y.take_uninit(image) },
        });
    }

    /// The results `[batch, height, width, out_channels]` and, with pooling, for each the index of the maximum in
    /// its window.
    pub(crate) fn into_results(self) -> (Vec<E>, Vec<u8>) {
        let argmax = self.pooling.map(|(_, argmax)| argmax.into_vec());
        (self.y.into_vec(), argmax.unwrap_or_default())
    }
}

/// Writes an image's results: bias and activation after the sums.
struct Finish<'a, E: Element> {
    bias: &'a [E::Real],
    activation: Activation,
    sums: &'a [E::Real],
    y: &'a mut [MaybeUninit<E>],
}

impl<E: Element> WithSimd for Finish<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        assert_eq!(self.y.len(), self.sums.len());
        let channels = self.bias.len();
        let pixels = self.y.chunks_mut(channels);
        for (y, sums) in pixels.zip(self.sums.chunks(channels)) {
            for ((y, sum), bias) in y.iter_mut().zip(sums).zip(self.bias) {
                y.write(E::from_real(self.activation.apply(*sum + *bias)));
            }
        }
    }
}

/// The gradients of a convolution's results.
pub(crate) struct Gradients<'a, E: Element> {
    g: &'a Geometry,
    activation: Activation,
    windows: Option<Windows>,
    grad_y: &'a [E],
    y: &'a [E],
    argmax: &'a [u8],
    /// For each image and channel, the sum of the gradients: `[batch, out_channels]`.
    sums: Shared<E::Real>,
}

impl<'a, E: Element> Gradients<'a, E> {
    /// Gradients with respect to the sums, from those with respect to `y`. Each image's sum for each
    /// channel goes into `sums` `[batch, out_channels]`.
    pub(crate) fn new(
        g: &'a Geometry,
        activation: Activation,
        windows: Option<Windows>,
        grad_y: &'a [E],
        y: &'a [E],
        argmax: &'a [u8],
        sums: &mut [E::Real],
    ) -> Self {
        assert_eq!(sums.len(), g.batch * g.out_channels);
        assert_eq!(grad_y.len(), y.len());
        assert!(windows.is_none() || argmax.len() == y.len());
        Self {
            g,
            activation,
            windows,
            grad_y,
            y,
            argmax,
            sums: Shared::new(sums),
        }
    }

    /// Calls `take` with the gradient with respect to the sums of image number `image`. To be called once for each
    /// image.
    pub(crate) fn image(&self, image: usize, take: impl FnOnce(&[E::Real])) {
        assert!(image < self.g.batch);
        let channels = self.g.out_channels;
        // SAFETY: this image's row of `sums`, which no other call touches.
        let sums = unsafe {
            std::slice::from_raw_parts_mut(self.sums.pointer().add(image * channels), channels)
        };
        sums.fill(E::Real::zero());
        let length = self.y.len() / self.g.batch;
        let grad_y = &self.grad_y[image * length..][..length];
        let y = &self.y[image * length..][..length];
        let mut masked = Scratch::new(length);
        let mut gradient = Scratch::new(match self.windows {
            Some(_) => self.g.out_image(),
            None => 0,
        });
        arch().dispatch(Mask {
            activation: self.activation,
            grad_y,
            y,
            masked: &mut masked,
            sums,
        });
        if let Some(windows) = self.windows {
            arch().dispatch(Spread {
                windows,
                channels,
                grad_y: &masked,
                argmax: &self.argmax[image * length..][..length],
                grad_x: &mut gradient,
            });
        }
        match self.windows {
            Some(_) => take(&gradient),
            None => take(&masked),
        }
    }
}

/// An image's gradients with respect to the activation's input, and their sums over the pixels.
struct Mask<'a, E: Element> {
    activation: Activation,
    grad_y: &'a [E],
    y: &'a [E],
    masked: &'a mut [E::Real],
    sums: &'a mut [E::Real],
}

impl<E: Element> WithSimd for Mask<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let channels = self.sums.len();
        let rows = self
            .masked
            .chunks_exact_mut(channels)
            .zip(self.grad_y.chunks_exact(channels))
            .zip(self.y.chunks_exact(channels));
        for ((masked, grad_y), y) in rows {
            for (((masked, sum), grad_y), y) in masked
                .iter_mut()
                .zip(self.sums.iter_mut())
                .zip(grad_y)
                .zip(y)
            {
                *masked = self.activation.gradient(y.to_real(), grad_y.to_real());
                *sum += *masked;
            }
        }
    }
}
