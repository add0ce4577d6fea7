//! Max-pooling whose windows may overlap.
//!
//! The forward pass remembers where each maximum was, so that the backward pass hands every
//! gradient to exactly one input, whatever values tie. Vectors run along the channels.

use crate::scratch::{Parts, par_parts};
use crate::simd::{Real, arch};
use crate::storage::{contiguous, with_float};
#[cfg(feature = "cuda")]
use candle_core::cuda::{CudaStorage, cudarc::driver::CudaSlice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use pulp::{Simd, WithSimd};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Windows of `kernel` by `kernel`, `stride` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Height and width of a window, 1 to 15.
    pub kernel: usize,
    /// Distance between windows, at least 1.
    pub stride: usize,
}

/// The maximum over the windows of `x` `[batch, height, width, channels]`; windows that do not fit
/// are left out. Gives
/// `[batch, (height - kernel) / stride + 1, (width - kernel) / stride + 1, channels]`.
///
/// Of equal values the first in row-major order is the maximum, and a NaN is larger than any
/// number, as in PyTorch.
///
/// # Errors
/// When no window fits, or the tensor is neither `f32` nor `f64`.
pub fn max_pool2d(x: &Tensor, pool: Pool) -> Result<Tensor> {
    x.contiguous()?.apply_op1(operation(x, pool)?)
}

/// The operation itself, for `x` alone.
pub(crate) fn operation(x: &Tensor, pool: Pool) -> Result<impl CustomOp1 + Send + Sync + use<>> {
    let (batch, height, width, channels) = x.dims4()?;
    Ok(MaxPool2d {
        batch,
        windows: Windows::new(pool, height, width)?,
        channels,
        argmax: OnceLock::new(),
    })
}

/// The windows of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    pub(crate) pool: Pool,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Windows {
    /// # Errors
    /// When no window fits.
    pub(crate) fn new(pool: Pool, height: usize, width: usize) -> Result<Self> {
        let Pool { kernel, stride } = pool;
        if kernel == 0 || kernel > 15 || stride == 0 || kernel > height || kernel > width {
            bail!(
                "pooling: a window of {kernel} with stride {stride} does not fit {height} by {width}"
            );
        }
        Ok(Self {
            pool,
            height,
            width,
        })
    }

    pub(crate) fn rows(&self) -> usize {
        (self.height - self.pool.kernel) / self.pool.stride + 1
    }

    pub(crate) fn columns(&self) -> usize {
        (self.width - self.pool.kernel) / self.pool.stride + 1
    }

    /// The rows of windows that contain the row `at` of the image.
    pub(crate) fn rows_around(&self, at: usize) -> Range<usize> {
        self.around(at, self.rows())
    }

    /// The columns of windows that contain the column `at` of the image.
    pub(crate) fn columns_around(&self, at: usize) -> Range<usize> {
        self.around(at, self.columns())
    }

    fn around(&self, at: usize, count: usize) -> Range<usize> {
        let Pool { kernel, stride } = self.pool;
        let first = (at + 1).saturating_sub(kernel).div_ceil(stride);
        first..(at / stride + 1).min(count)
    }

    /// Windows of an image.
    pub(crate) fn count(&self) -> usize {
        self.rows() * self.columns()
    }

    /// The maxima of an image's windows, and for each its place in the window, counted row by row.
    #[inline(always)]
    fn pool<T: Real>(&self, channels: usize, x: &[T], y: &mut [T], argmax: &mut [u8]) {
        let Pool { kernel, stride } = self.pool;
        let outputs = y
            .chunks_exact_mut(channels)
            .zip(argmax.chunks_exact_mut(channels));
        for (window, (y, argmax)) in outputs.enumerate() {
            let top = window / self.columns() * stride;
            let left = window % self.columns() * stride;
            for place in 0..kernel * kernel {
                let pixel = (top + place / kernel) * self.width + left + place % kernel;
                let x = &x[pixel * channels..][..channels];
                if place == 0 {
                    y.copy_from_slice(x);
                    argmax.fill(0);
                    continue;
                }
                for ((maximum, argmax), value) in y.iter_mut().zip(argmax.iter_mut()).zip(x) {
                    // The second condition holds for a NaN alone. No branch, so that it vectorises.
                    #[allow(clippy::eq_op)]
                    let larger = (*value > *maximum) | (*value != *value);
                    *maximum = if larger { *value } else { *maximum };
                    *argmax = if larger { place as u8 } else { *argmax };
                }
            }
        }
    }

    /// Hands the gradient of each maximum to the place where it was; the other places get 0.
    #[inline(always)]
    fn spread<T: Real>(&self, channels: usize, grad_y: &[T], argmax: &[u8], grad_x: &mut [T]) {
        let Pool { kernel, stride } = self.pool;
        for (pixel, grad_x) in grad_x.chunks_exact_mut(channels).enumerate() {
            let (row, column) = (pixel / self.width, pixel % self.width);
            grad_x.fill(T::zero());
            for window_row in self.rows_around(row) {
                for window_column in self.columns_around(column) {
                    let place =
                        (row - window_row * stride) * kernel + column - window_column * stride;
                    let window = (window_row * self.columns() + window_column) * channels;
                    let grad_y = &grad_y[window..][..channels];
                    let argmax = &argmax[window..][..channels];
                    for ((to, grad), at) in grad_x.iter_mut().zip(grad_y).zip(argmax) {
                        *to += if *at == place as u8 { *grad } else { T::zero() };
                    }
                }
            }
        }
    }
}

