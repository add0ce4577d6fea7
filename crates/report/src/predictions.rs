//! `predictions.safetensors`: what a run's last weights made of every test image, the pictures of the most confident
//! mistakes, and the first layer's filters. A report needs neither the data set nor the weights.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The file's name in a run's folder.
pub const PREDICTIONS: &str = "predictions.safetensors";

/// Classes that are told apart.
pub const CLASSES: usize = 10;

/// Bytes of a picture: three planes of 32 by 32.
pub const PICTURE_BYTES: usize = 3 * 32 * 32;

/// Mistakes whose pictures are kept.
const PICTURES: usize = 256;

/// The version of the layout that this program writes.
const VERSION: u32 = 1;

/// The key of the metadata.
const RECORD: &str = "record";

/// What a run's last weights made of the test images.
#[derive(Clone, Debug, PartialEq)]
pub struct Predictions {
    /// The epoch after which the weights were taken.
    pub epoch: u32,
    /// The classes by label.
    pub class_names: Vec<String>,
    /// The right class of every test image, in the set's order.
    pub labels: Vec<u8>,
    /// The network's output for every test image.
    pub logits: Vec<[f32; CLASSES]>,
    /// By number of the test image: red, green and blue plane of those that were confidently mistaken.
    pub pictures: BTreeMap<u32, Vec<u8>>,
    /// The first layer's filters.
    pub filters: Filters,
}

/// Weights of a convolution that looks at colour images.
#[derive(Clone, Debug, PartialEq)]
pub struct Filters {
    /// Height and width of a filter.
    pub side: usize,
    /// `[filter, 3, side, side]`, one after the other.
    pub weights: Vec<f32>,
}

/// What is said beside the tensors.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    epoch: u32,
    class_names: Vec<String>,
}

/// What can be wrong with a file of predictions.
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
    /// The file is no file of predictions.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A later program wrote it.
    #[error(
        "`{}` has version {found} of the predictions' layout, and this program knows those up to {VERSION}; use a later \
         version of it", path.display()
    )]
    Future {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: u32,
    },
}

impl Predictions {
    /// Predictions from a network's logits, one row an image. `picture` gives the three planes of an image.
    #[must_use]
    pub fn new(
        epoch: u32,
        class_names: &[&str],
        labels: &[u8],
        logits: &[[f32; CLASSES]],
        picture: impl Fn(usize) -> Vec<u8>,
        filters: Filters,
    ) -> Self {
        let mut predictions = Self {
            epoch,
            class_names: class_names.iter().map(|name| (*name).to_owned()).collect(),
            labels: labels.to_vec(),
            logits: logits.to_vec(),
            pictures: BTreeMap::new(),
            filters,
        };
        let mistakes = predictions.mistakes();
        predictions.pictures = mistakes
            .into_iter()
            .take(PICTURES)
            .map(|number| (number as u32, picture(number)))
            .collect();
        predictions
    }

    /// The class that image `number` was taken for, the first of equals, and its probability.
    #[must_use]
    pub fn guess(&self, number: usize) -> (usize, f32) {
        let logits = &self.logits[number];
        let mut best = 0;
        for (class, logit) in logits.iter().enumerate() {
            if *logit > logits[best] {
                best = class;
            }
        }
        (best, softmax(logits)[best])
    }

    /// Whether image `number` was classified rightly.
    #[must_use]
    pub fn right(&self, number: usize) -> bool {
        self.guess(number).0 == usize::from(self.labels[number])
    }

    /// The images that were classified wrongly, the most confident mistake first.
    #[must_use]
    pub fn mistakes(&self) -> Vec<usize> {
        let mut mistakes: Vec<_> = (0..self.labels.len()).filter(|n| !self.right(*n)).collect();
        mistakes.sort_by(|a, b| self.guess(*b).1.total_cmp(&self.guess(*a).1));
        mistakes
    }

