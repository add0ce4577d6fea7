//! From images to rows of features.

use crate::operation::{Gradients, Inputs, Operation, Output, in_graph, only, tensor};
use crate::storage::{output, with_element, with_slices};
use candle_core::{Result, Shape, Tensor};

/// From images `[batch, height, width, channels]` to rows `[batch, channels * height * width]`, in PyTorch's order:
/// channel, row, column.
///
/// # Errors
/// When the tensor has other dimensions, or is not `f32`, `bf16` or, on a CPU, `f64`.
pub fn flatten(x: &Tensor) -> Result<Tensor> {
    in_graph(Flatten, [x; 3])
}

pub(crate) struct Flatten;

impl Operation for Flatten {
    fn name(&self) -> &'static str {
        "flatten"
    }

    fn computes_bf16(&self) -> bool {
        true
    }

    fn forward(&self, [x, ..]: Inputs) -> Result<Output> {
        let (batch, height, width, channels) = x.dims4()?;
        let shape = Shape::from((batch, channels * height * width));
        transpose(x, (batch, height * width, channels), shape)
    }

    fn backward(&self, [x, ..]: Inputs, [_, grad_y]: [&Tensor; 2], _: bool) -> Result<Gradients> {
        let (batch, height, width, channels) = x.dims4()?;
        let sizes = (batch, channels, height * width);
        only(tensor(transpose(grad_y, sizes, x.shape().clone())?))
    }
}

/// The transposes of the matrices `[batch, rows, columns]`, in `shape`.
fn transpose(
    x: &Tensor,
    (batch, rows, columns): (usize, usize, usize),
    shape: Shape,
) -> Result<Output> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        use crate::cuda::{Program, activations, empty, launch};
        let x = activations("flatten", x)?;
        let y = empty(x.device, x.dtype, shape)?;
        let count = x.count();
        let sizes = [count, rows, columns].map(Into::into);
        let arguments = [&[x.into(), (&y).into()], &sizes[..]].concat();
        let program = Program::packed(x.dtype, 1);
        launch(x.device, program, "transpose", count, &arguments)?;
        return Ok(y.output());
    }
    with_element!("flatten", x.dtype(), T => {
        let y = with_slices::<T, _, 1>("flatten", [x], |[x]| {
            kernels::transpose::transpose(x, (batch, rows, columns))
        })?;
        Ok(output(y, shape))
    })
}
