//! `predictions.safetensors`: the logits of an epoch's weights for every evaluated image, the most confident
//! mistakes as pictures, and the filters of the first layer. So a report needs neither the data set nor the weights.

use crate::error::Error;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::path::Path;
use std::{fs, io};

/// Height and width of an image in pixels.
pub const SIDE: usize = 32;

/// Bytes of an image, `[3, 32, 32]`.
pub const IMAGE_BYTES: usize = 3 * SIDE * SIDE;

/// The numbers of classes that data and weights may have.
pub const NUM_CLASSES: RangeInclusive<usize> = 2..=1000;

/// The most classes whose confusion matrix is shown.
pub const MATRIX_CLASSES: usize = 20;

/// The largest number of mistakes that are stored as pictures.
const PICTURES: usize = 256;

/// The version of the file's format.
const VERSION: u32 = 1;

/// The key of the metadata under which [`Header`] is.
const HEADER: &str = "record";

/// The predictions of a run's weights after an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Predictions {
    /// The epoch after which the weights were taken.
    pub epoch: u32,
    /// The classes by label.
    pub class_names: Vec<String>,
    /// The label of every evaluated image, in the order of the data set.
    pub labels: Vec<u32>,
    /// The logits of every evaluated image: `[images, classes]`.
    pub logits: Vec<f32>,
    /// The most confident mistakes: the images' indices, and their pixels, `[3, 32, 32]`.
    pub pictures: BTreeMap<u32, Vec<u8>>,
    /// The first layer's filters.
    pub filters: Filters,
}

/// The weights of a convolution with three input channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Filters {
    /// Height and width of a filter.
    pub side: usize,
    /// `[filters, 3, side, side]`.
    pub weights: Vec<f32>,
}

/// The metadata beside the tensors.
#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    epoch: u32,
    class_names: Vec<String>,
}

