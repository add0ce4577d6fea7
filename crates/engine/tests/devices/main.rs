//! Networks, batches and whole runs on each device. `cargo xtask gpu-check` runs the tests of a GPU, which are ignored
//! elsewhere.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

mod layers;
mod networks;
mod runs;
#[path = "../training/mod.rs"]
mod training;
mod views;
