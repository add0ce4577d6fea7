//! `cargo xtask verify`: trains a run again and checks that its weights are the same, bit for bit.

use crate::trainer::{self, Trainer};
use anyhow::{Context, bail, ensure};
use run::checkpoint::{finished_epochs, weights_difference};
use run::cli::{self, Exit, UsageError};
use run::{EpochMetrics, Run, file, folder};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;

/// Options of `verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run: its folder, or its name in runs/.
    #[arg(value_name = "RUN")]
    run: PathBuf,

    /// Train the first N epochs only [default: all that are done].
    #[arg(long, value_name = "N")]
    epochs: Option<NonZeroU32>,

    /// The folder with the data sets [default: the run's].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

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
        return Err(UsageError(format!(
            "--epochs {epochs}: the run `{}` has {done} epochs",
            folder.display()
        ))
        .into());
    }
    let parent = tempfile::tempdir().context("cannot create a temporary folder")?;
    train_again(args, &run, &folder, epochs, parent.path())?;
    let repeated = parent.path().join(REPEATED);
    let metrics = run::metrics::read(&repeated.join(file::METRICS))?;
    ensure!(
        Run::read(&repeated)?.made_by.data_sha256 == run.made_by.data_sha256,
        "the data are not those that the run `{}` was trained on",
        folder.display()
    );
    let different = run
        .epochs
        .iter()
        .zip(&metrics)
        .find(|(before, now)| !same(before, now));
    // The weights themselves, if both checkpoints are after the same epoch.
    let weights = if finished_epochs(&folder) == Some(epochs) {
        let [before, now] = [&folder, &repeated].map(|run| run.join(file::LAST_WEIGHTS));
        let difference = weights_difference(&before, &now);
        Some(difference.context("cannot compare the weights")?)
    } else {
        None
    };
    if different.is_none()
        && weights
            .as_ref()
            .is_none_or(|weights| weights.different == 0)
    {
        let compared = &run.epochs[..epochs as usize];
        let digests = compared.iter().all(|epoch| epoch.weights_sha256.is_some());
        cli::line(&match (digests, epochs) {
            (true, 1) => "the same: the weights after epoch 1 are equal, bit for bit".to_owned(),
            (true, _) => {
                format!(
                    "the same: the weights after each of {epochs} epochs are equal, bit for bit"
                )
            }
            // Runs of earlier versions and epochs on a GPU without a checkpoint have no digest.
            (false, _) => format!(
                "the same: losses and accuracies of {epochs} epochs are equal, bit for bit; the run has no digests of its \
                 weights"
            ),
        });
        return Ok(Exit::Success);
    }
    let mut message = "not the same".to_owned();
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
        Some(weights) if weights.different == 0 => {
            format!(
                "; after epoch {epochs}, 0 of {} weights differ",
                weights.elements
            )
        }
        Some(weights) => format!(
            "; after epoch {epochs}, {} of {} weights differ, by at most {:e} (in {})",
            weights.different, weights.elements, weights.largest, weights.tensor
        ),
        None => format!(
            "; the run has no checkpoint after epoch {epochs}, so weights cannot be compared"
        ),
    };
    cli::line(&message);
    Ok(Exit::Failure)
}

/// The name of the repeated run.
const REPEATED: &str = "repeated";

/// Trains the first epochs of a run again, in a folder inside `parent`.
fn train_again(
    args: &Args,
    run: &Run,
    folder: &Path,
    epochs: u32,
    parent: &Path,
) -> anyhow::Result<()> {
    let device = &run.made_by.device;
    let trainer = Trainer::new(&args.trainer, Some(device.as_ref()))?;
    let mut command = trainer.command();
    command.arg("--config").arg(folder.join(file::RECORD));
    command.arg("--run-dir").arg(parent);
    command.args(["--name", REPEATED, "--no-progress", "--device", device]);
    // Not `--epochs`: the learning rate may depend on their number.
    command.args(["--stop-after", &epochs.to_string()]);
    if let Some(data_dir) = &args.data_dir {
        command.arg("--data-dir").arg(data_dir);
    }
    // Not those of the record, which may be from another machine.
    let threads = args.threads.map_or_else(thread::available_parallelism, Ok);
    let threads = threads.unwrap_or(NonZeroUsize::MIN);
    command.args(["--threads", &threads.to_string()]);
    let status = command
        .stderr(Stdio::inherit())
        .status()
        .context("cannot run the program `trainer`")?;
    if !status.success() {
        bail!("the run could not be trained again: {status}");
    }
    Ok(())
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
    let weights = match (&before.weights_sha256, &now.weights_sha256) {
        (Some(before), Some(now)) => before == now,
        _ => true,
    };
    values(before) == values(now) && weights
}