impl Predictions {
    /// Predictions with a network's logits, `[images, classes]`. `picture` returns the pixels of an image,
    /// `[3, 32, 32]`.
    #[must_use]
    pub fn new(
        epoch: u32,
        class_names: &[String],
        labels: &[u32],
        logits: &[f32],
        picture: impl Fn(usize) -> Vec<u8>,
        filters: Filters,
    ) -> Self {
        let mut predictions = Self {
            epoch,
            class_names: class_names.to_vec(),
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

    /// The predicted class of the image at this index, and its probability; ties go to the first class.
    #[must_use]
    pub fn predicted(&self, index: usize) -> (usize, f64) {
        let classes = self.class_names.len();
        let logits = &self.logits[index * classes..][..classes];
        let best = predicted_class(logits);
        (best, softmax(logits)[best])
    }

    /// Whether the predicted class of image `number` is its label.
    #[must_use]
    pub fn correct(&self, number: usize) -> bool {
        self.predicted(number).0 == self.labels[number] as usize
    }

    /// The misclassified images, the most confident mistake first.
    #[must_use]
    pub fn mistakes(&self) -> Vec<usize> {
        let mistakes = mistakes(&self.labels, &self.logits, self.class_names.len());
        mistakes.iter().map(|mistake| mistake.index).collect()
    }

    /// The confusion matrix `[classes, classes]`: counts images by label (row) and predicted class (column).
    #[must_use]
    pub fn confusion(&self) -> Vec<u64> {
        let classes = self.class_names.len();
        let mut confusion = vec![0; classes * classes];
        for (number, label) in self.labels.iter().enumerate() {
            confusion[*label as usize * classes + self.predicted(number).0] += 1;
        }
        confusion
    }

    /// Replaces the file, atomically.
    ///
    /// # Errors
    /// When the file cannot be written; the old one is then unchanged.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let written = self
            .encode()
            .and_then(|bytes| atomic_file::write(path, &bytes));
        written.map_err(Error::file("write", path))
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let bytes =
            |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let (images, side) = (self.labels.len(), self.filters.side);
        let filters = self.filters.weights.len() / (3 * side * side).max(1);
        let classes = self.class_names.len();
        let logits = bytes(&self.logits);
        let (dtype, label_bytes) = match classes {
            0..=256 => (Dtype::U8, 1),
            _ => (Dtype::U16, 2),
        };
        let labels = self.labels.iter().map(|label| label.to_le_bytes());
        let labels = labels.flat_map(|label| label.into_iter().take(label_bytes));
        let labels: Vec<_> = labels.collect();
        let indices: Vec<u8> = self.pictures.keys().flat_map(|n| n.to_le_bytes()).collect();
        let pictures: Vec<u8> = self.pictures.values().flatten().copied().collect();
        let count = self.pictures.len();
        let weights = bytes(&self.filters.weights);
        let tensor = |name, dtype, shape: &[usize], bytes| {
            TensorView::new(dtype, shape.to_vec(), bytes).map(|tensor| (name, tensor))
        };
        let tensors = [
            tensor("labels", dtype, &[images], &labels),
            tensor("logits", Dtype::F32, &[images, classes], &logits),
            tensor("picture_numbers", Dtype::U32, &[count], &indices),
            tensor("pictures", Dtype::U8, &[count, 3, 32, 32], &pictures),
            tensor("filters", Dtype::F32, &[filters, 3, side, side], &weights),
        ];
        let tensors: Result<Vec<_>, _> = tensors.into_iter().collect();
        let header = serde_json::to_string(&Header {
            version: VERSION,
            epoch: self.epoch,
            class_names: self.class_names.clone(),
        })?;
        let metadata = HashMap::from([(HEADER.to_owned(), header)]);
        tensors
            .and_then(|tensors| safetensors::serialize(tensors, Some(metadata)))
            .map_err(io::Error::other)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is of a later version.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = fs::read(path).map_err(Error::file("read", path))?;
        let damaged = Error::damaged::<String>(path);
        let (_, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|error| damaged(error.to_string()))?;
        let header = metadata
            .metadata()
            .as_ref()
            .and_then(|data| data.get(HEADER));
        let header = header.ok_or_else(|| damaged("it is not a file of predictions".to_owned()))?;
        let header: serde_json::Value =
            serde_json::from_str(header).map_err(|error| damaged(error.to_string()))?;
        Error::check_version(path, header["version"].as_u64().unwrap_or(0), VERSION)?;
        let header = serde_json::from_value(header).map_err(|error| damaged(error.to_string()))?;
        Self::decode(header, &bytes).map_err(damaged)
    }

    fn decode(header: Header, bytes: &[u8]) -> Result<Self, String> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let tensor = |name: &str, dtype, shape: &[Option<usize>]| {
            let tensor = tensors.tensor(name).map_err(|error| error.to_string())?;
            let mut sizes = tensor.shape().iter().zip(shape);
            let fits = tensor.shape().len() == shape.len()
                && sizes.all(|(found, wanted)| wanted.is_none_or(|wanted| wanted == *found));
            if tensor.dtype() != dtype || !fits {
                return Err(format!("`{name}` has an unexpected type or shape"));
            }
            Ok(tensor)
        };
        let floats = |bytes: &[u8]| -> Vec<f32> {
            let values = bytes.as_chunks().0.iter();
            values.map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let labels: Vec<u32> = match tensor("labels", Dtype::U16, &[None]) {
            Ok(labels) => {
                let labels = labels.data().as_chunks().0.iter();
                labels
                    .map(|label| u16::from_le_bytes(*label).into())
                    .collect()
            }
            Err(_) => {
                let labels = tensor("labels", Dtype::U8, &[None])?.data().iter();
                labels.copied().map(u32::from).collect()
            }
        };
        let classes = header.class_names.len();
        if classes == 0 {
            return Err("it has no classes".to_owned());
        }
        let logits = tensor("logits", Dtype::F32, &[Some(labels.len()), Some(classes)])?;
        let indices = tensor("picture_numbers", Dtype::U32, &[None])?;
        let indices = indices.data().as_chunks().0.iter();
        let indices: Vec<_> = indices.map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let shape = [Some(indices.len()), Some(3), Some(32), Some(32)];
        let pictures = tensor("pictures", Dtype::U8, &shape)?;
        let pictures = pictures.data().chunks(IMAGE_BYTES).map(<[u8]>::to_vec);
        let filters = tensor("filters", Dtype::F32, &[None, Some(3), None, None])?;
        let side = filters.shape()[2];
        if filters.shape()[3] != side {
            return Err("its filters are not square".to_owned());
        }
        if let Some(label) = labels.iter().find(|label| **label as usize >= classes) {
            return Err(format!("it has the label {label} with {classes} classes"));
        }
        if indices.iter().any(|index| *index as usize >= labels.len()) {
            return Err("it has a picture of an image that does not exist".to_owned());
        }
        Ok(Self {
            epoch: header.epoch,
            class_names: header.class_names,
            logits: floats(logits.data()),
            labels,
            pictures: indices.into_iter().zip(pictures).collect(),
            filters: Filters {
                side,
                weights: floats(filters.data()),
            },
        })
    }
}

/// An image that is misclassified.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mistake {
    /// Its number in the data set.
    pub index: usize,
    /// The predicted class.
    pub predicted: usize,
    /// The probability of that class, 0 to 1.
    pub probability: f64,
}

