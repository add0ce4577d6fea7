//! A fully connected layer with its bias and activation in one operation.

use crate::arithmetic::Precision;
use crate::operation::{Gradients, Inputs, Operation, Output, in_graph, shards};
use crate::relu::relu_gradient;
use crate::storage::{gradients, output, with_dtype, with_slices};
use candle_core::{DType, Result, Tensor, bail};
use half::bf16;
use kernels::linear::{Sizes, backward_bf16, forward_bf16};
use kernels::{Activation, Shards};
#[cfg(feature = "cuda")]
use std::sync::OnceLock;

/// `activation(x · weight' + bias)` for `x` `[batch, in_features]`, `weight` `[out_features, in_features]` and `bias`
/// `[out_features]`: gives `[batch, out_features]`. On a CPU the type of `x` decides, on a
/// GPU `precision`. For `x` in `bf16` the result is `bf16`, or `f32` without an activation: that is the last layer, and
/// the loss follows.
///
/// # Errors
/// When the shapes do not fit, or the tensors are not all `f32`, all `f64`, or `x` in `bf16` with weight and bias in
/// `f32`. On a GPU there is no `f64`.
pub fn linear(
    precision: Precision,
    activation: Activation,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<Tensor> {
    in_graph(Linear::new(activation, precision, None), [x, weight, bias])
}

/// One use of a fully connected layer.
pub(crate) struct Linear {
    activation: Activation,
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    precision: Precision,
    /// Those of the batch, if there are several.
    shards: Option<Shards>,
    /// The weight in the type of the activations, if that is not its own.
    #[cfg(feature = "cuda")]
    saved: OnceLock<crate::cuda::Buffer>,
}

impl Linear {
    pub(crate) fn new(
        activation: Activation,
        precision: Precision,
        shards: Option<Shards>,
    ) -> Self {
        Self {
            activation,
            precision,
            shards,
            #[cfg(feature = "cuda")]
            saved: OnceLock::new(),
        }
    }
}

fn sizes([x, weight, bias]: [&Tensor; 3]) -> Result<Sizes> {
    let (batch, inputs) = x.dims2()?;
    let (outputs, weight_inputs) = weight.dims2()?;
    if weight_inputs != inputs || bias.dims() != [outputs] {
        bail!(
            "linear: an input of shape {:?}, a weight of shape {:?} and a bias of shape {:?} do not fit",
            x.shape(),
            weight.shape(),
            bias.shape()
        );
    }
    Ok(Sizes {
        batch,
        inputs,
        outputs,
    })
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn computes_bf16(&self) -> bool {
        true
    }

    fn forward(&self, inputs: Inputs) -> Result<Output> {
        let sizes = sizes(inputs)?;
        let [x, weight, bias] = inputs;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.forward_cuda(sizes, inputs);
        }
        let shape = (sizes.batch, sizes.outputs);
        if x.dtype() == DType::BF16 {
            return with_slices("linear", [x], |[x]| {
                with_slices("linear", [weight, bias], |[weight, bias]| {
                    match self.activation {
                        Activation::Identity => output::<f32>(
                            forward_bf16(sizes, self.activation, x, weight, bias),
                            shape,
                        ),
                        Activation::Relu => output::<bf16>(
                            forward_bf16(sizes, self.activation, x, weight, bias),
                            shape,
                        ),
                    }
                })
            })?;
        }
        with_dtype!("linear", x.dtype(), T => {
            let y = with_slices::<T, _, 3>("linear", inputs, |[x, weight, bias]| {
                kernels::linear::forward(sizes, self.activation, x, weight, bias)
            })?;
            Ok(output(y, shape))
        })
    }

    fn backward(&self, inputs: Inputs, results: [&Tensor; 2], wants_x: bool) -> Result<Gradients> {
        let [y, grad_y] = results;
        let sizes = sizes(inputs)?;
        let grad_y = &match self.activation {
            Activation::Identity => grad_y.clone(),
            Activation::Relu => relu_gradient(y, grad_y)?,
        };
        let [x, weight, _] = inputs;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.backward_cuda(sizes, x, weight, grad_y, wants_x);
        }
        let shards = shards("linear", self.shards, sizes.batch)?;
        if x.dtype() == DType::BF16 {
            let found = with_slices("linear", [x], |[x]| {
                with_slices("linear", [weight], |[weight]| match grad_y.dtype() {
                    DType::F32 => with_slices::<f32, _, 1>("linear", [grad_y], |[grad_y]| {
                        backward_bf16(sizes, shards, x, weight, grad_y, wants_x)
                    }),
                    _ => with_slices::<bf16, _, 1>("linear", [grad_y], |[grad_y]| {
                        backward_bf16(sizes, shards, x, weight, grad_y, wants_x)
                    }),
                })
            })???;
            return Ok(gradients(found, inputs));
        }
        with_dtype!("linear", x.dtype(), T => {
            let found = with_slices::<T, _, 3>("linear", [x, weight, grad_y], |[x, weight, grad_y]| {
                kernels::linear::backward(sizes, shards, x, weight, grad_y, wants_x)
            })?;
            Ok(gradients(found, inputs))
        })
    }
}

