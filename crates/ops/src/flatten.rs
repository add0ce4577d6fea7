//! From images to rows of features.

use crate::storage::{contiguous, with_float};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType};

/// From images `[batch, height, width, channels]` to rows `[batch, channels * height * width]`, in PyTorch's order:
/// channel, row, column.
///
/// # Errors
/// When the tensor has other dimensions, or is neither `f32` nor `f64`; on a GPU, neither `f32` nor `bf16`.
pub fn flatten(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(operation(x)?)
}

/// The operation of [`flatten`] for tensors of the shape of `x`.
pub(crate) fn operation(x: &Tensor) -> Result<impl CustomOp1 + Send + Sync + use<>> {
    let (batch, height, width, channels) = x.dims4()?;
    Ok(Transpose {
        batch,
        rows: height * width,
        columns: channels,
        shape: Shape::from((batch, channels * height * width)),
        input: x.shape().clone(),
    })
}

/// Transposes the matrix of `rows` by `columns` of each image.
struct Transpose {
    batch: usize,
    rows: usize,
    columns: usize,
    /// The result's shape.
    shape: Shape,
    input: Shape,
}

impl CustomOp1 for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        with_float!(self.name(), storage, T => {
            let x = contiguous::<T>(self.name(), storage, layout)?;
            let y = kernels::transpose::transpose(x, (self.batch, self.rows, self.columns));
            Ok((WithDType::to_cpu_storage_owned(y), self.shape.clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let y = cuda::transpose(storage, layout, (self.rows, self.columns))?;
        Ok((y, self.shape.clone()))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad_res.contiguous()?.apply_op1_no_bwd(&Self {
            batch: self.batch,
            rows: self.columns,
            columns: self.rows,
            shape: self.input.clone(),
            input: self.shape.clone(),
        })?))
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use crate::cuda::{Argument, Program, contiguous, launch, room, with_activations};
    use candle_core::backend::BackendStorage;
    use candle_core::{CudaStorage, Layout, Result};

    pub(super) fn transpose(
        storage: &CudaStorage,
        layout: &Layout,
        (rows, columns): (usize, usize),
    ) -> Result<CudaStorage> {
        let device = storage.device();
        with_activations!("transpose", storage.dtype(), T => {
            let x = contiguous::<T>("transpose", storage, layout)?;
            let mut y = room::<T>(device, x.len())?;
            launch(
                device,
                Program::packed::<T>(1),
                "transpose",
                x.len(),
                &[
                    Argument::read(device, &x),
                    Argument::write(device, &mut y),
                    x.len().into(),
                    rows.into(),
                    columns.into(),
                ],
            )?;
            Ok(CudaStorage::wrap_cuda_slice(y, device.clone()))
        })
    }
}
