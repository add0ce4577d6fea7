//! `cargo xtask verify`: trains a run again and checks that its weights are the same, bit for bit.

use crate::trainer::{self, Trainer, flag};
use anyhow::{Context, anyhow, ensure};
use run::checkpoint::{is_after_epoch, weights_difference};
use run::cli::{self, Exit, UsageError};
use run::{EpochMetrics, Machine, MadeBy, NativePath, Run, file, folder, stop};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;

/// Options of `verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run: its folder, or its name in runs/.
    #[arg(value_name = "RUN")]
    run: NativePath,

    /// Train the first N epochs only [default: all that are done].
    #[arg(long, value_name = "N")]
    epochs: Option<NonZeroU32>,

    /// The folder with the data sets [default: the run's].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<NativePath>,

    /// The folder of the run's own pictures, if it was moved.
    #[arg(long, value_name = "DIR")]
    dataset: Option<NativePath>,

    /// Threads; they do not affect the result [default: one per core].
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    #[command(flatten)]
    trainer: trainer::Args,
}

/// Trains the run again and compares. The exit code says whether the runs are the same.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let folder = folder::find(Path::new("runs"), &args.run)?;
    let run = Run::read(&folder)?;
    let done = run.epochs.len() as u32;
    let epochs = args.epochs.map_or(done, NonZeroU32::get);
    if epochs > done {
        let run = folder.display();
        let error = format!("--epochs {epochs}: the run `{run}` has {done} epochs");
        return Err(UsageError(error).into());
    }
    let parent = tempfile::tempdir().context("cannot create a temporary folder")?;
    if !train_again(args, &run, &folder, epochs, parent.path())? {
        cli::note("interrupted; the run was not verified");
        return Ok(Exit::Interrupted);
    }
    let repeated = parent.path().join(REPEATED);
    let again = Run::read(&repeated)?;
    ensure!(
        again.made_by.data_sha256 == run.made_by.data_sha256,
        "the data are not those that the run `{}` was trained on",
        folder.display()
    );
    let mut pairs = run.epochs.iter().zip(&again.epochs);
    let different = pairs.find(|(before, now)| !same(before, now));
    // The weights themselves, if both checkpoints are after the same epoch: an interrupted run's may be within the next.
    let mut weights = None;
    if is_after_epoch(&folder, epochs) {
        let [before, now] = [&folder, &repeated].map(|run| run.join(file::LAST_WEIGHTS));
        let difference = weights_difference(&before, &now);
        weights = Some(difference.context("cannot compare the weights")?);
    }
    let differs = weights
        .as_ref()
        .is_some_and(|weights| weights.different > 0);
    if different.is_none() && !differs {
        let mut compared = run.epochs[..epochs as usize].iter();
        let digests = compared.all(|epoch| epoch.weights_sha256.is_some());
        let equal = match (digests, epochs) {
            (true, 1) => "the weights after epoch 1 are equal, bit for bit".to_owned(),
            (true, _) => {
                format!("the weights after each of {epochs} epochs are equal, bit for bit")
            }
            // Runs of earlier versions and epochs on a GPU without a checkpoint have no digest.
            (false, _) => format!(
                "losses and accuracies of {epochs} epochs are equal, bit for bit, and so are the weights of every epoch that has \
                 a digest in both runs"
            ),
        };
        cli::line(&format!("the same: {equal}"));
        return Ok(Exit::Success);
    }
    let mut message = "not the same".to_owned();
    if let Some(conditions) = conditions(&run.made_by, &again.made_by) {
        message = format!("{conditions}\n{message}");
    }
    if let Some((before, now)) = different {
        message += &format!(
            ": from epoch {} on; its training loss was {} and is {}, its {} loss was {} and is {}",
            before.epoch,
            before.train_loss,
            now.train_loss,
            before.evaluated.split,
            before.evaluated.loss,
            now.evaluated.loss
        );
    }
    message += &match weights {
        None => format!(
            "; the run has no checkpoint after epoch {epochs}, so weights cannot be compared"
        ),
        Some(weights) => {
            let largest = match weights.different {
                0 => String::new(),
                _ => format!(", by at most {:e} (in {})", weights.largest, weights.tensor),
            };
            let (different, elements) = (weights.different, weights.elements);
            format!("; after epoch {epochs}, {different} of {elements} weights differ{largest}")
        }
    };
    cli::line(&message);
    Ok(Exit::Failure)
}

/// The name of the repeated run.
const REPEATED: &str = "repeated";

