//! Loss, accuracy and confusion matrix of a network on a split of a data set.

use crate::data_loader::DataLoader;
use crate::error::Error;
use crate::gpu_memory::{arbitrary_values, fits, is_out_of_memory, release_workspace};
use crate::process_group::{self, ProcessGroup};
use candle_core::{DType, Device, Result, Tensor, bail};
use datasets::{Normalisation, Split, Transform};
use models::Network;
use ops::{Arithmetic, MetricsAccumulator, Tape};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Images per batch. It does not follow the batch size of the run, so that a result does not depend on it.
const BATCH: NonZeroUsize = NonZeroUsize::MIN.saturating_add(249);

/// The most on a GPU, which computes more at once.
const GPU_BATCH: NonZeroUsize = NonZeroUsize::MIN.saturating_add(999);

/// The result of a network on a split.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy.
    pub loss: f64,
    /// Accuracy, 0 to 1.
    pub accuracy: f64,
    /// The number of classes.
    pub classes: usize,
    /// The confusion matrix `[classes, classes]`: counts images by label (row) and predicted class (column).
    pub confusion: Vec<u64>,
    /// The logits of every image, in the order of the split: `[images, classes]`.
    pub logits: Vec<f32>,
}

impl Evaluation {
    /// The accuracy of each class, 0 to 1; `None` for a class without images.
    #[must_use]
    pub fn class_accuracies(&self) -> Vec<Option<f64>> {
        let rows = self.confusion.chunks_exact(self.classes).enumerate();
        let accuracy = |(class, row): (usize, &[u64])| {
            let images: u64 = row.iter().sum();
            (images > 0).then(|| row[class] as f64 / images as f64)
        };
        rows.map(accuracy).collect()
    }
}

/// The logits of a batch `[batch, classes]`, and its labels `[batch]`.
type Output = (Tensor, Tensor);

/// Evaluates networks on one split.
pub struct Evaluator {
    loader: DataLoader,
    arithmetic: Arithmetic,
    device: Device,
    /// The processes that evaluate a part of the images each, if there are several.
    pub(crate) process_group: Option<Arc<dyn ProcessGroup>>,
}

impl Evaluator {
    /// Evaluates networks on `split`, on `device`: on a GPU in batches of `gpu_batch_size` images, by default 1000.
    ///
    /// # Errors
    /// When the device has no memory for the images.
    pub fn new(
        split: Split,
        normalisation: Normalisation,
        device: &Device,
        arithmetic: Arithmetic,
        gpu_batch_size: Option<NonZeroUsize>,
    ) -> Result<Self> {
        let batch_size = match device.is_cpu() {
            true => BATCH,
            false => gpu_batch_size.unwrap_or(GPU_BATCH),
        };
        // No larger batch is computed, so none is tried.
        let images = NonZeroUsize::new(split.len()).unwrap_or(NonZeroUsize::MIN);
        let batch_size = batch_size.min(images);
        let precision = arithmetic.precision;
        Ok(Self {
            loader: DataLoader::new(split, batch_size, normalisation, device, precision)?,
            arithmetic,
            device: device.clone(),
            process_group: None,
        })
    }

    /// All images.
    pub(crate) fn images(&self) -> usize {
        self.loader.host.images()
    }

    /// Images per batch.
    #[must_use]
    pub fn batch_size(&self) -> NonZeroUsize {
        self.loader.host.batch_size()
    }

    /// Halves the batch size until an evaluation of `network` fits into a GPU's memory, and `step` fits beside the working
    /// memory that it leaves to the libraries. Keeps the batch size if `is_kept`. Tries nothing on a CPU.
    ///
    /// # Errors
    /// When not even one image fits, or the batch size that is kept; when `step` does not fit by itself.
    pub fn fit(
        &mut self,
        network: &Network,
        is_kept: bool,
        step: impl Fn() -> Result<()>,
    ) -> std::result::Result<(), Error> {
        if self.device.is_cpu() {
            return Ok(());
        }
        let mut tried = Vec::new();
        loop {
            let batch_size = self.batch_size().get();
            let both = || self.try_batch(network, batch_size).and_then(|()| step());
            if fits(&self.device, both)? {
                return Ok(());
            }
            release_workspace(&self.device);
            step()?;
            tried.push(batch_size);
            let half = NonZeroUsize::new(batch_size / 2).filter(|_| !is_kept);
            let Some(half) = half else {
                return Err(Error::EvaluationOutOfMemory { tried, is_kept });
            };
            self.loader.host.set_batch_size(half);
        }
    }

    /// Whether a batch fits into what is left of a GPU's memory.
    ///
    /// # Errors
    /// When a tensor operation fails for another reason.
    #[cfg(feature = "cuda")]
    pub(crate) fn fits(&self, network: &Network) -> Result<bool> {
        let batch_size = self.batch_size().get();
        fits(&self.device, || self.try_batch(network, batch_size))
    }

