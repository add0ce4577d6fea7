//! A fully connected layer with its bias and rectifier in one operation.
//!
//! The products are arranged so that the weight, which is the largest operand, is read as it lies:
//! `y' = W x'`, `dx = dy W`, `dW = dy' x`.

use crate::Activation;
use crate::matmul::{Matrix, par_matmul, par_matmul_into};
use crate::relu::relu_gradient;
use crate::scratch::{Scratch, par_parts};
use crate::simd::Real;
use crate::storage::{slice, with_dtype};
use crate::tape::ParameterGradients;
use candle_core::{Result, Tensor, WithDType, bail};

/// `activation(x · weight' + bias)`.
pub(crate) fn forward(
    activation: Activation,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<Tensor> {
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
    with_dtype!("linear", x.dtype(), T => {
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
    })
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

/// The gradients, from that of the result `y`; that of `x` only where it is wanted.
pub(crate) fn backward(
    activation: Activation,
    x: &Tensor,
    weight: &Tensor,
    y: &Tensor,
    grad_y: &Tensor,
    wants_x: bool,
) -> Result<ParameterGradients> {
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
