//! `metrics.jsonl`: one JSON object per epoch.

use crate::error::Error;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

/// The metrics of one epoch: a line of `metrics.jsonl`. Losses are means over samples, accuracies are fractions of
/// samples, 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochMetrics {
    /// The epoch, from 1.
    pub epoch: u32,
    /// Training loss: the mean over the epoch's steps, measured while the weights change.
    pub train_loss: f64,
    /// Training accuracy, measured while the weights change.
    pub train_accuracy: f64,
    /// Metrics after the epoch on samples that are not trained on. The keys say which ones: `test_loss` or
    /// `validation_loss`.
    #[serde(flatten)]
    pub evaluation: EvaluationMetrics,
    /// Learning rate of the epoch's first step.
    pub learning_rate: f64,
    /// Wall-clock time of training and evaluation, without test-time augmentation.
    pub seconds: f64,
    /// Training throughput, without evaluation.
    pub images_per_second: f64,
    /// SHA-256 in hexadecimal of the weights after the epoch: their values in the order of PyTorch's `state_dict`,
    /// little-endian. On a GPU only after epochs with a checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_sha256: Option<String>,
    /// Whether early stopping ended the run after this epoch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped_early: bool,
}

impl EpochMetrics {
    /// The metrics on the evaluated samples, whichever they are.
    #[must_use]
    pub fn evaluated(&self) -> &SplitMetrics {
        match &self.evaluation {
            EvaluationMetrics::Test(metrics) | EvaluationMetrics::Validation(metrics) => metrics,
        }
    }

    /// Which samples were evaluated.
    #[must_use]
    pub fn split(&self) -> EvaluationSplit {
        match self.evaluation {
            EvaluationMetrics::Test(_) => EvaluationSplit::Test,
            EvaluationMetrics::Validation(_) => EvaluationSplit::Validation,
        }
    }
}

/// The samples on which a run is evaluated after every epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvaluationSplit {
    /// The test set.
    Test,
    /// Training samples: those held out by `--validation`, or those trained on with `--overfit-batches`.
    Validation,
}

impl EvaluationSplit {
    /// These metrics under the split's keys.
    #[must_use]
    pub fn metrics(self, metrics: SplitMetrics) -> EvaluationMetrics {
        match self {
            Self::Test => EvaluationMetrics::Test(metrics),
            Self::Validation => EvaluationMetrics::Validation(metrics),
        }
    }
}

impl fmt::Display for EvaluationSplit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Test => "test",
            Self::Validation => "validation",
        })
    }
}

/// Metrics after an epoch, and the samples that they were measured on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "it needs numbers `test_loss` and `test_accuracy`, or `validation_loss` and `validation_accuracy`"
)]
pub enum EvaluationMetrics {
    /// On the test set: `test_loss`, `model_ema_test_loss`, ...
    Test(#[serde(with = "TestKeys")] SplitMetrics),
    /// On training samples: `validation_loss`, `model_ema_validation_loss`, ...
    Validation(#[serde(with = "ValidationKeys")] SplitMetrics),
}

/// Metrics of a network on one set of samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SplitMetrics {
    /// Mean cross-entropy.
    pub loss: f64,
    /// Accuracy, 0 to 1.
    pub accuracy: f64,
    /// Mean cross-entropy with the EMA of the weights, if the run keeps one.
    pub model_ema_loss: Option<f64>,
    /// Accuracy with the EMA of the weights, 0 to 1.
    pub model_ema_accuracy: Option<f64>,
    /// Accuracy with test-time augmentation, 0 to 1: the logits are the mean over an image and its horizontal flip.
    /// Measured after the last epoch.
    pub tta_accuracy: Option<f64>,
}

/// The keys of [`SplitMetrics`] on the test set, and those of earlier versions.
#[derive(Serialize, Deserialize)]
#[serde(remote = "SplitMetrics")]
struct TestKeys {
    #[serde(rename = "test_loss")]
    loss: f64,
    #[serde(rename = "test_accuracy")]
    accuracy: f64,
    #[serde(
        rename = "model_ema_test_loss",
        alias = "average_test_loss",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    model_ema_loss: Option<f64>,
    #[serde(
        rename = "model_ema_test_accuracy",
        alias = "average_test_accuracy",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    model_ema_accuracy: Option<f64>,
    #[serde(
        rename = "tta_test_accuracy",
        alias = "mirrored_test_accuracy",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    tta_accuracy: Option<f64>,
}

/// The keys of [`SplitMetrics`] on training samples, and those of earlier versions.
#[derive(Serialize, Deserialize)]
#[serde(remote = "SplitMetrics")]
struct ValidationKeys {
    #[serde(rename = "validation_loss")]
    loss: f64,
    #[serde(rename = "validation_accuracy")]
    accuracy: f64,
    #[serde(
        rename = "model_ema_validation_loss",
        alias = "average_validation_loss",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    model_ema_loss: Option<f64>,
    #[serde(
        rename = "model_ema_validation_accuracy",
        alias = "average_validation_accuracy",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    model_ema_accuracy: Option<f64>,
    #[serde(
        rename = "tta_validation_accuracy",
        alias = "mirrored_validation_accuracy",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    tta_accuracy: Option<f64>,
}

/// Reads the epochs of a run from `metrics.jsonl`.
///
/// # Errors
/// When the file is missing, a line is not the metrics of an epoch, or the epochs are not 1, 2, 3, ...
pub fn read(path: &Path) -> Result<Vec<EpochMetrics>, Error> {
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    let damaged = Error::damaged(path);
    let mut epochs = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let epoch: EpochMetrics =
            serde_json::from_str(text).map_err(|error| damaged(format!("line {line}: {error}")))?;
        if epoch.epoch != line {
            let found = epoch.epoch;
            return Err(damaged(format!(
                "line {line} has epoch {found}; expected epoch {line}"
            )));
        }
        epochs.push(epoch);
    }
    Ok(epochs)
}

