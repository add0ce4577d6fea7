//! What follows a convolution or a linear layer in the same pass over memory.

use crate::simd::Real;

/// The function that follows a convolution or a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// None.
    Identity,
    /// `max(x, 0)`; its gradient at 0 is 0, as in PyTorch.
    Relu,
}

impl Activation {
    /// Its value. A NaN stays a NaN, so that the loss shows it.
    #[inline(always)]
    pub(crate) fn apply<T: Real>(self, x: T) -> T {
        match self {
            Self::Relu if x < T::zero() => T::zero(),
            _ => x,
        }
    }

    /// The gradient of its input, from its output `y` and the gradient of that. The gradient of a NaN is kept.
    #[inline(always)]
    pub(crate) fn gradient<T: Real>(self, y: T, grad_y: T) -> T {
        if self == Self::Relu && y <= T::zero() {
            T::zero()
        } else {
            grad_y
        }
    }
}
