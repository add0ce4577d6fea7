//! An estimate of how long runs will take, from a few measured steps.

use crate::experiments::plan::{Planned, State};
use crate::files::write;
use crate::trainer::{self, Trainer};
use anyhow::{Context, ensure};
use datasets::DatasetSource;
use indicatif::HumanDuration;
use run::cli::{self, Exit};
use run::{Settings, file, stop};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Lists the runs and how long each will take.
pub(crate) fn dry_run(trainer: &Trainer, plan: &[Planned]) -> anyhow::Result<Exit> {
    let stop = stop::requested("stopping").context("cannot watch for Ctrl-C")?;
    let stopped = || stop.load(Ordering::SeqCst);
    let mut paces: BTreeMap<String, Pace> = BTreeMap::new();
    let mut all = 0.0;
    for run in plan {
        let (name, epochs) = (&run.name, run.epochs());
        let state = match run.state {
            State::Missing => format!("to be trained, {epochs} epochs"),
            State::Started(done) => format!("to be resumed, {done} of {epochs} epochs are done"),
            State::Finished => {
                cli::line(&format!("{name}: finished"));
                continue;
            }
        };
        let pace = match paces.entry(run.kind()) {
            Entry::Occupied(pace) => pace.into_mut(),
            Entry::Vacant(pace) => match Pace::measure(trainer, &run.settings, stopped) {
                _ if stopped() => return Ok(Exit::Interrupted),
                measured => pace.insert(measured?),
            },
        };
        let (train, test) = images(&run.settings)?;
        let epoch = train as f64 / pace.training + test as f64 / pace.evaluation;
        let seconds = f64::from(epochs.saturating_sub(run.done())) * epoch;
        all += seconds;
        cli::line(&format!("{name}: {state}, about {}", duration(seconds)));
    }
    let all = duration(all);
    cli::line(&format!("in all about {all}, estimated from a few steps"));
    Ok(Exit::Success)
}

fn duration(seconds: f64) -> HumanDuration {
    HumanDuration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// The images that a run trains on, and those that it is evaluated on.
fn images(settings: &Settings) -> anyhow::Result<(usize, usize)> {
    if let Some(batches) = settings.overfit_batches {
        let images = batches.saturating_mul(settings.batch_size).get();
        return Ok((images, images));
    }
    let all = settings.dataset.parse::<DatasetSource>()?.images()?;
    let limited = |limit: Option<NonZeroUsize>, all| limit.map_or(all, NonZeroUsize::get);
    let train = limited(settings.limit_train, all.training);
    Ok(match settings.validation.map(NonZeroUsize::get) {
        Some(held_out) => (train.saturating_sub(held_out), held_out),
        None => (train, limited(settings.limit_test, all.test)),
    })
}

/// Throughput in images per second.
struct Pace {
    training: f64,
    evaluation: f64,
}

/// What is measured, in the last of `EPOCHS` epochs: the first steps are slow, since they are the first to touch their
/// memory.
const EPOCHS: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);
const STEPS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);
const TEST_IMAGES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(249);

impl Pace {
    /// Measures a few steps with these settings, on the synthetic data set, which needs no files.
    fn measure(
        trainer: &Trainer,
        settings: &Settings,
        stopped: impl Fn() -> bool,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
        let train = STEPS.saturating_mul(settings.batch_size);
        let settings = Settings {
            dataset: "synthetic".to_owned(),
            limit_train: Some(train),
            limit_test: Some(TEST_IMAGES),
            epochs: EPOCHS,
            validation: None,
            overfit_batches: None,
            ..settings.clone()
        };
        let settings_file = folder.path().join("settings.toml");
        write(&settings_file, &settings.to_toml()?)?;
        let mut command = trainer.command();
        command.arg("--config").arg(&settings_file);
        command.arg("--run-dir").arg(folder.path());
        command.args(["--name", "pace"]);
        let mut lines = Vec::new();
        let status = trainer::train(&mut command, stopped, || (), |line| lines.push(line))?;
        ensure!(status.success(), trainer::failure(&lines, status));
        let epochs = run::metrics::read(&folder.path().join("pace").join(file::METRICS))?;
        let epoch = epochs.last().context("no step was measured")?;
        let evaluation = epoch.seconds - train.get() as f64 / epoch.images_per_second;
        Ok(Self {
            training: epoch.images_per_second,
            evaluation: TEST_IMAGES.get() as f64 / evaluation.max(1e-3),
        })
    }
}