    /// Computes logits as of the last batch, if that is smaller than the others.
    pub(crate) fn try_last_batch(&self, network: &Network) -> Result<()> {
        match self.loader.host.images() % self.batch_size() {
            0 => Ok(()),
            rest => self.try_batch(network, rest),
        }
    }

    /// Computes the logits of a batch of `images` images.
    fn try_batch(&self, network: &Network, images: usize) -> Result<()> {
        let dtype = self.arithmetic.precision.activations();
        let images = arbitrary_values((images, 32, 32, 3), dtype, &self.device)?;
        let mut tape = Tape::no_grad(self.arithmetic);
        network.forward(&mut tape, &images, None).map(drop)
    }

    /// The error of an evaluation, after [`Evaluator::fit`].
    pub(crate) fn explain(&self, error: candle_core::Error) -> Error {
        match is_out_of_memory(&error) {
            true => Error::EvaluationOutOfMemory {
                tried: vec![self.batch_size().get()],
                is_kept: true,
            },
            false => error.into(),
        }
    }

    /// Evaluates `network`, without dropout. Returns `None` if `stop` returned true, which is called before every batch.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn evaluate(
        &self,
        network: &Network,
        stop: impl Fn() -> bool,
    ) -> Result<Option<Evaluation>> {
        let outputs = self.outputs(network, Transform::IDENTITY, stop)?;
        let evaluation = outputs.map(|outputs| {
            let classes = network.architecture().num_classes;
            self.summary(outputs, classes, &self.device)
        });
        evaluation.transpose()
    }

    /// Evaluates `network` with test-time augmentation (TTA): the logits of an image are the mean of those of the image
    /// and of its horizontal flip. `plain` is the evaluation of the same network without it. Returns `None` if `stop`
    /// returned true, which is called before every batch.
    ///
    /// # Errors
    /// When a tensor operation fails, or `plain` has another number of images.
    pub fn evaluate_tta(
        &self,
        network: &Network,
        plain: &Evaluation,
        stop: impl Fn() -> bool,
    ) -> Result<Option<Evaluation>> {
        let Some(flipped) = self.outputs(network, Transform::FLIP, stop)? else {
            return Ok(None);
        };
        let classes = plain.classes;
        let (images, found) = (self.loader.host.images(), plain.logits.len() / classes);
        if found != images {
            bail!("TTA of {images} images needs the evaluation of all of them, not of {found}");
        }
        let mut rest = plain.logits.as_slice();
        let means = flipped.into_iter().map(|(logits, labels)| {
            let images = logits.dim(0)?;
            let (plain, others) = rest.split_at(images * classes);
            rest = others;
            let plain = Tensor::from_slice(plain, (images, classes), &Device::Cpu)?;
            let mean = ((plain + on_host(&logits)?)? * 0.5)?;
            Ok((mean, labels.to_device(&Device::Cpu)?))
        });
        let means = means.collect::<Result<_>>()?;
        self.summary(means, classes, &Device::Cpu).map(Some)
    }

    /// The logits of all images in the order of the split; `None` if `stop` returned true.
    fn outputs(
        &self,
        network: &Network,
        transform: Transform,
        stop: impl Fn() -> bool,
    ) -> Result<Option<Vec<Output>>> {
        if let Some(group) = &self.process_group {
            return self.outputs_of_all(&**group, network, transform, stop);
        }
        let mut outputs = Vec::new();
        for batch in self
            .loader
            .evaluation(transform, 0..self.loader.host.batches())?
        {
            if stop() {
                return Ok(None);
            }
            let batch = batch?;
            let mut tape = Tape::no_grad(self.arithmetic);
            let logits = network.forward(&mut tape, &batch.images, None)?;
            outputs.push((logits, batch.labels));
        }
        Ok(Some(outputs))
    }

    /// The same in every process; each computes a part of the batches.
    fn outputs_of_all(
        &self,
        group: &dyn ProcessGroup,
        network: &Network,
        transform: Transform,
        stop: impl Fn() -> bool,
    ) -> Result<Option<Vec<Output>>> {
        let (size, batches) = (group.size(), self.loader.host.batches());
        let (images, batch_size) = (self.images(), self.batch_size().get());
        let classes = network.architecture().num_classes;
        let first_batch = |rank| rank * batches / size;
        let first_image = |rank| images.min(first_batch(rank) * batch_size);
        let part = |rank| classes * first_image(rank)..classes * first_image(rank + 1);
        let mut logits = vec![0_f32; classes * images];
        let rank = group.rank();
        let mut to = &mut logits[part(rank)];
        let own = first_batch(rank)..first_batch(rank + 1);
        let mut is_stopped = false;
        for batch in self.loader.evaluation(transform, own)? {
            is_stopped = stop();
            if is_stopped {
                break;
            }
            let mut tape = Tape::no_grad(self.arithmetic);
            let found = network.forward(&mut tape, &batch?.images, None)?;
            let found = on_host(&found)?.flatten_all()?.to_vec1()?;
            let (here, rest) = to.split_at_mut(found.len());
            here.copy_from_slice(&found);
            to = rest;
        }
        if process_group::any(group, is_stopped).map_err(candle_core::Error::wrap)? {
            return Ok(None);
        }
        process_group::all_gather(group, &mut logits, part).map_err(candle_core::Error::wrap)?;
        let labels = self
            .loader
            .host
            .split()
            .with_slices(|labels, _| labels.to_vec())?;
        let batches = logits
            .chunks(batch_size * classes)
            .zip(labels.chunks(batch_size));
        let outputs = batches.map(|(logits, labels)| {
            let count = labels.len();
            let logits = Tensor::from_slice(logits, (count, classes), &Device::Cpu)?;
            Ok((logits, Tensor::from_slice(labels, count, &Device::Cpu)?))
        });
        outputs.collect::<Result<_>>().map(Some)
    }

    /// The metrics of logits on `device`.
    fn summary(&self, outputs: Vec<Output>, classes: usize, device: &Device) -> Result<Evaluation> {
        let mut accumulator = MetricsAccumulator::new(classes, device)?;
        for (batch, (logits, labels)) in (0..).zip(&outputs) {
            if device.is_cpu() {
                accumulator.add(&logits.to_dtype(DType::F64)?, labels, batch)?;
            } else {
                accumulator.add(logits, labels, batch)?;
            }
        }
        let metrics = accumulator.take()?;
        // After the metrics, which waited for a GPU already.
        let mut logits = Vec::with_capacity(self.loader.host.images() * classes);
        for (batch, _) in outputs {
            logits.extend(on_host(&batch)?.flatten_all()?.to_vec1::<f32>()?);
        }
        let images = self.loader.host.images() as f64;
        Ok(Evaluation {
            loss: match metrics.diverged {
                Some(_) => f64::NAN,
                None => metrics.loss_sum / images,
            },
            accuracy: metrics.correct() as f64 / images,
            classes,
            confusion: metrics.confusion,
            logits,
        })
    }
}

