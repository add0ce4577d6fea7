//! The command line.

use crate::data::Source;
use crate::settings::{Given, architecture, convolution, precision};
use crate::{device, evaluate, lr_find, predict, train, write_report};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use engine::Positive;
use models::Architecture;
use ops::{ConvAlgorithm, Precision};
use run::cli::{self, Exit, UsageError};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Trains AlexNet and SmallAlexNet on CIFAR-10, exactly reproducibly.
///
/// Without a command it trains: `trainer --model small-alexnet`.
#[derive(Debug, Parser)]
#[command(name = "trainer", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: TrainArgs,
}

/// What is asked of a training run.
#[derive(Debug, clap::Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) given: Given,

    /// Take settings from this TOML file: what --dry-run prints, or the run.toml of a run.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Continue this run: its folder, or its name in the folder of runs.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "name", "init"])]
    pub(crate) resume: Option<PathBuf>,

    /// The folder of runs.
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub(crate) run_dir: PathBuf,

    /// The run's name, which is its folder's [default: model, recipe and seed, numbered].
    #[arg(long, value_parser = run_name)]
    pub(crate) name: Option<String>,

    /// How much the run's log holds.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: LogLevel,

    /// Write how long everything took to this file, for the trace viewer of Chrome or Perfetto.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// Show no progress bar, only a line an epoch.
    #[arg(long)]
    pub(crate) no_progress: bool,

    /// Stop, with a checkpoint, when standard input ends: for a program that starts this one through a pipe, so that
    /// nothing goes on where that program is killed.
    #[arg(long)]
    pub(crate) stop_with_stdin: bool,

    /// Stop, with a checkpoint, when this process has trained for so long: as 90s, 30m, 2h 15m, or DD:HH:MM:SS.
    #[arg(long, value_name = "TIME")]
    pub(crate) max_time: Option<MaxTime>,

    /// Stop, with a checkpoint, after epoch N of the run; its schedule stays that of all its epochs.
    #[arg(long, value_name = "N")]
    pub(crate) stop_after: Option<NonZeroU32>,

    /// Take one step and evaluate one batch, to see that everything works; nothing is kept.
    #[arg(long, conflicts_with_all = ["resume", "name", "dry_run"])]
    pub(crate) fast_dev_run: bool,

    /// Print the resolved settings as TOML and do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// A time span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MaxTime(pub(crate) Duration);

impl FromStr for MaxTime {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let wrong = || {
            UsageError(format!(
                "`{text}` is no time: give it as 90s, 30m, 2h 15m, or DD:HH:MM:SS"
            ))
        };
        if !text.contains(':') {
            return humantime::parse_duration(text)
                .map(Self)
                .map_err(|_| wrong());
        }
        let parts: Vec<u64> = text
            .split(':')
            .map(|part| part.parse().map_err(|_| wrong()))
            .collect::<Result<_, _>>()?;
        let &[days, hours, minutes, seconds] = parts.as_slice() else {
            return Err(wrong());
        };
        let total = days
            .checked_mul(24)
            .and_then(|total| total.checked_add(hours)?.checked_mul(60))
            .and_then(|total| total.checked_add(minutes)?.checked_mul(60))
            .and_then(|total| total.checked_add(seconds));
        total.map(Duration::from_secs).map(Self).ok_or_else(wrong)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the table of a network's layers.
    Summary {
        /// The network.
        #[arg(long, value_parser = architecture())]
        model: Architecture,
    },
    /// Search for a learning rate: the loss against a rate that rises from step to step.
    ///
    /// Settings that have no part in it, those of epochs, of the schedule and of evaluation, are refused.
    LrFind(Box<LrFindArgs>),
    /// Evaluate a checkpoint on the test images.
    Eval(EvalArgs),
    /// Say what is in pictures.
    Predict(PredictArgs),
    /// Write a report on runs, side by side, as Markdown and as one HTML file.
    Report(ReportArgs),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Weights, and where to compute with them.
#[derive(Debug, clap::Args)]
pub(crate) struct WeightArgs {
    /// A checkpoint, or a safetensors file of weights made by PyTorch.
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: PathBuf,

    /// The network; needed where the file does not name it.
    #[arg(long, value_parser = architecture())]
    pub(crate) model: Option<Architecture>,

    /// Threads that compute [default: one a core].
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,

    /// The device that computes: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: device::Choice,

    /// How convolutions are computed: `direct`, as the sums that define them, or `fast`, with fewer
    /// operations and slightly larger rounding errors.
    #[arg(long, value_parser = convolution(), default_value = "fast")]
    pub(crate) conv: ConvAlgorithm,

    /// In what numbers a GPU computes: f32, tf32 or bf16 [default: tf32; a processor computes in f32].
    #[arg(long, value_parser = precision())]
    pub(crate) precision: Option<Precision>,
}

/// What is asked of a search for a learning rate.
#[derive(Debug, clap::Args)]
pub(crate) struct LrFindArgs {
    #[command(flatten)]
    pub(crate) given: Given,

