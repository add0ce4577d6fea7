//! Differentiable operations that candle lacks, gets wrong or is slow at, as candle custom
//! operations with a forward and a backward pass.
//!
//! Every operation is a function on tensors; how it is computed is a matter of its own file. On a
//! CPU, work is cut into parts that depend on the shapes alone and sums are taken in a fixed order,
//! so the results are the same to the bit for any number of threads of the surrounding rayon pool.
//! All operations compute in `f32` and in `f64`.

#![allow(unsafe_code)] // The one crate where it is allowed; each block carries its argument.

mod conv2d;
mod cross_entropy;
mod dropout;
mod linear;
mod matmul;
mod max_pool2d;
mod relu;
mod sgd;
mod storage;

pub use conv2d::conv2d;
pub use cross_entropy::cross_entropy;
pub use dropout::{Dropout, dropout};
pub use linear::linear;
pub use max_pool2d::max_pool2d;
pub use relu::relu;
pub use sgd::{Sgd, sgd_step};

/// What follows a convolution or a linear layer in the same pass over memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `max(x, 0)`; its gradient at 0 is 0, as in PyTorch.
    Relu,
}
