//! Commands that train networks through the program `trainer` and compare the runs.

pub(crate) mod compare;
mod estimate;
mod flags;
mod plan;
mod pool;
mod progress;
pub(crate) mod reproduce;
mod slurm;
pub(crate) mod tune;
pub(crate) mod verify;
