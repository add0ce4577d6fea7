//! Loss and accuracy over the batches of many steps.

use crate::cross_entropy::{check, with_labels};
use crate::operation::{self, tensor};
use crate::storage::{InPlaceElement, output, with_dtype, with_slices};
use candle_core::{Device, Result, Tensor, bail};
use kernels::Shards;

/// Loss and predictions of all samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Sum of the cross-entropy over the samples, without label smoothing.
    pub loss_sum: f64,
    /// How many samples of class `row` were predicted to be of class `column`:
    /// `confusion[row * classes + column]`.
    pub confusion: Vec<u64>,
    /// The first step whose loss was not finite. Its batch is not counted.
    pub diverged: Option<u64>,
}

impl Metrics {
    fn new(classes: usize) -> Self {
        Self {
            loss_sum: 0.0,
            confusion: vec![0; classes * classes],
            diverged: None,
        }
    }

    /// Samples with a finite loss.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.confusion.iter().sum()
    }

    /// Samples with a correct prediction.
    #[must_use]
    pub fn correct(&self) -> u64 {
        let classes = self.confusion.len().isqrt();
        self.confusion.iter().step_by(classes + 1).sum()
    }

    /// Adds a batch: `logits` `[batch, classes]` and `labels` `[batch]`. Where there is a `gradient`, it becomes
    /// that of the mean loss with smoothed labels. Of a part of a batch the loss is summed as it is: whether the mean of the
    /// batch is finite is not known yet.
    fn add<T: InPlaceElement>(
        &mut self,
        logits: &[T],
        labels: &[u32],
        step: u64,
        label_smoothing: f64,
        shards: Shards,
        gradient: Option<&mut [T]>,
    ) {
        let classes = self.confusion.len().isqrt();
        let sum =
            kernels::cross_entropy::sum(logits, labels, classes, label_smoothing, shards, gradient);
        if shards.are_all() {
            let rounded = |mean| kernels::Real::to_f64(<T as kernels::Real>::from_f64(mean));
            let batch = labels.len() as f64;
            // The mean in the type of the logits, as `cross_entropy` returns it.
            let mean = rounded(sum / batch);
            if !mean.is_finite() {
                self.diverged.get_or_insert(step);
                return;
            }
            self.loss_sum += mean * batch;
        } else {
            self.loss_sum += sum;
        }
        for (row, label) in logits.chunks_exact(classes).zip(labels) {
            self.confusion[*label as usize * classes + prediction(row)] += 1;
        }
    }
}

/// The class with the largest logit; ties go to the first.
fn prediction<T: PartialOrd>(row: &[T]) -> usize {
    let mut best = 0;
    for class in 1..row.len() {
        if row[class] > row[best] {
            best = class;
        }
    }
    best
}

/// Accumulates [`Metrics`] on the device of the logits, so that no step waits for a GPU.
///
/// On a GPU the loss is summed in units of 2^-24 (and a sample counts at most 2^29, far more than any loss of a
/// network that learns), so that the sum does not depend on the order of the additions.
pub struct MetricsAccumulator {
    classes: usize,
    backend: Backend,
}

enum Backend {
    Cpu(Metrics),
    #[cfg(feature = "cuda")]
    Cuda(crate::cross_entropy::cuda::Metrics),
}

