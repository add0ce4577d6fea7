//! The progress of a run.

use crate::lr_scheduler::Plateau;
use ops::Metrics;
use run::EpochMetrics;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The next training step, and the metrics of the epoch's steps before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Finished epochs.
    pub epoch: u32,
    /// Finished steps of the current epoch.
    pub step: usize,
    /// Sum of the loss over the images of those steps.
    pub loss_sum: f64,
    /// Images of those steps.
    pub images: u64,
    /// Correctly classified images of those steps.
    #[serde(alias = "right")]
    pub correct: u64,
    /// Duration of those steps, over all processes that ran them.
    pub seconds: f64,
}

impl Position {
    /// The first step of an epoch, the first epoch being 0.
    #[must_use]
    pub fn start_of(epoch: u32) -> Self {
        Self {
            epoch,
            ..Self::default()
        }
    }

    /// Mean training loss of the epoch so far.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.images as f64
    }

    /// Training accuracy of the epoch so far, 0 to 1.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.images as f64
    }

    /// Training throughput of the epoch so far.
    #[must_use]
    pub fn images_per_second(&self) -> f64 {
        self.images as f64 / self.seconds
    }

    /// The metrics of the steps of the same epoch since `start`.
    pub(crate) fn since(&self, start: &Self) -> Self {
        Self {
            loss_sum: self.loss_sum - start.loss_sum,
            images: self.images - start.images,
            correct: self.correct - start.correct,
            seconds: self.seconds - start.seconds,
            ..*self
        }
    }

    /// Adds the metrics of some steps.
    pub(crate) fn add(&mut self, metrics: &Metrics) {
        self.loss_sum += metrics.loss_sum;
        self.images += metrics.samples();
        self.correct += metrics.correct();
    }
}

/// The epoch with the best test accuracy; ties go to the first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestEpoch {
    /// Its number, from 1.
    pub epoch: u32,
    /// Its test accuracy, 0 to 1.
    pub test_accuracy: f64,
}

/// Everything that a checkpoint restores, apart from tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The seed of the run.
    pub seed: u64,
    /// Training images per epoch.
    pub images: usize,
    /// Images per step.
    pub batch_size: usize,
    /// The next step.
    pub position: Position,
    /// The state of the learning-rate scheduler, if it has one.
    #[serde(alias = "plateau", default, skip_serializing_if = "Option::is_none")]
    pub lr_scheduler: Option<Plateau>,
    /// All finished epochs.
    pub history: Vec<EpochMetrics>,
    /// The best of them.
    pub best: Option<BestEpoch>,
    /// The settings that cannot change when the run is resumed, as TOML by key. Earlier versions did not record them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

impl Progress {
    /// The progress of a run before its first step.
    pub(crate) fn new(seed: u64, images: usize, batch_size: usize) -> Self {
        Self {
            seed,
            images,
            batch_size,
            ..Self::default()
        }
    }

    /// Whether an epoch has a higher test accuracy than all before it, so that it is the best now.
    pub(crate) fn is_improved_by(&mut self, epoch: BestEpoch) -> bool {
        let best = self.best.map(|best| best.test_accuracy);
        let improves = best.is_none_or(|best| epoch.test_accuracy > best);
        if improves {
            self.best = Some(epoch);
        }
        improves
    }

    /// SHA-256 of the weights after an epoch, the first epoch being 1, if it was computed.
    pub(crate) fn weights_sha256(&self, epoch: u32) -> Option<&str> {
        let index = (epoch as usize).checked_sub(1)?;
        self.history.get(index)?.weights_sha256.as_deref()
    }

