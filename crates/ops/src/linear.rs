//! A fully connected layer with its bias and rectifier in one operation.

use crate::Activation;
use crate::matmul::{Matrix, Onto, par_matmul};
use crate::relu::{rectify, relu_gradient};
use crate::storage::{contiguous, with_float};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail,
};
use num_traits::Zero;
use rayon::prelude::*;

/// `activation(x · weight' + bias)` for `x` `[batch, in_features]`, `weight`
/// `[out_features, in_features]` and `bias` `[out_features]`: gives `[batch, out_features]`.
///
/// # Errors
/// When the shapes do not fit one another, or the tensors are neither all `f32` nor all `f64`.
pub fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    activation: Activation,
) -> Result<Tensor> {
    x.contiguous()?.apply_op3(
        &weight.contiguous()?,
        &bias.contiguous()?,
        Linear { activation },
    )
}

struct Linear {
    activation: Activation,
}

impl CustomOp3 for Linear {
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
        let (batch, inputs) = x_layout.shape().dims2()?;
        let (outputs, weight_inputs) = weight_layout.shape().dims2()?;
        if weight_inputs != inputs || bias_layout.shape().dims() != [outputs] {
            bail!(
                "linear: an input of shape {:?}, a weight of shape {:?} and a bias of shape {:?} do not fit",
                x_layout.shape(),
                weight_layout.shape(),
                bias_layout.shape()
            );
        }
        with_float!(self.name(), x, T => {
            let x = contiguous::<T>(self.name(), x, x_layout)?;
            let weight = contiguous::<T>(self.name(), weight, weight_layout)?;
            let bias = contiguous::<T>(self.name(), bias, bias_layout)?;
            let mut y = vec![T::zero(); batch * outputs];
            par_matmul(
                &mut y,
                Onto::Nothing,
                Matrix::new(x, batch, inputs),
                Matrix::new(weight, outputs, inputs).transposed(),
            );
            y.par_chunks_mut(outputs.max(1)).for_each(|row| {
                row.iter_mut().zip(bias).for_each(|(value, bias)| *value += *bias);
                if self.activation == Activation::Relu {
                    rectify(row);
                }
            });
            Ok((T::to_cpu_storage_owned(y), Shape::from((batch, outputs))))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        y: &Tensor,
        grad_y: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad_y = match self.activation {
            Activation::Identity => grad_y.contiguous()?,
            Activation::Relu => relu_gradient(y, grad_y)?,
        };
        let grad_x = x
            .track_op()
            .then(|| {
                grad_y.apply_op2_no_bwd(
                    weight,
                    &Product {
                        left_transposed: false,
                    },
                )
            })
            .transpose()?;
        let grad_weight = grad_y.apply_op2_no_bwd(
            x,
            &Product {
                left_transposed: true,
            },
        )?;
        let grad_bias = grad_y.apply_op1_no_bwd(&ColumnSums)?;
        Ok((grad_x, Some(grad_weight), Some(grad_bias)))
    }
}

/// `left · right` or `left' · right` of two matrices.
struct Product {
    left_transposed: bool,
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "linear-gradient"
    }

    fn cpu_fwd(
        &self,
        left: &CpuStorage,
        left_layout: &Layout,
        right: &CpuStorage,
        right_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (left_rows, left_columns) = left_layout.shape().dims2()?;
        let (right_rows, columns) = right_layout.shape().dims2()?;
        with_float!(self.name(), left, T => {
            let left = Matrix::new(contiguous::<T>(self.name(), left, left_layout)?, left_rows, left_columns);
            let right = Matrix::new(contiguous::<T>(self.name(), right, right_layout)?, right_rows, columns);
            let (left, rows) = if self.left_transposed {
                (left.transposed(), left_columns)
            } else {
                (left, left_rows)
            };
            let mut out = vec![T::zero(); rows * columns];
            par_matmul(&mut out, Onto::Nothing, left, right);
            Ok((T::to_cpu_storage_owned(out), Shape::from((rows, columns))))
        })
    }
}

/// The sum of each column of a matrix, in double precision, from the first row to the last.
struct ColumnSums;

impl CustomOp1 for ColumnSums {
    fn name(&self) -> &'static str {
        "linear-bias-gradient"
    }

    fn cpu_fwd(&self, matrix: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, columns) = layout.shape().dims2()?;
        with_float!(self.name(), matrix, T => {
            let mut sums = vec![0.0; columns];
            for row in contiguous::<T>(self.name(), matrix, layout)?.chunks_exact(columns.max(1)) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value.to_f64());
            }
            let sums = sums.into_iter().map(T::from_f64).collect();
            Ok((T::to_cpu_storage_owned(sums), Shape::from(columns)))
        })
    }
}
