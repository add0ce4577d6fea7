//! Updates of parameters in place, and the norm of gradients.

use crate::simd::Real;
use rayon::prelude::*;

/// The factors of a step of stochastic gradient descent, as in `torch.optim.SGD` with dampening 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sgd {
    /// Step size.
    pub learning_rate: f64,
    /// Factor of the momentum buffer's previous value.
    pub momentum: f64,
    /// Factor of the parameter in the gradient (L2 regularisation).
    pub weight_decay: f64,
    /// Whether the momentum is Nesterov's.
    pub nesterov: bool,
}

/// Elements of a task.
const PART: usize = 1 << 15;

/// `slope = gradient_scale gradient + weight_decay parameter`, `buffer = momentum buffer + slope`, then
/// `parameter -= learning_rate buffer`, or with Nesterov's momentum
/// `parameter -= learning_rate (slope + momentum buffer)`.
///
/// # Panics
/// When the lengths differ.
pub fn step<T: Real>(
    sgd: Sgd,
    gradient_scale: f64,
    parameter: &mut [T],
    buffer: &mut [T],
    gradient: &[T],
) {
    assert!(parameter.len() == buffer.len() && parameter.len() == gradient.len());
    let momentum = T::from_f64(sgd.momentum);
    let decay = T::from_f64(sgd.weight_decay);
    let rate = T::from_f64(sgd.learning_rate);
    let scale = T::from_f64(gradient_scale);
    parameter
        .par_chunks_mut(PART)
        .zip(buffer.par_chunks_mut(PART))
        .zip(gradient.par_chunks(PART))
        .for_each(|((parameter, buffer), gradient)| {
            let elements = parameter.iter_mut().zip(buffer).zip(gradient);
            if sgd.nesterov {
                for ((p, b), g) in elements {
                    let slope = scale * *g + decay * *p;
                    *b = momentum * *b + slope;
                    *p -= rate * (slope + momentum * *b);
                }
            } else {
                for ((p, b), g) in elements {
                    *b = momentum * *b + (scale * *g + decay * *p);
                    *p -= rate * *b;
                }
            }
        });
}

/// `ema += (1 - decay) (parameter - ema)`: an exponential moving average of a parameter.
///
/// # Panics
/// When the lengths differ.
pub fn ema_step<T: Real>(decay: f64, ema: &mut [T], parameter: &[T]) {
    assert_eq!(ema.len(), parameter.len());
    let factor = T::from_f64(1.0 - decay);
    ema.par_chunks_mut(PART)
        .zip(parameter.par_chunks(PART))
        .for_each(|(ema, parameter)| {
            for (e, p) in ema.iter_mut().zip(parameter) {
                *e += factor * (*p - *e);
            }
        });
}

/// The sum of all squares, in double precision and in an order that does not depend on the threads.
#[must_use]
pub fn sum_of_squares<T: Real>(values: &[T]) -> f64 {
    let parts: Vec<f64> = values
        .par_chunks(PART)
        .map(|part| {
            let values = part.iter().map(|value| value.to_f64());
            values.map(|value| value * value).sum()
        })
        .collect();
    parts.iter().sum()
}
