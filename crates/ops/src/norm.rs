//! The norm of tensors.

use crate::storage::{slice, with_dtype};
use candle_core::{Result, Tensor};

/// The square root of the sum of all squares of all `tensors`, summed in double precision in an order that does not
/// depend on threads. A GPU is synchronised.
///
/// # Errors
/// When a tensor is neither `f32` nor `f64`, or, on a GPU, neither `f32` nor `bf16`.
pub fn norm<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<f64> {
    let sums = tensors.into_iter().map(|tensor| {
        #[cfg(feature = "cuda")]
        if let Some(device) = crate::cuda::gpu(tensor) {
            return cuda::sum_of_squares(device, tensor);
        }
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        with_dtype!("norm", tensor.dtype(), T => {
            Ok(kernels::sgd::sum_of_squares(slice::<T>("norm", &storage, layout)?))
        })
    });
    Ok(sums.sum::<Result<f64>>()?.sqrt())
}

#[cfg(feature = "cuda")]
mod cuda {
    use crate::cuda::{Argument, Program, launch, room, slice, with_activations};
    use candle_core::{CudaDevice, Result, Tensor};

    /// Threads: enough for a GPU, and few partial sums for the host to add.
    const THREADS: usize = 1 << 14;

    pub(super) fn sum_of_squares(device: &CudaDevice, tensor: &Tensor) -> Result<f64> {
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        let count = tensor.elem_count();
        let threads = count.min(THREADS);
        if threads == 0 {
            return Ok(0.0);
        }
        with_activations!("norm", tensor.dtype(), T => {
            let view = slice::<T>("norm", &storage, layout)?;
            let mut sums = room::<f64>(device, threads)?;
            launch(
                device,
                Program::packed::<T>(1),
                "squares",
                threads,
                &[
                    Argument::read_singly(device, &view),
                    Argument::write(device, &mut sums),
                    count.into(),
                    threads.into(),
                ],
            )?;
            Ok(device.clone_dtoh(&sums)?.iter().sum())
        })
    }
}
