//! Batches in a seeded order, prefetched by a thread of their own.

use crate::augmentation::{Augmentation, Normalisation, Transform};
use crate::dataset::Split;
use candle_core::{Device, Result, Tensor};
use rng::{Purpose, Stream};
use run::predictions::IMAGE_BYTES;
use std::cell::LazyCell;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use tracing::debug_span;

/// Batches that are prefetched.
const AHEAD: usize = 2;

/// One image of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its index in the set.
    pub index: u32,
    /// Its transform.
    pub transform: Transform,
}

/// Augmented images and their labels.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `f32` `[batch, 32, 32, 3]`, normalised.
    pub images: Tensor,
    /// `u32` `[batch]`: the indices of the classes.
    pub labels: Tensor,
}

/// Splits a data set into batches. The last batch is smaller where the batch size does not divide the set.
#[derive(Clone, Debug)]
pub struct DataLoader {
    split: Split,
    batch_size: NonZeroUsize,
    normalisation: Normalisation,
    shuffled: bool,
}

/// One picture, `[3, 32, 32]` bytes, as a batch of one: `f32` `[1, 32, 32, 3]`, normalised.
///
/// # Errors
/// When the picture has another size.
pub fn picture(bytes: &[u8], normalisation: &Normalisation) -> Result<Tensor> {
    let mut image = vec![0.0; IMAGE_BYTES];
    if bytes.len() != IMAGE_BYTES {
        candle_core::bail!("a picture has {IMAGE_BYTES} bytes, not {}", bytes.len());
    }
    normalisation.write(bytes, Transform::IDENTITY, &mut image);
    Tensor::from_vec(image, (1, 32, 32, 3), &Device::Cpu)
}

impl DataLoader {
    /// Batches of `batch_size` images of `split`.
    #[must_use]
    pub fn new(split: Split, batch_size: NonZeroUsize, normalisation: Normalisation) -> Self {
        Self {
            split,
            batch_size,
            normalisation,
            shuffled: true,
        }
    }

    /// Changes the number of images of a batch.
    pub fn set_batch_size(&mut self, batch_size: NonZeroUsize) {
        self.batch_size = batch_size;
    }

    /// Images of a batch; the last one may have fewer.
    #[must_use]
    pub fn batch_size(&self) -> NonZeroUsize {
        self.batch_size
    }

    /// Without shuffling: every epoch has the same batches, in the order of the set.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.shuffled = false;
        self
    }

    /// The images.
    #[must_use]
    pub fn split(&self) -> &Split {
        &self.split
    }

    /// The normalisation of the images.
    #[must_use]
    pub fn normalisation(&self) -> &Normalisation {
        &self.normalisation
    }

    /// Images of a pass.
    #[must_use]
    pub fn images(&self) -> usize {
        self.split.len()
    }

    /// Batches of a pass.
    #[must_use]
    pub fn batches(&self) -> usize {
        self.images().div_ceil(self.batch_size.get())
    }

    /// The batches of one epoch from index `first` on, shuffled and augmented: a function of the arguments, however
    /// often the epoch is interrupted. Within a batch, images keep the order of the set.
    pub fn training(
        &self,
        seed: u64,
        epoch: u32,
        augmentation: Augmentation,
        first: usize,
    ) -> impl Iterator<Item = Vec<Sample>> + Send + use<> {
        let (shuffled, images) = (self.shuffled, self.images());
        let order = move || {
            if shuffled {
                shuffle(images, seed, epoch)
            } else {
                (0..images as u32).collect()
            }
        };
        self.plan(order, first, move |index| {
            augmentation.transform(seed, epoch, index.into())
        })
    }

    /// All images in the set's order, with this transform.
    pub fn evaluation(
        &self,
        transform: Transform,
    ) -> impl Iterator<Item = Vec<Sample>> + Send + use<> {
        let images = self.images() as u32;
        self.plan(move || (0..images).collect(), 0, move |_| transform)
    }

    fn plan<O: FnOnce() -> Vec<u32> + Send, T: Fn(u32) -> Transform + Send>(
        &self,
        order: O,
        first: usize,
        transform: T,
    ) -> impl Iterator<Item = Vec<Sample>> + Send + use<O, T> {
        let size = self.batch_size.get();
        // Shuffled by the thread that loads the batches.
        let order = LazyCell::new(order);
        (first..self.batches()).map(move |batch| {
            let end = ((batch + 1) * size).min(order.len());
            let mut indices = order[batch * size..end].to_vec();
            indices.sort_unstable();
            let sample = |index| Sample {
                index,
                transform: transform(index),
            };
            indices.into_iter().map(sample).collect()
        })
    }

    /// The batches of a plan, [`DataLoader::training`] or [`DataLoader::evaluation`]. A thread prefetches them.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn load(
        &self,
        plan: impl Iterator<Item = Vec<Sample>> + Send + 'static,
    ) -> Result<Batches> {
        let (sender, receiver) = sync_channel(AHEAD);
        let loader = self.clone();
        let thread = thread::Builder::new().name("batches".to_owned());
        let thread = thread.spawn(move || {
            for samples in plan {
                let batch = debug_span!("batch").in_scope(|| loader.batch(&samples));
                // The receiver is gone where the epoch was interrupted.
                if sender.send(batch).is_err() {
                    break;
                }
            }
        })?;
        Ok(Batches(Some((receiver, thread))))
    }

    fn batch(&self, samples: &[Sample]) -> Result<Batch> {
        let mut images = vec![0.0; samples.len() * IMAGE_BYTES];
        let labels = self.split.with_slices(|labels, pixels| {
            for (out, sample) in images.chunks_exact_mut(IMAGE_BYTES).zip(samples) {
                let image = &pixels[sample.index as usize * IMAGE_BYTES..][..IMAGE_BYTES];
                self.normalisation.write(image, sample.transform, out);
            }
            let labels = samples.iter().map(|sample| labels[sample.index as usize]);
            labels.collect::<Vec<_>>()
        })?;
        let count = samples.len();
        Ok(Batch {
            images: Tensor::from_vec(images, (count, 32, 32, 3), &Device::Cpu)?,
            labels: Tensor::from_vec(labels, count, &Device::Cpu)?,
        })
    }
}

