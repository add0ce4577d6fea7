//! Differentiable operations that candle lacks, gets wrong or is slow at, as candle custom
//! operations with a forward and a backward pass.
//!
//! Every operation is a function on tensors; how it is computed is a matter of its own file. On a
//! CPU, work is cut into parts that depend on the shapes alone and sums are taken in a fixed order,
//! so the results are the same to the bit for any number of threads of the surrounding rayon pool.
//! There, all operations compute in `f32` and in `f64`. On an NVIDIA GPU (feature `cuda`) they compute in
//! `f32` or `bf16`, with the same bits in every run on the same kind of device.

#![allow(unsafe_code)] // The one crate where it is allowed; each block carries its argument.

mod avg_pool2d;
mod conv2d;
mod cook_toom;
mod cross_entropy;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dropout;
mod flatten;
mod linear;
mod matmul;
mod max_pool2d;
mod precision;
mod product;
mod recycling;
mod relu;
mod scratch;
mod sgd;
mod simd;
mod storage;
mod tally;
mod tape;
#[cfg(feature = "cuda")]
mod views;

pub use avg_pool2d::avg_pool2d;
pub use conv2d::{Conv2d, Convolution, UnknownConvolution};
pub use cross_entropy::{
    cross_entropy, cross_entropy_gradient, predictions, smoothed_cross_entropy_gradient,
};
pub use dropout::Dropout;
pub use flatten::channels_last;
pub use max_pool2d::{Pool, max_pool2d};
pub use precision::{Arithmetic, Precision, UnknownPrecision, activations};
pub use recycling::Recycling;
pub use sgd::{Sgd, average_step, norm, sgd_step};
pub use tally::{Tally, Totals};
pub use tape::Tape;
#[cfg(feature = "cuda")]
pub use views::{Images, View, Views};

/// What follows a convolution or a linear layer in the same pass over memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `max(x, 0)`; its gradient at 0 is 0, as in PyTorch.
    Relu,
}
