//! `cargo xtask compare`: trains the networks and writes a report that compares them.

use crate::experiments::estimate::dry_run;
use crate::experiments::flags::{SettingFlags, Shared};
use crate::experiments::plan::{Planned, State};
use crate::experiments::{pool, slurm};
use crate::lock::Lock;
use crate::trainer::{self, Trainer};
use anyhow::{Context, bail};
use datasets::DatasetSource;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use report::Comparison;
use run::cli::{self, Exit, UsageError};
use run::name::default_name;
use run::{EvaluationSplit, NativePath, Run, Settings};
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::num::NonZeroUsize;
use std::path::{self, Path};

/// Options of `compare`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The networks.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    #[arg(default_values = report::post_networks())]
    pub(crate) models: Vec<String>,

    /// The seeds; every network is trained with each.
    #[arg(long, value_name = "SEEDS", value_delimiter = ',')]
    #[arg(default_value = "0,1,2")]
    pub(crate) seeds: Vec<u64>,

    /// The recipes; every network is trained with each.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    #[arg(default_value = "reference")]
    pub(crate) recipe: Vec<String>,

    /// Concurrent runs; they divide the cores among them.
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) jobs: NonZeroUsize,

    /// The folder for the runs, report.html, report.md and report.svg.
    #[arg(long, value_name = "DIR", default_value = "runs/compare")]
    pub(crate) out: NativePath,

    /// Train nothing; report on the finished runs.
    #[arg(long, conflicts_with_all = ["dry_run", "slurm"])]
    pub(crate) report_only: bool,

    /// List the runs and estimate how long they will take from a few measured steps.
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) slurm: slurm::Args,

    #[command(flatten)]
    pub(crate) trainer: trainer::Args,

    #[command(flatten)]
    pub(crate) settings: SettingFlags<Shared>,

    /// Other flags of the trainer for every run, such as `-- --log-level debug`.
    #[arg(last = true, value_name = "FLAGS")]
    pub(crate) flags: Vec<OsString>,
}

/// Trains the runs that are not finished and writes the report.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    unique("--models", &args.models)?;
    unique("--seeds", &args.seeds)?;
    unique("--recipe", &args.recipe)?;
    if args.report_only {
        // The report needs the runs' files only, so nothing is built.
        let (finished, others): (Vec<_>, Vec<_>) =
            names(args).partition(|name| is_finished(&args.out.join(name)));
        if finished.is_empty() {
            let out = args.out.display();
            bail!("no run is finished of {} in `{out}`", others.join(", "));
        }
        for name in others {
            cli::note(&format!("{name} is left out: it is not finished"));
        }
        write_report(args, &finished)?;
        return Ok(Exit::Success);
    }
    let trainer = Trainer::new(&args.trainer, args.settings.get("device"))?;
    let _lock = (!args.dry_run)
        .then(|| Lock::wait(&args.out, "compare", cli::note))
        .transpose()?;
    let mut plan = Vec::new();
    // Seed by seed, so that every network has a run early.
    for &seed in &args.seeds {
        for recipe in &args.recipe {
            for model in &args.models {
                let name = name(args, model, recipe, seed);
                let settings = args
                    .settings
                    .clone()
                    .with("model", model)
                    .with("recipe", recipe);
                let settings = settings.with("seed", seed.to_string());
                let arguments = pool::arguments(settings, args.jobs, &args.flags);
                plan.push(Planned::new(&trainer, &args.out, name, arguments)?);
            }
        }
    }
    if args.dry_run {
        return dry_run(&trainer, &plan);
    }
    check_data(&plan)?;
    if args.slurm.slurm {
        let progress = slurm::train(&args.slurm, &trainer, &plan, &args.out)?;
        if !progress.failed.is_empty() {
            return Ok(Exit::Failure);
        }
        if !progress.waiting {
            write_report(args, &names(args).collect::<Vec<_>>())?;
        }
        return Ok(Exit::Success);
    }
    let Some(failed) = pool::train(&trainer, &plan, args.jobs)? else {
        return Ok(Exit::Interrupted);
    };
    let trained: Vec<_> = names(args).filter(|name| !failed.contains(name)).collect();
    if !trained.is_empty() {
        write_report(args, &trained)?;
    }
    if failed.is_empty() {
        return Ok(Exit::Success);
    }
    let failed = failed.join(", ");
    cli::error(&match trained.is_empty() {
        true => format!("every run failed: {failed}"),
        false => format!("failed, and not in the report: {failed}"),
    });
    Ok(Exit::Failure)
}

