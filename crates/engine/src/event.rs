//! What the engine says while it works.

use crate::evaluation::Evaluation;
use crate::training::BestEpoch;
use models::Network;
use run::EpochMetrics;
use std::path::Path;

/// Something that happened. Epochs are counted from 1, as people do.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// An epoch begins, or goes on where it was interrupted.
    EpochStarted {
        /// Its number.
        epoch: u32,
        /// Epochs in all.
        epochs: u32,
        /// Steps that were done before the interruption.
        done: usize,
        /// Steps of the epoch.
        steps: usize,
        /// The learning rate of the epoch's first step.
        learning_rate: f64,
    },
    /// A training step was done.
    Step {
        /// The epoch's number.
        epoch: u32,
        /// Steps done in the epoch.
        done: usize,
        /// Mean loss over the epoch's images so far.
        loss: f64,
        /// Share of the epoch's images so far that were classified rightly, 0 to 1.
        accuracy: f64,
        /// Training images a second in the epoch so far.
        images_per_second: f64,
    },
    /// All steps of the epoch are done; the test images follow.
    EvaluationStarted {
        /// The epoch's number.
        epoch: u32,
    },
    /// An epoch is done and evaluated.
    EpochFinished {
        /// All epochs so far, the one that finished last.
        history: &'a [EpochMetrics],
        /// The best one.
        best: BestEpoch,
        /// What the epoch's weights made of the test images.
        evaluation: &'a Evaluation,
        /// The network with the epoch's weights.
        network: &'a Network,
        /// Whether it is the run's last.
        last: bool,
    },
    /// A checkpoint lies complete on the disk.
    CheckpointWritten {
        /// The file.
        path: &'a Path,
    },
}
