//! The command that writes a report.

use anyhow::Context;
use report::Comparison;
use run::cli;
use run::folder::find;
use run::{NativePath, Run};

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub(crate) struct ReportArgs {
    /// The runs: their folders, or their names in the folder of runs.
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<NativePath>,

    /// The folder of runs.
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub(crate) run_dir: NativePath,

    /// The folder for report.html, report.md and report.svg.
    #[arg(long, value_name = "DIR", default_value = "runs/report")]
    pub(crate) out: NativePath,
}

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
