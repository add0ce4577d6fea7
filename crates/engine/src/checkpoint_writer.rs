//! When checkpoints are written, and the thread that writes them.

use crate::checkpoint::{Best, Checkpoints, State};
use crate::error::Error;
use crate::named_tensors::{named, non_finite_value, sha256, to_device, weights};
use crate::progress::{Position, Progress};
use crate::training_step::TrainingStep;
use candle_core::Device;
use models::Architecture;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The minimum age of the last checkpoint before another one is written ahead of an evaluation, on a CPU. AlexNet's takes about two
/// seconds to write.
const CPU_MIN_AGE: Duration = Duration::from_secs(60);

/// The same on a GPU, where an epoch may take less time than a checkpoint: also after an epoch. Training waits for the copy
/// of the tensors, and for the previous write.
const GPU_MIN_AGE: Duration = Duration::from_secs(20);

/// Writes the checkpoints of a run, one at a time, on a thread.
///
/// On a GPU training goes on meanwhile, since the thread has a copy of the tensors. On a CPU training waits for the thread:
/// a copy takes as much memory again, and an epoch takes so much longer than a checkpoint that nothing would be gained.
pub(crate) struct CheckpointWriter<'a> {
    pub(crate) checkpoints: &'a Checkpoints,
    /// The time between checkpoints within an epoch.
    interval: Duration,
    /// The minimum age of the last checkpoint before another one is written ahead of an evaluation.
    pub(crate) min_age_before_evaluation: Duration,
    /// The same after an epoch.
    min_age_after_epoch: Duration,
    last_started: Instant,
    /// The finished epochs and steps of the last checkpoint, and the SHA-256 of its weights.
    digest: Option<((u32, usize), Receiver<String>)>,
    thread: Option<JoinHandle<Result<Vec<PathBuf>, Error>>>,
}

impl<'a> CheckpointWriter<'a> {
    /// Writes `checkpoints` of a run on `device`, within an epoch every `interval`.
    pub(crate) fn new(checkpoints: &'a Checkpoints, interval: Duration, device: &Device) -> Self {
        let is_cpu = device.is_cpu();
        Self {
            checkpoints,
            interval,
            min_age_before_evaluation: if is_cpu { CPU_MIN_AGE } else { GPU_MIN_AGE },
            min_age_after_epoch: if is_cpu { Duration::ZERO } else { GPU_MIN_AGE },
            last_started: Instant::now(),
            digest: None,
            thread: None,
        }
    }

    /// Whether a checkpoint is due within an epoch.
    pub(crate) fn is_due(&self) -> bool {
        self.last_started.elapsed() >= self.interval
    }

    /// Whether a checkpoint is due after the steps of an epoch, before its evaluation.
    pub(crate) fn is_due_before_evaluation(&self) -> bool {
        self.last_started.elapsed() >= self.min_age_before_evaluation
    }

    /// Whether a checkpoint is due after an epoch. After the last one it always is.
    pub(crate) fn is_due_after_epoch(&self, is_last: bool) -> bool {
        is_last || self.last_started.elapsed() >= self.min_age_after_epoch
    }

    /// Starts to write `best.safetensors`, if there is something to write to it, and then `last.safetensors`. The previous
    /// write must be finished.
    ///
    /// # Errors
    /// When the tensors cannot be copied, or the thread cannot be started.
    pub(crate) fn start(
        &mut self,
        step: &TrainingStep,
        progress: &Progress,
        best: Option<Best>,
    ) -> Result<(), Error> {
        let network = &step.network;
        let on_host = |tensors| to_device(tensors, &Device::Cpu);
        let ema = step.ema.as_ref().and_then(|ema| ema.named(network));
        let Position {
            epoch, step: done, ..
        } = progress.position;
        let (sender, receiver) = channel();
        let job = Job {
            checkpoints: self.checkpoints.clone(),
            architecture: network.architecture(),
            best,
            state: State {
                weights: on_host(weights(network))?,
                momentum_buffers: on_host(named(network, step.optimiser.momentum_buffers()))?,
                ema: ema.map(on_host).transpose()?,
            },
            progress: progress.clone(),
            digest: sender,
        };
        let thread = thread::Builder::new().name("checkpoint".to_owned());
        let thread = thread.spawn(|| job.write());
        self.thread = Some(thread.map_err(|reason| self.checkpoints.not_written(reason))?);
        self.digest = Some(((epoch, done), receiver));
        self.last_started = Instant::now();
        Ok(())
    }

