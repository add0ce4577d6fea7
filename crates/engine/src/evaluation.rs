//! How well a network does on a set of images.

use crate::feed::Feed;
use candle_core::{DType, Device, Result};
use cifar::{Normalisation, Split};
use models::{CLASSES, Network};
use ops::{Arithmetic, Precision, Tally, Tape};
use std::num::NonZeroUsize;

/// Images a batch. Always the same, so that a result does not depend on the recipe's batch size.
const BATCH: NonZeroUsize = NonZeroUsize::MIN.saturating_add(249);

/// The same on a GPU, which has more to do at once.
const GPU_BATCH: NonZeroUsize = NonZeroUsize::MIN.saturating_add(999);

/// A network's result on a set of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy over the images.
    pub loss: f64,
    /// Share of the images that were classified rightly, 0 to 1.
    pub accuracy: f64,
    /// How many images of class `row` were taken for class `column`.
    pub confusion: [[u64; CLASSES]; CLASSES],
    /// The network's output for every image, in the set's order.
    pub logits: Vec<[f32; CLASSES]>,
}

impl Evaluation {
    /// The share of each class's images that were classified rightly, 0 to 1; `None` for a class
    /// without images.
    #[must_use]
    pub fn class_accuracies(&self) -> [Option<f64>; CLASSES] {
        std::array::from_fn(|class| {
            let row = &self.confusion[class];
            let images: u64 = row.iter().sum();
            (images > 0).then(|| row[class] as f64 / images as f64)
        })
    }
}

/// Images of a set that are to be evaluated, on `device`.
///
/// # Errors
/// When the device has no memory for them.
pub fn evaluation_feed(
    images: Split,
    normalisation: Normalisation,
    device: &Device,
    precision: Precision,
) -> Result<Feed> {
    let batch = if device.is_cuda() { GPU_BATCH } else { BATCH };
    Feed::new(images, batch, normalisation, device, precision)
}

/// Evaluates `network` on the images of `feed`, without dropout and augmentation. `None` where `stop` turned
/// true meanwhile; it is asked before every batch.
///
/// # Errors
/// When a tensor operation fails.
pub fn evaluate(
    network: &Network,
    arithmetic: Arithmetic,
    feed: &Feed,
    device: &Device,
    stop: impl Fn() -> bool,
) -> Result<Option<Evaluation>> {
    let mut tally = Tally::new(CLASSES, device)?;
    let mut outputs = Vec::new();
    for (number, batch) in (0..).zip(feed.evaluation()?) {
        if stop() {
            return Ok(None);
        }
        let batch = batch?;
        let mut tape = Tape::forgetting(arithmetic);
        let mut logits = network.forward(&mut tape, &batch.images, None)?;
        outputs.push(logits.clone());
        if device.is_cpu() {
            logits = logits.to_dtype(DType::F64)?;
        }
        tally.add(&logits, &batch.labels, number)?;
    }
    let totals = tally.take()?;
    // After the tally, for which a GPU was waited for already.
    let mut logits = Vec::with_capacity(feed.images());
    for output in outputs {
        let output = output.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let numbers = output.flatten_all()?.to_vec1()?;
        logits.extend(numbers.as_chunks::<CLASSES>().0);
    }
    let images = feed.images() as f64;
    let loss = match totals.diverged {
        Some(_) => f64::NAN,
        None => totals.loss / images,
    };
    let count = |row, column| totals.confusion[row * CLASSES + column];
    Ok(Some(Evaluation {
        loss,
        accuracy: totals.right() as f64 / images,
        confusion: std::array::from_fn(|row| std::array::from_fn(|column| count(row, column))),
        logits,
    }))
}