    /// Why this cannot be the progress of a run with the settings and images of `run`; `None` if it can.
    pub(crate) fn mismatch(&self, run: &Self) -> Option<String> {
        let values = |run: &Self| [run.seed, run.batch_size as u64, run.images as u64];
        let names = ["seed", "batch size", "number of training images"];
        for ((what, found), expected) in names.iter().zip(values(self)).zip(values(run)) {
            if found != expected {
                return Some(format!(
                    "it was written with {what} {found}, but the run has {expected}"
                ));
            }
        }
        for (key, found) in &self.settings {
            if let Some(expected) = run.settings.get(key)
                && expected != found
            {
                return Some(format!(
                    "it was written with {key} = {found}, but the run has {key} = {expected} now; change that back, or \
                     start a new run"
                ));
            }
        }
        let steps = self.images.div_ceil(self.batch_size.max(1));
        let consistent =
            self.position.step <= steps && self.history.len() == self.position.epoch as usize;
        (!consistent).then(|| "its progress contradicts itself".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equally_good_epochs_is_the_best() {
        let mut progress = Progress::new(1, 100, 30);
        for (epoch, test_accuracy, improves) in [(1, 0.25, true), (2, 0.5, true), (3, 0.5, false)] {
            let epoch = BestEpoch {
                epoch,
                test_accuracy,
            };
            assert_eq!(progress.is_improved_by(epoch), improves, "{epoch:?}");
        }
        assert_eq!(progress.best.map(|best| best.epoch), Some(2));
    }

    #[test]
    fn progress_of_another_run_does_not_fit() {
        let run = Progress::new(1, 100, 30);
        assert_eq!(run.mismatch(&run), None);
        for (other, what) in [
            (Progress::new(2, 100, 30), "seed 2, but the run has 1"),
            (Progress::new(1, 90, 30), "training images 90"),
            (Progress::new(1, 100, 10), "batch size 10"),
        ] {
            let reason = other.mismatch(&run).unwrap();
            assert!(reason.contains(what), "{reason}");
        }
        let with = |momentum: &str| Progress {
            settings: [("momentum".to_owned(), momentum.to_owned())].into(),
            ..run.clone()
        };
        let reason = with("0.9").mismatch(&with("0.1")).unwrap();
        assert!(
            reason.contains("momentum = 0.9, but the run has momentum = 0.1"),
            "{reason}"
        );
        // Of an earlier version.
        assert_eq!(run.mismatch(&with("0.1")), None);
        let mut damaged = run.clone();
        damaged.position.step = 4;
        assert_eq!(damaged.mismatch(&run), None);
        damaged.position.step = 5;
        assert!(damaged.mismatch(&run).is_some());
        damaged.position = Position::start_of(1);
        assert!(damaged.mismatch(&run).is_some());
    }

    #[test]
    fn the_format_of_version_1_is_read() {
        let text = r#"{"seed":3,"images":12,"batch_size":5,
            "position":{"epoch":1,"step":2,"loss_sum":23.5,"images":10,"right":4,"seconds":1.5},
            "plateau":{"learning_rate":0.01,"patience":5,"factor":0.1,"threshold":0.0001,"best":2.5,"bad_epochs":0},
            "history":[{"epoch":1,"train_loss":2.5,"train_accuracy":0.1,"test_loss":2.5,"test_accuracy":0.25,
                "learning_rate":0.01,"seconds":2.5,"images_per_second":12.5,
                "average_test_loss":2.25,"average_test_accuracy":0.5}],
            "best":{"epoch":1,"test_accuracy":0.25}}"#;
        let progress: Progress = serde_json::from_str(text).unwrap();
        assert_eq!(progress.position.correct, 4);
        assert_eq!(
            (progress.position.loss(), progress.position.accuracy()),
            (2.35, 0.4)
        );
        assert_eq!(progress.lr_scheduler.map(|state| state.lr()), Some(0.01));
        assert_eq!(progress.history[0].evaluated.model_ema_accuracy, Some(0.5));
        // What is written now is read as well.
        let again = serde_json::to_string(&progress).unwrap();
        assert_eq!(serde_json::from_str::<Progress>(&again).unwrap(), progress);
    }
}
