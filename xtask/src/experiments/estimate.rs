//! How long runs will take, estimated from a few measured steps.

use crate::experiments::plan::{Planned, State};
use crate::experiments::trainer::Trainer;
use anyhow::Context;
use indicatif::HumanDuration;
use run::cli;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Images of CIFAR-10 and of the synthetic set, where no limit is given.
const ALL_IMAGES: [(&str, u64, u64); 2] =
    [("cifar10", 50_000, 10_000), ("synthetic", 10_000, 2_000)];

/// Lists the runs, with the time that each would take.
pub(crate) fn dry_run(trainer: &Trainer, plan: &[Planned]) -> anyhow::Result<()> {
    let mut paces: BTreeMap<&str, Pace> = BTreeMap::new();
    let mut all = 0.0;
    for run in plan {
        let left = run.epochs() - run.done().min(run.epochs());
        let seconds = if run.state == State::Finished {
            0.0
        } else {
            let pace = match paces.get(run.kind.as_str()) {
                Some(pace) => *pace,
                None => *paces
                    .entry(&run.kind)
                    .or_insert(Pace::measure(trainer, run)?),
            };
            let dataset = run
                .settings
                .get("dataset")
                .and_then(toml::Value::as_str)
                .unwrap_or_default();
            let (_, train, test) = ALL_IMAGES
                .into_iter()
                .find(|(name, ..)| *name == dataset)
                .unwrap_or(ALL_IMAGES[0]);
            let mut train = run.number("limit_train").unwrap_or(train);
            let mut test = run.number("limit_test").unwrap_or(test);
            if let Some(images) = run.number("validation") {
                (train, test) = (train.saturating_sub(images), images);
            }
            let batch = run.number("batch_size").unwrap_or(1);
            if let Some(batches) = run.number("overfit_batches") {
                train = batches.saturating_mul(batch);
                test = train;
            }
            let (train, test) = (train as f64, test as f64);
            f64::from(left) * (train / pace.training + test / pace.evaluation)
        };
        all += seconds;
        let state = match run.state {
            State::Missing => format!("to be trained, {} epochs", run.epochs()),
            State::Begun(epochs) => format!(
                "to be continued, {epochs} of {} epochs are done",
                run.epochs()
            ),
            State::Finished => "finished".to_owned(),
        };
        let time = if seconds > 0.0 {
            format!(
                ", about {}",
                HumanDuration(Duration::from_secs_f64(seconds))
            )
        } else {
            String::new()
        };
        cli::line(&format!("{}: {state}{time}", run.name));
    }
    cli::line(&format!(
        "in all about {}, by a few steps measured now",
        HumanDuration(Duration::from_secs_f64(all))
    ));
    Ok(())
}

/// Images a second.
#[derive(Clone, Copy)]
struct Pace {
    training: f64,
    evaluation: f64,
}

/// Steps and test images that are measured, in the last of as many epochs: the first steps are slow, since they are the
/// first to touch their memory.
const MEASURED_EPOCHS: u64 = 2;
const MEASURED_STEPS: u64 = 2;
const MEASURED_IMAGES: u64 = 250;

impl Pace {
    /// Measures a few steps with a run's settings, on the synthetic set, which needs no data.
    fn measure(trainer: &Trainer, run: &Planned) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder to measure in")?;
        let train = MEASURED_STEPS * run.number("batch_size").unwrap_or(1);
        let settings = folder.path().join("settings.toml");
        let mut table = run.settings.clone();
        for (key, value) in [
            ("limit_train", train),
            ("limit_test", MEASURED_IMAGES),
            ("epochs", MEASURED_EPOCHS),
        ] {
            table.insert(key.to_owned(), toml::Value::Integer(value as i64));
        }
        table.remove("validation");
        table.remove("overfit_batches");
        table.insert(
            "dataset".to_owned(),
            toml::Value::String("synthetic".to_owned()),
        );
        fs::write(&settings, table.to_string())
            .context("cannot write the settings to measure with")?;
        let path = |path: &Path| path.display().to_string();
        trainer.output([
            "--config",
            &path(&settings),
            "--run-dir",
            &path(folder.path()),
            "--name",
            "pace",
            "--no-progress",
        ])?;
        let epochs = run::metrics::read(&folder.path().join("pace").join(run::file::METRICS))?;
        let epoch = epochs.last().context("no step was measured")?;
        let evaluation = epoch.seconds - train as f64 / epoch.images_per_second;
        Ok(Self {
            training: epoch.images_per_second,
            evaluation: MEASURED_IMAGES as f64 / evaluation.max(1e-3),
        })
    }
}
