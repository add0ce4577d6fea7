//! When checkpoints are written.

use crate::checkpoint::{Checkpoints, State};
use crate::error::Error;
use crate::named_tensors::{named, non_finite_value, to_device, weights};
use crate::progress::{Position, Progress};
use crate::training_step::TrainingStep;
use candle_core::Device;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The least time between the checkpoints of two epochs on a GPU, where an epoch may take less time than a checkpoint.
const GPU_PAUSE: Duration = Duration::from_secs(20);

/// Writes the checkpoints of a run: at intervals within an epoch, after epochs, and on stopping.
pub(crate) struct CheckpointWriter<'a> {
    pub(crate) checkpoints: &'a Checkpoints,
    /// The time between checkpoints within an epoch.
    interval: Duration,
    /// The least time between the checkpoints of two epochs.
    pause: Duration,
    last_written: Instant,
}

impl<'a> CheckpointWriter<'a> {
    /// Writes `checkpoints` of a run on `device`, within an epoch every `interval`.
    pub(crate) fn new(checkpoints: &'a Checkpoints, interval: Duration, device: &Device) -> Self {
        let is_cpu = device.is_cpu();
        Self {
            checkpoints,
            interval,
            pause: if is_cpu { Duration::ZERO } else { GPU_PAUSE },
            last_written: Instant::now(),
        }
    }

    /// Whether a checkpoint is due within an epoch.
    pub(crate) fn is_due(&self) -> bool {
        self.last_written.elapsed() >= self.interval
    }

    /// Whether a checkpoint is due after an epoch. After the last one it always is.
    pub(crate) fn is_due_after_epoch(&self, is_last: bool) -> bool {
        is_last || self.last_written.elapsed() >= self.pause
    }

    /// Writes `last.safetensors` and returns its path.
    ///
    /// # Errors
    /// When the weights or momentum buffers are not finite, so that every checkpoint can be resumed, or a file cannot be
    /// written.
    pub(crate) fn write(
        &mut self,
        step: &TrainingStep,
        progress: &Progress,
    ) -> Result<PathBuf, Error> {
        let network = &step.network;
        let on_host = |tensors| to_device(tensors, &Device::Cpu);
        let ema = step.ema.as_ref().and_then(|ema| ema.named(network));
        let state = State {
            weights: on_host(weights(network))?,
            momentum_buffers: on_host(named(network, step.optimiser.momentum_buffers()))?,
            ema: ema.map(on_host).transpose()?,
        };
        for (_, tensor) in state.weights.iter().chain(&state.momentum_buffers) {
            if non_finite_value(tensor)?.is_some() {
                let Position { epoch, step, .. } = progress.position;
                return Err(Error::diverged(
                    "value of a weight or momentum buffer",
                    epoch,
                    step,
                ));
            }
        }
        let architecture = network.architecture();
        let path = self
            .checkpoints
            .write_last(architecture, &state, progress)?;
        self.last_written = Instant::now();
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Inputs;

    #[test]
    fn checkpoints_are_due_at_intervals_and_after_epochs() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path(), Inputs::example());
        let hour = Duration::from_secs(3600);
        let writer = |interval| CheckpointWriter::new(&checkpoints, interval, &Device::Cpu);
        assert!(writer(Duration::ZERO).is_due());
        assert!(!writer(hour).is_due());
        assert!(writer(hour).is_due_after_epoch(false));
        // As on a GPU.
        let paused = CheckpointWriter {
            pause: hour,
            ..writer(hour)
        };
        assert!(!paused.is_due_after_epoch(false));
        assert!(paused.is_due_after_epoch(true));
    }
}
