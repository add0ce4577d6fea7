//! Max-pooling whose windows may overlap.
//!
//! The forward pass remembers where each maximum was, so that the backward pass hands every
//! gradient to exactly one input, whatever values tie.

use crate::storage::{contiguous, with_float};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use num_traits::Zero;
use rayon::prelude::*;
use std::sync::{Arc, OnceLock};

/// The maximum over windows of `kernel` by `kernel`, `stride` apart, of `x`
/// `[batch, channels, height, width]`; windows that do not fit are left out. Gives
/// `[batch, channels, (height - kernel) / stride + 1, (width - kernel) / stride + 1]`.
///
/// Of equal values the first in row-major order is the maximum, and a NaN is larger than any
/// number, as in PyTorch.
///
/// # Errors
/// When no window fits, or the tensor is neither `f32` nor `f64`.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize) -> Result<Tensor> {
    let geometry = Geometry::new(x.shape(), kernel, stride)?;
    x.contiguous()?.apply_op1(MaxPool2d {
        geometry,
        argmax: OnceLock::new(),
    })
}

#[derive(Clone, Copy)]
struct Geometry {
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
    kernel: usize,
    stride: usize,
}

impl Geometry {
    fn new(x: &Shape, kernel: usize, stride: usize) -> Result<Self> {
        let (batch, channels, height, width) = x.dims4()?;
        if kernel == 0 || stride == 0 || kernel > height || kernel > width {
            bail!("max_pool2d: a window of {kernel} with stride {stride} does not fit {x:?}");
        }
        if height * width > u32::MAX as usize {
            bail!("max_pool2d: images of {height} by {width} are too large");
        }
        Ok(Self {
            batch,
            channels,
            height,
            width,
            kernel,
            stride,
        })
    }

    fn out_height(&self) -> usize {
        (self.height - self.kernel) / self.stride + 1
    }

    fn out_width(&self) -> usize {
        (self.width - self.kernel) / self.stride + 1
    }

    /// Elements of an output plane.
    fn positions(&self) -> usize {
        self.out_height() * self.out_width()
    }
}

struct MaxPool2d {
    geometry: Geometry,
    /// For each output, where in its input plane the maximum was.
    argmax: OnceLock<Arc<[u32]>>,
}

impl CustomOp1 for MaxPool2d {
    fn name(&self) -> &'static str {
        "max-pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let g = &self.geometry;
        let shape = Shape::from((g.batch, g.channels, g.out_height(), g.out_width()));
        with_float!(self.name(), storage, T => {
            let x = contiguous::<T>(self.name(), storage, layout)?;
            let mut y = vec![T::zero(); shape.elem_count()];
            let mut argmax = vec![0; shape.elem_count()];
            y.par_chunks_mut(g.positions())
                .zip(argmax.par_chunks_mut(g.positions()))
                .zip(x.par_chunks(g.height * g.width))
                .for_each(|((y, argmax), x)| pool_plane(g, x, y, argmax));
            // The operation runs once; were it run again, on the same input, so would be the result.
            let _ = self.argmax.set(argmax.into());
            Ok((T::to_cpu_storage_owned(y), shape))
        })
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        let Some(argmax) = self.argmax.get() else {
            bail!("max-pool2d: backward before forward");
        };
        let gradient = InputGradient {
            geometry: self.geometry,
            argmax: argmax.clone(),
        };
        Ok(Some(grad_res.contiguous()?.apply_op1_no_bwd(&gradient)?))
    }
}

fn pool_plane<T: WithDType>(g: &Geometry, x: &[T], y: &mut [T], argmax: &mut [u32]) {
    let outputs = y.iter_mut().zip(argmax);
    for (position, (y, argmax)) in outputs.enumerate() {
        let top = position / g.out_width() * g.stride;
        let left = position % g.out_width() * g.stride;
        let mut at = top * g.width + left;
        let mut maximum = x[at];
        for row in top..top + g.kernel {
            let start = row * g.width + left;
            for (column, value) in x[start..start + g.kernel].iter().enumerate() {
                // The second condition holds for a NaN alone.
                #[allow(clippy::eq_op)]
                if *value > maximum || *value != *value {
                    maximum = *value;
                    at = start + column;
                }
            }
        }
        *y = maximum;
        *argmax = at as u32;
    }
}

/// From the gradient of the output: the gradient of the input.
struct InputGradient {
    geometry: Geometry,
    argmax: Arc<[u32]>,
}

impl CustomOp1 for InputGradient {
    fn name(&self) -> &'static str {
        "max-pool2d-gradient"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let g = &self.geometry;
        let shape = Shape::from((g.batch, g.channels, g.height, g.width));
        with_float!(self.name(), storage, T => {
            let grad_y = contiguous::<T>(self.name(), storage, layout)?;
            let mut grad_x = vec![T::zero(); shape.elem_count()];
            grad_x
                .par_chunks_mut(g.height * g.width)
                .zip(grad_y.par_chunks(g.positions()))
                .zip(self.argmax.par_chunks(g.positions()))
                .for_each(|((grad_x, grad_y), argmax)| {
                    for (grad, at) in grad_y.iter().zip(argmax) {
                        grad_x[*at as usize] += *grad;
                    }
                });
            Ok((T::to_cpu_storage_owned(grad_x), shape))
        })
    }
}
