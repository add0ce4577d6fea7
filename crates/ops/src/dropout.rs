//! Dropout whose mask is a function of seed, step and position.

use crate::storage::{contiguous, with_float};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use rng::{Purpose, Stream};

/// Sets elements to 0 with a probability `p` and divides the others by `1 - p` (inverted dropout, as in PyTorch).
/// Element `i` in row-major order is kept if the `i`-th random value in `[0, 1)` of this mask is at least `p`. There is
/// a mask for every seed, training step and layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The probability of 0, in `0.0..1.0`.
    pub probability: f32,
    /// The run's seed.
    pub seed: u64,
    /// The training step, counted over all epochs.
    pub step: u32,
    /// The layer's index among the network's dropout layers.
    pub layer: u16,
}

/// `x` with the mask applied, and the same mask on its gradient.
///
/// # Errors
/// When the probability is outside `0.0..1.0`, or the tensor is neither `f32` nor `f64`; on a GPU, neither `f32` nor
/// `bf16`.
pub fn dropout(x: &Tensor, mask: Dropout) -> Result<Tensor> {
    mask.check()?;
    x.contiguous()?.apply_op1(mask)
}

impl Dropout {
    /// # Errors
    /// When the probability is outside `0.0..1.0`.
    pub(crate) fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.probability) {
            bail!(
                "dropout: a probability of {} is not in 0..1",
                self.probability
            );
        }
        Ok(())
    }
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let stream = Stream::new(self.seed, Purpose::Dropout, self.step);
        with_float!(self.name(), storage, T => {
            let mut out = contiguous::<T>(self.name(), storage, layout)?.to_vec();
            kernels::dropout::apply(self.probability, stream, self.layer, &mut out);
            Ok((T::to_cpu_storage_owned(out), layout.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::mask(*self, storage, layout)
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad_res.contiguous()?.apply_op1_no_bwd(self)?))
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::Dropout;
    use crate::cuda::{Argument, Program, contiguous, launch, room, with_activations};
    use candle_core::backend::BackendStorage;
    use candle_core::{CudaStorage, Layout, Result, Shape};
    use rng::Purpose;

    pub(super) fn mask(
        dropout: Dropout,
        storage: &CudaStorage,
        layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let device = storage.device();
        with_activations!("dropout", storage.dtype(), T => {
            let x = contiguous::<T>("dropout", storage, layout)?;
            let mut y = room::<T>(device, x.len())?;
            // Four elements a thread are loaded at once, as packs are.
            launch(
                device,
                Program::packed::<T>(0),
                "dropout",
                x.len().div_ceil(4),
                &[
                    Argument::read(device, &x),
                    Argument::write(device, &mut y),
                    x.len().into(),
                    (dropout.seed as u32).into(),
                    ((dropout.seed >> 32) as u32).into(),
                    u32::from(dropout.layer).into(),
                    dropout.step.into(),
                    (Purpose::Dropout as u32).into(),
                    dropout.probability.into(),
                    ((1.0 / (1.0 - f64::from(dropout.probability))) as f32).into(),
                ],
            )?;
            Ok((CudaStorage::wrap_cuda_slice(y, device.clone()), layout.shape().clone()))
        })
    }
}
