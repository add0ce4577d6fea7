//! CPU kernels on slices, in `f32` and `f64`; convolutions and fully connected layers also in `bf16`. They know nothing of
//! tensors, devices or differentiation.
//!
//! Images are `[batch, height, width, channels]`, weights of convolutions
//! `[out_channels, in_channels, kernel, kernel]`, all contiguous and row-major. A kernel returns a new vector where the
//! result need not be zeroed first, and otherwise writes to the slice that it is given.
//!
//! # Reproducibility
//! Work is split into parts that depend on the shapes alone, and sums have a fixed order. So the results are
//! bit-identical for any number of threads of the surrounding rayon pool. They are also bit-identical on every
//! instruction set, because a multiply-add is rounded once everywhere; in `bf16`, because all code has the order of
//! additions and the treatment of denormal values of AMX.
//!
//! # Instruction sets
//! The kernels use the best instruction set of the machine: AMX, AVX-512, AVX2 with FMA, NEON, or scalar code. The
//! environment variable `KERNELS_ISA` selects another one, by its [name](InstructionSet::name): `amx`, `avx512`, `avx2`,
//! `neon` or `scalar`. It exists for tests, which compare the bits, and for measurements. It is read once, at the first
//! kernel. A set that is unknown or that the machine lacks is ignored; [`InstructionSet::check_selection`] is for programs
//! that refuse it, and [`InstructionSet::current`] tells which one is in use.

#![allow(unsafe_code)] // Pointers that threads share, and assembly; each block carries its argument.

mod activation;
pub mod avg_pool2d;
mod bf16;
pub mod conv2d;
mod cook_toom;
pub mod cross_entropy;
pub mod dropout;
mod element;
#[cfg(all(windows, target_env = "gnu"))]
mod fma;
mod gradients;
mod instruction_set;
pub mod linear;
mod matmul;
pub mod max_pool2d;
mod parts;
mod product;
pub mod relu;
mod scratch;
pub mod sgd;
mod shape_error;
mod shards;
mod simd;
pub mod transpose;
mod windows;

pub use activation::Activation;
pub use element::Element;
pub use gradients::ParameterGradients;
pub use instruction_set::InstructionSet;
pub use shape_error::ShapeError;
pub use shards::Shards;
pub use simd::Real;
pub use windows::{Pool, Windows};
