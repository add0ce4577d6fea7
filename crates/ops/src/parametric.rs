//! Operations with a weight and a bias, as the tape and candle's graph differentiate them.

use candle_core::{CustomOp3, Result, Tensor};

/// An operation on an input, a weight and a bias. Its forward pass runs once.
pub(crate) trait Parametric: CustomOp3 + Send + Sync {
    /// The gradients, from the result `y` and its gradient; that of `x` only if `wants_x`.
    fn backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        y: &Tensor,
        grad_y: &Tensor,
        wants_x: bool,
    ) -> Result<ParameterGradients>;
}

/// The gradients of an operation with parameters.
pub(crate) struct ParameterGradients {
    pub(crate) x: Option<Tensor>,
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
}

impl ParameterGradients {
    /// On the CPU, from the kernels' slices.
    pub(crate) fn from_vecs<T: candle_core::WithDType>(
        gradients: kernels::ParameterGradients<T>,
        x: &Tensor,
        weight: &Tensor,
    ) -> Result<Self> {
        let kernels::ParameterGradients {
            x: grad_x,
            weight: grad_weight,
            bias,
        } = gradients;
        let channels = bias.len();
        Ok(Self {
            x: grad_x
                .map(|grad_x| Tensor::from_vec(grad_x, x.shape(), x.device()))
                .transpose()?,
            weight: Tensor::from_vec(grad_weight, weight.shape(), x.device())?,
            bias: Tensor::from_vec(bias, channels, x.device())?,
        })
    }
}

/// Three gradients as candle's graph takes them.
type GraphGradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

/// [`Parametric::backward`] for candle's graph, which adds each gradient to one of its argument's type.
pub(crate) fn graph_gradients(
    operation: &impl Parametric,
    [x, weight, bias]: [&Tensor; 3],
    y: &Tensor,
    grad_y: &Tensor,
) -> Result<GraphGradients> {
    let gradients = operation.backward(x, weight, y, &grad_y.contiguous()?, x.track_op())?;
    Ok((
        gradients.x,
        Some(gradients.weight.to_dtype(weight.dtype())?),
        Some(gradients.bias.to_dtype(bias.dtype())?),
    ))
}
