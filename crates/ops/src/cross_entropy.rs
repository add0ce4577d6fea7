//! Softmax cross-entropy.

use crate::operation::{Gradients, Inputs, Operation, Output, in_graph, only};
use crate::storage::{output, with_dtype, with_slices};
use candle_core::{DType, Result, Tensor, bail};
use kernels::Shards;

/// The mean over the batch of `-log softmax(logits)[label]`, a scalar, for `logits`
/// `[batch, classes]` and `labels` `[batch]` of type `u32`. Computed in double precision, with the
/// maximum of each row subtracted first, so that large logits do not overflow.
///
/// # Errors
/// When the batch is empty, the shapes do not fit, the labels are not `u32` or one of them is not below
/// `classes`, or the logits are neither `f32` nor `f64` (on a GPU: not `f32`).
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    in_graph(CrossEntropy, [logits, labels, logits])
}

/// The gradient of [`cross_entropy`] with respect to the logits, `[batch, classes]`, with smoothed labels: the
/// probability of the label's class is `1 - label_smoothing + label_smoothing / classes`, that of every other
/// class `label_smoothing / classes` (`label_smoothing` of `torch.nn.functional.cross_entropy`).
///
/// # Errors
/// As for [`cross_entropy`].
pub fn cross_entropy_gradient(
    logits: &Tensor,
    labels: &Tensor,
    label_smoothing: f64,
) -> Result<Tensor> {
    let (_, classes) = check(logits, labels)?;
    let (logits, labels) = (&logits.contiguous()?, &labels.contiguous()?);
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        return cuda::gradient(logits, labels, label_smoothing, None);
    }
    with_labels(labels, classes, |labels| {
        with_dtype!("cross-entropy", logits.dtype(), T => {
            let gradient = with_slices::<T, _, 1>("cross-entropy", [logits], |[logits]| {
                let mut gradient = vec![<T as kernels::Real>::zero(); logits.len()];
                let to = Some(gradient.as_mut_slice());
                let shards = Shards::one(labels.len());
                kernels::cross_entropy::sum(logits, labels, classes, label_smoothing, shards, to);
                gradient
            })?;
            Tensor::from_vec(gradient, logits.shape(), logits.device())
        })
    })
}

/// Batch size and classes.
///
/// # Errors
/// When the batch is empty, or the shapes or the labels' type do not fit.
pub(crate) fn check(logits: &Tensor, labels: &Tensor) -> Result<(usize, usize)> {
    let (batch, classes) = logits.dims2()?;
    if batch == 0 || labels.dims() != [batch] || labels.dtype() != DType::U32 {
        bail!(
            "cross_entropy: logits {:?} do not fit labels {:?} of type {:?}",
            logits.shape(),
            labels.shape(),
            labels.dtype()
        );
    }
    Ok((batch, classes))
}

/// Calls `work` with the labels on the CPU.
///
/// # Errors
/// Those of `work`, and when a label is not below `classes`.
pub(crate) fn with_labels<R>(
    labels: &Tensor,
    classes: usize,
    work: impl FnOnce(&[u32]) -> Result<R>,
) -> Result<R> {
    with_slices("cross-entropy", [labels], |[labels]| {
        match labels.iter().find(|label| **label as usize >= classes) {
            Some(label) => bail!("cross_entropy: label {label} with {classes} classes"),
            None => work(labels),
        }
    })?
}

struct CrossEntropy;

impl Operation for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    /// Synchronises a GPU, whose kernel sums the loss in integers that the host divides.
    fn forward(&self, [logits, labels, _]: Inputs) -> Result<Output> {
        let (batch, classes) = check(logits, labels)?;
        #[cfg(feature = "cuda")]
        if logits.device().is_cuda() {
            return cuda::loss(logits, labels);
        }
        with_labels(labels, classes, |labels| {
            with_dtype!("cross-entropy", logits.dtype(), T => {
                let sum = with_slices::<T, _, 1>("cross-entropy", [logits], |[logits]| {
                    kernels::cross_entropy::sum(logits, labels, classes, 0.0, Shards::one(batch), None)
                })?;
                Ok(output(vec![<T as kernels::Real>::from_f64(sum / batch as f64)], ()))
            })
        })
    }

    fn backward(&self, inputs: Inputs, [_, grad_y]: [&Tensor; 2], _: bool) -> Result<Gradients> {
        let [logits, labels, _] = inputs;
        only(cross_entropy_gradient(logits, labels, 0.0)?.broadcast_mul(grad_y)?)
    }
}

