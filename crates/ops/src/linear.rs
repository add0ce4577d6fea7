//! A fully connected layer with its bias and activation in one operation.

use crate::arithmetic::Precision;
use crate::parametric::{ParameterGradients, Parametric, graph_gradients};
use crate::relu::relu_gradient;
use crate::storage::{contiguous, slice, with_dtype, with_float};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};
use kernels::Activation;
use kernels::linear::Sizes;
#[cfg(feature = "cuda")]
use std::sync::OnceLock;

/// `activation(x · weight' + bias)` for `x` `[batch, in_features]`, `weight` `[out_features, in_features]` and `bias`
/// `[out_features]`: gives `[batch, out_features]`. `precision` matters on a GPU.
///
/// # Errors
/// When the shapes do not fit, or the tensors are neither all `f32` nor all `f64`. On a GPU: when `x` is neither `f32` nor
/// `bf16`, or weight and bias are not `f32`.
pub fn linear(
    precision: Precision,
    activation: Activation,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<Tensor> {
    let operation = Operation::new(activation, precision);
    x.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias.contiguous()?, operation)
}

/// One use of a fully connected layer.
pub(crate) struct Operation {
    activation: Activation,
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    precision: Precision,
    /// The weight in the type of the activations, for the backward pass.
    #[cfg(feature = "cuda")]
    saved: OnceLock<Tensor>,
}

impl Operation {
    pub(crate) fn new(activation: Activation, precision: Precision) -> Self {
        Self {
            activation,
            precision,
            #[cfg(feature = "cuda")]
            saved: OnceLock::new(),
        }
    }
}

