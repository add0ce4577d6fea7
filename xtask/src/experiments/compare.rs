//! `cargo xtask compare`: trains what is missing, and reports on all.

use crate::experiments::estimate::dry_run;
use crate::experiments::plan::Planned;
use crate::experiments::pool::{self, Ended};
use crate::experiments::trainer::{self, Trainer};
use anyhow::{Context, bail};
use report::Comparison;
use run::Run;
use run::cli::{self, Exit, UsageError};
use std::fs;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};

/// What is asked of the command.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The networks.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "alexnet,small-alexnet"
    )]
    pub(crate) models: Vec<String>,

    /// The seeds; every network is trained with each.
    #[arg(
        long,
        value_name = "NUMBERS",
        value_delimiter = ',',
        default_value = "0,1,2"
    )]
    pub(crate) seeds: Vec<u64>,

    /// The recipes; every network is trained by each.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "reference"
    )]
    pub(crate) recipe: Vec<String>,

    /// Passes over the training images [default: the recipe's].
    #[arg(long, value_name = "N")]
    pub(crate) epochs: Option<NonZeroU32>,

    /// The images, cifar10 or synthetic [default: cifar10].
    #[arg(long, value_name = "NAME")]
    pub(crate) dataset: Option<String>,

    /// The folder that holds `cifar-10-batches-bin` [default: data].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Use the first N training images only.
    #[arg(long, value_name = "N")]
    pub(crate) limit_train: Option<NonZeroUsize>,

    /// The device that computes: auto, cpu, cuda or cuda:N [default: auto].
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,

    /// Runs at a time; they share the processor's cores.
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) jobs: NonZeroUsize,

    /// The folder for the runs, report.md and report.html.
    #[arg(long, value_name = "DIR", default_value = "runs/compare")]
    pub(crate) out: PathBuf,

    /// Train nothing, report on the runs that are finished.
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) report_only: bool,

    /// List what would be trained, and how long that would take by a few measured steps.
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) trainer: trainer::Args,

    /// More flags of the trainer, for every run, such as `-- --batch-size 100`.
    #[arg(last = true, value_name = "FLAGS")]
    pub(crate) flags: Vec<String>,
}

/// Does what is asked, and gives the exit code.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    for (flag, values) in [
        ("--models", args.models.clone()),
        ("--seeds", args.seeds.iter().map(u64::to_string).collect()),
        ("--recipe", args.recipe.clone()),
    ] {
        if let Some((_, twice)) = values
            .iter()
            .enumerate()
            .find(|(place, value)| values[..*place].contains(value))
        {
            return Err(
                UsageError(format!("{flag}: `{twice}` is given twice; give each once")).into(),
            );
        }
    }
    if args.report_only {
        // From the records alone: nothing is built.
        let (finished, others): (Vec<_>, Vec<_>) =
            names(args).partition(|name| is_finished(&args.out.join(name)));
        for name in others.iter().filter(|_| !finished.is_empty()) {
            cli::note(&format!("{name}: left out, it is not finished"));
        }
        write_report(args, &finished)?;
        return Ok(Exit::Success);
    }
    let trainer = Trainer::new(&args.trainer, args.device.as_deref())?;
    let mut plan = Vec::new();
    // Seed by seed, so that every network has a run early.
    for seed in &args.seeds {
        for recipe in &args.recipe {
            for model in &args.models {
                let arguments = arguments(args, model, recipe, *seed);
                plan.push(Planned::new(
                    &trainer,
                    &args.out,
                    name(model, recipe, *seed),
                    arguments,
                )?);
            }
        }
    }
    if args.dry_run {
        dry_run(&trainer, &plan)?;
        return Ok(Exit::Success);
    }
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make the folder `{}`", args.out.display()))?;
    let failed = match pool::train(&trainer, &plan, args.jobs)? {
        Ended::Interrupted => {
            cli::note("interrupted; the same command goes on where it stopped");
            return Ok(Exit::Interrupted);
        }
        Ended::Done(failed) => failed,
    };
    let trained: Vec<_> = names(args).filter(|name| !failed.contains(name)).collect();
    write_report(args, &trained)?;
    if failed.is_empty() {
        return Ok(Exit::Success);
    }
    cli::error(&format!(
        "failed, and not in the report: {}",
        failed.join(", ")
    ));
    Ok(Exit::Failure)
}

/// The name of a run in the comparison's folder.
fn name(model: &str, recipe: &str, seed: u64) -> String {
    format!("{model}-{recipe}-seed{seed}")
}

/// The names of all runs in the report's order: network by network, as the post has them.
fn names(args: &Args) -> impl Iterator<Item = String> {
    args.models.iter().flat_map(move |model| {
        let recipes = args.recipe.iter();
        recipes.flat_map(move |recipe| {
            args.seeds
                .iter()
                .map(move |seed| name(model, recipe, *seed))
        })
    })
}

/// Whether all epochs are done that the run in `folder` was asked for, and its last weights are there.
fn is_finished(folder: &Path) -> bool {
    Run::read(folder).is_ok_and(|run| {
        run.finished()
            && run::checkpoint::finished_epochs(folder)
                .is_some_and(|epochs| epochs as usize >= run.epochs.len())
    })
}

/// Writes the report on the runs of these names, and says where it is.
fn write_report(args: &Args, names: &[String]) -> anyhow::Result<()> {
    if names.is_empty() {
        bail!(
            "there is no finished run in `{}` to report on",
            args.out.display()
        );
    }
    let runs = names.iter().map(|name| Run::read(&args.out.join(name)));
    let comparison = Comparison::new(runs.collect::<Result<_, _>>()?)?;
    let [markdown, html] = report::write_report(&args.out, &comparison)
        .with_context(|| format!("cannot write the report into `{}`", args.out.display()))?;
    cli::line(&format!(
        "the report: {} and {}",
        markdown.display(),
        html.display()
    ));
    Ok(())
}

/// The trainer's arguments for a run.
fn arguments(args: &Args, model: &str, recipe: &str, seed: u64) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--model",
        model,
        "--recipe",
        recipe,
        "--seed",
        &seed.to_string(),
    ]
    .map(str::to_owned)
    .into();
    let mut add = |flag: &str, value: Option<String>| {
        arguments.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]))
    };
    add("--epochs", args.epochs.map(|epochs| epochs.to_string()));
    add("--dataset", args.dataset.clone());
    add(
        "--data-dir",
        args.data_dir
            .as_ref()
            .map(|folder| folder.display().to_string()),
    );
    add(
        "--limit-train",
        args.limit_train.map(|images| images.to_string()),
    );
    add("--device", args.device.clone());
    add("--threads", pool::threads(args.jobs));
    arguments.extend(args.flags.iter().cloned());
    arguments
}
