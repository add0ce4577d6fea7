//! How well a network does on a set of images.

use crate::feed::Feed;
use candle_core::{DType, Device, Result, Tensor};
use datasets::{Normalisation, Split, View};
use models::{CLASSES, Network};
use ops::{Arithmetic, Precision, Tally, Tape};
use std::num::NonZeroUsize;

/// Images a batch. Always the same, so that a result does not depend on the recipe's batch size.
const BATCH: NonZeroUsize = NonZeroUsize::MIN.saturating_add(249);

/// The same on a GPU, which has more to do at once.
const GPU_BATCH: NonZeroUsize = NonZeroUsize::MIN.saturating_add(999);

/// How a network looks at the images that it is evaluated on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Views<'a> {
    /// As they are.
    Whole,
    /// Mirrored, with the mean of these outputs and those of this evaluation, made of them as they are, as the output:
    /// test-time augmentation.
    MirroredWith(&'a Evaluation),
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
    views: Views<'_>,
    stop: impl Fn() -> bool,
) -> Result<Option<Evaluation>> {
    let view = match views {
        Views::Whole => View::WHOLE,
        Views::MirroredWith(_) => View::MIRRORED,
    };
    let mut outputs = Vec::new();
    for batch in feed.evaluation(view)? {
        if stop() {
            return Ok(None);
        }
        let batch = batch?;
        let mut tape = Tape::no_grad(arithmetic);
        let logits = network.forward(&mut tape, &batch.images, None)?;
        outputs.push([logits, batch.labels]);
    }
    let mut place = device;
    if let Views::MirroredWith(whole) = views {
        place = &Device::Cpu;
        let mut rest = whole.logits.as_slice();
        for [logits, labels] in &mut outputs {
            let images = logits.dim(0)?;
            let Some((these, others)) = rest.split_at_checked(images) else {
                candle_core::bail!("the evaluation beside the mirrored views is of fewer images");
            };
            let these = Tensor::from_slice(these.as_flattened(), (images, CLASSES), place)?;
            *logits = ((these + on_host(logits)?)? * 0.5)?;
            *labels = labels.to_device(place)?;
            rest = others;
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
