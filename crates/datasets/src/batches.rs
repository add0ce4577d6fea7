//! Batches in a seeded order, prefetched by a thread of their own.

use crate::augmentation::{Augmentation, Normalisation, View};
use crate::dataset::Split;
use crate::records::IMAGE_BYTES;
use candle_core::{Device, Result, Tensor};
use rng::{Purpose, Stream};
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use tracing::debug_span;

/// Batches that are prefetched.
const AHEAD: usize = 2;

/// One image of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its index in the set.
    pub index: u32,
    /// Its transform.
    pub view: View,
}

/// Augmented images and their labels.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `f32` `[batch, 32, 32, 3]`, normalised.
    pub images: Tensor,
    /// `u32` `[batch]`, 0 to 9.
    pub labels: Tensor,
}

/// Splits a data set into batches. The last batch is smaller where the batch size does not divide the set.
#[derive(Clone, Debug)]
pub struct Loader {
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
    normalisation.write(bytes, View::WHOLE, &mut image);
    Tensor::from_vec(image, (1, 32, 32, 3), &Device::Cpu)
}

/// How one pass goes over the images.
#[derive(Clone, Copy, Debug)]
enum Pass {
    Training {
        seed: u64,
        epoch: u32,
        augmentation: Augmentation,
        shuffled: bool,
    },
    Evaluation {
        view: View,
    },
}

impl Loader {
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
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn training(
        &self,
        seed: u64,
        epoch: u32,
        augmentation: Augmentation,
        first: usize,
    ) -> Result<Batches> {
        self.start(self.pass(seed, epoch, augmentation), first)
    }

