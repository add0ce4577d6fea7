//! Softmax cross-entropy.

use crate::storage::{contiguous, with_float};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType, bail};

/// The mean over the batch of `-log softmax(logits)[label]`, a scalar, for `logits`
/// `[batch, classes]` and `labels` `[batch]` of type `u32`. Computed in double precision, with the
/// maximum of each row subtracted first, so that large logits do not overflow.
///
/// # Errors
/// When the batch is empty, the shapes do not fit, the labels are not `u32` or one of them is not below
/// `classes`, or the logits are neither `f32` nor `f64` (on a GPU: not `f32`).
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    check(logits, labels)?;
    logits
        .contiguous()?
        .apply_op2(&labels.contiguous()?, CrossEntropy)
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
    check(logits, labels)?;
    logits
        .contiguous()?
        .apply_op2_no_bwd(&labels.contiguous()?, &LogitsGradient { label_smoothing })
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

/// # Errors
/// When a label is not below `classes`.
pub(crate) fn check_labels(labels: &[u32], classes: usize) -> Result<()> {
    match labels.iter().find(|label| **label as usize >= classes) {
        Some(label) => bail!("cross_entropy: label {label} with {classes} classes"),
        None => Ok(()),
    }
}

struct CrossEntropy;

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        logits_layout: &Layout,
        labels: &CpuStorage,
        labels_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, classes) = logits_layout.shape().dims2()?;
        let labels = contiguous::<u32>(self.name(), labels, labels_layout)?;
        check_labels(labels, classes)?;
        with_float!(self.name(), logits, T => {
            let logits = contiguous::<T>(self.name(), logits, logits_layout)?;
            let sum = kernels::cross_entropy::sum(logits, labels, classes, 0.0, None);
            Ok((T::to_cpu_storage_owned(vec![T::from_f64(sum / batch as f64)]), Shape::from(())))
        })
    }

    /// Waits for the result: the loss is made of whole numbers that the host divides.
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        logits: &CudaStorage,
        logits_layout: &Layout,
        labels: &CudaStorage,
        labels_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let loss = cuda::loss((logits, logits_layout), (labels, labels_layout))?;
        Ok((loss, Shape::from(())))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        labels: &Tensor,
        _res: &Tensor,
        grad_res: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = cross_entropy_gradient(logits, labels, 0.0)?;
        Ok((Some(gradient.broadcast_mul(grad_res)?), None))
    }
}

struct LogitsGradient {
    label_smoothing: f64,
}

