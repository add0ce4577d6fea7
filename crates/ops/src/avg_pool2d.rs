//! Average pooling without padding. Vectors run along the channels.

use crate::Pool;
use crate::max_pool2d::Windows;
use crate::scratch::par_parts;
use crate::simd::{Real, arch};
use crate::storage::{contiguous, with_float};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use pulp::{Simd, WithSimd};

/// The average over the windows of `x` `[batch, height, width, channels]`; windows that do not fit
/// are left out. Gives
/// `[batch, (height - kernel) / stride + 1, (width - kernel) / stride + 1, channels]`.
///
/// # Errors
/// When no window fits, or the tensor is neither `f32` nor `f64`.
pub fn avg_pool2d(x: &Tensor, pool: Pool) -> Result<Tensor> {
    x.contiguous()?.apply_op1(operation(x, pool)?)
}

/// The operation itself, for tensors of the shape of `x`.
pub(crate) fn operation(x: &Tensor, pool: Pool) -> Result<impl CustomOp1 + Send + Sync + use<>> {
    let (batch, height, width, channels) = x.dims4()?;
    Ok(AvgPool2d {
        batch,
        windows: Windows::new(pool, height, width)?,
        channels,
    })
}

/// The averages of the windows of an image, compiled for the machine's vectors.
struct Averages<'a, T> {
    windows: Windows,
    channels: usize,
    /// `[height, width, channels]`
    x: &'a [T],
    /// `[rows, columns, channels]`
    y: &'a mut [T],
}

impl<T: Real> WithSimd for Averages<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (windows, channels) = (self.windows, self.channels);
        let Pool { kernel, stride } = windows.pool;
        let count = T::from_f64((kernel * kernel) as f64);
        for (window, y) in self.y.chunks_exact_mut(channels).enumerate() {
            let top = window / windows.columns() * stride;
            let left = window % windows.columns() * stride;
            y.fill(T::zero());
            for offset in 0..kernel * kernel {
                let pixel = (top + offset / kernel) * windows.width + left + offset % kernel;
                let x = &self.x[pixel * channels..][..channels];
                for (sum, value) in y.iter_mut().zip(x) {
                    *sum += *value;
                }
            }
            for sum in y {
                *sum /= count;
            }
        }
    }
}

/// The gradient of [`Averages`]: every pixel sums up the windows that contain it.
struct Spread<'a, T> {
    windows: Windows,
    channels: usize,
    /// `[rows, columns, channels]`
    grad_y: &'a [T],
    /// `[height, width, channels]`
    grad_x: &'a mut [T],
}

impl<T: Real> WithSimd for Spread<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (windows, channels) = (self.windows, self.channels);
        let count = T::from_f64((windows.pool.kernel * windows.pool.kernel) as f64);
        for (pixel, grad_x) in self.grad_x.chunks_exact_mut(channels).enumerate() {
            grad_x.fill(T::zero());
            for row in windows.rows_around(pixel / windows.width) {
                for column in windows.columns_around(pixel % windows.width) {
                    let window = (row * windows.columns() + column) * channels;
                    let grad_y = &self.grad_y[window..][..channels];
                    for (sum, grad) in grad_x.iter_mut().zip(grad_y) {
                        *sum += *grad;
                    }
                }
            }
            for sum in grad_x {
                *sum /= count;
            }
        }
    }
}

struct AvgPool2d {
    batch: usize,
    windows: Windows,
    channels: usize,
}

impl CustomOp1 for AvgPool2d {
    fn name(&self) -> &'static str {
        "avg-pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (windows, channels) = (self.windows, self.channels);
        let shape = Shape::from((self.batch, windows.rows(), windows.columns(), channels));
        with_float!(self.name(), storage, T => {
            let x = contiguous::<T>(self.name(), storage, layout)?;
            let size = windows.height * windows.width * channels;
            let y = par_parts(self.batch, windows.count() * channels, |image, y| {
                let x = &x[image * size..][..size];
                arch().dispatch(Averages { windows, channels, x, y });
            });
            Ok((candle_core::WithDType::to_cpu_storage_owned(y), shape))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::forward(storage, layout, self)
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        let gradient = InputGradient(Self { ..*self });
        Ok(Some(grad_res.contiguous()?.apply_op1_no_bwd(&gradient)?))
    }
}

/// From the gradient of the output: the gradient of the input.
struct InputGradient(AvgPool2d);

impl CustomOp1 for InputGradient {
    fn name(&self) -> &'static str {
        "avg-pool2d-gradient"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let AvgPool2d {
            batch,
            windows,
            channels,
        } = self.0;
        let shape = Shape::from((batch, windows.height, windows.width, channels));
        with_float!(self.name(), storage, T => {
            let grad_y = contiguous::<T>(self.name(), storage, layout)?;
            let pooled = windows.count() * channels;
            let size = windows.height * windows.width * channels;
            let grad_x = par_parts(batch, size, |image, grad_x| {
                let grad_y = &grad_y[image * pooled..][..pooled];
                arch().dispatch(Spread { windows, channels, grad_y, grad_x });
            });
            Ok((candle_core::WithDType::to_cpu_storage_owned(grad_x), shape))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::backward(storage, layout, &self.0)
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::AvgPool2d;
    use crate::cuda::{Argument, Program, contiguous, launch, room, with_activations};
    use candle_core::backend::BackendStorage;
    use candle_core::{CudaStorage, Layout, Result, Shape, bail};

    pub(super) fn forward(
        storage: &CudaStorage,
        layout: &Layout,
        operation: &AvgPool2d,
    ) -> Result<(CudaStorage, Shape)> {
        let AvgPool2d {
            batch,
            windows,
            channels,
        } = *operation;
        let shape = Shape::from((batch, windows.rows(), windows.columns(), channels));
        if layout.shape().dims() != [batch, windows.height, windows.width, channels] {
            bail!("avg-pool2d: an input of shape {:?}", layout.shape());
        }
        run("avg_pool", storage, layout, operation, shape)
    }

    pub(super) fn backward(
        storage: &CudaStorage,
        layout: &Layout,
        operation: &AvgPool2d,
    ) -> Result<(CudaStorage, Shape)> {
        let AvgPool2d {
            batch,
            windows,
            channels,
        } = *operation;
        let shape = Shape::from((batch, windows.height, windows.width, channels));
        if layout.shape().dims() != [batch, windows.rows(), windows.columns(), channels] {
            bail!("avg-pool2d: a gradient of shape {:?}", layout.shape());
        }
        run("avg_pool_gradient", storage, layout, operation, shape)
    }

    /// Either kernel, which differ in nothing but the shapes of their input and output.
    fn run(
        kernel: &'static str,
        storage: &CudaStorage,
        layout: &Layout,
        operation: &AvgPool2d,
        shape: Shape,
    ) -> Result<(CudaStorage, Shape)> {
        let device = storage.device();
        let AvgPool2d {
            windows, channels, ..
        } = *operation;
        with_activations!(kernel, storage.dtype(), T => {
            let input = contiguous::<T>(kernel, storage, layout)?;
            let mut output = room::<T>(device, shape.elem_count())?;
            let program = Program::packed::<T>(channels);
            let packs = program.packs(shape.elem_count());
            launch(
                device,
                program,
                kernel,
                packs,
                &[
                    Argument::read(device, &input),
                    Argument::write(device, &mut output),
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
            Ok((CudaStorage::wrap_cuda_slice(output, device.clone()), shape))
        })
    }
}
