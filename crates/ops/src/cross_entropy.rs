//! Softmax cross-entropy.

use crate::storage::{contiguous, with_float};
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

/// The gradient of [`cross_entropy`] with respect to the logits, `[batch, classes]`.
///
/// # Errors
/// As for [`cross_entropy`].
pub fn cross_entropy_gradient(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    logits
        .contiguous()?
        .apply_op2_no_bwd(&labels.contiguous()?, &LogitsGradient)
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

    fn bwd(
        &self,
        logits: &Tensor,
        labels: &Tensor,
        _res: &Tensor,
        grad_res: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = logits
            .contiguous()?
            .apply_op2_no_bwd(labels, &LogitsGradient)?;
        Ok((Some(gradient.broadcast_mul(grad_res)?), None))
    }
}

/// `(softmax(logits) - one-hot(labels)) / batch`.
struct LogitsGradient;

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
            let mut gradient = Vec::with_capacity(logits.len());
            for (row, label) in logits.chunks_exact(classes).zip(labels) {
                let offset = log_sum_exp(row);
                gradient.extend(row.iter().zip(0_u32..).map(|(value, class)| {
                    let target = if class == *label { 1.0 } else { 0.0 };
                    T::from_f64(((value.to_f64() - offset).exp() - target) / batch as f64)
                }));
            }
            Ok((T::to_cpu_storage_owned(gradient), logits_layout.shape().clone()))
        })
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
        .map(|value| (value.to_f64() - maximum).exp())
        .sum();
    maximum + sum.ln()
}