impl MetricsAccumulator {
    /// No samples yet, for logits of `classes` classes on `device`.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new(classes: usize, device: &Device) -> Result<Self> {
        let backend = match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                Backend::Cuda(crate::cross_entropy::cuda::Metrics::new(device, classes)?)
            }
            _ => Backend::Cpu(Metrics::new(classes)),
        };
        Ok(Self { classes, backend })
    }

    /// Adds a batch: `logits` `[batch, classes]` and `labels` `[batch]` of type `u32`. `step` is what
    /// [`Metrics::diverged`] names where the loss is not finite.
    ///
    /// # Errors
    /// As for [`cross_entropy`](crate::cross_entropy()), and when the classes are not those of the accumulator.
    pub fn add(&mut self, logits: &Tensor, labels: &Tensor, step: u64) -> Result<()> {
        self.record(logits, labels, None, None, step).map(drop)
    }

    /// Adds a training batch, as [`add`](Self::add) does, and returns the gradient of its mean loss with respect to
    /// the logits: see [`cross_entropy_gradient`](crate::cross_entropy_gradient()). Both come from one softmax. On a CPU the
    /// batch may be in `shards`; if these are a part of them, the loss of the part is added without a check.
    ///
    /// # Errors
    /// As for [`add`](Self::add).
    pub fn add_with_gradient(
        &mut self,
        logits: &Tensor,
        labels: &Tensor,
        label_smoothing: f64,
        shards: Option<Shards>,
        step: u64,
    ) -> Result<Tensor> {
        match self.record(logits, labels, Some(label_smoothing), shards, step)? {
            Some(gradient) => Ok(gradient),
            None => bail!("metrics: no gradient was computed"),
        }
    }

    /// Adds a batch; gives the gradient where there is a label smoothing.
    fn record(
        &mut self,
        logits: &Tensor,
        labels: &Tensor,
        label_smoothing: Option<f64>,
        shards: Option<Shards>,
        step: u64,
    ) -> Result<Option<Tensor>> {
        let (batch, classes) = check(logits, labels)?;
        if classes != self.classes {
            bail!(
                "metrics of {} classes do not fit logits of {classes}",
                self.classes
            );
        }
        let (logits, labels) = (&logits.contiguous()?, &labels.contiguous()?);
        let shards = operation::shards("metrics", shards, batch)?;
        match &mut self.backend {
            Backend::Cpu(metrics) => with_labels(labels, classes, |labels| {
                with_dtype!("metrics", logits.dtype(), T => {
                    let gradient = with_slices::<T, _, 1>("metrics", [logits], |[values]| {
                        let zeros = |_| vec![<T as kernels::Real>::zero(); values.len()];
                        let mut gradient = label_smoothing.map(zeros);
                        let smoothing = label_smoothing.unwrap_or(0.0);
                        let to = gradient.as_deref_mut();
                        metrics.add(values, labels, step, smoothing, shards, to);
                        gradient
                    })?;
                    Ok(gradient.map(|gradient| tensor(output(gradient, logits.shape()))))
                })
            }),
            #[cfg(feature = "cuda")]
            Backend::Cuda(metrics) => {
                use crate::cross_entropy::cuda::{gradient, run};
                let metrics = Some((metrics, step));
                match label_smoothing {
                    Some(smoothing) => gradient(logits, labels, smoothing, metrics).map(Some),
                    None => run(logits, labels, None, metrics).map(|()| None),
                }
            }
        }
    }

    /// The metrics since the last call, waiting for a GPU to finish its work.
    ///
    /// # Errors
    /// When the device fails.
    pub fn take(&mut self) -> Result<Metrics> {
        match &mut self.backend {
            Backend::Cpu(metrics) => Ok(std::mem::replace(metrics, Metrics::new(self.classes))),
            #[cfg(feature = "cuda")]
            Backend::Cuda(metrics) => {
                let (loss_sum, diverged, confusion) = metrics.take()?;
                Ok(Metrics {
                    loss_sum,
                    confusion,
                    diverged,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cross_entropy, cross_entropy_gradient};

    #[test]
    fn batches_add_up() -> Result<()> {
        let mut accumulator = MetricsAccumulator::new(3, &Device::Cpu)?;
        let logits = Tensor::new(&[[3_f32, 1.0, 2.0], [0.0, 0.0, 0.0]], &Device::Cpu)?;
        let labels = Tensor::new(&[2_u32, 0], &Device::Cpu)?;
        accumulator.add(&logits, &labels, 0)?;
        let gradient = accumulator.add_with_gradient(&logits, &labels, 0.25, None, 1)?;
        let metrics = accumulator.take()?;
        let loss = cross_entropy(&logits, &labels)?.to_scalar::<f32>()?;
        assert_eq!(metrics.loss_sum, 4.0 * f64::from(loss));
        assert_eq!(metrics.confusion, [2, 0, 0, 0, 0, 0, 2, 0, 0]);
        assert_eq!((metrics.samples(), metrics.correct()), (4, 2));
        assert_eq!(accumulator.take()?, Metrics::new(3));
        let expected = cross_entropy_gradient(&logits, &labels, 0.25)?;
        assert_eq!(gradient.to_vec2::<f32>()?, expected.to_vec2::<f32>()?);
        Ok(())
    }

    #[test]
    fn the_first_step_without_a_finite_loss_is_named() -> Result<()> {
        let mut accumulator = MetricsAccumulator::new(2, &Device::Cpu)?;
        let labels = Tensor::new(&[0_u32], &Device::Cpu)?;
        for (step, logit) in [(3, 0.0), (4, f32::NAN), (5, f32::NAN)] {
            accumulator.add(&Tensor::new(&[[logit, 0.0]], &Device::Cpu)?, &labels, step)?;
        }
        assert_eq!(accumulator.take()?.diverged, Some(4));
        Ok(())
    }

    #[test]
    fn batches_that_do_not_fit_are_errors() -> Result<()> {
        let mut accumulator = MetricsAccumulator::new(2, &Device::Cpu)?;
        let logits = Tensor::new(&[[0_f32, 1.0]], &Device::Cpu)?;
        let label = |label: u32| Tensor::new(&[label], &Device::Cpu);
        assert!(accumulator.add(&logits, &label(1)?, 0).is_ok());
        assert!(accumulator.add(&logits, &label(2)?, 0).is_err());
        assert!(
            accumulator
                .add(&Tensor::new(&[[0_f32; 3]], &Device::Cpu)?, &label(0)?, 0)
                .is_err()
        );
        assert!(
            accumulator
                .add(&logits, &Tensor::new(&[0_u32, 1], &Device::Cpu)?, 0)
                .is_err()
        );
        Ok(())
    }
}