impl CustomOp2 for LogitsGradient {
    fn name(&self) -> &'static str {
        "cross-entropy-gradient"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        logits_layout: &Layout,
        labels: &CpuStorage,
        labels_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, classes) = logits_layout.shape().dims2()?;
        let labels = contiguous::<u32>(self.name(), labels, labels_layout)?;
        check_labels(labels, classes)?;
        with_float!(self.name(), logits, T => {
            let logits = contiguous::<T>(self.name(), logits, logits_layout)?;
            let mut gradient = vec![<T as kernels::Real>::zero(); logits.len()];
            let (smoothing, to) = (self.label_smoothing, Some(gradient.as_mut_slice()));
            kernels::cross_entropy::sum(logits, labels, classes, smoothing, to);
            Ok((T::to_cpu_storage_owned(gradient), logits_layout.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        logits: &CudaStorage,
        logits_layout: &Layout,
        labels: &CudaStorage,
        labels_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let gradient = cuda::gradient(
            (logits, logits_layout),
            (labels, labels_layout),
            self.label_smoothing,
        )?;
        Ok((gradient, logits_layout.shape().clone()))
    }
}

#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    use crate::cuda::{Argument, Program, contiguous, launch, room};
    use candle_core::backend::BackendStorage;
    use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView};
    use candle_core::{CudaDevice, CudaStorage, Layout, Result, bail};

    /// One unit of the sum of losses in the kernel's metrics.
    pub(crate) const UNIT: f64 = 1.0 / (1 << 24) as f64;

    /// Elements of the kernel's metrics in front of the confusion matrix: sum of losses, first step with a loss
    /// that is not finite.
    pub(crate) const HEADER: usize = 2;

    /// In place of a step: no loss was other than finite.
    pub(crate) const NO_STEP: u64 = u64::MAX;

    type Stored<'a> = (&'a CudaStorage, &'a Layout);

    /// The metrics of no samples.
    pub(crate) fn empty_metrics(classes: usize) -> Vec<u64> {
        let mut metrics = vec![0; HEADER + classes * classes];
        metrics[1] = NO_STEP;
        metrics
    }

    pub(super) fn loss(
        (logits, logits_layout): Stored<'_>,
        (labels, labels_layout): Stored<'_>,
    ) -> Result<CudaStorage> {
        let device = logits.device();
        let sizes = logits_layout.shape().dims2()?;
        let (batch, classes) = sizes;
        let logits = contiguous::<f32>("cross-entropy", logits, logits_layout)?;
        let labels = contiguous::<u32>("cross-entropy", labels, labels_layout)?;
        let mut metrics = device.clone_htod(&empty_metrics(classes))?;
        run(
            device,
            (&logits, &labels),
            sizes,
            None,
            Some((&mut metrics, 0)),
        )?;
        let metrics = device.clone_dtoh(&metrics)?;
        let loss = if metrics[1] == NO_STEP {
            metrics[0] as f64 * UNIT / batch as f64
        } else {
            f64::NAN
        };
        let loss = device.clone_htod(&[loss as f32])?;
        Ok(CudaStorage::wrap_cuda_slice(loss, device.clone()))
    }

    pub(super) fn gradient(
        (logits, logits_layout): Stored<'_>,
        (labels, labels_layout): Stored<'_>,
        label_smoothing: f64,
    ) -> Result<CudaStorage> {
        let device = logits.device();
        let sizes = logits_layout.shape().dims2()?;
        let logits = contiguous::<f32>("cross-entropy", logits, logits_layout)?;
        let labels = contiguous::<u32>("cross-entropy", labels, labels_layout)?;
        let mut gradient = room::<f32>(device, logits.len())?;
        let to = Some((&mut gradient, label_smoothing));
        run(device, (&logits, &labels), sizes, to, None)?;
        Ok(CudaStorage::wrap_cuda_slice(gradient, device.clone()))
    }

    /// One launch for `sizes`, which are batch size and classes: writes the gradient with this label smoothing where
    /// there is one, and adds to the metrics, with the step to name where a loss is not finite.
    pub(crate) fn run(
        device: &CudaDevice,
        (logits, labels): (&CudaView<'_, f32>, &CudaView<'_, u32>),
        (batch, classes): (usize, usize),
        gradient: Option<(&mut CudaSlice<f32>, f64)>,
        metrics: Option<(&mut CudaSlice<u64>, u64)>,
    ) -> Result<()> {
        let elements = batch * classes;
        if labels.len() != batch || logits.len() != elements || classes == 0 {
            bail!(
                "cross_entropy: {} labels for {batch} rows of logits",
                labels.len()
            );
        }
        let (gradient, label_smoothing) = match gradient {
            Some((gradient, label_smoothing)) => {
                assert_eq!(gradient.len(), elements);
                (Argument::write(device, gradient), label_smoothing)
            }
            None => (Argument::null(), 0.0),
        };
        let (metrics, step) = match metrics {
            Some((metrics, step)) => {
                assert_eq!(metrics.len(), HEADER + classes * classes);
                (Argument::write(device, metrics), step)
            }
            None => (Argument::null(), 0),
        };
        launch(
            device,
            Program::packed::<f32>(1),
            "cross_entropy",
            batch,
            &[
                Argument::read(device, logits),
                Argument::read(device, labels),
                gradient,
                metrics,
                batch.into(),
                classes.into(),
                (label_smoothing as f32).into(),
                Argument::long(step),
            ],
        )
    }
}