    /// How many images of class `row` were taken for class `column`.
    #[must_use]
    pub fn confusion(&self) -> [[u64; CLASSES]; CLASSES] {
        let mut confusion = [[0; CLASSES]; CLASSES];
        for (number, label) in self.labels.iter().enumerate() {
            confusion[usize::from(*label)][self.guess(number).0] += 1;
        }
        confusion
    }

    /// Writes the file whole.
    ///
    /// # Errors
    /// When it cannot be written; what was there before is unchanged then.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let bytes = self.encode().map_err(|source| Error::File {
            what: "write",
            path: path.to_owned(),
            source,
        })?;
        atomic_file::write(path, &bytes).map_err(|source| Error::File {
            what: "write",
            path: path.to_owned(),
            source,
        })
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let floats = |numbers: &mut dyn Iterator<Item = f32>| -> Vec<u8> {
            numbers.flat_map(f32::to_le_bytes).collect()
        };
        let images = self.labels.len();
        let side = self.filters.side;
        let filters = self.filters.weights.len() / (3 * side * side).max(1);
        let logits = floats(&mut self.logits.iter().flatten().copied());
        let numbers: Vec<u8> = self.pictures.keys().flat_map(|n| n.to_le_bytes()).collect();
        let pictures: Vec<u8> = self.pictures.values().flatten().copied().collect();
        let weights = floats(&mut self.filters.weights.iter().copied());
        let count = self.pictures.len();
        let parts: [(&str, Dtype, Vec<usize>, &[u8]); 5] = [
            ("labels", Dtype::U8, vec![images], &self.labels),
            ("logits", Dtype::F32, vec![images, CLASSES], &logits),
            ("picture_numbers", Dtype::U32, vec![count], &numbers),
            ("pictures", Dtype::U8, vec![count, 3, 32, 32], &pictures),
            (
                "filters",
                Dtype::F32,
                vec![filters, 3, side, side],
                &weights,
            ),
        ];
        let mut views = Vec::new();
        for (name, dtype, shape, bytes) in parts {
            let view = TensorView::new(dtype, shape, bytes).map_err(io::Error::other)?;
            views.push((name, view));
        }
        let record = serde_json::to_string(&Record {
            version: VERSION,
            epoch: self.epoch,
            class_names: self.class_names.clone(),
        })?;
        let metadata = HashMap::from([(RECORD.to_owned(), record)]);
        safetensors::serialize(views, Some(metadata)).map_err(io::Error::other)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, a later program wrote it, or it is damaged.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = fs::read(path).map_err(|source| Error::File {
            what: "read",
            path: path.to_owned(),
            source,
        })?;
        let damaged = |reason: String| Error::Damaged {
            path: path.to_owned(),
            reason,
        };
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|error| damaged(error.to_string()))?;
        let record = header.metadata().as_ref().and_then(|data| data.get(RECORD));
        let record = record.ok_or_else(|| damaged("it is no file of predictions".to_owned()))?;
        let version = serde_json::from_str::<serde_json::Value>(record).ok();
        let version = version.and_then(|record| record["version"].as_u64());
        if let Some(found) = version
            && found > u64::from(VERSION)
        {
            return Err(Error::Future {
                path: path.to_owned(),
                found: u32::try_from(found).unwrap_or(u32::MAX),
            });
        }
        let record: Record =
            serde_json::from_str(record).map_err(|error| damaged(error.to_string()))?;
        Self::decode(record, &bytes).map_err(damaged)
    }

    fn decode(record: Record, bytes: &[u8]) -> Result<Self, String> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let tensor = |name: &str, dtype, shape: &[Option<usize>]| {
            let tensor = tensors.tensor(name).map_err(|error| error.to_string())?;
            let fits = tensor.shape().len() == shape.len()
                && shape
                    .iter()
                    .zip(tensor.shape())
                    .all(|(want, found)| want.is_none_or(|want| want == *found));
            if tensor.dtype() != dtype || !fits {
                return Err(format!("`{name}` has another type or shape than expected"));
            }
            Ok(tensor)
        };
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect()
        };
        let labels = tensor("labels", Dtype::U8, &[None])?.data().to_vec();
        let images = Some(labels.len());
        let logits = tensor("logits", Dtype::F32, &[images, Some(CLASSES)])?;
        let logits = floats(logits.data()).as_chunks().0.to_vec();
        let numbers = tensor("picture_numbers", Dtype::U32, &[None])?;
        let numbers: Vec<_> = numbers
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes))
            .collect();
        let shape = [Some(numbers.len()), Some(3), Some(32), Some(32)];
        let pictures = tensor("pictures", Dtype::U8, &shape)?.data().to_vec();
        let filters = tensor("filters", Dtype::F32, &[None, Some(3), None, None])?;
        let side = filters.shape()[2];
        if filters.shape()[3] != side {
            return Err("its filters are not square".to_owned());
        }
        if labels.iter().any(|label| usize::from(*label) >= CLASSES)
            || record.class_names.len() != CLASSES
        {
            return Err(format!("it has other than {CLASSES} classes"));
        }
        if numbers
            .iter()
            .any(|number| *number as usize >= labels.len())
        {
            return Err("a picture's number is that of no test image".to_owned());
        }
        Ok(Self {
            epoch: record.epoch,
            class_names: record.class_names,
            logits,
            labels,
            pictures: numbers
                .into_iter()
                .zip(pictures.chunks(PICTURE_BYTES).map(<[u8]>::to_vec))
                .collect(),
            filters: Filters {
                side,
                weights: floats(filters.data()),
            },
        })
    }
}

