//! `metrics.jsonl`: one JSON object an epoch.

use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One epoch of a run. Accuracies are shares, 0 to 1; losses and accuracies are means over images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Its number, from 1.
    pub epoch: u32,
    /// Loss on the training images, as they came up while training.
    pub train_loss: f64,
    /// Accuracy on the training images, as they came up while training.
    pub train_accuracy: f64,
    /// Loss on the test images, after the epoch.
    pub test_loss: f64,
    /// Accuracy on the test images, after the epoch.
    pub test_accuracy: f64,
    /// Learning rate of the epoch.
    pub learning_rate: f64,
    /// Wall-clock time of training and evaluation.
    pub seconds: f64,
    /// Training images a second, evaluation not counted.
    pub images_per_second: f64,
    /// SHA-256, in hexadecimal, of the weights after the epoch, where it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_sha256: Option<String>,
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
        let epoch: Epoch = serde_json::from_str(text).map_err(|source| Error::Line {
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

/// Writes all epochs of a run so far, in place of the file that was there.
///
/// # Errors
/// When the file cannot be written; what was there before is unchanged then.
pub fn write_metrics(path: &Path, epochs: &[Epoch]) -> Result<(), Error> {
    let mut text = String::new();
    for (line, epoch) in (1..).zip(epochs) {
        text += &serde_json::to_string(epoch).map_err(|source| Error::Line {
            path: path.to_owned(),
            line,
            source,
        })?;
        text.push('\n');
    }
    whole_file::write(path, text.as_bytes()).map_err(|source| Error::File {
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
            }).collect();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("metrics.jsonl");
            write_metrics(&path, &epochs).unwrap();
            prop_assert_eq!(read_metrics(&path).unwrap(), epochs);
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
