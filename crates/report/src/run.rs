//! A run, read back from its folder.

use crate::layers::{LAYERS, Layer, read_layers};
use crate::predictions::{self, PREDICTIONS, Predictions};
use crate::{MADE_BY, RECORD_VERSION, RECORD_VERSION_KEY};
use ::run::{EpochMetrics, metrics};
use serde::Deserialize;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The name of a run's record in its folder.
pub const RECORD: &str = "run.toml";

/// The name of a run's metrics in its folder.
pub const METRICS: &str = "metrics.jsonl";

/// A run's record and what it came to.
#[derive(Clone, Debug)]
pub struct Run {
    /// The folder's name.
    pub name: String,
    /// The network's name, such as `small-alexnet`.
    pub model: String,
    /// The recipe's name.
    pub recipe: String,
    /// The seed.
    pub seed: u64,
    /// All settings.
    pub settings: Table,
    /// What made the run.
    pub made_by: MadeBy,
    /// The epochs that are done, at least one.
    pub epochs: Vec<EpochMetrics>,
    /// What the last epoch's weights made of the test images, where that was recorded.
    pub predictions: Option<Predictions>,
    /// The network's layers, where they were recorded.
    pub layers: Option<Vec<Layer>>,
}

/// What made a run.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct MadeBy {
    /// The program's version.
    pub version: String,
    /// The commit it was built from.
    pub commit: String,
    /// `cpu` or `cuda`.
    pub device: String,
    /// A GPU's own name.
    pub gpu: Option<String>,
    /// In what numbers it computed.
    pub precision: String,
    /// Numbers that the network learns.
    pub parameters: u64,
    /// Images that were trained on.
    pub train_images: u64,
    /// Images that were tested with.
    pub test_images: u64,
    /// SHA-256 of the data set.
    pub data_sha256: String,
}

/// What can be wrong with a run's folder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no record.
    #[error("`{}` is no run: it has no {RECORD}; give the folder of a run, such as runs/alexnet-reference-seed0", .0.display())]
    NoRecord(PathBuf),
    /// No epoch is done.
    #[error("the run `{}` has no epoch that is done; finish it with `cargo run -p trainer -- --resume {}`", .0.display(), .0.display())]
    NoEpochs(PathBuf),
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The record is no record.
    #[error("the record `{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A later program wrote it.
    #[error(
        "the record `{}` has version {found}, and this program knows version {RECORD_VERSION}; use a later version of it",
        path.display()
    )]
    Future {
        /// The record.
        path: PathBuf,
        /// The version found.
        found: String,
    },
    /// The metrics are wrong.
    #[error(transparent)]
    Metrics(#[from] metrics::Error),
    /// The predictions are wrong.
    #[error(transparent)]
    Predictions(#[from] predictions::Error),
}

/// The part of a record that every run has.
#[derive(Deserialize)]
struct Record {
    model: String,
    recipe: String,
    seed: u64,
}

impl Run {
    /// Reads the run in `folder`.
    ///
    /// # Errors
    /// When there is none, it has no epoch that is done, a later program wrote it, or a file is damaged.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(RECORD);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(Error::NoRecord(folder.to_owned()));
            }
            Err(source) => return Err(Error::File { path, source }),
        };
        let damaged = |reason: String| Error::Damaged {
            path: path.clone(),
            reason: reason.trim().replace('\n', "; "),
        };
        let mut settings: Table = text
            .parse()
            .map_err(|error: toml::de::Error| damaged(error.message().to_owned()))?;
        let made_by = settings
            .remove(MADE_BY)
            .ok_or_else(|| damaged(format!("it has no table `{MADE_BY}`")))?;
        if let Some(version) = made_by.get(RECORD_VERSION_KEY)
            && version.as_integer() != Some(RECORD_VERSION.into())
        {
            return Err(Error::Future {
                path,
                found: version.to_string(),
            });
        }
        let made_by: MadeBy = made_by.try_into().map_err(|error: toml::de::Error| {
            damaged(format!("[{MADE_BY}]: {}", error.message()))
        })?;
        let record: Record = Value::Table(settings.clone())
            .try_into()
            .map_err(|error: toml::de::Error| damaged(error.message().to_owned()))?;
        let metrics = folder.join(METRICS);
        let epochs = if metrics.exists() {
            metrics::read(&metrics)?
        } else {
            Vec::new()
        };
        let Some(last) = epochs.last() else {
            return Err(Error::NoEpochs(folder.to_owned()));
        };
        // Those of a run that was since made longer belong to other weights.
        let predictions = folder.join(PREDICTIONS);
        let predictions = if predictions.exists() {
            Some(Predictions::read(&predictions)?)
        } else {
            None
        };
        let predictions = predictions.filter(|predictions| predictions.epoch == last.epoch);
        let layers = folder.join(LAYERS);
        let layers = if layers.exists() {
            Some(read_layers(&layers).map_err(|source| Error::File {
                path: layers,
                source,
            })?)
        } else {
            None
        };
        Ok(Self {
            name: folder_name(folder),
            model: record.model,
            recipe: record.recipe,
            seed: record.seed,
            settings,
            made_by,
            epochs,
            predictions,
            layers,
        })
    }

    /// Whether all epochs are done that its settings ask for, or it stopped early.
    #[must_use]
    pub fn finished(&self) -> bool {
        if self.last().stopped_early {
            return true;
        }
        let epochs = self.settings.get("epochs").and_then(Value::as_integer);
        epochs.is_none_or(|epochs| self.epochs.len() as i64 >= epochs)
    }

    /// The last epoch.
    #[must_use]
    pub fn last(&self) -> &EpochMetrics {
        // `read` gives no run without one.
        &self.epochs[self.epochs.len() - 1]
    }

    /// The best test accuracy after any epoch, 0 to 1.
    #[must_use]
    pub fn best_accuracy(&self) -> f64 {
        self.epochs
            .iter()
            .map(|epoch| epoch.evaluated().accuracy)
            .fold(0.0, f64::max)
    }

    /// Seconds of all epochs.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.epochs.iter().map(|epoch| epoch.seconds).sum()
    }

    /// Mean training images a second, evaluation not counted.
    #[must_use]
    pub fn images_per_second(&self) -> f64 {
        let seconds: f64 = self
            .epochs
            .iter()
            .map(|epoch| 1.0 / epoch.images_per_second)
            .sum();
        self.epochs.len() as f64 / seconds
    }
}