/// [`Windows::pool`] of an image, compiled for the machine's vectors.
pub(crate) struct Maxima<'a, T> {
    pub(crate) windows: Windows,
    pub(crate) channels: usize,
    pub(crate) x: &'a [T],
    pub(crate) y: &'a mut [T],
    pub(crate) argmax: &'a mut [u8],
}

impl<T: Real> WithSimd for Maxima<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.windows
            .pool(self.channels, self.x, self.y, self.argmax);
    }
}

/// [`Windows::spread`] of an image, compiled for the machine's vectors.
pub(crate) struct Spread<'a, T> {
    pub(crate) windows: Windows,
    pub(crate) channels: usize,
    pub(crate) grad_y: &'a [T],
    pub(crate) argmax: &'a [u8],
    pub(crate) grad_x: &'a mut [T],
}

impl<T: Real> WithSimd for Spread<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.windows
            .spread(self.channels, self.grad_y, self.argmax, self.grad_x);
    }
}

struct MaxPool2d {
    batch: usize,
    windows: Windows,
    channels: usize,
    /// For each output, the place of the maximum in its window.
    argmax: OnceLock<Argmax>,
}

/// For each output, the place of the maximum in its window; where the tensor is.
#[derive(Clone)]
enum Argmax {
    Cpu(Arc<[u8]>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<CudaSlice<u8>>),
}

impl CustomOp1 for MaxPool2d {
    fn name(&self) -> &'static str {
        "max-pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let windows = &self.windows;
        let channels = self.channels;
        let shape = Shape::from((self.batch, windows.rows(), windows.columns(), channels));
        with_float!(self.name(), storage, T => {
            let x = contiguous::<T>(self.name(), storage, layout)?;
            let argmax = Parts::new(self.batch, windows.count() * channels);
            let image = windows.height * windows.width * channels;
            let y = par_parts(self.batch, windows.count() * channels, |number, y| {
                arch().dispatch(Maxima {
                    windows: *windows,
                    channels,
                    x: &x[number * image..][..image],
                    y,
                    argmax: argmax.take(number),
                });
            });
            // The operation runs once; were it run again, on the same input, so would be the result.
            let _ = self.argmax.set(Argmax::Cpu(argmax.into_vec().into()));
            Ok((candle_core::WithDType::to_cpu_storage_owned(y), shape))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (y, shape, places) =
            cuda::forward(storage, layout, (self.batch, self.windows, self.channels))?;
        let _ = self.argmax.set(Argmax::Cuda(Arc::new(places)));
        Ok((y, shape))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        let Some(argmax) = self.argmax.get() else {
            bail!("max-pool2d: backward before forward");
        };
        let gradient = InputGradient {
            windows: self.windows,
            argmax: argmax.clone(),
        };
        Ok(Some(grad_res.contiguous()?.apply_op1_no_bwd(&gradient)?))
    }
}

/// From the gradient of the output: the gradient of the input.
struct InputGradient {
    windows: Windows,
    argmax: Argmax,
}

impl CustomOp1 for InputGradient {
    fn name(&self) -> &'static str {
        "max-pool2d-gradient"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let windows = &self.windows;
        #[cfg_attr(not(feature = "cuda"), allow(irrefutable_let_patterns))]
        let Argmax::Cpu(argmax) = &self.argmax else {
            bail!("max-pool2d: forward and backward on different devices");
        };
        let (batch, _, _, channels) = layout.shape().dims4()?;
        let shape = Shape::from((batch, windows.height, windows.width, channels));
        with_float!(self.name(), storage, T => {
            let grad_y = contiguous::<T>(self.name(), storage, layout)?;
            let pooled = windows.count() * channels;
            let grad_x = par_parts(batch, windows.height * windows.width * channels, |number, grad_x| {
                arch().dispatch(Spread {
                    windows: *windows,
                    channels,
                    grad_y: &grad_y[number * pooled..][..pooled],
                    argmax: &argmax[number * pooled..][..pooled],
                    grad_x,
                });
            });
            Ok((candle_core::WithDType::to_cpu_storage_owned(grad_x), shape))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let Argmax::Cuda(places) = &self.argmax else {
            bail!("max-pool2d: forward and backward on different devices");
        };
        cuda::backward(storage, layout, self.windows, places)
    }
}

#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    use super::Windows;
    use crate::cuda::{Activations, Argument, Program, contiguous, launch, room, with_activations};
    use candle_core::backend::BackendStorage;
    use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView};
    use candle_core::{CudaDevice, CudaStorage, Layout, Result, Shape};

