//! The rectifier, and its gradient for the operations into which it is fused.

use crate::Activation;
use crate::storage::{contiguous, with_float};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType};
use num_traits::Zero;
use rayon::prelude::*;

/// Elements that one task handles.
const PART: usize = 1 << 15;

/// `max(x, 0)` of a tensor of any shape; its gradient at 0 is 0, as in PyTorch.
pub(crate) struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        with_float!(self.name(), storage, T => {
            let mut out = contiguous::<T>(self.name(), storage, layout)?.to_vec();
            out.par_iter_mut()
                .with_min_len(PART)
                .for_each(|value| *value = Activation::Relu.of(*value));
            Ok((T::to_cpu_storage_owned(out), layout.shape().clone()))
        })
    }

    fn bwd(&self, _arg: &Tensor, res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(relu_gradient(res, grad_res)?))
    }
}

impl Activation {
    /// Its value. A NaN stays one, so that the loss shows it.
    #[inline(always)]
    pub(crate) fn of<T: WithDType>(self, x: T) -> T {
        match self {
            Self::Relu if x < T::zero() => T::zero(),
            _ => x,
        }
    }
}

/// The gradient with respect to a rectifier's input, from its output `y` and the gradient of that.
pub(crate) fn relu_gradient(y: &Tensor, grad_y: &Tensor) -> Result<Tensor> {
    y.contiguous()?
        .apply_op2_no_bwd(&grad_y.contiguous()?, &ReluGradient)
}

struct ReluGradient;

impl CustomOp2 for ReluGradient {
    fn name(&self) -> &'static str {
        "relu-gradient"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        y_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        with_float!(self.name(), y, T => {
            let y = contiguous::<T>(self.name(), y, y_layout)?;
            let mut out = contiguous::<T>(self.name(), grad, grad_layout)?.to_vec();
            out.par_chunks_mut(PART).zip(y.par_chunks(PART)).for_each(|(grad, y)| {
                for (grad, y) in grad.iter_mut().zip(y) {
                    // Written so that the gradient of a NaN is kept.
                    if *y <= T::zero() {
                        *grad = T::zero();
                    }
                }
            });
            Ok((T::to_cpu_storage_owned(out), y_layout.shape().clone()))
        })
    }
}
