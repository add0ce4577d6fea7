//! The settings of a training run, and the files in its folder, as types: what the trainer writes, and reports and
//! `xtask` read. It knows neither tensors nor HTML.

mod bounded;
pub mod checkpoint;
pub mod cli;
pub mod command_reference;
mod error;
pub mod file;
mod file_format;
pub mod folder;
pub mod layers;
pub mod metrics;
pub mod name;
mod native_path;
pub mod predictions;
pub mod recipes;
pub mod record;
mod run;
pub mod session;
pub mod settings;
pub mod stop;

pub use bounded::{
    Cutout, Finite, Fraction, NonNegative, OpenFraction, OutOfRange, PerChannel, Positive, Shards,
};
pub use error::Error;
pub use file_format::describe_format;
pub use folder::RunFolder;
pub use metrics::{EpochMetrics, EvaluationSplit, LrFinderStep, SplitMetrics};
pub use native_path::NativePath;
pub use predictions::Predictions;
pub use record::{Choices, MadeBy, Record};
pub use run::Run;
pub use session::{Machine, Session};
pub use settings::{Overrides, Settings};
