//! The events of a training run.

use crate::evaluation::Evaluation;
use crate::progress::BestEpoch;
use models::Network;
use run::EpochMetrics;
use std::path::Path;

/// Something that happened. Epochs are numbered from 1.
#[derive(Clone, Copy)]
pub enum Event<'a> {
    /// An epoch starts, or resumes after an interruption.
    EpochStarted {
        /// Its number.
        epoch: u32,
        /// Epochs of the run.
        epochs: u32,
        /// Steps done before the interruption.
        done: usize,
        /// Steps of the epoch.
        steps: usize,
        /// The learning rate of the epoch's first step.
        learning_rate: f64,
    },
    /// A training step is done. On a GPU, some steps have no event of their own.
    Step {
        /// The epoch's number.
        epoch: u32,
        /// Steps done in the epoch.
        done: usize,
        /// Mean training loss of the epoch so far.
        loss: f64,
        /// Training accuracy of the epoch so far, 0 to 1.
        accuracy: f64,
        /// Training throughput of the epoch so far.
        images_per_second: f64,
    },
    /// An interval of 32 steps is done, or the rest of the epoch. The means are over the steps of the interval; where the
    /// run was interrupted in it, over those since then.
    IntervalFinished {
        /// Steps of the run so far.
        steps: u64,
        /// Mean training loss.
        loss: f64,
        /// Training accuracy, 0 to 1.
        accuracy: f64,
        /// Training throughput.
        images_per_second: f64,
        /// The learning rate of the last step.
        learning_rate: f64,
        /// The norm of all gradients of the last step together, before they are clipped, where it is measured
        /// ([`Training::measure_gradient_norm`](crate::Training::measure_gradient_norm)).
        gradient_norm: Option<f64>,
    },
    /// All steps of the epoch are done; the evaluation starts.
    EvaluationStarted {
        /// The epoch's number.
        epoch: u32,
    },
    /// An epoch is done and evaluated.
    EpochFinished {
        /// All epochs so far, this one last.
        history: &'a [EpochMetrics],
        /// The best epoch so far.
        best: BestEpoch,
        /// The evaluation of the weights after the epoch.
        evaluation: &'a Evaluation,
        /// The network with the weights after the epoch.
        network: &'a Network,
        /// Whether it is the last epoch of the run.
        last: bool,
    },
    /// A checkpoint is completely written.
    CheckpointWritten {
        /// The file.
        path: &'a Path,
    },
}
