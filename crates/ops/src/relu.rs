//! ReLU, and its gradient for the operations into which it is fused.

use crate::storage::{contiguous, with_float};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType};

/// `max(x, 0)` of a tensor of any shape; its gradient at 0 is 0, as in PyTorch.
///
/// # Errors
/// When the tensor is neither `f32` nor `f64`, or, on a GPU, neither `f32` nor `bf16`.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Relu)
}

pub(crate) struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        with_float!(self.name(), storage, T => {
            let mut out = contiguous::<T>(self.name(), storage, layout)?.to_vec();
            kernels::relu::forward(&mut out);
            Ok((T::to_cpu_storage_owned(out), layout.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::forward(storage, layout)
    }

    fn bwd(&self, _arg: &Tensor, res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(relu_gradient(res, grad_res)?))
    }
}

/// The gradient with respect to the input of a ReLU, from its output `y` and the gradient of that.
pub(crate) fn relu_gradient(y: &Tensor, grad_y: &Tensor) -> Result<Tensor> {
    y.contiguous()?
        .apply_op2_no_bwd(&grad_y.contiguous()?, &ReluGradient)
}

struct ReluGradient;

impl CustomOp2 for ReluGradient {
    fn name(&self) -> &'static str {
        "relu-gradient"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        y_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        with_float!(self.name(), y, T => {
            let y = contiguous::<T>(self.name(), y, y_layout)?;
            let mut out = contiguous::<T>(self.name(), grad, grad_layout)?.to_vec();
            kernels::relu::backward(y, &mut out);
            Ok((T::to_cpu_storage_owned(out), y_layout.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        y: &CudaStorage,
        y_layout: &Layout,
        grad: &CudaStorage,
        grad_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::backward((y, y_layout), (grad, grad_layout))
    }
}

#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    use crate::cuda::{Activations, Argument, Program, contiguous, launch, room, with_activations};
    use candle_core::backend::BackendStorage;
    use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView};
    use candle_core::{CudaDevice, CudaStorage, Layout, Result, Shape};

    pub(super) fn forward(storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = storage.device();
        with_activations!("relu", storage.dtype(), T => {
            let x = contiguous::<T>("relu", storage, layout)?;
            let mut y = room::<T>(device, x.len())?;
            device.memcpy_dtod(&x, &mut y)?;
            // Without a bias any number of channels will do.
            let channels = x.len().max(1);
            activate(device, &mut y, None, channels, true)?;
            Ok((CudaStorage::wrap_cuda_slice(y, device.clone()), layout.shape().clone()))
        })
    }

    pub(super) fn backward(
        (y, y_layout): (&CudaStorage, &Layout),
        (grad, grad_layout): (&CudaStorage, &Layout),
    ) -> Result<(CudaStorage, Shape)> {
        let device = y.device();
        with_activations!("relu-gradient", y.dtype(), T => {
            let y = contiguous::<T>("relu-gradient", y, y_layout)?;
            let grad = contiguous::<T>("relu-gradient", grad, grad_layout)?;
            let out = gradient(device, &y, &grad)?;
            Ok((CudaStorage::wrap_cuda_slice(out, device.clone()), y_layout.shape().clone()))
        })
    }

    /// Adds `bias` to every row of `channels` values and applies ReLU if `relu`, in place.
    pub(crate) fn activate<T: Activations>(
        device: &CudaDevice,
        values: &mut CudaSlice<T>,
        bias: Option<&CudaView<'_, f32>>,
        channels: usize,
        relu: bool,
    ) -> Result<()> {
        let program = Program::packed::<T>(channels);
        let packs = program.packs(values.len());
        let values = Argument::write(device, values);
        launch(
            device,
            program,
            "activate",
            packs,
            &[
                values,
                Argument::maybe(device, bias),
                values,
                packs.into(),
                channels.into(),
                relu.into(),
            ],
        )
    }

    /// The gradient with respect to the input of a ReLU, from its output `y` and the gradient of that.
    pub(crate) fn gradient<T: Activations>(
        device: &CudaDevice,
        y: &CudaView<'_, T>,
        grad_y: &CudaView<'_, T>,
    ) -> Result<CudaSlice<T>> {
        assert_eq!(y.len(), grad_y.len());
        let mut out = room::<T>(device, y.len())?;
        let program = Program::packed::<T>(y.len());
        let packs = program.packs(y.len());
        launch(
            device,
            program,
            "relu_gradient",
            packs,
            &[
                Argument::read(device, y),
                Argument::read(device, grad_y),
                Argument::write(device, &mut out),
                packs.into(),
            ],
        )?;
        Ok(out)
    }
}
