//! A fully connected layer with its bias and activation.
//!
//! The products are arranged so that the weight, which is the largest operand, is read without a copy: `y' = W x'`,
//! `dx = dy W`, `dW = dy' x`.

use crate::activation::Activation;
use crate::element::Element;
use crate::gradients::{ParameterGradients, sum_rows};
use crate::matmul::{Matrix, par_matmul_into, par_sharded_matmul};
use crate::parts::par_parts;
use crate::scratch::Scratch;
use crate::shards::Shards;
use crate::simd::Real;
use half::bf16;

/// The sizes of a fully connected layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of the input.
    pub batch: usize,
    /// Columns of the input.
    pub inputs: usize,
    /// Columns of the output.
    pub outputs: usize,
}

/// `activation(x · weight' + bias)`, `[batch, outputs]`, for `x` `[batch, inputs]`, `weight` `[outputs, inputs]` and
/// `bias` `[outputs]`.
///
/// # Panics
/// When a slice is too short.
#[must_use]
pub fn forward<T: Real>(
    Sizes {
        batch,
        inputs,
        outputs,
    }: Sizes,
    activation: Activation,
    x: &[T],
    weight: &[T],
    bias: &[T],
) -> Vec<T> {
    assert_eq!(bias.len(), outputs);
    let mut transposed = Scratch::new(outputs * batch);
    par_matmul_into(
        &mut transposed,
        Matrix::new(weight, outputs, inputs),
        Matrix::new(x, batch, inputs).transposed(),
    );
    par_parts(batch, outputs, |row, y| {
        let column = transposed[row..].iter().step_by(batch);
        for ((y, sum), bias) in y.iter_mut().zip(column).zip(bias) {
            *y = activation.apply(*sum + *bias);
        }
    })
}

/// The same for `x` in `bf16`: products of `bf16`, with sums, bias and activation in `f32`. The result is of type `E`.
///
/// # Panics
/// As for [`forward`].
#[must_use]
pub fn forward_bf16<E: Element<Real = f32>>(
    sizes: Sizes,
    activation: Activation,
    x: &[bf16],
    weight: &[f32],
    bias: &[f32],
) -> Vec<E> {
    assert_eq!(bias.len(), sizes.outputs);
    crate::bf16::linear::forward(sizes, x, weight, |sum, output| {
        E::from_real(activation.apply(sum + bias[output]))
    })
}

/// The gradients of [`forward_bf16`], from that of the products `x · weight' + bias`, which is rounded to `bf16`; that of
/// `x` only if `wants_x`.
///
/// # Panics
/// As for [`backward`].
#[must_use]
pub fn backward_bf16<E: Element<Real = f32>>(
    sizes: Sizes,
    shards: Shards,
    x: &[bf16],
    weight: &[f32],
    grad_y: &[E],
    wants_x: bool,
) -> ParameterGradients<bf16> {
    assert_eq!(grad_y.len(), sizes.batch * sizes.outputs);
    let wide: Vec<f32> = grad_y.iter().map(|value| value.to_real()).collect();
    let grad_y: Vec<bf16> = wide.iter().map(|value| bf16::from_real(*value)).collect();
    ParameterGradients {
        x: wants_x.then(|| crate::bf16::linear::input_gradient(sizes, &grad_y, weight)),
        weight: crate::bf16::linear::weight_gradient(sizes, shards, x, &grad_y),
        bias: sum_rows(&wide, sizes.outputs, shards),
    }
}

/// The gradients, from that of the products `x · weight' + bias`; that of `x` only if `wants_x`. Those of the parameters
/// are sums over the `shards` of the batch.
///
/// # Panics
/// When a slice is too short, or the shards have another number of images.
#[must_use]
pub fn backward<T: Real>(
    Sizes {
        batch,
        inputs,
        outputs,
    }: Sizes,
    shards: Shards,
    x: &[T],
    weight: &[T],
    grad_y: &[T],
    wants_x: bool,
) -> ParameterGradients<T> {
    let grad_matrix = Matrix::new(grad_y, batch, outputs);
    let grad_x = wants_x.then(|| {
        let mut transposed = Scratch::new(inputs * batch);
        par_matmul_into(
            &mut transposed,
            Matrix::new(weight, outputs, inputs).transposed(),
            grad_matrix.transposed(),
        );
        par_parts(batch, inputs, |row, grad_x| {
            let column = transposed[row..].iter().step_by(batch);
            for (to, from) in grad_x.iter_mut().zip(column) {
                *to = *from;
            }
        })
    });
    ParameterGradients {
        x: grad_x,
        weight: par_sharded_matmul(
            grad_matrix.transposed(),
            Matrix::new(x, batch, inputs),
            shards,
        ),
        bias: sum_rows(grad_y, outputs, shards),
    }
}