/// The images in the order in which an epoch's batches take them: a Fisher-Yates shuffle.
fn shuffle(count: usize, seed: u64, epoch: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    let stream = Stream::new(seed, Purpose::Order, epoch);
    for last in (1..count).rev() {
        let other = stream.below(last as u64, last as u64 + 1);
        order.swap(last, other as usize);
    }
    order
}

/// The batches of one pass. Dropping it ends the thread that makes them.
pub struct Batches(Option<(Receiver<Result<Batch>>, JoinHandle<()>)>);

impl Batches {
    /// Ends the thread. Returns whether it panicked.
    fn end(&mut self) -> bool {
        self.0.take().is_some_and(|(receiver, thread)| {
            // So that a thread that waits for space in the channel ends.
            drop(receiver);
            thread.join().is_err()
        })
    }
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let (receiver, _) = self.0.as_ref()?;
        if let Ok(batch) = receiver.recv() {
            return Some(batch);
        }
        // A thread that panicked must not look like the end of the epoch.
        let message = "the thread that makes the batches failed";
        self.end()
            .then(|| Err(candle_core::Error::Msg(message.to_owned())))
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        // A failure has been reported by `next`, or nobody waits for the batches any more.
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dataset;

    const ONE: fn() -> Normalisation = || Normalisation::new([0.0; 3], [1.0; 3]);

    fn loader(images: usize, batch: usize) -> DataLoader {
        let set = Dataset::synthetic(images, 1).unwrap();
        DataLoader::new(set.training(), NonZeroUsize::new(batch).unwrap(), ONE())
    }

    fn bits(
        loader: &DataLoader,
        plan: impl Iterator<Item = Vec<Sample>> + Send + 'static,
    ) -> Vec<Vec<u32>> {
        let batches = loader.load(plan).unwrap();
        batches
            .map(|batch| {
                let batch = batch.unwrap();
                let images = batch
                    .images
                    .flatten_all()
                    .unwrap()
                    .to_vec1::<f32>()
                    .unwrap();
                let mut bits: Vec<u32> = images.into_iter().map(f32::to_bits).collect();
                bits.extend(batch.labels.to_vec1::<u32>().unwrap());
                bits
            })
            .collect()
    }

    #[test]
    fn an_epoch_resumes_where_it_was() {
        let loader = loader(23, 5);
        let all = bits(&loader, loader.training(1, 2, Augmentation::STANDARD, 0));
        assert_eq!(all.len(), 5);
        assert_eq!(loader.batches(), 5);
        assert_eq!(all[4].len(), 3 * (IMAGE_BYTES + 1));
        for first in 0..=5 {
            let rest = bits(
                &loader,
                loader.training(1, 2, Augmentation::STANDARD, first),
            );
            assert_eq!(rest, all[first..]);
        }
        assert_ne!(
            all,
            bits(&loader, loader.training(1, 3, Augmentation::STANDARD, 0))
        );
        assert_ne!(
            all,
            bits(&loader, loader.training(2, 2, Augmentation::STANDARD, 0))
        );
    }

    #[test]
    fn every_image_comes_once_an_epoch() {
        let order = |epoch| shuffle(1000, 9, epoch);
        let mut sorted = order(0);
        assert_ne!(sorted, order(1));
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..1000));
    }

    #[test]
    fn orders_are_uniform() {
        let mut counts = [0_u32; 6];
        for epoch in 0..6_000 {
            let order = shuffle(3, 0, epoch);
            counts[(order[0] * 2 + u32::from(order[1] > order[2])) as usize] += 1;
        }
        // Mean 1,000, standard deviation 29.
        assert!(
            counts.iter().all(|count| (850..=1150).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_batch_of_the_whole_set_is_the_set() {
        let loader = loader(17, 17);
        let training = bits(&loader, loader.training(5, 0, Augmentation::None, 0));
        assert_eq!(
            training,
            bits(&loader, loader.evaluation(Transform::IDENTITY))
        );
    }

    #[test]
    fn in_order_every_epoch_has_the_same_batches() {
        let ordered = loader(17, 5).in_order();
        let whole = bits(&ordered, ordered.evaluation(Transform::IDENTITY));
        for epoch in 0..2 {
            let training = ordered.training(5, epoch, Augmentation::None, 0);
            assert_eq!(bits(&ordered, training), whole);
        }
        assert_ne!(whole, bits(&ordered, ordered.evaluation(Transform::FLIP)));
    }

    #[test]
    fn dropping_an_epoch_half_way_ends_its_thread() {
        let loader = loader(50, 1);
        let plan = loader.training(0, 0, Augmentation::STANDARD, 0);
        let mut batches = loader.load(plan).unwrap();
        assert!(batches.next().is_some());
        drop(batches);
    }
}
