//! Dropout whose mask is a function of seed, step and position.

use crate::operation::{Gradients, Inputs, Operation, Output, in_graph, only, tensor};
use crate::storage::{output, with_element, with_slices};
use candle_core::{Result, Tensor, bail};
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
/// When the probability is outside `0.0..1.0`, or the tensor is not `f32`, `bf16` or, on a CPU, `f64`.
pub fn dropout(x: &Tensor, mask: Dropout) -> Result<Tensor> {
    let first_image = 0;
    in_graph(DropoutLayer { mask, first_image }, [x; 3])
}

/// One use of dropout.
pub(crate) struct DropoutLayer {
    pub(crate) mask: Dropout,
    /// The index in the batch of the first image of the input, which is a part of the batch: it has a part of the mask.
    pub(crate) first_image: usize,
}

impl Operation for DropoutLayer {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn computes_bf16(&self) -> bool {
        true
    }

    fn forward(&self, [x, ..]: Inputs) -> Result<Output> {
        let mask = &self.mask;
        let probability = mask.probability;
        if !(0.0..1.0).contains(&probability) {
            bail!("dropout: a probability of {probability} is not in 0..1");
        }
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return cuda::mask(mask, x);
        }
        let stream = Stream::new(mask.seed, Purpose::Dropout, mask.step);
        with_element!("dropout", x.dtype(), T => {
            let mut y = with_slices::<T, _, 1>("dropout", [x], |[x]| x.to_vec())?;
            let images = x.dims().first().map_or(1, |images| (*images).max(1));
            let first = (self.first_image * (y.len() / images)) as u64;
            kernels::dropout::apply(probability, stream, mask.layer, first, &mut y);
            Ok(output(y, x.shape()))
        })
    }

    fn backward(&self, _: Inputs, [_, grad_y]: [&Tensor; 2], _: bool) -> Result<Gradients> {
        only(tensor(self.forward([grad_y; 3])?))
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::Dropout;
    use crate::cuda::{Argument, Program, activations, empty, launch};
    use crate::operation::Output;
    use candle_core::{Result, Tensor};
    use rng::Purpose;

    pub(super) fn mask(dropout: &Dropout, x: &Tensor) -> Result<Output> {
        let x = activations("dropout", x)?;
        let y = empty(x.device, x.dtype, x.shape)?;
        let count = x.count();
        let words = [
            dropout.seed as u32,
            (dropout.seed >> 32) as u32,
            dropout.layer.into(),
            dropout.step,
            Purpose::Dropout as u32,
        ];
        let scale = 1.0 / (1.0 - f64::from(dropout.probability));
        let factors = [dropout.probability, scale as f32];
        let arguments = [
            &[x.into(), (&y).into(), count.into()],
            &words.map(Into::into)[..],
            &factors.map(Into::into),
            &[Argument::step_values()],
        ];
        // Four elements a thread are loaded at once, as packs are.
        let (program, threads) = (Program::packed(x.dtype, 0), count.div_ceil(4));
        launch(x.device, program, "dropout", threads, &arguments.concat())?;
        Ok(y.output())
    }
}
