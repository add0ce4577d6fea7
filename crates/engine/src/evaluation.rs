//! How well a network does on a set of images.

use crate::feed::Feed;
use candle_core::{DType, Device, Result, Tensor};
use cifar::{Normalisation, Split, View};
use models::{CLASSES, Network};
use ops::{Arithmetic, Precision, Tally, Tape};
use std::num::NonZeroUsize;

/// Images a batch. Always the same, so that a result does not depend on the recipe's batch size.
const BATCH: NonZeroUsize = NonZeroUsize::MIN.saturating_add(249);

/// The same on a GPU, which has more to do at once.
const GPU_BATCH: NonZeroUsize = NonZeroUsize::MIN.saturating_add(999);

/// How a network looks at the images that it is evaluated on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Views {
    /// As they are.
    Whole,
    /// As they are and mirrored, with the mean of both outputs as the output: test-time augmentation.
    WithMirrored,
}

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

/// Evaluates `network` on the images of `feed`, without dropout. `None` where `stop` turned true meanwhile; it is
/// asked before every batch.
///
/// # Errors
/// When a tensor operation fails.
pub fn evaluate(
    network: &Network,
    arithmetic: Arithmetic,
    feed: &Feed,
    device: &Device,
    views: Views,
    stop: impl Fn() -> bool,
) -> Result<Option<Evaluation>> {
    let pass = |view| -> Result<Option<Vec<[Tensor; 2]>>> {
        let mut outputs = Vec::new();
        for batch in feed.evaluation(view)? {
            if stop() {
                return Ok(None);
            }
            let batch = batch?;
            let mut tape = Tape::forgetting(arithmetic);
            let logits = network.forward(&mut tape, &batch.images, None)?;
            outputs.push([logits, batch.labels]);
        }
        Ok(Some(outputs))
    };
    let Some(mut outputs) = pass(View::WHOLE)? else {
        return Ok(None);
    };
    let mut place = device;
    if views == Views::WithMirrored {
        let Some(mirrored) = pass(View::MIRRORED)? else {
            return Ok(None);
        };
        place = &Device::Cpu;
        for ([logits, labels], [other, _]) in outputs.iter_mut().zip(mirrored) {
            let other = on_host(&other)?;
            *logits = ((on_host(logits)? + other)? * 0.5)?;
            *labels = labels.to_device(place)?;
        }
    }
    let mut tally = Tally::new(CLASSES, place)?;
    for (number, [logits, labels]) in (0..).zip(&outputs) {
        if place.is_cpu() {
            tally.add(&logits.to_dtype(DType::F64)?, labels, number)?;
        } else {
            tally.add(logits, labels, number)?;
        }
    }
    let totals = tally.take()?;
    // After the tally, for which a GPU was waited for already.
    let mut logits = Vec::with_capacity(feed.images());
    for [output, _] in outputs {
        let numbers = on_host(&output)?.flatten_all()?.to_vec1()?;
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

/// Logits in the host's memory, as `f32`.
fn on_host(logits: &Tensor) -> Result<Tensor> {
    logits.to_device(&Device::Cpu)?.to_dtype(DType::F32)
}
