//! `metrics.jsonl`: one JSON object an epoch.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The images that a run was evaluated on after every epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evaluated {
    /// The test images.
    Test,
    /// Training images: held out for validation, or, to see whether they can be learnt by heart, those trained on.
    Validation,
}

impl fmt::Display for Evaluated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Test => "test",
            Self::Validation => "validation",
        })
    }
}

/// What begins the keys of what was measured on these images: `test_loss` or `validation_loss`.
const TEST_KEYS: &str = "test_";
const VALIDATION_KEYS: &str = "validation_";

/// One epoch of a run. Accuracies are shares, 0 to 1; losses and accuracies are means over images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Its number, from 1.
    pub epoch: u32,
    /// Loss on the training images, as they came up while training.
    pub train_loss: f64,
    /// Accuracy on the training images, as they came up while training.
    pub train_accuracy: f64,
    /// Loss on the test images (or those of [`Evaluated::Validation`]), after the epoch.
    pub test_loss: f64,
    /// Accuracy on them, after the epoch.
    pub test_accuracy: f64,
    /// Learning rate of the epoch's first step.
    pub learning_rate: f64,
    /// Wall-clock time of training and evaluation.
    pub seconds: f64,
    /// Training images a second, evaluation not counted.
    pub images_per_second: f64,
    /// SHA-256, in hexadecimal, of the weights after the epoch, where it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_sha256: Option<String>,
    /// Loss of the weights' moving average on the test images, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average_test_loss: Option<f64>,
    /// Its accuracy on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average_test_accuracy: Option<f64>,
    /// Accuracy where the mean of the outputs for an image and for its mirror image counts; after the last epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirrored_test_accuracy: Option<f64>,
    /// Whether the run ended with this epoch because the loss had not become lower for long enough.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped_early: bool,
}

/// What can be wrong with a file of metrics.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("cannot {what} `{}`: {source}", path.display())]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A line is no epoch.
    #[error("`{}` is damaged at line {line}: {source}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The epochs are not numbered 1, 2, 3 ...
    #[error("`{}` has epoch {found} at line {line}, where epoch {line} belongs", path.display())]
    Order {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// The epoch found there.
        found: u32,
    },
}

/// Reads the epochs of a run.
///
/// # Errors
/// When the file is missing, a line is no epoch, or the epochs are out of order.
pub fn read_metrics(path: &Path) -> Result<Vec<Epoch>, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::File {
        what: "read",
        path: path.to_owned(),
        source,
    })?;
    let mut epochs = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let epoch = serde_json::from_str(text)
            .and_then(|keys| serde_json::from_value::<Epoch>(test_keys(keys).into()))
            .map_err(|source| Error::Line {
                path: path.to_owned(),
                line,
                source,
            })?;
        if epoch.epoch as usize != line {
            return Err(Error::Order {
                path: path.to_owned(),
                line,
                found: epoch.epoch,
            });
        }
        epochs.push(epoch);
    }
    Ok(epochs)
}

/// The same values under the keys for test images.
fn test_keys(keys: Map<String, Value>) -> Map<String, Value> {
    let keys = keys.into_iter();
    keys.map(|(key, value)| (key.replace(VALIDATION_KEYS, TEST_KEYS), value))
        .collect()
}

/// Writes all epochs of a run so far, in place of the file that was there.
///
/// # Errors
/// When the file cannot be written; what was there before is unchanged then.
pub fn write_metrics(path: &Path, evaluated: Evaluated, epochs: &[Epoch]) -> Result<(), Error> {
    let mut text = String::new();
    for (line, epoch) in (1..).zip(epochs) {
        let object = serde_json::to_string(epoch).map_err(|source| Error::Line {
            path: path.to_owned(),
            line,
            source,
        })?;
        // There is no text in it but the keys and a digest.
        text += &match evaluated {
            Evaluated::Test => object,
            Evaluated::Validation => object.replace(TEST_KEYS, VALIDATION_KEYS),
        };
        text.push('\n');
    }
    atomic_file::write(path, text.as_bytes()).map_err(|source| Error::File {
        what: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn epochs_come_back_to_the_bit(values in prop::collection::vec(0.0_f64..10.0, 7 * 4)) {
            let epochs: Vec<Epoch> = (1..).zip(values.chunks(7)).map(|(epoch, v)| Epoch {
                epoch,
                train_loss: v[0],
                train_accuracy: v[1],
                test_loss: v[2],
                test_accuracy: v[3],
                learning_rate: v[4],
                seconds: v[5],
                images_per_second: v[6],
                weights_sha256: (v[0] < 5.0).then(|| "0a".repeat(32)),
                average_test_loss: (v[1] < 5.0).then_some(v[0]),
                average_test_accuracy: (v[1] < 5.0).then_some(v[1]),
                mirrored_test_accuracy: (v[2] < 5.0).then_some(v[2]),
                stopped_early: v[3] < 5.0,
            }).collect();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("metrics.jsonl");
            for evaluated in [Evaluated::Test, Evaluated::Validation] {
                write_metrics(&path, evaluated, &epochs).unwrap();
                let text = fs::read_to_string(&path).unwrap();
                prop_assert_eq!(text.contains("\"test_loss\":"), evaluated == Evaluated::Test);
                prop_assert_eq!(&read_metrics(&path).unwrap(), &epochs);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("metrics.jsonl");
            fs::write(&path, &text).unwrap();
            let read = read_metrics(&path);
            prop_assert!(text.lines().count() == 0 || read.is_err());
        }
    }

    #[test]
    fn a_gap_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let line = r#"{"epoch":2,"train_loss":1,"train_accuracy":0,"test_loss":1,"test_accuracy":0,"learning_rate":0,"seconds":1,"images_per_second":1}"#;
        fs::write(&path, line).unwrap();
        let message = read_metrics(&path).unwrap_err().to_string();
        assert!(
            message.ends_with("has epoch 2 at line 1, where epoch 1 belongs"),
            "{message}"
        );
    }
}