    /// All images in the set's order, with this transform.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn evaluation(&self, view: View) -> Result<Batches> {
        self.start(Pass::Evaluation { view }, 0)
    }

    fn pass(&self, seed: u64, epoch: u32, augmentation: Augmentation) -> Pass {
        Pass::Training {
            seed,
            epoch,
            augmentation,
            shuffled: self.shuffled,
        }
    }

    fn start(&self, pass: Pass, first: usize) -> Result<Batches> {
        let (sender, receiver) = sync_channel(AHEAD);
        let loader = self.clone();
        let thread = thread::Builder::new()
            .name("batches".to_owned())
            .spawn(move || {
                for seen in loader.plan(pass, first) {
                    let batch = debug_span!("batch").in_scope(|| loader.batch(&seen));
                    // The receiver is gone where the epoch was interrupted.
                    if sender.send(batch).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Batches {
            receiver: Some(receiver),
            thread: Some(thread),
        })
    }

    /// The batches of [`Loader::training`] as indices and transforms, for a backend that has the images in its own
    /// memory.
    pub fn training_plan(
        &self,
        seed: u64,
        epoch: u32,
        augmentation: Augmentation,
        first: usize,
    ) -> impl Iterator<Item = Vec<Seen>> + use<> {
        self.plan(self.pass(seed, epoch, augmentation), first)
    }

    /// The same for [`Loader::evaluation`].
    pub fn evaluation_plan(&self, view: View) -> impl Iterator<Item = Vec<Seen>> + use<> {
        self.plan(Pass::Evaluation { view }, 0)
    }

    fn plan(&self, pass: Pass, first: usize) -> impl Iterator<Item = Vec<Seen>> + use<> {
        let order = pass.order(self.images());
        let size = self.batch_size.get();
        (first..self.batches()).map(move |batch| {
            let end = ((batch + 1) * size).min(order.len());
            let mut indices = order[batch * size..end].to_vec();
            indices.sort_unstable();
            let seen = indices.into_iter().map(|index| Seen {
                index,
                view: pass.view(index),
            });
            seen.collect()
        })
    }

    fn batch(&self, seen: &[Seen]) -> Result<Batch> {
        let mut images = vec![0.0; seen.len() * IMAGE_BYTES];
        let labels = self.split.with_bytes(|labels, pixels| {
            for (out, Seen { index, view }) in images.chunks_exact_mut(IMAGE_BYTES).zip(seen) {
                let image = &pixels[*index as usize * IMAGE_BYTES..][..IMAGE_BYTES];
                self.normalisation.write(image, *view, out);
            }
            let labels = seen.iter().map(|seen| labels[seen.index as usize]);
            labels.map(u32::from).collect::<Vec<_>>()
        })?;
        let count = seen.len();
        Ok(Batch {
            images: Tensor::from_vec(images, (count, 32, 32, 3), &Device::Cpu)?,
            labels: Tensor::from_vec(labels, count, &Device::Cpu)?,
        })
    }
}

impl Pass {
    /// The images in the order in which they are cut into batches.
    fn order(self, count: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        if let Self::Training {
            seed,
            epoch,
            shuffled: true,
            ..
        } = self
        {
            // Fisher and Yates, with the number of the swap as the index.
            let stream = Stream::new(seed, Purpose::Order, epoch);
            for last in (1..count).rev() {
                let other = stream.below(last as u64, last as u64 + 1);
                order.swap(last, other as usize);
            }
        }
        order
    }

    fn view(self, index: u32) -> View {
        match self {
            Self::Training {
                seed,
                epoch,
                augmentation,
                ..
            } => augmentation.view(seed, epoch, u64::from(index)),
            Self::Evaluation { view } => view,
        }
    }
}

/// The batches of one pass. Dropping it ends the thread that makes them.
pub struct Batches {
    receiver: Option<Receiver<Result<Batch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.receiver.as_ref()?.recv() {
            Ok(batch) => Some(batch),
            Err(_) => {
                self.receiver = None;
                // A thread that panicked must not look like the end of the epoch.
                let ended = self.thread.take().map_or(Ok(()), JoinHandle::join);
                ended.err().map(|_| {
                    Err(candle_core::Error::Msg(
                        "the thread that makes the batches failed".to_owned(),
                    ))
                })
            }
        }
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.receiver = None;
        if let Some(thread) = self.thread.take() {
            // A failure has been reported by `next`, or nobody waits for the batches any more.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dataset;

    const ONE: fn() -> Normalisation = || Normalisation::new([0.0; 3], [1.0; 3]);

    fn loader(images: usize, batch: usize) -> Loader {
        let set = Dataset::synthetic(images, 1).unwrap();
        Loader::new(set.training(), NonZeroUsize::new(batch).unwrap(), ONE())
    }

    fn bits(batches: Batches) -> Vec<Vec<u32>> {
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
        let all = bits(loader.training(1, 2, Augmentation::STANDARD, 0).unwrap());
        assert_eq!(all.len(), 5);
        assert_eq!(loader.batches(), 5);
        assert_eq!(all[4].len(), 3 * (IMAGE_BYTES + 1));
        for first in 0..=5 {
            let rest = bits(
                loader
                    .training(1, 2, Augmentation::STANDARD, first)
                    .unwrap(),
            );
            assert_eq!(rest, all[first..]);
        }
        assert_ne!(
            all,
            bits(loader.training(1, 3, Augmentation::STANDARD, 0).unwrap())
        );
        assert_ne!(
            all,
            bits(loader.training(2, 2, Augmentation::STANDARD, 0).unwrap())
        );
    }

    #[test]
    fn every_image_comes_once_an_epoch() {
        let order = |epoch| {
            Pass::Training {
                seed: 9,
                epoch,
                augmentation: Augmentation::None,
                shuffled: true,
            }
            .order(1000)
        };
        let mut sorted = order(0);
        assert_ne!(sorted, order(1));
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..1000));
    }

    #[test]
    fn orders_are_uniform() {
        let mut counts = [0_u32; 6];
        for epoch in 0..6_000 {
            let order = Pass::Training {
                seed: 0,
                epoch,
                augmentation: Augmentation::None,
                shuffled: true,
            }
            .order(3);
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
        let training = bits(loader.training(5, 0, Augmentation::None, 0).unwrap());
        assert_eq!(training, bits(loader.evaluation(View::WHOLE).unwrap()));
    }

    #[test]
    fn in_order_every_epoch_has_the_same_batches() {
        let ordered = loader(17, 5).in_order();
        let whole = bits(ordered.evaluation(View::WHOLE).unwrap());
        for epoch in 0..2 {
            let training = ordered.training(5, epoch, Augmentation::None, 0).unwrap();
            assert_eq!(bits(training), whole);
        }
        assert_ne!(whole, bits(ordered.evaluation(View::FLIPPED).unwrap()));
    }

    #[test]
    fn dropping_an_epoch_half_way_ends_its_thread() {
        let mut batches = loader(50, 1)
            .training(0, 0, Augmentation::STANDARD, 0)
            .unwrap();
        assert!(batches.next().is_some());
        drop(batches);
    }
}