/// On a GPU, by cuBLASLt. The result of a layer without activation is `f32` at every precision: it is the last layer, and
/// the loss follows.
#[cfg(feature = "cuda")]
mod cuda {
    use super::Linear;
    use crate::cuda::{
        Elements, Program, Stored, activations, empty, from_f32, launch, product, sum_rows,
        to_activations,
    };
    use crate::operation::{Gradients, Output};
    use candle_core::{DType, Error, Result, Tensor};
    use kernels::Activation;
    use kernels::linear::Sizes;

    impl Linear {
        pub(super) fn forward_cuda(
            &self,
            sizes: Sizes,
            [x, weight, bias]: [&Tensor; 3],
        ) -> Result<Output> {
            let x = activations("linear", x)?;
            let bias = Elements::of("linear", bias, DType::F32)?;
            let mut weight = Elements::of("linear", weight, DType::F32)?;
            if x.dtype != DType::F32 {
                let _ = self.saved.set(from_f32(weight, x.dtype)?);
                weight = self.saved.get().map_or(weight, |saved| saved.elements());
            }
            let Sizes { batch, outputs, .. } = sizes;
            let relu = self.activation == Activation::Relu;
            let dtype = if relu { x.dtype } else { DType::F32 };
            let y = empty(x.device, dtype, (batch, outputs))?;
            product(
                self.precision,
                (x, Stored::AsIs),
                (weight, Stored::Transposed),
                y.elements(),
            )?;
            if relu {
                crate::relu::cuda::activate(y.elements(), Some(bias), &y, outputs, true)?;
            } else {
                let count = batch * outputs;
                let arguments = [(&y).into(), bias.into(), count.into(), outputs.into()];
                let program = Program::packed(x.dtype, 1);
                launch(x.device, program, "add_bias_wide", count, &arguments)?;
            }
            Ok(y.output())
        }

        /// The gradients, from that of the sums.
        pub(super) fn backward_cuda(
            &self,
            sizes: Sizes,
            x: &Tensor,
            weight: &Tensor,
            grad_y: &Tensor,
            wants_x: bool,
        ) -> Result<Gradients> {
            let Sizes {
                batch,
                inputs,
                outputs,
            } = sizes;
            let x = activations("linear", x)?;
            let grad_y = to_activations(grad_y, x.dtype)?;
            let grad_y = Elements::of("linear", &grad_y, x.dtype)?;
            let weight = match self.saved.get() {
                Some(saved) => saved.elements(),
                None => Elements::of("linear", weight, x.dtype)?,
            };
            let multiplied = |a, b, rows, columns| {
                let c = empty(x.device, x.dtype, (rows, columns))?;
                product(self.precision, a, (b, Stored::AsIs), c.elements())?;
                Ok::<_, Error>(c.tensor())
            };
            let grad_x = wants_x.then(|| multiplied((grad_y, Stored::AsIs), weight, batch, inputs));
            Ok([
                grad_x.transpose()?,
                Some(multiplied(
                    (grad_y, Stored::Transposed),
                    x,
                    outputs,
                    inputs,
                )?),
                Some(sum_rows(grad_y, (batch, outputs))?),
            ])
        }
    }
}