fn softmax(logits: &[f32; CLASSES]) -> [f32; CLASSES] {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers = logits.map(|logit| f64::from(logit - top).exp());
    let total: f64 = powers.iter().sum();
    powers.map(|power| (power / total) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn predictions(logits: &[[f32; CLASSES]]) -> Predictions {
        let labels: Vec<u8> = (0..logits.len())
            .map(|number| (number % 10) as u8)
            .collect();
        Predictions::new(
            3,
            &["a"; CLASSES],
            &labels,
            logits,
            |number| vec![number as u8; PICTURE_BYTES],
            Filters {
                side: 2,
                weights: vec![0.5; 24],
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_comes_back(rows in prop::collection::vec(prop::array::uniform10(-9.0_f32..9.0), 1..40)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(PREDICTIONS);
            let predictions = predictions(&rows);
            predictions.write(&path).unwrap();
            prop_assert_eq!(Predictions::read(&path).unwrap(), predictions);
        }

        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), place in 0_usize..400) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(PREDICTIONS);
            fs::write(&path, &bytes).unwrap();
            prop_assert!(Predictions::read(&path).is_err());
            // A good file that breaks off.
            let mut whole = predictions(&[[0.0; CLASSES]; 3]).encode().unwrap();
            whole.truncate(place.min(whole.len() - 1));
            fs::write(&path, &whole).unwrap();
            prop_assert!(Predictions::read(&path).is_err());
        }
    }

    #[test]
    fn mistakes_come_with_the_most_confident_first() {
        let mut logits = [[0.0; CLASSES]; 3];
        logits[0][0] = 1.0; // right
        logits[1][5] = 1.0;
        logits[2][7] = 4.0;
        let predictions = predictions(&logits);
        assert_eq!(predictions.mistakes(), [2, 1]);
        assert!(predictions.pictures.keys().eq(&[1, 2]));
        assert_eq!(predictions.confusion()[2][7], 1);
        assert_eq!(predictions.confusion()[0][0], 1);
        let total: f32 = softmax(&predictions.logits[2]).iter().sum();
        assert!((total - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_later_layout_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PREDICTIONS);
        let bytes = predictions(&[[0.0; CLASSES]]).encode().unwrap();
        let text: Vec<u8> = bytes.clone();
        let place = text
            .windows(12)
            .position(|w| w == b"version\\\":1,")
            .unwrap();
        let mut later = bytes;
        later[place + 10] = b'7';
        fs::write(&path, later).unwrap();
        let message = Predictions::read(&path).unwrap_err().to_string();
        assert!(message.contains("has version 7"), "{message}");
    }
}
