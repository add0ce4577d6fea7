//! `cargo xtask verify`: trains a run again, and says whether it comes out the same.

use crate::experiments::trainer::{self, Trainer};
use anyhow::{Context, bail};
use run::checkpoint::{finished_epochs, weights_difference};
use run::cli::{self, Exit, UsageError};
use run::{EpochMetrics, Run, file, folder};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// What is asked of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run: its folder, or its name in runs/.
    #[arg(value_name = "RUN")]
    run: PathBuf,

    /// Train its first N epochs only [default: all that are done].
    #[arg(long, value_name = "N")]
    epochs: Option<NonZeroU32>,

    /// The folder that holds `cifar-10-batches-bin` [default: the run's].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Threads that compute; the result does not depend on them [default: one a core].
    #[arg(long, value_name = "N")]
    threads: Option<u32>,

    #[command(flatten)]
    trainer: trainer::Args,
}

/// Trains again, says what came of it, and gives the exit code: failure where anything differs.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let folder = folder::find(Path::new("runs"), &args.run)?;
    let run = Run::read(&folder)?;
    let done = run.epochs.len() as u32;
    let epochs = args.epochs.map_or(done, NonZeroU32::get);
    if epochs > done {
        return Err(UsageError(format!(
            "--epochs {epochs}: the run `{}` has {done} epochs that are done",
            folder.display()
        ))
        .into());
    }
    let device = &run.made_by.device;
    let trainer = Trainer::new(&args.trainer, Some(device))?;
    let again = tempfile::tempdir().context("cannot make a folder to train in")?;
    let mut command = trainer.command();
    command
        .arg("--config")
        .arg(folder.join(file::RECORD))
        .arg("--run-dir")
        .arg(again.path())
        .args(["--name", "again"]);
    // Not `--epochs`: the learning rate may follow a schedule over all of them.
    command.args([
        "--stop-after",
        &epochs.to_string(),
        "--device",
        device,
        "--no-progress",
    ]);
    if let Some(data_dir) = &args.data_dir {
        command.arg("--data-dir").arg(data_dir);
    }
    let threads = args.threads.map_or_else(
        || std::thread::available_parallelism().map_or(1, usize::from),
        |threads| threads as usize,
    );
    command.args(["--threads", &threads.to_string()]);
    let status = command
        .stderr(Stdio::inherit())
        .status()
        .context("cannot run the program `trainer`")?;
    if !status.success() {
        bail!("the run could not be trained again: {status}");
    }
    let again = again.path().join("again");
    let repeated = run::metrics::read(&again.join(file::METRICS))?;
    let sha = |path: &Path| -> anyhow::Result<String> { Ok(Run::read(path)?.made_by.data_sha256) };
    if sha(&again)? != run.made_by.data_sha256 {
        bail!(
            "the data are others than those that the run `{}` was made with",
            folder.display()
        );
    }
    let first_other = run
        .epochs
        .iter()
        .zip(&repeated)
        .find(|(then, now)| !same(then, now));
    // The weights themselves, where both stand after the same epoch.
    let weights = folder.join(file::LAST_WEIGHTS);
    let weights = if finished_epochs(&folder) == Some(epochs) {
        Some(
            weights_difference(&weights, &again.join(file::LAST_WEIGHTS))
                .context("cannot compare the weights")?,
        )
    } else {
        None
    };
    match (first_other, weights) {
        (None, None)
            if run
                .epochs
                .iter()
                .take(epochs as usize)
                .any(|epoch| epoch.weights_sha256.is_none()) =>
        {
            cli::line(&format!(
                "losses and accuracies of {epochs} epochs are the same, to the bit; the run kept no digests of their weights"
            ));
            Ok(Exit::Success)
        }
        (None, weights)
            if weights
                .as_ref()
                .is_none_or(|weights| weights.different == 0) =>
        {
            let epochs = if epochs == 1 {
                "the one epoch".to_owned()
            } else {
                format!("each of {epochs} epochs")
            };
            cli::line(&format!(
                "the same: the weights after {epochs} agree to the bit"
            ));
            Ok(Exit::Success)
        }
        (other, weights) => {
            let mut message = "not the same".to_owned();
            if let Some((then, now)) = other {
                message += &format!(
                    ": from epoch {} on; its training loss was {} and is {}, its test loss was {} and is {}",
                    then.epoch,
                    then.train_loss,
                    now.train_loss,
                    then.evaluated().loss,
                    now.evaluated().loss
                );
            }
            match weights {
                Some(weights) => {
                    message += &format!(
                        "; after epoch {epochs}, {} of {} weights differ, by at most {:e} (in {})",
                        weights.different, weights.elements, weights.largest, weights.tensor
                    );
                }
                None => {
                    message += &format!(
                        "; the weights after epoch {epochs} are not kept, so these are all figures there are"
                    );
                }
            }
            cli::line(&message);
            Ok(Exit::Failure)
        }
    }
}

/// Whether two epochs came to the same, to the bit. Times do not count.
fn same(then: &EpochMetrics, now: &EpochMetrics) -> bool {
    let numbers = |epoch: &EpochMetrics| {
        [
            epoch.train_loss,
            epoch.train_accuracy,
            epoch.evaluated().loss,
            epoch.evaluated().accuracy,
            epoch.learning_rate,
        ]
        .map(f64::to_bits)
    };
    // Runs of earlier versions have no digests.
    let weights = match (&then.weights_sha256, &now.weights_sha256) {
        (Some(then), Some(now)) => then == now,
        _ => true,
    };
    numbers(then) == numbers(now) && weights
}
