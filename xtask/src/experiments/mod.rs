//! Commands that train networks through the program `trainer` and compare the runs.

pub(crate) mod compare;
mod estimate;
mod plan;
mod pool;
pub(crate) mod reproduce;
mod trainer;
pub(crate) mod tune;
pub(crate) mod verify;
