//! A fully connected layer with its bias and rectifier in one operation.
//!
//! The products are arranged so that the weight, which is the largest operand, is read as it lies:
//! `y' = W x'`, `dx = dy W`, `dW = dy' x`.

use crate::Activation;
use crate::Precision;
use crate::matmul::{Matrix, par_matmul, par_matmul_into};
use crate::relu::relu_gradient;
use crate::scratch::{Scratch, par_parts};
use crate::simd::Real;
use crate::storage::{slice, with_dtype};
use crate::tape::ParameterGradients;
use candle_core::{Result, Tensor, WithDType, bail};

/// `activation(x · weight' + bias)`, and the weight as the products used it, for the way back.
pub(crate) fn forward(
    activation: Activation,
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] precision: Precision,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<(Tensor, Tensor)> {
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
    #[cfg(feature = "cuda")]
    if let Some(device) = crate::cuda::gpu(x) {
        return cuda::forward(device, activation, precision, (x, weight, bias));
    }
    let y = with_dtype!("linear", x.dtype(), T => {
        let ((x_storage, x_layout), (weight, weight_layout), (bias, bias_layout)) =
            (x.storage_and_layout(), weight.storage_and_layout(), bias.storage_and_layout());
        let y = product::<T>(
            slice("linear", &x_storage, x_layout)?,
            slice("linear", &weight, weight_layout)?,
            slice("linear", &bias, bias_layout)?,
            (batch, inputs, outputs),
            activation,
        );
        Tensor::from_vec(y, (batch, outputs), x.device())
    })?;
    Ok((y, weight.clone()))
}

fn product<T: Real>(
    x: &[T],
    weight: &[T],
    bias: &[T],
    (batch, inputs, outputs): (usize, usize, usize),
    activation: Activation,
) -> Vec<T> {
    let mut transposed = Scratch::new(outputs * batch);
    par_matmul_into(
        &mut transposed,
        Matrix::new(weight, outputs, inputs),
        Matrix::new(x, batch, inputs).transposed(),
    );
    par_parts(batch, outputs, |image, y| {
        let column = transposed[image..].iter().step_by(batch);
        for ((y, sum), bias) in y.iter_mut().zip(column).zip(bias) {
            *y = activation.of(*sum + *bias);
        }
    })
}

/// The gradients, from that of the result `y`; that of `x` only where it is wanted. `weight` is what
/// [`forward`] used.
pub(crate) fn backward(
    activation: Activation,
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] precision: Precision,
    x: &Tensor,
    weight: &Tensor,
    (y, grad_y): (&Tensor, &Tensor),
    wants_x: bool,
) -> Result<ParameterGradients> {
    #[cfg(feature = "cuda")]
    if let Some(device) = crate::cuda::gpu(x) {
        return cuda::backward(
            device,
            activation,
            precision,
            (x, weight),
            (y, grad_y),
            wants_x,
        );
    }
    let grad_y = match activation {
        Activation::Identity => grad_y.clone(),
        Activation::Relu => relu_gradient(y, grad_y)?,
    };
    let (batch, inputs) = x.dims2()?;
    let outputs = y.dim(1)?;
    with_dtype!("linear", x.dtype(), T => {
        let ((x_storage, x_layout), (weight, weight_layout), (grad_y, grad_layout)) =
            (x.storage_and_layout(), weight.storage_and_layout(), grad_y.storage_and_layout());
        let x_values = slice::<T>("linear", &x_storage, x_layout)?;
        let weight = slice::<T>("linear", &weight, weight_layout)?;
        let grad_y = slice::<T>("linear", &grad_y, grad_layout)?;
        let grad_matrix = Matrix::new(grad_y, batch, outputs);
        let grad_x = wants_x.then(|| {
            let mut transposed = Scratch::new(inputs * batch);
            par_matmul_into(
                &mut transposed,
                Matrix::new(weight, outputs, inputs).transposed(),
                grad_matrix.transposed(),
            );
            let grad_x = par_parts(batch, inputs, |image, grad_x| {
                let column = transposed[image..].iter().step_by(batch);
                for (to, from) in grad_x.iter_mut().zip(column) {
                    *to = *from;
                }
            });
            Tensor::from_vec(grad_x, (batch, inputs), x.device())
        });
        let grad_weight = par_matmul(grad_matrix.transposed(), Matrix::new(x_values, batch, inputs));
        let mut sums = vec![0.0; outputs];
        for row in grad_y.chunks_exact(outputs.max(1)) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value.to_f64());
        }
        let grad_bias: Vec<T> = sums.into_iter().map(T::from_f64).collect();
        Ok(ParameterGradients {
            x: grad_x.transpose()?,
            weight: Tensor::from_vec(grad_weight, (outputs, inputs), x.device())?,
            bias: Tensor::from_vec(grad_bias, outputs, x.device())?,
        })
    })
}

