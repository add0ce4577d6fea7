//! The element type of activations.

use crate::arithmetic::Precision;
use candle_core::{DType, Result, Tensor};

/// `x` in the element type of the activations at `precision`; on a CPU, `x` itself unless they are `bf16`.
///
/// # Errors
/// When `x` is on a GPU and its type is neither `f32` nor that of the activations.
pub fn activations(x: &Tensor, precision: Precision) -> Result<Tensor> {
    if precision != Precision::Bf16 {
        return Ok(x.clone());
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return crate::cuda::to_activations(&x.contiguous()?, DType::BF16);
    }
    x.to_dtype(DType::BF16)
}
