//! Average pooling.

use crate::storage::{contiguous, with_float};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor};
use kernels::{Pool, Windows};

/// The average over the windows of `x` `[batch, height, width, channels]`; windows that do not fit
/// are omitted. Gives
/// `[batch, (height - kernel) / stride + 1, (width - kernel) / stride + 1, channels]`.
///
/// # Errors
/// When no window fits, or the tensor is neither `f32` nor `f64`.
pub fn avg_pool2d(x: &Tensor, pool: Pool) -> Result<Tensor> {
    x.contiguous()?.apply_op1(operation(x, pool)?)
}

/// The operation of [`avg_pool2d`] for tensors of the shape of `x`.
pub(crate) fn operation(x: &Tensor, pool: Pool) -> Result<impl CustomOp1 + Send + Sync + use<>> {
    let (batch, height, width, channels) = x.dims4()?;
    Ok(AvgPool2d {
        batch,
        windows: Windows::new(pool, height, width).map_err(Error::wrap)?,
        channels,
    })
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
            let y = kernels::avg_pool2d::forward(&windows, (self.batch, channels), x);
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
            let grad_x = kernels::avg_pool2d::backward(&windows, (batch, channels), grad_y);
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
