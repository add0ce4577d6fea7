//! A data set in memory: one `u8` copy of all images and labels.

use crate::layout::{self, CLASS_NAMES, Error, IMAGE_BYTES, TEST_FILE, TRAINING_FILES};
use crate::synthetic;
use candle_core::{Device, Result as TensorResult, Tensor};
use candle_datasets::vision;
use rng::{Purpose, Stream};
use sha2::{Digest, Sha256};
use std::path::Path;

/// A training and a test set of 32x32 colour images, as `u8` tensors.
pub struct Dataset {
    tensors: vision::Dataset,
    class_names: [&'static str; 10],
}

impl Dataset {
    /// Reads CIFAR-10 from `data_dir/cifar-10-batches-bin`: 50,000 training and 10,000 test images.
    ///
    /// # Errors
    /// When the folder or a file is missing, of the wrong size, or holds a label above 9.
    pub fn cifar10(data_dir: &Path) -> Result<Self, Error> {
        let folder = layout::folder(data_dir)?;
        let (mut labels, mut pixels) = (Vec::new(), Vec::new());
        pixels.reserve_exact(TRAINING_FILES.len() * layout::RECORDS * IMAGE_BYTES);
        for name in TRAINING_FILES {
            let mut records = layout::read_file(&folder.join(name))?;
            labels.append(&mut records.labels);
            pixels.append(&mut records.pixels);
        }
        let test = layout::read_file(&folder.join(TEST_FILE))?;
        let (train_images, train_labels) = tensors(pixels, labels)?;
        let (test_images, test_labels) = tensors(test.pixels, test.labels)?;
        Ok(Self {
            tensors: vision::Dataset {
                train_images,
                train_labels,
                test_images,
                test_labels,
                labels: CLASS_NAMES.len(),
            },
            class_names: CLASS_NAMES,
        })
    }

    /// Draws the synthetic set with `train` training and `test` test images. The images do not
    /// depend on how many there are.
    ///
    /// # Errors
    /// When the tensors cannot be made.
    pub fn synthetic(train: usize, test: usize) -> Result<Self, Error> {
        let (pixels, labels) = synthetic::synthetic(synthetic::Part::Training, train);
        let (train_images, train_labels) = tensors(pixels, labels)?;
        let (pixels, labels) = synthetic::synthetic(synthetic::Part::Test, test);
        let (test_images, test_labels) = tensors(pixels, labels)?;
        Ok(Self {
            tensors: vision::Dataset {
                train_images,
                train_labels,
                test_images,
                test_labels,
                labels: synthetic::CLASS_NAMES.len(),
            },
            class_names: synthetic::CLASS_NAMES,
        })
    }

    /// The whole set as candle's datasets are: images `[count, 3, 32, 32]`, labels `[count]`.
    #[must_use]
    pub fn tensors(&self) -> &vision::Dataset {
        &self.tensors
    }

    /// The training images.
    #[must_use]
    pub fn training(&self) -> Split {
        Split {
            images: self.tensors.train_images.clone(),
            labels: self.tensors.train_labels.clone(),
        }
    }

    /// The test images.
    #[must_use]
    pub fn test(&self) -> Split {
        Split {
            images: self.tensors.test_images.clone(),
            labels: self.tensors.test_labels.clone(),
        }
    }

    /// The classes by label.
    #[must_use]
    pub fn class_names(&self) -> [&'static str; 10] {
        self.class_names
    }

