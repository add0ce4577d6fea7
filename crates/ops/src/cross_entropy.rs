//! Softmax cross-entropy.

use crate::storage::{contiguous, with_float};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, WithDType, bail};

/// The mean over the batch of `-log softmax(logits)[label]`, a scalar, for `logits`
/// `[batch, classes]` and `labels` `[batch]` of type `u32`. Computed in double precision, with the
/// row's maximum taken out first, so that large logits do not overflow.
///
/// # Errors
/// When the batch is empty, the shapes do not fit, the labels are not `u32` or one of them is no
/// class, or the logits are neither `f32` nor `f64`.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let (batch, _) = logits.dims2()?;
    if batch == 0 || labels.dims() != [batch] || labels.dtype() != DType::U32 {
        bail!(
            "cross_entropy: logits {:?} do not fit labels {:?} of type {:?}",
            logits.shape(),
            labels.shape(),
            labels.dtype()
        );
    }
    logits
        .contiguous()?
        .apply_op2(&labels.contiguous()?, CrossEntropy)
}

/// The class with the largest logit for each row of `[batch, classes]`, the first of equals.
///
/// # Errors
/// When the logits have other dimensions.
pub fn predictions(logits: &Tensor) -> Result<Vec<usize>> {
    let rows = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
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

/// The gradient of [`cross_entropy`] with respect to the logits, `[batch, classes]`.
///
/// # Errors
/// As for [`cross_entropy`].
pub fn cross_entropy_gradient(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    smoothed_cross_entropy_gradient(logits, labels, 0.0)
}

/// The gradient of the cross-entropy with smoothed labels, `[batch, classes]`: the label's class is the right one
/// with probability `1 - smoothing + smoothing / classes`, every other with `smoothing / classes`
/// (`label_smoothing` of `torch.nn.functional.cross_entropy`).
///
/// # Errors
/// As for [`cross_entropy`].
pub fn smoothed_cross_entropy_gradient(
    logits: &Tensor,
    labels: &Tensor,
    smoothing: f64,
) -> Result<Tensor> {
    logits
        .contiguous()?
        .apply_op2_no_bwd(&labels.contiguous()?, &LogitsGradient { smoothing })
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
        if let Some(label) = labels.iter().find(|label| **label as usize >= classes) {
            bail!("cross_entropy: label {label} is none of {classes} classes");
        }
        with_float!(self.name(), logits, T => {
            let logits = contiguous::<T>(self.name(), logits, logits_layout)?;
            let total: f64 = logits
                .chunks_exact(classes)
                .zip(labels)
                .map(|(row, label)| log_sum_exp(row) - row[*label as usize].to_f64())
                .sum();
            Ok((T::to_cpu_storage_owned(vec![T::from_f64(total / batch as f64)]), Shape::from(())))
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
        let gradient = logits
            .contiguous()?
            .apply_op2_no_bwd(labels, &LogitsGradient { smoothing: 0.0 })?;
        Ok((Some(gradient.broadcast_mul(grad_res)?), None))
    }
}

/// `(softmax(logits) - smoothed one-hot(labels)) / batch`.
struct LogitsGradient {
    smoothing: f64,
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
        let (batch, classes) = logits_layout.shape().dims2()?;
        let labels = contiguous::<u32>(self.name(), labels, labels_layout)?;
        with_float!(self.name(), logits, T => {
            let logits = contiguous::<T>(self.name(), logits, logits_layout)?;
            let everywhere = self.smoothing / classes as f64;
            let right = 1.0 - self.smoothing + everywhere;
            let mut gradient = Vec::with_capacity(logits.len());
            for (row, label) in logits.chunks_exact(classes).zip(labels) {
                let offset = log_sum_exp(row);
                gradient.extend(row.iter().zip(0_u32..).map(|(value, class)| {
                    let target = if class == *label { right } else { everywhere };
                    T::from_f64((libm::exp(value.to_f64() - offset) - target) / batch as f64)
                }));
            }
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
            self.smoothing,
        )?;
        Ok((gradient, logits_layout.shape().clone()))
    }
}

/// `log(sum(exp(row)))`.
fn log_sum_exp<T: WithDType>(row: &[T]) -> f64 {
    let maximum = row
        .iter()
        .map(|value| value.to_f64())
        .fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row
        .iter()
        .map(|value| libm::exp(value.to_f64() - maximum))
        .sum();
    maximum + libm::log(sum)
}

#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    use crate::cuda::{Argument, Program, contiguous, launch, room};
    use candle_core::backend::BackendStorage;
    use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView};
    use candle_core::{CudaDevice, CudaStorage, Layout, Result, bail};

    /// One unit of the sum of losses in a tally.
    pub(crate) const UNIT: f64 = 1.0 / (1 << 24) as f64;

    /// Numbers in a tally besides the confusion matrix: sum of losses, rows classified rightly, first step
    /// with a loss that is not finite.
    pub(crate) const HEADER: usize = 3;

    /// No step.
    pub(crate) const NOWHERE: u64 = u64::MAX;

    type Stored<'a> = (&'a CudaStorage, &'a Layout);

    /// A tally of nothing.
    pub(crate) fn empty_tally(classes: usize) -> Vec<u64> {
        let mut tally = vec![0; HEADER + classes * classes];
        tally[2] = NOWHERE;
        tally
    }

    pub(super) fn loss(
        (logits, logits_layout): Stored<'_>,
        (labels, labels_layout): Stored<'_>,
    ) -> Result<CudaStorage> {
        let device = logits.device();
        let (batch, classes) = logits_layout.shape().dims2()?;
        let logits = contiguous::<f32>("cross-entropy", logits, logits_layout)?;
        let labels = contiguous::<u32>("cross-entropy", labels, labels_layout)?;
        let mut tally = device.clone_htod(&empty_tally(classes))?;
        add(device, (&logits, &labels), (batch, classes), &mut tally, 0)?;
        let tally = device.clone_dtoh(&tally)?;
        let loss = if tally[2] == NOWHERE {
            tally[0] as f64 * UNIT / batch as f64
        } else {
            f64::NAN
        };
        let loss = device.clone_htod(&[loss as f32])?;
        Ok(CudaStorage::wrap_cuda_slice(loss, device.clone()))
    }

    pub(super) fn gradient(
        (logits, logits_layout): Stored<'_>,
        (labels, labels_layout): Stored<'_>,
        smoothing: f64,
    ) -> Result<CudaStorage> {
        let device = logits.device();
        let sizes = logits_layout.shape().dims2()?;
        let logits = contiguous::<f32>("cross-entropy", logits, logits_layout)?;
        let labels = contiguous::<u32>("cross-entropy", labels, labels_layout)?;
        let mut gradient = room::<f32>(device, logits.len())?;
        let to = Argument::write(device, &mut gradient);
        run(
            device,
            (&logits, &labels),
            sizes,
            (to, smoothing),
            Argument::null(),
            0,
        )?;
        Ok(CudaStorage::wrap_cuda_slice(gradient, device.clone()))
    }

    /// Adds a batch to a tally; `step` is what is remembered where its loss is not finite.
    pub(crate) fn add(
        device: &CudaDevice,
        batch: (&CudaView<'_, f32>, &CudaView<'_, u32>),
        (rows, classes): (usize, usize),
        tally: &mut CudaSlice<u64>,
        step: u64,
    ) -> Result<()> {
        assert_eq!(tally.len(), HEADER + classes * classes);
        let tally = Argument::write(device, tally);
        run(
            device,
            batch,
            (rows, classes),
            (Argument::null(), 0.0),
            tally,
            step,
        )
    }

    fn run(
        device: &CudaDevice,
        (logits, labels): (&CudaView<'_, f32>, &CudaView<'_, u32>),
        (rows, classes): (usize, usize),
        (gradient, smoothing): (Argument<'_>, f64),
        tally: Argument<'_>,
        step: u64,
    ) -> Result<()> {
        if labels.len() != rows || logits.len() != rows * classes || classes == 0 {
            bail!(
                "cross_entropy: {} labels for {rows} rows of logits",
                labels.len()
            );
        }
        launch(
            device,
            Program::packed::<f32>(1),
            "cross_entropy",
            rows,
            &[
                Argument::read(device, logits),
                Argument::read(device, labels),
                gradient,
                tally,
                rows.into(),
                classes.into(),
                (smoothing as f32).into(),
                Argument::long(step),
            ],
        )
    }
}