    /// Whether a write has ended that [`CheckpointWriter::finish`] was not called for.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Waits until nothing is being written. Returns the files that were written since the last call.
    ///
    /// # Errors
    /// When the weights or momentum buffers are not finite, so that every checkpoint can be resumed, or a file cannot be
    /// written.
    pub(crate) fn finish(&mut self) -> Result<Vec<PathBuf>, Error> {
        let written = self.thread.take().map(JoinHandle::join);
        written.map_or(Ok(Vec::new()), |written| {
            written.unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// SHA-256 of the weights at `position`, if they are those of the last checkpoint and it did not fail before. It may
    /// not be completely written.
    pub(crate) fn weights_sha256(&mut self, position: Position) -> Option<String> {
        let (_, digest) = self
            .digest
            .take_if(|(of, _)| *of == (position.epoch, position.step))?;
        digest.recv().ok()
    }
}

/// What the thread writes.
struct Job {
    checkpoints: Checkpoints,
    architecture: Architecture,
    best: Option<Best>,
    state: State,
    progress: Progress,
    /// Where the SHA-256 of the weights goes.
    digest: Sender<String>,
}

impl Job {
    /// Writes `best.safetensors` before `last.safetensors`, which refers to its epoch. Returns their paths.
    fn write(self) -> Result<Vec<PathBuf>, Error> {
        let (state, Position { epoch, step, .. }) = (&self.state, self.progress.position);
        let (architecture, checkpoints) = (self.architecture, &self.checkpoints);
        // Also where the current weights cannot be written.
        let best = self.best.as_ref();
        let best = best.map(|best| checkpoints.write_best(architecture, best));
        let best = best.transpose()?;
        for (_, tensor) in state.weights.iter().chain(&state.momentum_buffers) {
            if non_finite_value(tensor)?.is_some() {
                let what = "value of a weight or momentum buffer";
                return Err(Error::diverged(what, epoch, step));
            }
        }
        // That of the weights after an epoch is in its metrics.
        let known = (step == 0).then(|| self.progress.weights_sha256(epoch));
        let sha256 = match known.flatten() {
            Some(known) => known.to_owned(),
            None => sha256(&state.weights)?,
        };
        // Nobody waits for it after most checkpoints.
        let _ = self.digest.send(sha256.clone());
        let last = checkpoints.write_last(architecture, state, &sha256, &self.progress)?;
        Ok(best.into_iter().chain([last]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Inputs;
    use models::{Network, initial_parameters};
    use run::file;
    use run::settings::WeightInit;

    #[test]
    fn checkpoints_are_due_at_intervals_before_evaluations_and_after_epochs() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path(), Inputs::example());
        let hour = Duration::from_secs(3600);
        let writer = |interval| CheckpointWriter::new(&checkpoints, interval, &Device::Cpu);
        assert!(writer(Duration::ZERO).is_due());
        assert!(!writer(hour).is_due());
        assert!(!writer(hour).is_due_before_evaluation());
        assert!(writer(hour).is_due_after_epoch(false));
        // As on a GPU.
        let mut paused = CheckpointWriter {
            min_age_after_epoch: hour,
            ..writer(hour)
        };
        assert!(!paused.is_due_after_epoch(false));
        assert!(paused.is_due_after_epoch(true));
        paused.min_age_before_evaluation = Duration::ZERO;
        assert!(paused.is_due_before_evaluation());
    }

    #[test]
    fn the_digest_is_that_of_the_last_checkpoint_or_of_none() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path(), Inputs::example());
        let mut writer = CheckpointWriter::new(&checkpoints, Duration::MAX, &Device::Cpu);
        let (sender, receiver) = channel();
        writer.digest = Some(((3, 7), receiver));
        let at = |epoch, step| Position {
            step,
            ..Position::start_of(epoch)
        };
        sender.send("00".to_owned()).unwrap();
        assert_eq!(writer.weights_sha256(at(4, 0)), None);
        assert_eq!(writer.weights_sha256(at(3, 7)), Some("00".to_owned()));
        assert_eq!(writer.weights_sha256(at(3, 7)), None);
        // Its thread failed before.
        writer.digest = Some(((3, 7), channel().1));
        assert_eq!(writer.weights_sha256(at(3, 7)), None);
        assert!(writer.finish().unwrap().is_empty() && !writer.has_ended());
    }

    #[test]
    fn the_best_weights_are_written_also_where_the_current_ones_are_not_finite() {
        let folder = tempfile::tempdir().unwrap();
        let architecture: Architecture = "lenet".parse().unwrap();
        let parameters = initial_parameters(architecture, WeightInit::Kaiming, 1, &Device::Cpu);
        let network = Network::new(architecture, parameters.unwrap()).unwrap();
        let best = weights(&network);
        let nan = best
            .iter()
            .map(|(name, weight)| Ok((name.clone(), (weight * f64::NAN)?)));
        let job = Job {
            checkpoints: Checkpoints::new(folder.path(), Inputs::example()),
            architecture,
            state: State {
                weights: nan.collect::<candle_core::Result<_>>().unwrap(),
                momentum_buffers: best.clone(),
                ema: None,
            },
            best: Some(Best {
                weights: best,
                sha256: None,
            }),
            progress: Progress::new(0, 5, 3),
            digest: channel().0,
        };
        assert!(matches!(job.write(), Err(Error::Diverged { .. })));
        assert!(folder.path().join(file::BEST_WEIGHTS).exists());
        assert!(!folder.path().join(file::LAST_WEIGHTS).exists());
    }
}
