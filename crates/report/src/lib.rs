//! What runs leave behind, written and read back: records, metrics, predictions, curves, and reports that lay runs side
//! by side. It knows files and pictures, not tensors.

mod chart;
mod checkpoint;
mod comparison;
mod contents;
mod curves;
mod html;
mod layers;
mod markdown;
mod picture;
mod predictions;
mod run;
pub mod statistics;

pub use checkpoint::{CHECKPOINT, Difference, checkpoint_epochs, weights_difference};
pub use comparison::{Comparison, Error as ComparisonError, Group, INDIFFERENT, network_name};
pub use curves::{Error as CurvesError, TriedRate, curves_png, curves_svg, rates_png, rates_svg};
pub use html::html;
pub use layers::{LAYERS, Layer, read_layers, write_layers};
pub use markdown::markdown;
pub use predictions::{
    CLASSES, Error as PredictionsError, Filters, PICTURE_BYTES, PREDICTIONS, Predictions,
};
pub use run::{Error as RunError, METRICS, MadeBy, RECORD, Run};

use std::io;
use std::path::{Path, PathBuf};

/// The version of a run record (`run.toml`) that this program writes, and the latest that it reads.
pub const RECORD_VERSION: u32 = 1;

/// The table in which a run record says what made the run.
pub const MADE_BY: &str = "made_by";

/// The key of [`MADE_BY`] that holds the record's version; it is 1 where there is none.
pub const RECORD_VERSION_KEY: &str = "record_version";

/// The settings in a run record that are the run's; all others are its recipe's.
pub const RUN_KEYS: [&str; 15] = [
    "model",
    "recipe",
    "dataset",
    "data_dir",
    "limit_train",
    "limit_test",
    "validation",
    "overfit_batches",
    "seed",
    "threads",
    "device",
    "conv",
    "precision",
    "init",
    "checkpoint_minutes",
];

/// How the block of a report begins that two reports on the same runs, or on repeated ones, need not have in common.
pub const TIMES_BEGIN: &str = "times and dates: begin";

/// How it ends.
pub const TIMES_END: &str = "times and dates: end";

/// Writes `report.md` and `report.html` into `folder`, which is made where it is missing, and gives their paths.
///
/// # Errors
/// When they cannot be written.
pub fn write_report(folder: &Path, comparison: &Comparison) -> io::Result<[PathBuf; 2]> {
    std::fs::create_dir_all(folder)?;
    let written = chrono::Local::now().format("%Y-%m-%d at %H:%M").to_string();
    let paths = ["report.md", "report.html"].map(|name| folder.join(name));
    let texts = [markdown(comparison, &written), html(comparison, &written)];
    for (path, text) in paths.iter().zip(texts) {
        atomic_file::write(path, text.as_bytes())?;
    }
    Ok(paths)
}