/// The mistakes of a network with these logits, `[images, classes]`, the most confident first.
#[must_use]
pub fn mistakes(labels: &[u32], logits: &[f32], classes: usize) -> Vec<Mistake> {
    let images = logits.chunks_exact(classes).zip(labels).enumerate();
    let mistakes = images.filter_map(|(index, (logits, label))| {
        let predicted = predicted_class(logits);
        (predicted != *label as usize).then(|| Mistake {
            index,
            predicted,
            probability: softmax(logits)[predicted],
        })
    });
    let mut mistakes: Vec<_> = mistakes.collect();
    mistakes.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    mistakes
}

/// The class with the largest logit; ties go to the first.
fn predicted_class(logits: &[f32]) -> usize {
    let larger = |best, class| match logits[class] > logits[best] {
        true => class,
        false => best,
    };
    (0..logits.len()).fold(0, larger)
}

/// The softmax of logits: the probabilities of the classes.
#[must_use]
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers = logits.iter();
    let powers = powers.map(|logit| libm::exp(f64::from(logit - largest)));
    let mut probabilities: Vec<_> = powers.collect();
    let sum: f64 = probabilities.iter().sum();
    probabilities.iter_mut().for_each(|power| *power /= sum);
    probabilities
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Predictions with ten classes, or more.
    fn predictions<const CLASSES: usize>(logits: &[[f32; CLASSES]]) -> Predictions {
        let labels: Vec<u32> = (0..logits.len() as u32)
            .map(|number| (number * 37) % CLASSES as u32)
            .collect();
        Predictions::new(
            3,
            &vec!["a".to_owned(); CLASSES],
            &labels,
            logits.as_flattened(),
            |number| vec![number as u8; IMAGE_BYTES],
            Filters {
                side: 2,
                weights: vec![0.5; 24],
            },
        )
    }

    proptest! {
        #[test]
        fn predictions_round_trip(rows in prop::collection::vec(prop::array::uniform10(-9.0_f32..9.0), 1..40)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("predictions");
            let predictions = predictions(&rows);
            predictions.write(&path).unwrap();
            prop_assert_eq!(Predictions::read(&path).unwrap(), predictions);
        }

        #[test]
        fn predictions_of_a_thousand_classes_round_trip(images in 0..40_usize, logit: f32) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("predictions");
            let predictions = predictions(&vec![[if logit.is_nan() { 0.5 } else { logit }; 1000]; images]);
            predictions.write(&path).unwrap();
            prop_assert_eq!(Predictions::read(&path).unwrap(), predictions);
        }

        #[test]
        fn other_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), place in 0_usize..400) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("predictions");
            fs::write(&path, &bytes).unwrap();
            prop_assert!(Predictions::read(&path).is_err());
            // A truncated file.
            let mut whole = predictions(&[[0.0; 10]; 3]).encode().unwrap();
            whole.truncate(place.min(whole.len() - 1));
            fs::write(&path, &whole).unwrap();
            prop_assert!(Predictions::read(&path).is_err());
        }
    }

    #[test]
    fn a_file_without_classes_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictions");
        let mut without = predictions(&[[0.0; 10]; 0]);
        without.class_names.clear();
        without.write(&path).unwrap();
        let message = Predictions::read(&path).unwrap_err().to_string();
        assert!(message.contains("no classes"), "{message}");
    }

    #[test]
    fn the_most_confident_mistake_is_first() {
        // The labels are 0, 7 and 4.
        let mut logits = [[0.0; 10]; 3];
        logits[0][0] = 1.0;
        logits[1][5] = 1.0;
        logits[2][7] = 4.0;
        let predictions = predictions(&logits);
        assert_eq!(predictions.mistakes(), [2, 1]);
        assert!(predictions.pictures.keys().eq(&[1, 2]));
        assert_eq!(predictions.confusion()[4 * 10 + 7], 1);
        assert_eq!(predictions.confusion()[0], 1);
    }

    #[test]
    fn a_later_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictions");
        let bytes = predictions(&[[0.0; 10]]).encode().unwrap();
        let text: Vec<u8> = bytes.clone();
        let place = text
            .windows(12)
            .position(|w| w == b"version\\\":1,")
            .unwrap();
        let mut later = bytes;
        later[place + 10] = b'7';
        fs::write(&path, later).unwrap();
        let message = Predictions::read(&path).unwrap_err().to_string();
        assert!(message.contains("has format version 7"), "{message}");
    }

    #[test]
    fn softmax_sums_to_one_for_logits_of_any_size() {
        for logits in [[1000.0, 0.0], [-1000.0, -1000.5]] {
            let probabilities = softmax(&logits);
            assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            assert!(probabilities[0] > probabilities[1]);
        }
    }
}
