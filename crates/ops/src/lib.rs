//! Differentiable operations that candle lacks, gets wrong or is slow at.
//!
//! Each layer operation is a function on tensors that candle's graph can differentiate (a `CustomOp3`), and a method of
//! [`Tape`], which is faster for a chain of operations. The loss, metrics, optimiser step, EMA and norm are functions. [`kernels`] computes it on a CPU, in `f32` and `f64`, with bit-identical
//! results for any number of threads of the surrounding rayon pool and on every instruction set. On an NVIDIA GPU (feature
//! `cuda`) it is computed in `f32` or `bf16`, with bit-identical results in every run on the same kind of device.
//!
//! Images are `[batch, height, width, channels]`. `examples/candle_graph.rs` trains a network with candle-nn and these
//! operations.

#![allow(unsafe_code)] // Calls of CUDA; each block carries its argument.

mod activations;
mod arithmetic;
mod avg_pool2d;
mod conv2d;
mod cross_entropy;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dropout;
mod ema;
mod flatten;
mod heap;
mod linear;
mod machine;
mod max_pool2d;
mod metrics;
mod norm;
mod operation;
mod relu;
mod sgd;
mod storage;
mod tape;
#[cfg(feature = "cuda")]
mod views;

pub use activations::activations;
pub use arithmetic::{Arithmetic, ConvAlgorithm, Precision};
pub use avg_pool2d::avg_pool2d;
pub use conv2d::{Conv2d, conv2d};
pub use cross_entropy::{cross_entropy, cross_entropy_gradient};
pub use dropout::{Dropout, dropout};
pub use ema::ema_step;
pub use flatten::flatten;
pub use heap::keep_freed_memory;
pub use kernels::{Activation, InstructionSet, Pool, Shards};
pub use linear::linear;
pub use machine::{available_memory, processor_name};
pub use max_pool2d::max_pool2d;
pub use metrics::{Metrics, MetricsAccumulator};
pub use norm::{GradientNorm, GradientScale, norm};
pub use relu::relu;
pub use sgd::{Sgd, sgd_step};
pub use storage::change_in_place;
pub use tape::Tape;
#[cfg(feature = "cuda")]
pub use views::{GpuDataset, View, Views};
