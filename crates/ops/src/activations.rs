//! The element type of activations.

use crate::arithmetic::Precision;
use candle_core::{Result, Tensor};

/// `x` in the element type of the activations on a GPU at `precision`; on a CPU, `x` itself.
///
/// # Errors
/// When `x` is on a GPU and its type is neither `f32` nor that of the activations.
pub fn activations(x: &Tensor, precision: Precision) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if precision == Precision::Bf16 && x.device().is_cuda() {
        return crate::cuda::to_activations(&x.contiguous()?, candle_core::DType::BF16);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = precision;
    Ok(x.clone())
}
