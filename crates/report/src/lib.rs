//! What a run leaves behind, written and read back: metrics and curves. It knows files and
//! pictures, not tensors.

mod curves;
mod layers;
mod metrics;
mod predictions;
pub mod statistics;

pub use curves::{Error as CurvesError, curves_png, curves_svg};
pub use layers::{LAYERS, Layer, read_layers, write_layers};
pub use metrics::{Epoch, Error as MetricsError, read_metrics, write_metrics};
pub use predictions::{
    CLASSES, Error as PredictionsError, Filters, PICTURE_BYTES, PREDICTIONS, Predictions,
};

/// The version of a run record (`run.toml`) that this program writes, and the latest that it reads.
pub const RECORD_VERSION: u32 = 1;

/// The table in which a run record says what made the run.
pub const MADE_BY: &str = "made_by";

/// The key of [`MADE_BY`] that holds the record's version; it is 1 where there is none.
pub const RECORD_VERSION_KEY: &str = "record_version";