/// Checks that the data of the runs that are to be trained are there, so that this is said once.
fn check_data(plan: &[Planned]) -> anyhow::Result<()> {
    let mut waiting = plan.iter().filter(|run| run.state != State::Finished);
    waiting.try_for_each(|run| {
        let Settings {
            dataset, data_dir, ..
        } = &run.settings;
        let source: DatasetSource = dataset.parse()?;
        source.check(data_dir).with_context(|| match &source {
            DatasetSource::Known(info) => info.remedy(data_dir),
            DatasetSource::Folder(_) => "no pictures to train on".to_owned(),
        })
    })
}

/// Checks that no value of a flag is given twice.
fn unique<T: PartialEq + Display>(flag: &str, values: &[T]) -> Result<(), UsageError> {
    for (index, value) in values.iter().enumerate() {
        if values[..index].contains(value) {
            let error = format!("{flag}: `{value}` is given twice; give each value once");
            return Err(UsageError(error));
        }
    }
    Ok(())
}

/// The name of a run in the comparison's folder.
fn name(args: &Args, model: &str, recipe: &str, seed: u64) -> String {
    let dataset = args.settings.get("dataset");
    let dataset = dataset.map(OsStr::to_string_lossy);
    default_name(model, dataset.as_deref(), recipe, seed)
}

/// The names of all runs in the order of the report: network by network, as in the post.
fn names(args: &Args) -> impl Iterator<Item = String> {
    args.models.iter().flat_map(move |model| {
        args.recipe.iter().flat_map(move |recipe| {
            let seeds = args.seeds.iter();
            seeds.map(move |seed| name(args, model, recipe, *seed))
        })
    })
}

/// Whether the run in `folder` has finished all its epochs, and its last weights are there.
fn is_finished(folder: &Path) -> bool {
    let done = run::checkpoint::finished_epochs(folder).unwrap_or(0) as usize;
    Run::read(folder).is_ok_and(|run| run.finished() && done >= run.epochs.len())
}

/// Writes the report on the runs of these names. Prints its results in short, and where it is.
fn write_report(args: &Args, names: &[String]) -> anyhow::Result<()> {
    let runs = names.iter().map(|name| Run::read(&args.out.join(name)));
    let comparison = Comparison::new(runs.collect::<Result<_, _>>()?)?;
    let [markdown, html] = report::write_report(&args.out, &comparison)
        .with_context(|| format!("cannot write the report into `{}`", args.out.display()))?;
    for group in &comparison.groups {
        let accuracies = group.runs.iter().map(|run| run.last().evaluated.accuracy);
        let runs = group.runs.len();
        let split = group.runs.first().map(|run| run.last().evaluated.split);
        let mean = match runs {
            1 => String::new(),
            _ => format!(", the mean of {runs} runs"),
        };
        cli::line(&format!(
            "{}: {} accuracy {:.2} %{mean}",
            group.label,
            split.unwrap_or(EvaluationSplit::Test),
            100.0 * accuracies.sum::<f64>() / runs as f64
        ));
    }
    let page = path::absolute(&html).unwrap_or(html);
    cli::line(&format!(
        "The report is in {}. Open it in a browser: {}\nThe same as Markdown: {}",
        page.display(),
        file_url(&page),
        markdown.display()
    ));
    Ok(())
}

/// The address of a file for a browser.
fn file_url(path: &Path) -> String {
    let path = percent_encode(path.as_os_str().as_encoded_bytes(), NOT_IN_URLS).to_string();
    match cfg!(windows) {
        true => format!("file:///{}", path.replace('\\', "/")),
        false => format!("file://{path}"),
    }
}

/// Characters of a path that have another meaning in a URL, or end it where a terminal makes a link of it.
const NOT_IN_URLS: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'\'')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_report_is_a_valid_url() {
        let (path, url) = match cfg!(windows) {
            true => (
                "C:\\my runs\\50 %#1\\é.html",
                "file:///C:/my%20runs/50%20%25%231/%C3%A9.html",
            ),
            false => (
                "/my runs/50 %#1/é.html",
                "file:///my%20runs/50%20%25%231/%C3%A9.html",
            ),
        };
        assert_eq!(file_url(Path::new(path)), url);
    }
}
