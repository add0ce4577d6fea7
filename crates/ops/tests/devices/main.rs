//! Every operation on each device. `cargo xtask gpu-check` runs the tests of a GPU, which are ignored elsewhere.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

mod bits;
#[cfg(feature = "cuda")]
mod capture;
mod pytorch;
mod sums;
