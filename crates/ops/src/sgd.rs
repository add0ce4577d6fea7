//! One step of stochastic gradient descent on one parameter, in place.

use crate::storage::{contiguous, with_float};
use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor, WithDType, bail};
use rayon::prelude::*;

/// The factors of a step, as in `torch.optim.SGD` with dampening 0 and no Nesterov term.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Step size.
    pub learning_rate: f64,
    /// How much of the last direction is kept.
    pub momentum: f64,
    /// The parameter's share that is added to its gradient.
    pub weight_decay: f64,
}

/// Elements that one task handles.
const PART: usize = 1 << 15;

/// `velocity = momentum velocity + (gradient + weight_decay parameter)`, then
/// `parameter -= learning_rate velocity`, for three tensors of one shape. A velocity of zeros is
/// the state before the first step.
///
/// # Errors
/// When the shapes differ, a tensor is not contiguous, or they are neither all `f32` nor all `f64`.
pub fn sgd_step(sgd: Sgd, parameter: &Tensor, velocity: &Tensor, gradient: &Tensor) -> Result<()> {
    if parameter.shape() != gradient.shape() || parameter.shape() != velocity.shape() {
        bail!(
            "sgd: a parameter of shape {:?} has a gradient of shape {:?} and a velocity of shape {:?}",
            parameter.shape(),
            gradient.shape(),
            velocity.shape()
        );
    }
    velocity.inplace_op3(parameter, &gradient.contiguous()?, &Velocity(sgd))?;
    parameter.inplace_op2(velocity, &Move(sgd))
}

/// The elements of a contiguous tensor, to be changed.
fn contiguous_mut<'a, T: Element>(
    operation: &str,
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<&'a mut [T]> {
    match (layout.contiguous_offsets(), T::slice_mut(storage)) {
        (Some((start, end)), Some(values)) => Ok(&mut values[start..end]),
        _ => bail!("{operation} needs contiguous tensors of one type, got {layout:?}"),
    }
}

/// A type whose storage can be borrowed mutably.
trait Element: WithDType {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Element for f32 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }
}

impl Element for f64 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F64(values) => Some(values),
            _ => None,
        }
    }
}

struct Velocity(Sgd);

impl InplaceOp3 for Velocity {
    fn name(&self) -> &'static str {
        "sgd-velocity"
    }

    fn cpu_fwd(
        &self,
        velocity: &mut CpuStorage,
        velocity_layout: &Layout,
        parameter: &CpuStorage,
        parameter_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<()> {
        with_float!(self.name(), parameter, T => {
            let parameter = contiguous::<T>(self.name(), parameter, parameter_layout)?;
            let gradient = contiguous::<T>(self.name(), gradient, gradient_layout)?;
            let velocity = contiguous_mut::<T>(self.name(), velocity, velocity_layout)?;
            let momentum = T::from_f64(self.0.momentum);
            let decay = T::from_f64(self.0.weight_decay);
            velocity
                .par_chunks_mut(PART)
                .zip(parameter.par_chunks(PART))
                .zip(gradient.par_chunks(PART))
                .for_each(|((velocity, parameter), gradient)| {
                    for ((v, p), g) in velocity.iter_mut().zip(parameter).zip(gradient) {
                        *v = momentum * *v + (*g + decay * *p);
                    }
                });
            Ok(())
        })
    }
}

struct Move(Sgd);

impl InplaceOp2 for Move {
    fn name(&self) -> &'static str {
        "sgd-move"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        parameter_layout: &Layout,
        velocity: &CpuStorage,
        velocity_layout: &Layout,
    ) -> Result<()> {
        with_float!(self.name(), velocity, T => {
            let velocity = contiguous::<T>(self.name(), velocity, velocity_layout)?;
            let parameter = contiguous_mut::<T>(self.name(), parameter, parameter_layout)?;
            let rate = T::from_f64(self.0.learning_rate);
            parameter
                .par_chunks_mut(PART)
                .zip(velocity.par_chunks(PART))
                .for_each(|(parameter, velocity)| {
                    for (p, v) in parameter.iter_mut().zip(velocity) {
                        *p -= rate * *v;
                    }
                });
            Ok(())
        })
    }
}
