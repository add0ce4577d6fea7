//! Max-pooling.

use crate::storage::{contiguous, with_float};
#[cfg(feature = "cuda")]
use candle_core::cuda::{CudaStorage, cudarc::driver::CudaSlice};
use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor, bail};
use kernels::{Pool, Windows};
use std::sync::{Arc, OnceLock};

/// The maximum over the windows of `x` `[batch, height, width, channels]`; windows that do not fit
/// are omitted. Gives
/// `[batch, (height - kernel) / stride + 1, (width - kernel) / stride + 1, channels]`.
///
/// Of equal values the first in row-major order is the maximum, and a NaN is larger than any value, as in PyTorch.
///
/// # Errors
/// When no window fits, or the tensor is neither `f32` nor `f64`.
pub fn max_pool2d(x: &Tensor, pool: Pool) -> Result<Tensor> {
    x.contiguous()?.apply_op1(operation(x, pool)?)
}

/// The operation of [`max_pool2d`] for tensors of the shape of `x`.
pub(crate) fn operation(x: &Tensor, pool: Pool) -> Result<impl CustomOp1 + Send + Sync + use<>> {
    let (batch, height, width, channels) = x.dims4()?;
    Ok(MaxPool2d {
        batch,
        windows: Windows::new(pool, height, width).map_err(Error::wrap)?,
        channels,
        argmax: OnceLock::new(),
    })
}

struct MaxPool2d {
    batch: usize,
    windows: Windows,
    channels: usize,
    /// For each output, the index of the maximum in its window.
    argmax: OnceLock<Argmax>,
}

/// For each output, the index of the maximum in its window, on the tensor's device.
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
            let (y, argmax) = kernels::max_pool2d::forward(windows, (self.batch, channels), x);
            let _ = self.argmax.set(Argmax::Cpu(argmax.into()));
            Ok((candle_core::WithDType::to_cpu_storage_owned(y), shape))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (y, shape, argmax) =
            cuda::forward(storage, layout, (self.batch, self.windows, self.channels))?;
        let _ = self.argmax.set(Argmax::Cuda(Arc::new(argmax)));
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
            let grad_x = kernels::max_pool2d::backward(windows, (batch, channels), grad_y, argmax);
            Ok((candle_core::WithDType::to_cpu_storage_owned(grad_x), shape))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let Argmax::Cuda(argmax) = &self.argmax else {
            bail!("max-pool2d: forward and backward on different devices");
        };
        cuda::backward(storage, layout, self.windows, argmax)
    }
}

#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    use crate::cuda::{Activations, Argument, Program, contiguous, launch, room, with_activations};
    use candle_core::backend::BackendStorage;
    use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView};
    use candle_core::{CudaDevice, CudaStorage, Layout, Result, Shape};
    use kernels::Windows;

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
            let (y, argmax) = pool(device, &x, None, (batch, windows, channels), false)?;
            Ok((CudaStorage::wrap_cuda_slice(y, device.clone()), shape, argmax))
        })
    }

    pub(super) fn backward(
        storage: &CudaStorage,
        layout: &Layout,
        windows: Windows,
        argmax: &CudaSlice<u8>,
    ) -> Result<(CudaStorage, Shape)> {
        let device = storage.device();
        let (batch, _, _, channels) = layout.shape().dims4()?;
        let shape = Shape::from((batch, windows.height, windows.width, channels));
        with_activations!("max-pool2d-gradient", storage.dtype(), T => {
            let grad_y = contiguous::<T>("max-pool2d-gradient", storage, layout)?;
            let sizes = (batch, windows, channels);
            let grad_x = gradient(device, &grad_y, None, &argmax.as_view(), sizes)?;
            Ok((CudaStorage::wrap_cuda_slice(grad_x, device.clone()), shape))
        })
    }

    /// The maxima of `x`, with bias and ReLU, and the index of each in its window.
    pub(crate) fn pool<T: Activations>(
        device: &CudaDevice,
        x: &CudaView<'_, T>,
        bias: Option<&CudaView<'_, f32>>,
        (batch, windows, channels): Sizes,
        relu: bool,
    ) -> Result<(CudaSlice<T>, CudaSlice<u8>)> {
        assert_eq!(x.len(), batch * windows.height * windows.width * channels);
        let count = batch * windows.count() * channels;
        let (mut y, mut argmax) = (room::<T>(device, count)?, room::<u8>(device, count)?);
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
                Argument::write(device, &mut argmax),
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
        Ok((y, argmax))
    }

    /// The gradient of [`pool`] with respect to `x`; `y` is its result if it had a ReLU.
    pub(crate) fn gradient<T: Activations>(
        device: &CudaDevice,
        grad_y: &CudaView<'_, T>,
        y: Option<&CudaView<'_, T>>,
        argmax: &CudaView<'_, u8>,
        (batch, windows, channels): Sizes,
    ) -> Result<CudaSlice<T>> {
        let pooled = batch * windows.count() * channels;
        assert!(grad_y.len() == pooled && argmax.len() == pooled);
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
                Argument::read(device, argmax),
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
