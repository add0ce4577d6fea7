//! What a run leaves behind, written and read back: metrics and curves. It knows files and
//! pictures, not tensors.

mod curves;
mod metrics;

pub use curves::{Error as CurvesError, curves_png, curves_svg};
pub use metrics::{Epoch, Error as MetricsError, read_metrics, write_metrics};
