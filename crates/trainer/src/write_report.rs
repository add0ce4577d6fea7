//! The command that writes a report.

use crate::args::ReportArgs;
use anyhow::Context;
use report::{Comparison, RECORD, Run};
use run::cli;
use std::path::PathBuf;

/// Writes the report, and prints where it is.
pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let folder = |run: &PathBuf| {
        let named = args.run_dir.join(run);
        if !run.join(RECORD).is_file() && named.join(RECORD).is_file() {
            named
        } else {
            run.clone()
        }
    };
    let runs = args.runs.iter().map(|run| Run::read(&folder(run)));
    let comparison = Comparison::new(runs.collect::<Result<_, _>>()?)?;
    let paths = report::write_report(&args.out, &comparison)
        .with_context(|| format!("cannot write the report into `{}`", args.out.display()))?;
    cli::line(&format!(
        "the report: {} and {}",
        paths[0].display(),
        paths[1].display()
    ));
    Ok(())
}
