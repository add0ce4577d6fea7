//! The names of the files in a run's folder.

/// The settings, and what made the run: `Record`.
pub const RECORD: &str = "run.toml";

/// The version of the record's format that this program writes, and the latest that it reads.
pub const RECORD_VERSION: u32 = 1;

/// One JSON object per epoch: `EpochMetrics`.
pub const METRICS: &str = "metrics.jsonl";

/// The same as a table.
pub const METRICS_CSV: &str = "metrics.csv";

/// The curves of loss and accuracy.
pub const CURVES_SVG: &str = "curves.svg";

/// The same as a picture of pixels.
pub const CURVES_PNG: &str = "curves.png";

/// The page of the run, which is refreshed during the run.
pub const PAGE: &str = "run.html";

/// How the name of the file with TensorBoard's events begins.
pub const EVENTS_PREFIX: &str = "events.out.tfevents.";

/// The layers of the network as text.
pub const SUMMARY: &str = "summary.txt";

/// The log.
pub const LOG: &str = "log.txt";

/// The process that writes to the folder locks this file, which has its id. On Windows a locked file cannot be read.
pub const LOCK: &str = "lock";

/// The weights after the last step, from which training resumes.
pub const LAST_WEIGHTS: &str = "last.safetensors";

/// The weights after the epoch with the best accuracy.
pub const BEST_WEIGHTS: &str = "best.safetensors";

/// The outputs of the last epoch's weights: `Predictions`.
pub const PREDICTIONS: &str = "predictions.safetensors";

/// The layers of the network, with their times: `Layer`.
pub const LAYERS: &str = "layers.json";