fn folder_name(folder: &Path) -> String {
    let absolute = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    absolute.file_name().map_or_else(
        || folder.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ::run::{EvaluationSplit, SplitMetrics};
    use proptest::prelude::*;

    /// A run that never was: its losses and accuracies by epoch.
    pub(crate) fn made_up(
        model: &str,
        seed: u64,
        settings: &str,
        epochs: &[(f64, f64, f64)],
    ) -> Run {
        let mut all: Table = settings.parse().unwrap();
        all.insert("model".to_owned(), model.into());
        all.insert("dataset".to_owned(), "cifar10".into());
        all.insert("seed".to_owned(), Value::Integer(seed as i64));
        let recipe = all
            .get("recipe")
            .and_then(Value::as_str)
            .unwrap_or("reference")
            .to_owned();
        Run {
            name: format!("{model}-{recipe}-seed{seed}"),
            model: model.to_owned(),
            recipe,
            seed,
            settings: all,
            made_by: MadeBy {
                version: "0.1.0".to_owned(),
                commit: "0".to_owned(),
                device: "cpu".to_owned(),
                gpu: None,
                precision: "f32".to_owned(),
                parameters: if model == "alexnet" {
                    58_292_074
                } else {
                    12_417_098
                },
                train_images: 50_000,
                test_images: 10_000,
                data_sha256: "00".to_owned(),
            },
            epochs: (1..)
                .zip(epochs)
                .map(
                    |(epoch, (train_loss, test_loss, test_accuracy))| EpochMetrics {
                        epoch,
                        train_loss: *train_loss,
                        train_accuracy: 0.5,
                        evaluation: EvaluationSplit::Test.metrics(SplitMetrics {
                            loss: *test_loss,
                            accuracy: *test_accuracy,
                            model_ema_loss: None,
                            model_ema_accuracy: None,
                            tta_accuracy: None,
                        }),
                        learning_rate: 0.01,
                        seconds: 60.0,
                        images_per_second: 1000.0,
                        weights_sha256: None,
                        stopped_early: false,
                    },
                )
                .collect(),
            predictions: None,
            layers: None,
        }
    }

    proptest! {
        #[test]
        fn any_text_is_no_record(text: String) {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(RECORD), &text).unwrap();
            prop_assert!(Run::read(folder.path()).is_err());
        }
    }
}