/// Logits in the memory of the host, as `f32`.
fn on_host(logits: &Tensor) -> Result<Tensor> {
    logits.to_device(&Device::Cpu)?.to_dtype(DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use datasets::Dataset;
    use models::{Architecture, initial_parameters};
    use ops::ConvAlgorithm;
    use run::settings::WeightInit;

    #[test]
    fn tta_averages_the_logits_of_an_image_and_its_flip() -> Result<()> {
        let architecture: Architecture = "lenet".parse().unwrap();
        let device = &Device::Cpu;
        let parameters = initial_parameters(architecture, WeightInit::Kaiming, 1, device)?;
        let network = Network::new(architecture, parameters)?;
        let evaluator = |images| {
            let split = Dataset::synthetic(1, images).unwrap().test();
            let normalisation = Normalisation::new([0.5; 3], [0.25; 3]);
            let arithmetic = ConvAlgorithm::Direct.into();
            Evaluator::new(split, normalisation, device, arithmetic, None)
        };
        let three = evaluator(3)?;
        let plain = three.evaluate(&network, || false)?.unwrap();
        let tta = three.evaluate_tta(&network, &plain, || false)?.unwrap();
        let flipped = three.outputs(&network, Transform::FLIP, || false)?.unwrap();
        let flipped = flipped[0].0.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(tta.logits.len(), 30);
        for ((tta, plain), flipped) in tta.logits.iter().zip(&plain.logits).zip(&flipped) {
            assert_eq!(*tta, (plain + flipped) * 0.5);
        }
        assert_ne!(tta.loss, plain.loss);
        assert!(
            evaluator(2)?
                .evaluate_tta(&network, &plain, || false)
                .is_err()
        );
        assert!(three.evaluate(&network, || true)?.is_none());
        assert!(three.evaluate_tta(&network, &plain, || true)?.is_none());
        Ok(())
    }

    #[test]
    fn class_accuracies_are_fractions_of_rows() {
        let mut confusion = vec![0; 16];
        confusion[0] = 3;
        confusion[3] = 1;
        confusion[3 * 4 + 2] = 2;
        let evaluation = Evaluation {
            loss: 1.0,
            accuracy: 0.5,
            classes: 4,
            confusion,
            logits: Vec::new(),
        };
        assert_eq!(
            evaluation.class_accuracies(),
            [Some(0.75), None, None, Some(0.0)]
        );
    }
}
