//! Average pooling.

use crate::max_pool2d::windows;
use crate::operation::{Gradients, Inputs, Operation, Output, in_graph, only};
use crate::storage::{output, with_dtype, with_slices};
use candle_core::{Result, Tensor};
use kernels::Pool;

/// The average over the windows of `x` `[batch, height, width, channels]`; windows that do not fit
/// are omitted. Gives
/// `[batch, (height - kernel) / stride + 1, (width - kernel) / stride + 1, channels]`.
///
/// # Errors
/// When no window fits, or the tensor is not `f32`, `bf16` or, on a CPU, `f64`.
pub fn avg_pool2d(x: &Tensor, pool: Pool) -> Result<Tensor> {
    in_graph(AvgPool2d(pool), [x; 3])
}

pub(crate) struct AvgPool2d(pub(crate) Pool);

impl Operation for AvgPool2d {
    fn name(&self) -> &'static str {
        "avg-pool2d"
    }

    fn forward(&self, [x, ..]: Inputs) -> Result<Output> {
        let (batch, windows, channels) = windows(x, self.0)?;
        let shape = (batch, windows.rows(), windows.columns(), channels);
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return Ok(cuda::run("avg_pool", x, windows, shape)?.output());
        }
        with_dtype!("avg-pool2d", x.dtype(), T => {
            let y = with_slices::<T, _, 1>("avg-pool2d", [x], |[x]| {
                kernels::avg_pool2d::forward(&windows, (batch, channels), x)
            })?;
            Ok(output(y, shape))
        })
    }

    fn backward(&self, [x, ..]: Inputs, [_, grad_y]: [&Tensor; 2], _: bool) -> Result<Gradients> {
        let (batch, windows, channels) = windows(x, self.0)?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let grad_x = cuda::run("avg_pool_gradient", grad_y, windows, x.dims4()?)?;
            return only(grad_x.tensor());
        }
        with_dtype!("avg-pool2d", x.dtype(), T => {
            let grad_x = with_slices::<T, _, 1>("avg-pool2d", [grad_y], |[grad_y]| {
                kernels::avg_pool2d::backward(&windows, (batch, channels), grad_y)
            })?;
            only(Tensor::from_vec(grad_x, x.shape(), x.device())?)
        })
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use crate::cuda::{Argument, Buffer, Program, activations, empty, launch};
    use candle_core::{Result, Tensor};
    use kernels::Windows;

    /// Either kernel: from `x` to a result of `shape`.
    pub(super) fn run(
        kernel: &'static str,
        x: &Tensor,
        windows: Windows,
        shape: (usize, usize, usize, usize),
    ) -> Result<Buffer> {
        let x = activations("avg-pool2d", x)?;
        let y = empty(x.device, x.dtype, shape)?;
        let channels = shape.3;
        let program = Program::packed(x.dtype, channels);
        let packs = program.packs(y.elements().count());
        let sizes = [x.into(), (&y).into(), packs.into(), channels.into()];
        let arguments = [&sizes[..], &Argument::windows(windows)].concat();
        launch(x.device, program, kernel, packs, &arguments)?;
        Ok(y)
    }
}