fn checked(x: &Layout, weight: &Layout, bias: &Layout) -> Result<Sizes> {
    let (batch, inputs) = x.shape().dims2()?;
    let (outputs, weight_inputs) = weight.shape().dims2()?;
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

impl CustomOp3 for Operation {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = checked(x_layout, weight_layout, bias_layout)?;
        with_float!("linear", x, T => {
            let y = kernels::linear::forward::<T>(
                sizes,
                self.activation,
                contiguous("linear", x, x_layout)?,
                contiguous("linear", weight, weight_layout)?,
                contiguous("linear", bias, bias_layout)?,
            );
            Ok((T::to_cpu_storage_owned(y), Shape::from((sizes.batch, sizes.outputs))))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let sizes = checked(x_layout, weight_layout, bias_layout)?;
        let (y, converted) = cuda::forward(
            (self.activation, self.precision, sizes),
            [(x, x_layout), (weight, weight_layout), (bias, bias_layout)],
        )?;
        if let Some(converted) = converted {
            let _ = self.saved.set(converted);
        }
        Ok((y, Shape::from((sizes.batch, sizes.outputs))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        grad_y: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        graph_gradients(self, [x, weight, bias], y, grad_y)
    }
}

impl Parametric for Operation {
    fn backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        y: &Tensor,
        grad_y: &Tensor,
        wants_x: bool,
    ) -> Result<ParameterGradients> {
        #[cfg(feature = "cuda")]
        if let Some(device) = crate::cuda::gpu(x) {
            let weight = self.saved.get().unwrap_or(weight);
            let layer = (self.activation, self.precision);
            return cuda::backward(device, layer, (x, weight), (y, grad_y), wants_x);
        }
        let grad_y = match self.activation {
            Activation::Identity => grad_y.clone(),
            Activation::Relu => relu_gradient(y, grad_y)?,
        };
        let (batch, inputs) = x.dims2()?;
        let sizes = Sizes {
            batch,
            inputs,
            outputs: y.dim(1)?,
        };
        with_dtype!("linear", x.dtype(), T => {
            let gradients = {
                let ((x, x_layout), (weight, weight_layout), (grad_y, grad_layout)) =
                    (x.storage_and_layout(), weight.storage_and_layout(), grad_y.storage_and_layout());
                kernels::linear::backward::<T>(
                    sizes,
                    slice("linear", &x, x_layout)?,
                    slice("linear", &weight, weight_layout)?,
                    slice("linear", &grad_y, grad_layout)?,
                    wants_x,
                )
            };
            ParameterGradients::from_vecs(gradients, x, weight)
        })
    }
}

/// On a GPU, by cuBLASLt. The result of a layer without activation is `f32` at every precision: it is the last layer, and
/// the loss follows.
#[cfg(feature = "cuda")]
mod cuda {
    use crate::arithmetic::Precision;
    use crate::cuda::{
        Activations, Argument, Product, Program, Stored, contiguous, from_f32, launch, product,
        room, slice, sum_rows, tensor, to_activations, with_activations,
    };
    use crate::parametric::ParameterGradients;
    use candle_core::backend::BackendStorage;
    use candle_core::cuda::cudarc::driver::CudaView;
    use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Tensor};
    use kernels::Activation;
    use kernels::linear::Sizes;

    type Stores<'a> = [(&'a CudaStorage, &'a Layout); 3];

    /// The result, and the weight in the type of the activations if that is not `f32`.
    pub(super) fn forward(
        layer: (Activation, Precision, Sizes),
        inputs: Stores<'_>,
    ) -> Result<(CudaStorage, Option<Tensor>)> {
        with_activations!("linear", inputs[0].0.dtype(), T => forward_in::<T>(layer, inputs))
    }

    fn forward_in<T: Activations>(
        (activation, precision, sizes): (Activation, Precision, Sizes),
        [(x, x_layout), (weight, weight_layout), (bias, bias_layout)]: Stores<'_>,
    ) -> Result<(CudaStorage, Option<Tensor>)> {
        let device = x.device();
        let x = contiguous::<T>("linear", x, x_layout)?;
        let bias = contiguous::<f32>("linear", bias, bias_layout)?;
        if T::DTYPE == DType::F32 {
            let weight = contiguous::<T>("linear", weight, weight_layout)?;
            let y = apply(device, (activation, precision, sizes), (&x, &weight, &bias))?;
            return Ok((y, None));
        }
        let weight = contiguous::<f32>("linear", weight, weight_layout)?;
        let weight = from_f32::<T>(device, &weight)?;
        let y = apply(
            device,
            (activation, precision, sizes),
            (&x, &weight.as_view(), &bias),
        )?;
        Ok((
            y,
            Some(tensor(weight, (sizes.outputs, sizes.inputs), device)),
        ))
    }

    fn apply<T: Activations>(
        device: &CudaDevice,
        (activation, precision, sizes): (Activation, Precision, Sizes),
        (x, weight, bias): (&CudaView<'_, T>, &CudaView<'_, T>, &CudaView<'_, f32>),
    ) -> Result<CudaStorage> {
        let Sizes {
            batch,
            inputs,
            outputs,
        } = sizes;
        let count = batch * outputs;
        let task = Product {
            rows: batch,
            columns: outputs,
            depth: inputs,
            a: Stored::AsIs,
            b: Stored::Transposed,
        };
        Ok(match activation {
            Activation::Relu => {
                let mut y = room::<T>(device, count)?;
                product(device, precision, task, (x, weight), &mut y)?;
                crate::relu::cuda::activate(device, &mut y, Some(bias), outputs, true)?;
                CudaStorage::wrap_cuda_slice(y, device.clone())
            }
            Activation::Identity => {
                let mut y = room::<f32>(device, count)?;
                product(device, precision, task, (x, weight), &mut y)?;
                launch(
                    device,
                    Program::packed::<T>(1),
                    "add_bias_wide",
                    count,
                    &[
                        Argument::write(device, &mut y),
                        Argument::read(device, bias),
                        count.into(),
                        outputs.into(),
                    ],
                )?;
                CudaStorage::wrap_cuda_slice(y, device.clone())
            }
        })
    }

    pub(super) fn backward(
        device: &CudaDevice,
        layer: (Activation, Precision),
        inputs: (&Tensor, &Tensor),
        results: (&Tensor, &Tensor),
        wants_x: bool,
    ) -> Result<ParameterGradients> {
        with_activations!("linear", inputs.0.dtype(), T => {
            backward_in::<T>(device, layer, inputs, results, wants_x)
        })
    }

    fn backward_in<T: Activations>(
        device: &CudaDevice,
        (activation, precision): (Activation, Precision),
        (x, weight): (&Tensor, &Tensor),
        (y, grad_y): (&Tensor, &Tensor),
        wants_x: bool,
    ) -> Result<ParameterGradients> {
        let (batch, inputs) = x.dims2()?;
        let outputs = weight.dim(0)?;
        let grad_y = match activation {
            Activation::Relu => crate::relu::relu_gradient(y, grad_y)?,
            Activation::Identity => to_activations::<T>(grad_y)?,
        };
        let (x, x_layout) = x.storage_and_layout();
        let (grad_y, grad_layout) = grad_y.storage_and_layout();
        let x = slice::<T>("linear", &x, x_layout)?;
        let grad_y = slice::<T>("linear", &grad_y, grad_layout)?;

        let grad_x = if wants_x {
            let (weight, weight_layout) = weight.storage_and_layout();
            let weight = slice::<T>("linear", &weight, weight_layout)?;
            let mut grad_x = room::<T>(device, batch * inputs)?;
            let task = Product {
                rows: batch,
                columns: inputs,
                depth: outputs,
                a: Stored::AsIs,
                b: Stored::AsIs,
            };
            product(device, precision, task, (&grad_y, &weight), &mut grad_x)?;
            Some(tensor(grad_x, (batch, inputs), device))
        } else {
            None
        };

        let mut grad_weight = room::<T>(device, outputs * inputs)?;
        let task = Product {
            rows: outputs,
            columns: inputs,
            depth: batch,
            a: Stored::Transposed,
            b: Stored::AsIs,
        };
        product(device, precision, task, (&grad_y, &x), &mut grad_weight)?;
        Ok(ParameterGradients {
            x: grad_x,
            weight: tensor(grad_weight, (outputs, inputs), device),
            bias: sum_rows(device, &grad_y, (batch, outputs))?,
        })
    }
}