/// On a GPU, by cuBLASLt. The result of a layer without activation is `f32` whatever the activations
/// are: it is the last, and the loss follows.
#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    use crate::conv2d::cuda::narrowed_to;
    use crate::cuda::{
        Activations, Argument, GROUP, Product, Program, Stored, launch, libraries, narrowed,
        product, room, slice, tensor, with_activations,
    };
    use crate::tape::ParameterGradients;
    use crate::{Activation, Precision};
    use candle_core::cuda::cudarc::driver::CudaView;
    use candle_core::{CudaDevice, Result, Tensor};

    pub(super) fn forward(
        device: &CudaDevice,
        activation: Activation,
        precision: Precision,
        (x, weight, bias): (&Tensor, &Tensor, &Tensor),
    ) -> Result<(Tensor, Tensor)> {
        with_activations!("linear", x.dtype(), T => {
            forward_in::<T>(device, activation, precision, (x, weight, bias))
        })
    }

    fn forward_in<T: Activations>(
        device: &CudaDevice,
        activation: Activation,
        precision: Precision,
        (x, weight, bias): (&Tensor, &Tensor, &Tensor),
    ) -> Result<(Tensor, Tensor)> {
        let (batch, inputs) = x.dims2()?;
        let outputs = weight.dim(0)?;
        let used = narrowed::<T>(weight)?;
        let (x, x_layout) = x.storage_and_layout();
        let (weight, weight_layout) = used.storage_and_layout();
        let (bias, bias_layout) = bias.storage_and_layout();
        let x = slice::<T>("linear", &x, x_layout)?;
        let weight = slice::<T>("linear", &weight, weight_layout)?;
        let bias = slice::<f32>("linear", &bias, bias_layout)?;
        let libraries = libraries(device)?;
        let count = batch * outputs;
        let task = Product {
            rows: batch,
            columns: outputs,
            depth: inputs,
            a: Stored::AsIs,
            b: Stored::Transposed,
        };
        let shape = (batch, outputs);
        let y = match activation {
            Activation::Relu => {
                let mut y = room::<T>(device, count)?;
                product(device, &libraries, precision, task, (&x, &weight), &mut y)?;
                crate::relu::cuda::activate(device, &mut y, Some(&bias), outputs, true)?;
                tensor(y, shape, device)
            }
            Activation::Identity => {
                let mut y = room::<f32>(device, count)?;
                product(device, &libraries, precision, task, (&x, &weight), &mut y)?;
                launch(
                    device,
                    Program::packed::<T>(1),
                    "add_bias_wide",
                    count,
                    &[
                        Argument::write(device, &mut y),
                        Argument::read(device, &bias),
                        count.into(),
                        outputs.into(),
                    ],
                )?;
                tensor(y, shape, device)
            }
        };
        Ok((y, used.clone()))
    }

    pub(super) fn backward(
        device: &CudaDevice,
        activation: Activation,
        precision: Precision,
        (x, weight): (&Tensor, &Tensor),
        (y, grad_y): (&Tensor, &Tensor),
        wants_x: bool,
    ) -> Result<ParameterGradients> {
        with_activations!("linear", x.dtype(), T => {
            backward_in::<T>(device, activation, precision, (x, weight), (y, grad_y), wants_x)
        })
    }

    fn backward_in<T: Activations>(
        device: &CudaDevice,
        activation: Activation,
        precision: Precision,
        (x, weight): (&Tensor, &Tensor),
        (y, grad_y): (&Tensor, &Tensor),
        wants_x: bool,
    ) -> Result<ParameterGradients> {
        let (batch, inputs) = x.dims2()?;
        let outputs = weight.dim(0)?;
        let grad_y = match activation {
            Activation::Relu => crate::relu::relu_gradient(y, grad_y)?,
            Activation::Identity => narrowed_to::<T>(grad_y)?,
        };
        let (x, x_layout) = x.storage_and_layout();
        let (grad_y, grad_layout) = grad_y.storage_and_layout();
        let x = slice::<T>("linear", &x, x_layout)?;
        let grad_y = slice::<T>("linear", &grad_y, grad_layout)?;
        let libraries = libraries(device)?;

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
            product(
                device,
                &libraries,
                precision,
                task,
                (&grad_y, &weight),
                &mut grad_x,
            )?;
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
        product(
            device,
            &libraries,
            precision,
            task,
            (&grad_y, &x),
            &mut grad_weight,
        )?;
        Ok(ParameterGradients {
            x: grad_x,
            weight: tensor(grad_weight, (outputs, inputs), device),
            bias: sum_rows(device, &grad_y, (batch, outputs))?,
        })
    }

    /// The sum of the rows of `x` `[rows, channels]`, in `f32`: groups of rows first, then groups of groups,
    /// each in its order.
    pub(crate) fn sum_rows<T: Activations>(
        device: &CudaDevice,
        x: &CudaView<'_, T>,
        (rows, channels): (usize, usize),
    ) -> Result<Tensor> {
        assert_eq!(x.len(), rows * channels);
        let program = Program::packed::<T>(channels);
        let mut left = rows.div_ceil(GROUP);
        let mut sums = room::<f32>(device, left * channels)?;
        let packs = program.packs(left * channels);
        launch(
            device,
            program,
            "sum_rows",
            packs,
            &[
                Argument::read(device, x),
                Argument::write(device, &mut sums),
                packs.into(),
                rows.into(),
                channels.into(),
            ],
        )?;
        while left > 1 {
            let rows = left;
            left = rows.div_ceil(GROUP);
            let mut fewer = room::<f32>(device, left * channels)?;
            launch(
                device,
                Program::packed::<T>(1),
                "sum_sums",
                left * channels,
                &[
                    Argument::read(device, &sums.as_view()),
                    Argument::write(device, &mut fewer),
                    (left * channels).into(),
                    rows.into(),
                    channels.into(),
                ],
            )?;
            sums = fewer;
        }
        Ok(tensor(sums, channels, device))
    }
}
