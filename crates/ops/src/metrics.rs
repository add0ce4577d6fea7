//! Loss and accuracy over the batches of many steps.

use crate::cross_entropy::{check, check_labels};
use crate::storage::{Element, slice, with_dtype};
use candle_core::{Device, Result, Tensor, bail};

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
    /// that of the mean loss with smoothed labels.
    fn add<T: Element>(
        &mut self,
        logits: &[T],
        labels: &[u32],
        step: u64,
        label_smoothing: f64,
        gradient: Option<&mut [T]>,
    ) -> Result<()> {
        let classes = self.confusion.len().isqrt();
        check_labels(labels, classes)?;
        let sum = kernels::cross_entropy::sum(logits, labels, classes, label_smoothing, gradient);
        let batch = labels.len() as f64;
        // The mean in the type of the logits, as `cross_entropy` returns it.
        let mean = kernels::Real::to_f64(<T as kernels::Real>::from_f64(sum / batch));
        if !mean.is_finite() {
            self.diverged.get_or_insert(step);
            return Ok(());
        }
        self.loss_sum += mean * batch;
        for (row, label) in logits.chunks_exact(classes).zip(labels) {
            self.confusion[*label as usize * classes + prediction(row)] += 1;
        }
        Ok(())
    }
}

/// The class with the largest logit, the first of equals.
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
    Cuda(
        candle_core::CudaDevice,
        candle_core::cuda::cudarc::driver::CudaSlice<u64>,
    ),
}

impl MetricsAccumulator {
    /// No samples yet, for logits of `classes` classes on `device`.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(classes: usize, device: &Device) -> Result<Self> {
        let backend = match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                let empty = crate::cross_entropy::cuda::empty_metrics(classes);
                Backend::Cuda(device.clone(), crate::cuda::upload(device, &empty)?)
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
        self.check(logits, labels)?;
        match &mut self.backend {
            Backend::Cpu(metrics) => {
                let (logits, labels) = (logits.contiguous()?, labels.contiguous()?);
                let (labels, labels_layout) = labels.storage_and_layout();
                let labels = slice::<u32>("metrics", &labels, labels_layout)?;
                let (storage, layout) = logits.storage_and_layout();
                with_dtype!("metrics", logits.dtype(), T => {
                    let logits = slice::<T>("metrics", &storage, layout)?;
                    metrics.add(logits, labels, step, 0.0, None)
                })
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda(device, metrics) => {
                cuda::add(device, logits, labels, (metrics, step), None)
            }
        }
    }

    /// Adds a training batch, as [`add`](Self::add) does, and returns the gradient of its mean loss with respect to
    /// the logits: see [`cross_entropy_gradient`](crate::cross_entropy_gradient()). Both come from one softmax.
    ///
    /// # Errors
    /// As for [`add`](Self::add).
    pub fn add_with_gradient(
        &mut self,
        logits: &Tensor,
        labels: &Tensor,
        label_smoothing: f64,
        step: u64,
    ) -> Result<Tensor> {
        self.check(logits, labels)?;
        match &mut self.backend {
            Backend::Cpu(metrics) => {
                let (logits, labels) = (logits.contiguous()?, labels.contiguous()?);
                let (labels, labels_layout) = labels.storage_and_layout();
                let labels = slice::<u32>("metrics", &labels, labels_layout)?;
                let (storage, layout) = logits.storage_and_layout();
                with_dtype!("metrics", logits.dtype(), T => {
                    let values = slice::<T>("metrics", &storage, layout)?;
                    let mut gradient = vec![<T as kernels::Real>::zero(); values.len()];
                    metrics.add(values, labels, step, label_smoothing, Some(&mut gradient))?;
                    Tensor::from_vec(gradient, logits.shape(), &Device::Cpu)
                })
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda(device, metrics) => {
                let mut gradient = crate::cuda::room::<f32>(device, logits.elem_count())?;
                let to = Some((&mut gradient, label_smoothing));
                cuda::add(device, logits, labels, (metrics, step), to)?;
                Ok(crate::cuda::tensor(gradient, logits.shape(), device))
            }
        }
    }

    fn check(&self, logits: &Tensor, labels: &Tensor) -> Result<()> {
        let (_, classes) = check(logits, labels)?;
        if classes != self.classes {
            bail!(
                "metrics of {} classes do not fit logits of {classes}",
                self.classes
            );
        }
        Ok(())
    }

    /// The metrics since the last call, waiting for a GPU to finish its work.
    ///
    /// # Errors
    /// When the device fails.
    pub fn take(&mut self) -> Result<Metrics> {
        match &mut self.backend {
            Backend::Cpu(metrics) => Ok(std::mem::replace(metrics, Metrics::new(self.classes))),
            #[cfg(feature = "cuda")]
            Backend::Cuda(device, metrics) => {
                use crate::cross_entropy::cuda::{HEADER, NO_STEP, UNIT, empty_metrics};
                let found = device.clone_dtoh(metrics)?;
                device.memcpy_htod(&empty_metrics(self.classes), metrics)?;
                Ok(Metrics {
                    loss_sum: found[0] as f64 * UNIT,
                    confusion: found[HEADER..].to_vec(),
                    diverged: (found[1] != NO_STEP).then_some(found[1]),
                })
            }
        }
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use crate::cross_entropy::cuda::run;
    use crate::cuda::slice;
    use candle_core::cuda::cudarc::driver::CudaSlice;
    use candle_core::{CudaDevice, Result, Tensor};

    /// Adds a batch in one launch, which also writes the gradient where there is one.
    pub(super) fn add(
        device: &CudaDevice,
        logits: &Tensor,
        labels: &Tensor,
        metrics: (&mut CudaSlice<u64>, u64),
        gradient: Option<(&mut CudaSlice<f32>, f64)>,
    ) -> Result<()> {
        let sizes = logits.dims2()?;
        let (logits, labels) = (logits.contiguous()?, labels.contiguous()?);
        let (logits, logits_layout) = logits.storage_and_layout();
        let (labels, labels_layout) = labels.storage_and_layout();
        let logits = slice::<f32>("metrics", &logits, logits_layout)?;
        let labels = slice::<u32>("metrics", &labels, labels_layout)?;
        run(device, (&logits, &labels), sizes, gradient, Some(metrics))
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
        let gradient = accumulator.add_with_gradient(&logits, &labels, 0.25, 1)?;
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
