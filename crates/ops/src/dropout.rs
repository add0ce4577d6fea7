//! Dropout whose mask is a function of seed, step and position.

use crate::simd::{Real, arch};
use crate::storage::{contiguous, with_float};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use rng::{Purpose, Stream, unit};

/// Sets a share of the elements to 0 and divides the others by the share that is kept (inverted dropout,
/// as in PyTorch). Element `i` in row-major order is kept where the `i`-th random number in `[0, 1)` of
/// this mask is at least the probability. There is a mask for every seed, training step and layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The share of elements set to 0, in `0.0..1.0`.
    pub probability: f32,
    /// The run's seed.
    pub seed: u64,
    /// The training step, counted over the whole run.
    pub step: u32,
    /// The layer's number among the network's dropout layers.
    pub layer: u16,
}

/// Elements that one task handles; a multiple of the four numbers that one block of random words gives.
const PART: usize = 1 << 14;

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
        let layer = u64::from(self.layer) << 48;
        with_float!(self.name(), storage, T => {
            let mut out = contiguous::<T>(self.name(), storage, layout)?.to_vec();
            out.par_chunks_mut(PART).enumerate().for_each(|(part, values)| {
                arch().dispatch(Mask {
                    probability: self.probability,
                    stream,
                    first: layer | (part * PART / 4) as u64,
                    values,
                });
            });
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

/// Masks values with the random words from number `first` on, four for each.
struct Mask<'a, T> {
    probability: f32,
    stream: Stream,
    first: u64,
    values: &'a mut [T],
}

impl<T: Real> WithSimd for Mask<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        /// Random numbers that are drawn at once.
        const MANY: usize = 16;
        let scale = T::from_f64(1.0 / (1.0 - f64::from(self.probability)));
        for (values, first) in self
            .values
            .chunks_mut(4 * MANY)
            .zip((self.first..).step_by(MANY))
        {
            let words = self.stream.words_of::<MANY>(first);
            for (values, n) in values.chunks_mut(4).zip(0..) {
                for (value, words) in values.iter_mut().zip(&words) {
                    let kept = unit(words[n]) >= self.probability;
                    *value = if kept { *value * scale } else { T::zero() };
                }
            }
        }
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