#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    use crate::cuda::{Argument, Buffer, Elements, Program, empty, launch};
    use crate::operation::Output;
    use candle_core::cuda::CudaStorage;
    use candle_core::cuda::cudarc::driver::CudaSlice;
    use candle_core::{CudaDevice, DType, Result, Shape, Storage, Tensor};

    /// One unit of the sum of losses in the kernel's metrics.
    const UNIT: f64 = 1.0 / (1 << 24) as f64;

    /// Elements of the kernel's metrics in front of the confusion matrix: sum of losses, first step with a loss
    /// that is not finite.
    const HEADER: usize = 2;

    /// In place of a step: every loss was finite.
    const NO_STEP: u64 = u64::MAX;

    /// The kernel's metrics.
    pub(crate) struct Metrics {
        device: CudaDevice,
        classes: usize,
        elements: CudaSlice<u64>,
    }

    impl Metrics {
        /// The metrics of no samples.
        pub(crate) fn new(device: &CudaDevice, classes: usize) -> Result<Self> {
            Ok(Self {
                device: device.clone(),
                classes,
                elements: device.clone_htod(&Self::empty(classes))?,
            })
        }

        fn empty(classes: usize) -> Vec<u64> {
            let mut metrics = vec![0; HEADER + classes * classes];
            metrics[1] = NO_STEP;
            metrics
        }

        /// Sum of losses, first step with a loss that is not finite, and confusion matrix since the last call.
        pub(crate) fn take(&mut self) -> Result<(f64, Option<u64>, Vec<u64>)> {
            let found = self.device.clone_dtoh(&self.elements)?;
            let empty = Self::empty(self.classes);
            self.device.memcpy_htod(&empty, &mut self.elements)?;
            let diverged = (found[1] != NO_STEP).then_some(found[1]);
            Ok((found[0] as f64 * UNIT, diverged, found[HEADER..].to_vec()))
        }
    }

    pub(super) fn loss(logits: &Tensor, labels: &Tensor) -> Result<Output> {
        let (batch, classes) = logits.dims2()?;
        let device = Elements::of("cross-entropy", logits, DType::F32)?.device;
        let mut metrics = Metrics::new(device, classes)?;
        run(logits, labels, None, Some((&mut metrics, 0)))?;
        let loss = match metrics.take()? {
            (sum, None, _) => sum / batch as f64,
            _ => f64::NAN,
        };
        let storage =
            CudaStorage::wrap_cuda_slice(device.clone_htod(&[loss as f32])?, device.clone());
        Ok((Storage::Cuda(storage), Shape::from(())))
    }

    /// The gradient of the mean loss; adds to the metrics where there are some.
    pub(crate) fn gradient(
        logits: &Tensor,
        labels: &Tensor,
        label_smoothing: f64,
        metrics: Option<(&mut Metrics, u64)>,
    ) -> Result<Tensor> {
        let device = Elements::of("cross-entropy", logits, DType::F32)?.device;
        let gradient = empty(device, DType::F32, logits.shape())?;
        run(logits, labels, Some((&gradient, label_smoothing)), metrics)?;
        Ok(gradient.tensor())
    }

    /// One launch: writes the gradient with this label smoothing where there is one, and adds to the metrics, with the step
    /// to name where a loss is not finite.
    pub(crate) fn run(
        logits: &Tensor,
        labels: &Tensor,
        gradient: Option<(&Buffer, f64)>,
        metrics: Option<(&mut Metrics, u64)>,
    ) -> Result<()> {
        let (batch, classes) = logits.dims2()?;
        let logits = Elements::of("cross-entropy", logits, DType::F32)?;
        let labels = Elements::of("cross-entropy", labels, DType::U32)?;
        assert_eq!(labels.count(), batch);
        let (gradient, label_smoothing) = gradient.unzip();
        let (metrics, step) = metrics.unzip();
        let metrics = metrics.map(|metrics| {
            assert_eq!(metrics.classes, classes);
            Argument::slice(&mut metrics.elements)
        });
        let arguments = [
            logits.into(),
            labels.into(),
            Argument::maybe(gradient.map(Buffer::elements)),
            metrics.unwrap_or(Argument::maybe(None)),
            batch.into(),
            classes.into(),
            (label_smoothing.unwrap_or(0.0) as f32).into(),
            Argument::Long(step.unwrap_or(0)),
            Argument::step_values(),
        ];
        let program = Program::packed(DType::F32, 1);
        launch(logits.device, program, "cross_entropy", batch, &arguments)
    }
}
