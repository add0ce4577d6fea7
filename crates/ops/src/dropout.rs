//! Dropout whose mask is a function of seed, step and position.

use crate::storage::{contiguous, with_float};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use num_traits::Zero;
use random::{Purpose, Stream, unit};
use rayon::prelude::*;

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
            let scale = T::from_f64(1.0 / (1.0 - f64::from(self.probability)));
            let mut out = contiguous::<T>(self.name(), storage, layout)?.to_vec();
            out.par_chunks_mut(PART).enumerate().for_each(|(part, values)| {
                let first = (part * PART / 4) as u64;
                for (values, index) in values.chunks_mut(4).zip(first..) {
                    let words = stream.words(layer | index);
                    for (value, word) in values.iter_mut().zip(words) {
                        *value = if unit(word) < self.probability { T::zero() } else { *value * scale };
                    }
                }
            });
            Ok((T::to_cpu_storage_owned(out), layout.shape().clone()))
        })
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad_res.contiguous()?.apply_op1_no_bwd(self)?))
    }
}
