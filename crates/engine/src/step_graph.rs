//! Training steps as CUDA graphs, so that the host does not bound a GPU.

use candle_core::{Result, Tensor};
use datasets::Batch;
use ops::cuda::{CapturedStep, StepValues};

/// What a captured step depends on, apart from its values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StepKind {
    pub(crate) batch_size: usize,
    pub(crate) dropout_probability: f32,
}

/// Steps of one kind in a row that are computed before one is captured. The first loads kernels and chooses plans; in the second
/// the EMA is updated, which begins with a copy.
const WARM_UP: usize = 2;

/// Captures a training step after a few of the same kind in a row, and replays it from then on. Steps of other kinds, such
/// as the last, smaller batch of an epoch, are computed operation by operation, with the same bits.
#[derive(Default)]
pub(crate) struct StepGraph {
    /// The kind of the last step, and how many of that kind were computed in a row.
    previous: Option<(StepKind, usize)>,
    /// Images and labels are the inputs.
    captured: Option<(StepKind, CapturedStep<2>)>,
    is_newly_captured: bool,
    /// Whether capturing is off, because it failed or there is too little memory.
    is_off: bool,
}

impl StepGraph {
    /// Replays a step on a batch. Returns false if the step is to be computed by the caller; `step` is called to capture it.
    ///
    /// # Errors
    /// When the driver fails.
    pub(crate) fn replay(
        &mut self,
        kind: StepKind,
        batch: &Batch,
        values: StepValues,
        step: impl FnOnce(&Tensor, &Tensor) -> Result<()>,
    ) -> Result<bool> {
        let computed = match self.previous {
            Some((of, computed)) if of == kind => computed,
            _ => 0,
        };
        self.previous = Some((kind, computed + 1));
        let inputs = [&batch.images, &batch.labels];
        let is_captured = self.captured.as_ref().is_some_and(|(of, _)| *of == kind);
        if !is_captured && computed >= WARM_UP && !self.is_off {
            // Its memory is reused.
            self.captured = None;
            match CapturedStep::capture(inputs, |[images, labels]| step(images, labels)) {
                Ok(captured) => {
                    self.captured = Some((kind, captured));
                    self.is_newly_captured = true;
                }
                Err(error) => {
                    let reason = match ops::cuda::is_out_of_memory(&error) {
                        true => "there is too little memory".to_owned(),
                        false => error.to_string(),
                    };
                    tracing::warn!(reason, "steps are not replayed as a CUDA graph");
                    self.is_off = true;
                }
            }
        }
        match &mut self.captured {
            Some((of, captured)) if *of == kind => {
                captured.replay(inputs, values)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Whether a step was captured since the last call.
    pub(crate) fn is_newly_captured(&mut self) -> bool {
        std::mem::take(&mut self.is_newly_captured)
    }

    /// Turns capturing off, and gives the memory of the graph back.
    ///
    /// # Errors
    /// When the driver fails.
    pub(crate) fn release(&mut self) -> Result<()> {
        self.is_off = true;
        self.captured
            .take()
            .map_or(Ok(()), |(_, captured)| captured.release())
    }
}