/// Trains the first epochs of a run again, in a folder inside `parent`. Returns false where it was asked to stop.
fn train_again(
    args: &Args,
    run: &Run,
    folder: &Path,
    epochs: u32,
    parent: &Path,
) -> anyhow::Result<bool> {
    let stop = stop::requested("stopping").context("cannot watch for Ctrl-C")?;
    let stopped = || stop.load(Ordering::SeqCst);
    let device = &run.made_by.device;
    let trainer = Trainer::new(&args.trainer, Some(device.as_ref()))?;
    let mut command = trainer.command();
    command.arg(flag("--config", folder.join(file::RECORD)));
    command.arg("--run-dir").arg(parent);
    command.args(["--name", REPEATED, "--device", device]);
    // Not `--epochs`: the learning rate may depend on their number.
    command.args(["--stop-after", &epochs.to_string()]);
    if let Some(data_dir) = &args.data_dir {
        command.arg(flag("--data-dir", data_dir));
    }
    if let Some(dataset) = &args.dataset {
        command.arg(flag("--dataset", dataset));
    }
    // Not those of the record, which may be from another machine.
    let threads = args.threads.map_or_else(thread::available_parallelism, Ok);
    let threads = threads.unwrap_or(NonZeroUsize::MIN);
    command.args(["--threads", &threads.to_string()]);
    let mut lines = Vec::new();
    let status = trainer::train(
        &mut command,
        stopped,
        || (),
        |line| {
            if !stopped() && !line.starts_with("error: ") {
                cli::note(&line);
            }
            lines.push(line);
        },
    )?;
    if stopped() {
        return Ok(false);
    }
    if status.success() {
        return Ok(true);
    }
    let failure = trainer::failure(&lines, status);
    let error = format!("the run could not be trained again: {failure}");
    Err(match Exit::from(status) {
        Exit::Usage => UsageError(error).into(),
        _ => anyhow!(error),
    })
}

/// What was not the same around a run and its repetition, in a sentence: reasons why their bits may differ.
fn conditions(run: &MadeBy, again: &MadeBy) -> Option<String> {
    let facts = |made_by: &MadeBy| {
        let machine = made_by
            .sessions
            .last()
            .map(|session| session.machine.clone());
        let machine = |fact: fn(Machine) -> String| machine.clone().map(fact);
        [
            ("version", Some(made_by.version.clone())),
            ("commit", Some(made_by.commit.clone())),
            (
                "device",
                made_by.gpu.clone().or(Some(made_by.device.clone())),
            ),
            ("precision", Some(made_by.choices.precision.to_string())),
            (
                "evaluation batch",
                made_by.choices.evaluation_batch.map(|n| n.to_string()),
            ),
            ("operating system", machine(|machine| machine.os)),
            ("architecture", machine(|machine| machine.arch)),
            (
                "instruction set",
                machine(|machine| machine.instruction_set),
            ),
            ("processor", machine(|machine| machine.processor)),
        ]
    };
    let sessions = match run.sessions.len() {
        0 | 1 => None,
        sessions => Some(format!(
            "the run was trained in {sessions} sessions, and the last is compared"
        )),
    };
    let [before, now] = [run, again].map(|made_by| &made_by.choices.cudnn_engines);
    let changed = before
        .iter()
        .filter(|(name, engine)| now.get(*name).is_some_and(|now| now != *engine));
    let engines = match changed.count() {
        0 => None,
        count => Some(format!(
            "cuDNN has another engine for {count} passes of convolutions"
        )),
    };
    let differences = facts(run).into_iter().zip(facts(again));
    let differences = differences.filter_map(|((name, before), (_, now))| {
        let (before, now) = (before?, now?);
        (before != now).then(|| format!("{name} {before}, now {now}"))
    });
    let differences: Vec<_> = differences.chain(engines).chain(sessions).collect();
    (!differences.is_empty()).then(|| format!("the conditions differ: {}", differences.join("; ")))
}

/// Whether the metrics of two epochs are equal, bit for bit, apart from times.
fn same(before: &EpochMetrics, now: &EpochMetrics) -> bool {
    let values = |epoch: &EpochMetrics| {
        [
            epoch.train_loss,
            epoch.train_accuracy,
            epoch.evaluated.loss,
            epoch.evaluated.accuracy,
            epoch.learning_rate,
        ]
        .map(f64::to_bits)
    };
    let mut digests = before.weights_sha256.iter().zip(&now.weights_sha256);
    values(before) == values(now) && digests.all(|(before, now)| before == now)
}
