//! The command that writes a report.

use crate::args::ReportArgs;
use anyhow::Context;
use report::Comparison;
use run::Run;
use run::cli;
use run::folder::find;

/// Writes the report, and prints where it is.
pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let runs = args
        .runs
        .iter()
        .map(|run| Run::read(&find(&args.run_dir, run)?));
    let comparison = Comparison::new(runs.collect::<Result<_, run::Error>>()?)?;
    let paths = report::write_report(&args.out, &comparison)
        .with_context(|| format!("cannot write the report into `{}`", args.out.display()))?;
    cli::line(&format!(
        "the report: {} and {}",
        paths[0].display(),
        paths[1].display()
    ));
    Ok(())
}
