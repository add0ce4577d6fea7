//! A data set in memory: all images as `u8`, and their labels.

use crate::error::Error;
use crate::info::Channels;
use crate::records::{Records, hexadecimal};
use candle_core::{CpuStorage, Device, Result as TensorResult, Storage, Tensor, bail};
use rng::{Purpose, Stream};
use run::predictions::IMAGE_BYTES;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// Training and test images of 32x32 pixels in colour.
pub struct Dataset {
    training: Split,
    test: Split,
    class_names: Vec<String>,
    pub(crate) warning: Option<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) skipped: usize,
    pub(crate) test_split_seed: Option<u64>,
}

impl Dataset {
    pub(crate) fn new(
        training: Records,
        test: Records,
        class_names: impl IntoIterator<Item: Into<String>>,
    ) -> Result<Self, Error> {
        let class_names: Vec<_> = class_names.into_iter().map(Into::into).collect();
        let classes = class_names.len();
        Ok(Self {
            training: Split::new(training, classes)?,
            test: Split::new(test, classes)?,
            class_names,
            warning: None,
            notes: Vec::new(),
            skipped: 0,
            test_split_seed: None,
        })
    }

    /// The training images.
    #[must_use]
    pub fn training(&self) -> Split {
        self.training.clone()
    }

    /// The test images.
    #[must_use]
    pub fn test(&self) -> Split {
        self.test.clone()
    }

    /// The classes by label.
    #[must_use]
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// For files that are not those of the data set: which, and what to do about it.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// What a person should know of how the images were found.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The number of pictures that cannot be read, and were skipped.
    #[must_use]
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// The seed that chose the test images, where they were held out from the training images.
    #[must_use]
    pub fn test_split_seed(&self) -> Option<u64> {
        self.test_split_seed
    }

    /// SHA-256, in hexadecimal, of the concatenated training labels, training pixels, test labels and test pixels. A label
    /// is a byte, or two bytes, little-endian, where there are more than 256 classes.
    ///
    /// # Errors
    /// When the tensors have other types.
    pub fn digest(&self) -> TensorResult<String> {
        let mut hasher = Sha256::new();
        for split in [&self.training, &self.test] {
            split.with_slices(|labels, pixels| {
                let bytes = if self.class_names.len() <= 256 { 1 } else { 2 };
                let labels = labels.iter().map(|label| label.to_le_bytes());
                let labels = labels.flat_map(|label| label.into_iter().take(bytes));
                hasher.update(labels.collect::<Vec<_>>());
                hasher.update(pixels);
            })?;
        }
        Ok(hexadecimal(&hasher.finalize()))
    }
}

/// Images and their labels, as a view of a data set.
#[derive(Clone, Debug)]
pub struct Split {
    images: Tensor,
    labels: Tensor,
    classes: usize,
}

impl Split {
    fn new(Records { labels, pixels }: Records, classes: usize) -> TensorResult<Self> {
        let count = labels.len();
        Ok(Self {
            classes,
            images: Tensor::from_vec(pixels, (count, 3, 32, 32), &Device::Cpu)?,
            labels: Tensor::from_vec(labels, count, &Device::Cpu)?,
        })
    }

