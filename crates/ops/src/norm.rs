//! The norm of tensors.

use crate::storage::{with_dtype, with_slices};
use candle_core::{Result, Tensor};

/// The square root of the sum of all squares of all `tensors`, summed in double precision in an order that does not
/// depend on threads. A GPU is synchronised.
///
/// # Errors
/// When a tensor is neither `f32` nor `f64`, or, on a GPU, neither `f32` nor `bf16`.
pub fn norm<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<f64> {
    let sums = tensors.into_iter().map(|tensor| {
        let tensor = &tensor.contiguous()?;
        #[cfg(feature = "cuda")]
        if tensor.device().is_cuda() {
            return sum_of_squares(tensor);
        }
        with_dtype!("norm", tensor.dtype(), T => {
            with_slices::<T, _, 1>("norm", [tensor], |[values]| kernels::sgd::sum_of_squares(values))
        })
    });
    Ok(sums.sum::<Result<f64>>()?.sqrt())
}

/// The sum on a GPU.
#[cfg(feature = "cuda")]
fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    use crate::cuda::{Argument, Program, activations, empty, launch};
    /// Threads: enough for a GPU, and few partial sums for the host to add.
    const THREADS: usize = 1 << 14;

    let x = activations("norm", tensor)?;
    let count = x.count();
    let threads = count.min(THREADS);
    if threads == 0 {
        return Ok(0.0);
    }
    let sums = empty(x.device, candle_core::DType::F64, threads)?;
    let arguments = [
        Argument::singly(x),
        (&sums).into(),
        count.into(),
        threads.into(),
    ];
    let program = Program::packed(x.dtype, 1);
    launch(x.device, program, "squares", threads, &arguments)?;
    Ok(sums.tensor().to_vec1::<f64>()?.iter().sum())
}
