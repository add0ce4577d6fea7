//! How well a network does on a set of images.

use candle_core::{DType, Device, Result, Tensor};
use cifar::{Loader, Normalisation, Split};
use models::{CLASSES, Network};
use ops::{Convolution, Tape};
use std::num::NonZeroUsize;

/// Images a batch. Always the same, so that a result does not depend on the recipe's batch size.
const BATCH: NonZeroUsize = NonZeroUsize::MIN.saturating_add(249);

/// A network's result on a set of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy over the images.
    pub loss: f64,
    /// Share of the images that were classified rightly, 0 to 1.
    pub accuracy: f64,
    /// How many images of class `row` were taken for class `column`.
    pub confusion: [[u64; CLASSES]; CLASSES],
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

/// Evaluates `network` on `images`, without dropout and augmentation. `None` where `stop` turned
/// true meanwhile; it is asked before every batch.
///
/// # Errors
/// When there are no images, or a tensor operation fails.
pub fn evaluate(
    network: &Network,
    convolution: Convolution,
    images: Split,
    normalisation: Normalisation,
    device: &Device,
    stop: impl Fn() -> bool,
) -> Result<Option<Evaluation>> {
    let loader = Loader::new(images, BATCH, normalisation);
    let mut loss = 0.0;
    let mut confusion = [[0; CLASSES]; CLASSES];
    for batch in loader.evaluation()? {
        if stop() {
            return Ok(None);
        }
        let batch = batch?;
        let labels = batch.labels.to_device(device)?;
        let mut tape = Tape::forgetting(convolution);
        let logits = network.forward(&mut tape, &batch.images.to_device(device)?, None)?;
        let mean = ops::cross_entropy(&logits.to_dtype(DType::F64)?, &labels)?;
        loss += mean.to_scalar::<f64>()? * labels.elem_count() as f64;
        for (label, prediction) in batch
            .labels
            .to_vec1::<u32>()?
            .iter()
            .zip(predictions(&logits)?)
        {
            confusion[*label as usize][prediction] += 1;
        }
    }
    let right: u64 = (0..CLASSES).map(|class| confusion[class][class]).sum();
    let images = loader.images() as f64;
    Ok(Some(Evaluation {
        loss: loss / images,
        accuracy: right as f64 / images,
        confusion,
    }))
}

/// The class with the largest logit for each row of `[batch, classes]`, the first of equals.
pub(crate) fn predictions(logits: &Tensor) -> Result<Vec<usize>> {
    let rows = logits.to_vec2::<f32>()?;
    Ok(rows
        .iter()
        .map(|row| {
            let best = row
                .iter()
                .enumerate()
                .reduce(|best, next| if next.1 > best.1 { next } else { best });
            best.map_or(0, |(class, _)| class)
        })
        .collect())
}