    /// Take settings from this TOML file: what --dry-run prints, or the run.toml of a run.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Steps of the search.
    #[arg(long, value_name = "N", default_value = "100")]
    pub(crate) steps: u32,

    /// The rate of the first step.
    #[arg(long, value_name = "RATE", default_value = "1e-5")]
    pub(crate) min_lr: Positive,

    /// The rate of the last step.
    #[arg(long, value_name = "RATE", default_value = "1")]
    pub(crate) max_lr: Positive,

    /// The folder for lr-find.svg, lr-find.png and lr-find.json.
    #[arg(long, value_name = "DIR", default_value = "runs/lr-find")]
    pub(crate) out: PathBuf,
}

/// What is asked of an evaluation.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) weights: WeightArgs,

    /// The images.
    #[arg(long, default_value = "cifar10")]
    pub(crate) dataset: Source,

    /// The folder that holds `cifar-10-batches-bin`.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub(crate) data_dir: PathBuf,

    /// Use the first N test images only.
    #[arg(long, value_name = "N")]
    pub(crate) limit_test: Option<NonZeroUsize>,

    /// Take the mean of the outputs for each image and for its mirror image (test-time augmentation).
    #[arg(long)]
    pub(crate) mirrored: bool,

    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is asked of a prediction.
#[derive(Debug, clap::Args)]
pub(crate) struct PredictArgs {
    #[command(flatten)]
    pub(crate) weights: WeightArgs,

    /// How many classes to print for a picture.
    #[arg(long, value_name = "N", default_value = "3")]
    pub(crate) top: NonZeroUsize,

    /// PNG or JPEG files of any size; the largest square in the middle is looked at.
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<PathBuf>,
}

/// What is asked of a report.
#[derive(Debug, clap::Args)]
pub(crate) struct ReportArgs {
    /// The runs: their folders, or their names in the folder of runs.
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,

    /// The folder of runs.
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub(crate) run_dir: PathBuf,

    /// The folder for report.md and report.html.
    #[arg(long, value_name = "DIR", default_value = "runs/report")]
    pub(crate) out: PathBuf,
}

/// Levels of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogLevel {
    /// Nothing.
    Off,
    /// Failures.
    Error,
    /// What needs attention.
    Warn,
    /// Epochs and checkpoints.
    Info,
    /// Steps.
    Debug,
    /// Everything.
    Trace,
}

impl Args {
    /// Does what is asked.
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        self.execute()
            .map_err(device::explained)
            .map_err(|error| match error.downcast_ref() {
                Some(engine::Error::BatchTooLarge { .. }) => UsageError(error.to_string()).into(),
                _ => error,
            })
    }

    fn execute(self) -> anyhow::Result<Exit> {
        match self.command {
            None => return train::run(&self.train),
            Some(Command::Summary { model }) => cli::text(&models::summary(model)),
            Some(Command::LrFind(args)) => return lr_find::run(&args),
            Some(Command::Eval(args)) => evaluate::run(&args)?,
            Some(Command::Predict(args)) => predict::run(&args)?,
            Some(Command::Report(args)) => write_report::run(&args)?,
            Some(Command::Completions { shell }) => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "trainer", &mut script);
                cli::text(&String::from_utf8_lossy(&script));
            }
        }
        Ok(Exit::Success)
    }
}

/// A name that is a single folder's, on every system.
fn run_name(text: &str) -> Result<String, UsageError> {
    let plain = |c: char| c.is_alphanumeric() || "-_.+=,".contains(c);
    if text.is_empty() || text.starts_with('.') || !text.chars().all(plain) {
        return Err(UsageError(
            "a run's name is made of letters, digits and -_.+=, and begins with no dot".to_owned(),
        ));
    }
    Ok(text.to_owned())
}

/// Sets the number of threads that compute; one a core where none is given.
pub(crate) fn use_threads(threads: Option<NonZeroUsize>) -> anyhow::Result<()> {
    let builder = rayon::ThreadPoolBuilder::new();
    let builder = threads.map_or(builder, |threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads.get())
    });
    Ok(builder.build_global()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("90s", 90),
            ("2h 15m", 8100),
            ("00:00:30:00", 1800),
            ("01:02:03:04", 93_784),
        ] {
            let time: MaxTime = text.parse().unwrap();
            assert_eq!(time.0.as_secs(), seconds, "{text}");
        }
        for text in [
            "",
            "5",
            "1:2",
            "a:b:c:d",
            "99999999999999999999:0:0:0",
            "-5m",
        ] {
            assert!(text.parse::<MaxTime>().is_err(), "{text}");
        }
        let huge = format!("{}:0:0:0", u64::MAX);
        assert!(huge.parse::<MaxTime>().is_err());
    }

    #[test]
    fn names_are_folders() {
        for name in ["a", "small-alexnet_1", "lr=0.1,b=2"] {
            assert!(run_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", ".a", "a/b", "a\\b", "a b"] {
            assert!(run_name(name).is_err(), "{name}");
        }
    }
}
