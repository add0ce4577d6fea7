//! ReLU, and its gradient for the operations into which it is fused.

use crate::operation::{Gradients, Inputs, Operation, Output, in_graph, only};
use crate::storage::{output, with_element, with_slices};
use candle_core::{Result, Tensor};

/// `max(x, 0)` of a tensor of any shape; its gradient at 0 is 0, as in PyTorch.
///
/// # Errors
/// When the tensor is not `f32`, `bf16` or, on a CPU, `f64`.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    in_graph(Relu, [x; 3])
}

pub(crate) struct Relu;

impl Operation for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn computes_bf16(&self) -> bool {
        true
    }

    fn forward(&self, [x, ..]: Inputs) -> Result<Output> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return cuda::forward(x);
        }
        with_element!("relu", x.dtype(), T => {
            let mut y = with_slices::<T, _, 1>("relu", [x], |[x]| x.to_vec())?;
            kernels::relu::forward(&mut y);
            Ok(output(y, x.shape()))
        })
    }

    fn backward(&self, _: Inputs, [y, grad_y]: [&Tensor; 2], _: bool) -> Result<Gradients> {
        only(relu_gradient(y, grad_y)?)
    }
}

/// The gradient with respect to the input of a ReLU, from its output `y` and the gradient of that.
pub(crate) fn relu_gradient(y: &Tensor, grad_y: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if y.device().is_cuda() {
        let y = crate::cuda::activations("relu", y)?;
        let grad_y = crate::cuda::Elements::of("relu", grad_y, y.dtype)?;
        return Ok(cuda::gradient(y, grad_y)?.tensor());
    }
    with_element!("relu", y.dtype(), T => {
        let gradient = with_slices::<T, _, 2>("relu", [y, grad_y], |[y, grad_y]| {
            let mut gradient = grad_y.to_vec();
            kernels::relu::backward(y, &mut gradient);
            gradient
        })?;
        Tensor::from_vec(gradient, y.shape(), y.device())
    })
}

#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    use crate::cuda::{Argument, Buffer, Elements, Program, activations, empty, launch};
    use crate::operation::Output;
    use candle_core::{Result, Tensor};

    pub(super) fn forward(x: &Tensor) -> Result<Output> {
        let elements = activations("relu", x)?;
        let y = empty(elements.device, elements.dtype, x.shape())?;
        // Without a bias any number of channels will do.
        activate(elements, None, &y, elements.count().max(1), true)?;
        Ok(y.output())
    }

    /// `y`, which may be `x`, from `x`: adds `bias` to every row of `channels` values, and applies ReLU if `relu`.
    pub(crate) fn activate(
        x: Elements<'_>,
        bias: Option<Elements<'_>>,
        y: &Buffer,
        channels: usize,
        relu: bool,
    ) -> Result<()> {
        assert_eq!(x.count(), y.elements().count());
        let program = Program::packed(x.dtype, channels);
        let packs = program.packs(x.count());
        let arguments = [
            x.into(),
            Argument::maybe(bias),
            y.into(),
            packs.into(),
            channels.into(),
            relu.into(),
        ];
        launch(x.device, program, "activate", packs, &arguments)
    }

    /// The gradient with respect to the input of a ReLU, from its output `y` and the gradient of that.
    pub(crate) fn gradient(y: Elements<'_>, grad_y: Elements<'_>) -> Result<Buffer> {
        assert_eq!(y.count(), grad_y.count());
        let x = empty(y.device, y.dtype, y.shape)?;
        let program = Program::packed(y.dtype, y.count());
        let packs = program.packs(y.count());
        let arguments = [y.into(), grad_y.into(), (&x).into(), packs.into()];
        launch(y.device, program, "relu_gradient", packs, &arguments)?;
        Ok(x)
    }
}