    /// SHA-256, in hexadecimal, of the training labels, training pixels, test labels and test
    /// pixels, one after the other.
    ///
    /// # Errors
    /// When the tensors are not `u8`.
    pub fn digest(&self) -> TensorResult<String> {
        let mut hasher = Sha256::new();
        for split in [self.training(), self.test()] {
            split.with_bytes(|labels, pixels| {
                hasher.update(labels);
                hasher.update(pixels);
            })?;
        }
        let digest = hasher.finalize();
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

fn tensors(pixels: Vec<u8>, labels: Vec<u8>) -> TensorResult<(Tensor, Tensor)> {
    let count = labels.len();
    Ok((
        Tensor::from_vec(pixels, (count, 3, 32, 32), &Device::Cpu)?,
        Tensor::from_vec(labels, count, &Device::Cpu)?,
    ))
}

/// Images and their labels: a view of a data set.
#[derive(Clone, Debug)]
pub struct Split {
    images: Tensor,
    labels: Tensor,
}

impl Split {
    /// How many images there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.elem_count()
    }

    /// Whether there are none.
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
            images: self.images.narrow(0, 0, count)?,
            labels: self.labels.narrow(0, 0, count)?,
        })
    }

    /// Two parts: all images but `count`, and these, for choosing settings by. The same seed holds out the same
    /// images, as many of each class as of every other (one more of the first classes where ten does not divide
    /// the count). Both parts keep the set's order.
    ///
    /// # Errors
    /// When a class has too few images for at least one to be left.
    pub fn hold_out(&self, count: usize, seed: u64) -> TensorResult<(Self, Self)> {
        let classes = CLASS_NAMES.len();
        let labels = self.labels.to_vec1::<u8>()?;
        let mut held_out = vec![false; labels.len()];
        for class in 0..classes {
            let mut members: Vec<usize> = (0..labels.len())
                .filter(|index| usize::from(labels[*index]) == class)
                .collect();
            let wanted = count / classes + usize::from(class < count % classes);
            if wanted >= members.len().max(1) {
                candle_core::bail!(
                    "{wanted} of class {class}'s {} images cannot be held out: one at least must be left to train on",
                    members.len()
                );
            }
            // Fisher and Yates, as far as is needed.
            let stream = Stream::new(seed, Purpose::Validation, class as u32);
            for place in 0..wanted {
                let rest = (members.len() - place) as u64;
                members.swap(place, place + stream.below(place as u64, rest) as usize);
                held_out[members[place]] = true;
            }
        }
        let part = |held: bool| {
            let indices: Vec<u32> = (0..)
                .zip(&held_out)
                .filter(|(_, is)| **is == held)
                .map(|(index, _)| index)
                .collect();
            let indices = Tensor::new(indices, &Device::Cpu)?;
            TensorResult::Ok(Self {
                images: self.images.index_select(&indices, 0)?,
                labels: self.labels.index_select(&indices, 0)?,
            })
        };
        Ok((part(false)?, part(true)?))
    }

    /// Runs `read` with the labels and the pixels, without a copy.
    ///
    /// # Errors
    /// When the tensors are not contiguous `u8` on the CPU.
    pub fn with_bytes<R>(&self, read: impl FnOnce(&[u8], &[u8]) -> R) -> TensorResult<R> {
        let (labels, labels_layout) = self.labels.storage_and_layout();
        let (images, images_layout) = self.images.storage_and_layout();
        let bytes =
            |storage, layout: &candle_core::Layout| match (storage, layout.contiguous_offsets()) {
                (
                    &candle_core::Storage::Cpu(candle_core::CpuStorage::U8(ref bytes)),
                    Some((start, end)),
                ) => Ok(&bytes[start..end]),
                _ => candle_core::bail!("a data set's tensors are contiguous u8 on the CPU"),
            };
        Ok(read(
            bytes(&*labels, labels_layout)?,
            bytes(&*images, images_layout)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(split: &Split) -> Vec<(u8, Vec<u8>)> {
        split
            .with_bytes(|labels, pixels| {
                let images = pixels.chunks_exact(IMAGE_BYTES).map(<[u8]>::to_vec);
                labels.iter().copied().zip(images).collect()
            })
            .unwrap()
    }

    #[test]
    fn what_is_held_out_is_balanced_and_no_longer_trained_on() {
        let all = Dataset::synthetic(500, 1).unwrap().training();
        let (rest, held_out) = all.hold_out(43, 7).unwrap();
        assert_eq!((rest.len(), held_out.len()), (457, 43));
        let mut counts = [0; 10];
        for (label, _) in images(&held_out) {
            counts[usize::from(label)] += 1;
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
}