/// Replaces `metrics.jsonl` with these epochs, atomically.
///
/// # Errors
/// When the file cannot be written; the old one is then unchanged.
pub fn write(path: &Path, epochs: &[EpochMetrics]) -> Result<(), Error> {
    let lines = epochs
        .iter()
        .map(|epoch| Ok(serde_json::to_string(epoch)? + "\n"));
    let text: io::Result<String> = lines.collect();
    let text = text.map_err(Error::file("write", path))?;
    atomic_file::write(path, text.as_bytes()).map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsStr;
    use std::path::PathBuf;

    fn finite() -> impl Strategy<Value = f64> {
        any::<f64>().prop_filter("JSON has finite numbers only", |value| value.is_finite())
    }

    fn split_metrics() -> impl Strategy<Value = SplitMetrics> {
        let optional = || prop::option::of(finite());
        let values = (finite(), finite(), optional(), optional(), optional());
        values.prop_map(
            |(loss, accuracy, model_ema_loss, model_ema_accuracy, tta_accuracy)| SplitMetrics {
                loss,
                accuracy,
                model_ema_loss,
                model_ema_accuracy,
                tta_accuracy,
            },
        )
    }

    fn epoch_metrics() -> impl Strategy<Value = EpochMetrics> {
        let evaluation = (any::<bool>(), split_metrics()).prop_map(|(test, metrics)| {
            if test {
                EvaluationMetrics::Test(metrics)
            } else {
                EvaluationMetrics::Validation(metrics)
            }
        });
        let values = prop::array::uniform5(finite());
        let digest = prop::option::of("[0-9a-f]{64}");
        (values, evaluation, digest, any::<bool>()).prop_map(
            |(values, evaluation, weights_sha256, stopped_early)| EpochMetrics {
                epoch: 1,
                train_loss: values[0],
                train_accuracy: values[1],
                evaluation,
                learning_rate: values[2],
                seconds: values[3],
                images_per_second: values[4],
                weights_sha256,
                stopped_early,
            },
        )
    }

    proptest! {
        #[test]
        fn metrics_round_trip_to_the_bit(mut epochs in prop::collection::vec(epoch_metrics(), 0..5)) {
            for (number, epoch) in (1..).zip(&mut epochs) {
                epoch.epoch = number;
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("metrics.jsonl");
            write(&path, &epochs).unwrap();
            let read = read(&path).unwrap();
            prop_assert_eq!(&read, &epochs);
            // Equal numbers may differ in the sign of zero; equal texts do not.
            prop_assert_eq!(format!("{read:?}"), format!("{epochs:?}"));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("metrics.jsonl");
            fs::write(&path, &text).unwrap();
            let read = read(&path);
            prop_assert!(text.lines().count() == 0 || read.is_err());
        }
    }

    const LINE: &str = r#"{"epoch":1,"train_loss":1,"train_accuracy":0,"learning_rate":0,"seconds":1,"images_per_second":1"#;

    fn parse(rest: &str) -> Result<EpochMetrics, serde_json::Error> {
        serde_json::from_str(&format!("{LINE},{rest}}}"))
    }

    #[test]
    fn keys_name_the_split() {
        let metrics = SplitMetrics {
            loss: 1.5,
            accuracy: 0.5,
            model_ema_loss: Some(1.25),
            model_ema_accuracy: Some(0.75),
            tta_accuracy: Some(0.625),
        };
        for split in [EvaluationSplit::Test, EvaluationSplit::Validation] {
            let new = format!(
                r#""{split}_loss":1.5,"{split}_accuracy":0.5,"model_ema_{split}_loss":1.25,"model_ema_{split}_accuracy":0.75,"tta_{split}_accuracy":0.625"#
            );
            let old = new
                .replace("model_ema", "average")
                .replace("tta", "mirrored");
            for text in [&new, &old] {
                let epoch = parse(text).unwrap();
                assert_eq!((epoch.split(), *epoch.evaluated()), (split, metrics));
                assert!(serde_json::to_string(&epoch).unwrap().contains(&new));
            }
        }
    }

    #[test]
    fn a_line_without_an_evaluation_is_refused() {
        for rest in [
            r#""test_loss":1"#,
            r#""test_loss":1,"validation_accuracy":1"#,
            r#""test_loss":null,"test_accuracy":1"#,
        ] {
            let message = parse(rest).unwrap_err().to_string();
            assert!(message.contains("needs numbers `test_loss`"), "{message}");
        }
    }

    #[test]
    fn a_gap_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let line = format!(r#"{LINE},"test_loss":1,"test_accuracy":0}}"#);
        fs::write(&path, format!("{line}\n{line}\n")).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(
            message.ends_with("line 2 has epoch 1; expected epoch 2"),
            "{message}"
        );
    }

    fn metrics_files(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                metrics_files(&path, found);
            } else if path.file_name() == Some(OsStr::new("metrics.jsonl")) {
                found.push(path);
            }
        }
    }

    #[test]
    fn published_metrics_are_read() {
        let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/results");
        let mut files = Vec::new();
        metrics_files(&results, &mut files);
        assert!(files.len() >= 10, "{files:?}");
        for path in files {
            let epochs = read(&path).unwrap();
            // The end of a run had test-time augmentation from the first `sprint` on.
            let augmented = epochs.last().unwrap().evaluated().tta_accuracy.is_some();
            let sprint = path.display().to_string().contains("sprint");
            assert_eq!(augmented, sprint, "{}", path.display());
        }
    }
}
