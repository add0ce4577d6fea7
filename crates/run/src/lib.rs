//! The settings of a training run, and the files in its folder, as types: what the trainer writes, and reports and
//! `xtask` read. It knows neither tensors nor HTML.

mod bounded;
pub mod cli;
pub mod metrics;
pub mod recipes;
pub mod settings;

pub use bounded::{Cutout, Fraction, NonNegative, OpenFraction, OutOfRange, PerChannel, Positive};
pub use metrics::{EpochMetrics, EvaluationMetrics, EvaluationSplit, SplitMetrics};
pub use settings::{Overrides, Settings};