    /// Images, their windows and their channels.
    pub(crate) type Sizes = (usize, Windows, usize);

    pub(super) fn forward(
        storage: &CudaStorage,
        layout: &Layout,
        (batch, windows, channels): Sizes,
    ) -> Result<(CudaStorage, Shape, CudaSlice<u8>)> {
        let device = storage.device();
        let shape = Shape::from((batch, windows.rows(), windows.columns(), channels));
        with_activations!("max-pool2d", storage.dtype(), T => {
            let x = contiguous::<T>("max-pool2d", storage, layout)?;
            let (y, places) = pool(device, &x, None, (batch, windows, channels), false)?;
            Ok((CudaStorage::wrap_cuda_slice(y, device.clone()), shape, places))
        })
    }

    pub(super) fn backward(
        storage: &CudaStorage,
        layout: &Layout,
        windows: Windows,
        places: &CudaSlice<u8>,
    ) -> Result<(CudaStorage, Shape)> {
        let device = storage.device();
        let (batch, _, _, channels) = layout.shape().dims4()?;
        let shape = Shape::from((batch, windows.height, windows.width, channels));
        with_activations!("max-pool2d-gradient", storage.dtype(), T => {
            let grad_y = contiguous::<T>("max-pool2d-gradient", storage, layout)?;
            let sizes = (batch, windows, channels);
            let grad_x = gradient(device, &grad_y, None, &places.as_view(), sizes)?;
            Ok((CudaStorage::wrap_cuda_slice(grad_x, device.clone()), shape))
        })
    }

    /// The maxima of `x`, with bias and rectifier, and the place of each in its window.
    pub(crate) fn pool<T: Activations>(
        device: &CudaDevice,
        x: &CudaView<'_, T>,
        bias: Option<&CudaView<'_, f32>>,
        (batch, windows, channels): Sizes,
        relu: bool,
    ) -> Result<(CudaSlice<T>, CudaSlice<u8>)> {
        assert_eq!(x.len(), batch * windows.height * windows.width * channels);
        let count = batch * windows.count() * channels;
        let (mut y, mut places) = (room::<T>(device, count)?, room::<u8>(device, count)?);
        let program = Program::packed::<T>(channels);
        let packs = program.packs(count);
        launch(
            device,
            program,
            "pool",
            packs,
            &[
                Argument::read(device, x),
                Argument::maybe(device, bias),
                Argument::write(device, &mut y),
                Argument::write(device, &mut places),
                packs.into(),
                channels.into(),
                windows.height.into(),
                windows.width.into(),
                windows.rows().into(),
                windows.columns().into(),
                windows.pool.kernel.into(),
                windows.pool.stride.into(),
                relu.into(),
            ],
        )?;
        Ok((y, places))
    }

    /// The gradient of [`pool`] with respect to `x`; `y` is its result where it had a rectifier.
    pub(crate) fn gradient<T: Activations>(
        device: &CudaDevice,
        grad_y: &CudaView<'_, T>,
        y: Option<&CudaView<'_, T>>,
        places: &CudaView<'_, u8>,
        (batch, windows, channels): Sizes,
    ) -> Result<CudaSlice<T>> {
        let pooled = batch * windows.count() * channels;
        assert!(grad_y.len() == pooled && places.len() == pooled);
        assert!(y.is_none_or(|y| y.len() == pooled));
        let count = batch * windows.height * windows.width * channels;
        let mut out = room::<T>(device, count)?;
        let program = Program::packed::<T>(channels);
        let packs = program.packs(count);
        launch(
            device,
            program,
            "pool_gradient",
            packs,
            &[
                Argument::read(device, grad_y),
                Argument::maybe(device, y),
                Argument::read(device, places),
                Argument::write(device, &mut out),
                packs.into(),
                channels.into(),
                windows.height.into(),
                windows.width.into(),
                windows.rows().into(),
                windows.columns().into(),
                windows.pool.kernel.into(),
                windows.pool.stride.into(),
            ],
        )?;
        Ok(out)
    }
}