    /// The number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.elem_count()
    }

    /// The number of classes that have an image.
    ///
    /// # Errors
    /// When the tensors are not contiguous on the CPU.
    pub fn classes(&self) -> TensorResult<usize> {
        self.with_slices(|labels, _| labels.iter().collect::<BTreeSet<_>>().len())
    }

    /// Whether there are no images.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The images `[count, 3, 32, 32]` as `u8`, on the CPU.
    #[must_use]
    pub fn images(&self) -> &Tensor {
        &self.images
    }

    /// The first `count` images, without a copy.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn first(&self, count: usize) -> TensorResult<Self> {
        Ok(Self {
            classes: self.classes,
            images: self.images.narrow(0, 0, count)?,
            labels: self.labels.narrow(0, 0, count)?,
        })
    }

    /// Splits into the images to train on and a validation set of `count` images, in this order. The seed decides
    /// which images are held out. Each class has the same number of them; if `count` is not a multiple of the
    /// number of classes, the first classes have one more. Both parts keep the order of the images.
    ///
    /// # Errors
    /// When no image of a class would be left to train on.
    pub fn hold_out(&self, count: usize, seed: u64) -> TensorResult<(Self, Self)> {
        let labels = self.labels.to_vec1::<u32>()?;
        let mut held_out = vec![false; labels.len()];
        for class in 0..self.classes {
            let mut members: Vec<usize> = (0..labels.len())
                .filter(|index| labels[*index] as usize == class)
                .collect();
            let wanted = count / self.classes + usize::from(class < count % self.classes);
            if wanted >= members.len().max(1) {
                bail!(
                    "cannot hold out {wanted} of the {} images of class {class}: at least one must be left to train on",
                    members.len()
                );
            }
            // A Fisher-Yates shuffle of the first `wanted` members.
            let stream = Stream::new(seed, Purpose::Validation, class as u32);
            for index in 0..wanted {
                let rest = (members.len() - index) as u64;
                members.swap(index, index + stream.below(index as u64, rest) as usize);
                held_out[members[index]] = true;
            }
        }
        let part = |is_held_out: bool| {
            let indices: Vec<u32> = (0..)
                .zip(&held_out)
                .filter(|(_, held_out)| **held_out == is_held_out)
                .map(|(index, _)| index)
                .collect();
            let indices = Tensor::new(indices, &Device::Cpu)?;
            TensorResult::Ok(Self {
                classes: self.classes,
                images: self.images.index_select(&indices, 0)?,
                labels: self.labels.index_select(&indices, 0)?,
            })
        };
        Ok((part(false)?, part(true)?))
    }

    /// The mean and the standard deviation of each channel, of all pixels of all images. Sums are integers, so that the order
    /// of the images does not matter.
    ///
    /// # Errors
    /// As for [`Split::with_slices`].
    pub fn channels(&self) -> TensorResult<Channels> {
        let images = self.len();
        let mut sums = [[0_u64; 2]; 3];
        self.with_slices(|_, pixels| {
            for (index, plane) in pixels.chunks_exact(IMAGE_BYTES / 3).enumerate() {
                let [sum, squares] = &mut sums[index % 3];
                for value in plane.iter().map(|value| u64::from(*value)) {
                    *sum += value;
                    *squares += value * value;
                }
            }
        })?;
        let count = (images * IMAGE_BYTES / 3) as u128;
        let scale = 255.0 * count as f64;
        // Exact up to here: count^2 times the variance.
        let variance = |[sum, squares]: [u64; 2]| {
            count * u128::from(squares) - u128::from(sum) * u128::from(sum)
        };
        Ok(Channels {
            mean: sums.map(|[sum, _]| sum as f64 / scale),
            std: sums.map(|sums| (variance(sums) as f64).sqrt() / scale),
        })
    }

    /// Calls `read` with the labels and the pixels, without copying them.
    ///
    /// # Errors
    /// When the tensors are not contiguous on the CPU.
    pub fn with_slices<R>(&self, read: impl FnOnce(&[u32], &[u8]) -> R) -> TensorResult<R> {
        let (labels, labels_layout) = self.labels.storage_and_layout();
        let (images, images_layout) = self.images.storage_and_layout();
        let Some(((first, end), (first_byte, end_byte))) = labels_layout
            .contiguous_offsets()
            .zip(images_layout.contiguous_offsets())
        else {
            bail!("a data set's tensors are contiguous");
        };
        match (&*labels, &*images) {
            (Storage::Cpu(CpuStorage::U32(labels)), Storage::Cpu(CpuStorage::U8(pixels))) => {
                Ok(read(&labels[first..end], &pixels[first_byte..end_byte]))
            }
            _ => bail!("a data set's labels are u32 and its pixels u8, on the CPU"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(split: &Split) -> Vec<(u32, Vec<u8>)> {
        split
            .with_slices(|labels, pixels| {
                let images = pixels.chunks_exact(IMAGE_BYTES).map(<[u8]>::to_vec);
                labels.iter().copied().zip(images).collect()
            })
            .unwrap()
    }

    #[test]
    fn held_out_images_are_balanced_and_not_trained_on() {
        let all = Dataset::synthetic(500, 1).unwrap().training();
        let (rest, held_out) = all.hold_out(43, 7).unwrap();
        assert_eq!((rest.len(), held_out.len()), (457, 43));
        let mut counts = [0; 10];
        for (label, _) in images(&held_out) {
            counts[label as usize] += 1;
        }
        assert_eq!(counts, [5, 5, 5, 4, 4, 4, 4, 4, 4, 4]);
        let mut both = [images(&rest), images(&held_out)].concat();
        let mut expected = images(&all);
        both.sort();
        expected.sort();
        assert_eq!(both, expected);
        let again = all.hold_out(43, 7).unwrap().1;
        assert_eq!(images(&again), images(&held_out));
        let other = all.hold_out(43, 8).unwrap().1;
        assert_ne!(images(&other), images(&held_out));
        assert!(all.hold_out(500, 7).is_err());
    }

    #[test]
    fn mean_and_deviation_do_not_depend_on_the_order() {
        let all = Dataset::synthetic(300, 1).unwrap().training();
        let channels = all.channels().unwrap();
        let pixels = images(&all);
        for (channel, (mean, std)) in channels.mean.into_iter().zip(channels.std).enumerate() {
            let plane = |(_, image): &(u32, Vec<u8>)| image[channel * 1024..][..1024].to_vec();
            let values: Vec<f64> = pixels
                .iter()
                .flat_map(plane)
                .map(|value| f64::from(value) / 255.0)
                .collect();
            let count = values.len() as f64;
            let expected = values.iter().sum::<f64>() / count;
            let squares = values.iter().map(|value| (value - expected).powi(2));
            assert!((mean - expected).abs() < 1e-9, "{mean} {expected}");
            let expected = (squares.sum::<f64>() / count).sqrt();
            assert!((std - expected).abs() < 1e-9, "{std} {expected}");
        }
        let indices: Vec<u32> = (0..300).rev().collect();
        let indices = Tensor::new(indices, &Device::Cpu).unwrap();
        let reversed = Split {
            images: all.images.index_select(&indices, 0).unwrap(),
            ..all.clone()
        };
        assert_eq!(reversed.channels().unwrap(), channels);
    }
}
