//! One step of stochastic gradient descent on one parameter, in place.

use crate::storage::{contiguous, with_float};
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, WithDType, bail};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

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
    let gradient = gradient.contiguous()?;
    parameter.inplace_op2(&gradient, &Step { sgd, velocity })
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

/// The step, with the parameter borrowed mutably.
struct Step<'a> {
    sgd: Sgd,
    velocity: &'a Tensor,
}

impl InplaceOp2 for Step<'_> {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        parameter_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<()> {
        with_float!(self.name(), gradient, T => {
            let gradient = contiguous::<T>(self.name(), gradient, gradient_layout)?;
            let parameter = contiguous_mut::<T>(self.name(), parameter, parameter_layout)?;
            self.velocity.inplace_op1(&Both {
                sgd: self.sgd,
                parameter: Mutex::new(parameter),
                gradient,
            })
        })
    }
}

/// The step, with parameter and velocity both borrowed mutably: an operation in place changes one tensor,
/// so there are two, one inside the other, and memory is gone through once.
struct Both<'a, T> {
    sgd: Sgd,
    parameter: Mutex<&'a mut [T]>,
    gradient: &'a [T],
}

impl<T: Element> InplaceOp1 for Both<'_, T> {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn cpu_fwd(&self, velocity: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let velocity = contiguous_mut::<T>(self.name(), velocity, layout)?;
        let mut parameter = self
            .parameter
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let momentum = T::from_f64(self.sgd.momentum);
        let decay = T::from_f64(self.sgd.weight_decay);
        let rate = T::from_f64(self.sgd.learning_rate);
        parameter
            .par_chunks_mut(PART)
            .zip(velocity.par_chunks_mut(PART))
            .zip(self.gradient.par_chunks(PART))
            .for_each(|((parameter, velocity), gradient)| {
                for ((p, v), g) in parameter.iter_mut().zip(velocity).zip(gradient) {
                    *v = momentum * *v + (*g + decay * *p);
                    *p -= rate * *v;
                }
            });
        Ok(())
    }
}
