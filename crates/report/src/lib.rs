//! Compares runs: statistics, curves, and reports in Markdown and HTML. It reads the files of `run`, and knows no tensors.

mod chart;
mod comparison;
mod contents;
mod curves;
mod html;
#[cfg(test)]
mod made_up;
mod markdown;
mod picture;
mod run_page;
mod statistics;

pub use comparison::{Comparison, Error as ComparisonError, Group};
pub use contents::{SHOWN_IMAGES, post_networks};
pub use curves::{Error as CurvesError, Plot, curves, lr_curve};
pub use html::html;
pub use markdown::markdown;
pub use run_page::{
    MistakenImage, Progress, ProgressMetrics, REFRESH_SECONDS, RunPage, State, run_page,
};

use std::io;
use std::path::{Path, PathBuf};

/// The first line of the block with times and dates, which differs between reports on repeated runs; the rest does not.
pub const TIMES_BEGIN: &str = "times and dates: begin";

/// The last line of that block.
pub const TIMES_END: &str = "times and dates: end";

/// Writes the page of a run, atomically.
///
/// # Errors
/// When it cannot be written; the old one is then unchanged.
pub fn write_run_page(path: &Path, run: &RunPage) -> io::Result<()> {
    let written = chrono::Local::now().format("%Y-%m-%d at %H:%M:%S (UTC%:z)");
    atomic_file::write(path, run_page(run, &written.to_string()).as_bytes())
}

/// The file with the curves that `report.md` shows.
const REPORT_SVG: &str = "report.svg";

/// Writes `report.md`, `report.html` and `report.svg`, the curves that `report.md` shows, into `folder`, which is created if
/// it is missing. Returns the paths of the first two.
///
/// # Errors
/// When they cannot be drawn or written.
pub fn write_report(folder: &Path, comparison: &Comparison) -> io::Result<[PathBuf; 2]> {
    std::fs::create_dir_all(folder)?;
    let curves = curves::comparison_curves(comparison).map_err(io::Error::other)?;
    atomic_file::write(&folder.join(REPORT_SVG), curves.as_bytes())?;
    let written = chrono::Local::now().format("%Y-%m-%d at %H:%M").to_string();
    let paths = ["report.md", "report.html"].map(|name| folder.join(name));
    let texts = [markdown(comparison, &written), html(comparison, &written)];
    for (path, text) in paths.iter().zip(texts) {
        atomic_file::write(path, text.as_bytes())?;
    }
    Ok(paths)
}
