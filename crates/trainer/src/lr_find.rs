//! The command that searches for a learning rate.

use crate::settings::Resolved;
use crate::setup::Setup;
use crate::{data, progress, settings};
use anyhow::Context;
use engine::LrFinder;
use run::cli::{self, Exit, UsageError};
use run::settings::Property;
use run::{LrFinderStep, NativePath, Overrides, Positive, stop};
use serde::Serialize;
use std::fs;
use std::sync::atomic::Ordering;

/// Arguments of `lr-find`.
#[derive(Debug, clap::Args)]
pub(crate) struct LrFindArgs {
    #[command(flatten)]
    pub(crate) overrides: Overrides,

    /// Read settings from this TOML file: the output of --dry-run, or the run.toml of a run.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<NativePath>,

    /// The number of steps.
    #[arg(long, value_name = "N", default_value = "100")]
    pub(crate) steps: u32,

    /// The learning rate of the first step.
    #[arg(long, value_name = "RATE", default_value = "1e-5")]
    pub(crate) min_lr: Positive,

    /// The learning rate of the last step.
    #[arg(long, value_name = "RATE", default_value = "1")]
    pub(crate) max_lr: Positive,

    /// The folder for lr-find.svg, lr-find.png and lr-find.json.
    #[arg(long, value_name = "DIR", default_value = "runs/lr-find")]
    pub(crate) out: NativePath,
}

/// The content of `lr-find.json`.
#[derive(Serialize)]
struct Found<'a> {
    /// A tenth of the learning rate with the lowest smoothed loss.
    suggestion: Option<f64>,
    steps: &'a [LrFinderStep],
}

/// Searches, and writes and prints what was found.
pub(crate) fn run(args: &LrFindArgs) -> anyhow::Result<Exit> {
    if let Some(field) = args.overrides.first_with(Property::NotInLrFind)? {
        return Err(UsageError(format!(
            "{} has no effect on a search for a learning rate, which takes --steps steps from --min-lr to --max-lr; omit it",
            field.flag()
        ))
        .into());
    }
    let resolved = settings::resolve(&args.overrides, args.config.as_deref())?;
    settings::note_flags_without_effect(&args.overrides, &resolved)?;
    let finder = LrFinder::new(args.min_lr.get(), args.max_lr.get(), args.steps)
        .map_err(|error| UsageError(format!("--min-lr, --max-lr, --steps: {error}")))?;
    let stop = stop::requested("stopping after this step").context("cannot watch for Ctrl-C")?;
    let mut setup = match Setup::new(resolved, None, false, true, stop) {
        Err(error) if data::is_stopped(&error) => return Ok(Exit::Interrupted),
        setup => setup?,
    };
    let training = setup.start()?;
    let bar = progress::bar(true);
    bar.set_length(finder.steps().into());
    let steps = training.find_lr(finder, &|| stop.load(Ordering::SeqCst), &mut |_| bar.inc(1))?;
    bar.finish_and_clear();
    let interrupted = stop.load(Ordering::SeqCst);
    if interrupted && steps.is_empty() {
        return Ok(Exit::Interrupted);
    }
    let suggestion = engine::suggested_lr(&steps);
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create the folder `{}`", args.out.display()))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = args.out.join(name);
        atomic_file::write(&path, bytes)
            .with_context(|| format!("cannot write `{}`", path.display()))
    };
    let Resolved {
        settings,
        architecture,
        ..
    } = &setup.resolved;
    let title = format!(
        "{}, {} recipe, batches of {}",
        architecture.display_name, settings.recipe, settings.batch_size
    );
    let plot = report::lr_curve(&title, &steps, suggestion)?;
    write("lr-find.svg", plot.svg.as_bytes())?;
    write("lr-find.png", &plot.png)?;
    let found = Found {
        suggestion,
        steps: &steps,
    };
    write("lr-find.json", &serde_json::to_vec_pretty(&found)?)?;
    let ended = match steps.last() {
        Some(last) => format!(
            "the last of {} steps ({} planned) had a learning rate of {:.2e}",
            steps.len(),
            finder.steps(),
            last.lr
        ),
        None => "the first loss is not finite".to_owned(),
    };
    let plot = args.out.join("lr-find.svg");
    let ended = format!("{ended}; plot in {}", plot.display());
    cli::line(&match suggestion {
        Some(rate) => format!(
            "suggested learning rate: {rate:.2e}, a tenth of the learning rate with the lowest smoothed loss; {ended}"
        ),
        None if interrupted => format!("stopped; {ended}"),
        None => format!(
            "no suggestion: the loss is lowest at a learning rate below ten times --min-lr; try a lower --min-lr or more \
             --steps; {ended}"
        ),
    });
    Ok(match interrupted {
        true => Exit::Interrupted,
        false => Exit::Success,
    })
}
