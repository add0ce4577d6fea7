//! The command line.

use crate::data::Source;
use crate::settings::{architecture, with_names};
use crate::{device, evaluate, lr_find, predict, train, write_report};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use models::Architecture;
use run::cli::{self, Exit, UsageError};
use run::settings::{ConvAlgorithm, DevicePreference, Precision};
use run::{Overrides, Positive};
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

/// Arguments of training.
#[derive(Debug, clap::Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) overrides: Overrides,

    /// Read settings from this TOML file: the output of --dry-run, or the run.toml of a run.
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub(crate) config: Option<PathBuf>,

    /// Resume this run: its folder, or its name in the folder of runs.
    #[arg(long, value_name = "RUN", help_heading = "Run", conflicts_with_all = ["config", "name", "init"])]
    pub(crate) resume: Option<PathBuf>,

    /// Stop, with a checkpoint, when this process has trained for TIME: 90s, 30m, 2h 15m, or DD:HH:MM:SS.
    #[arg(long, value_name = "TIME", help_heading = "Run")]
    pub(crate) max_time: Option<MaxTime>,

    /// Stop, with a checkpoint, after epoch N; the learning-rate scheduler still covers all epochs.
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub(crate) stop_after: Option<NonZeroU32>,

    /// Stop, with a checkpoint, when standard input ends: for programs that start this one through a pipe.
    #[arg(long, help_heading = "Run")]
    pub(crate) stop_with_stdin: bool,

    /// Train one step and evaluate one batch as a test; nothing is kept.
    #[arg(long, help_heading = "Run", conflicts_with_all = ["resume", "name", "dry_run"])]
    pub(crate) fast_dev_run: bool,

    /// Print the resolved settings as TOML and exit.
    #[arg(long, help_heading = "Run")]
    pub(crate) dry_run: bool,

    /// The folder of runs.
    #[arg(
        long,
        value_name = "DIR",
        help_heading = "Output",
        default_value = "runs"
    )]
    pub(crate) run_dir: PathBuf,

    /// The run's name, which is the name of its folder [default: model, recipe and seed, numbered].
    #[arg(long, help_heading = "Output", value_parser = run_name)]
    pub(crate) name: Option<String>,

    /// Show no progress bar, only one line per epoch.
    #[arg(long, help_heading = "Output")]
    pub(crate) no_progress: bool,

    /// The level of the run's log.
    #[arg(
        long,
        value_name = "LEVEL",
        help_heading = "Output",
        default_value = "info"
    )]
    pub(crate) log_level: LogLevel,

    /// Write a trace to this file, for Chrome's trace viewer or Perfetto.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) trace: Option<PathBuf>,
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
    /// Print a network's layers with shapes and parameters.
    Summary {
        /// The network.
        #[arg(long, value_name = "NAME", value_parser = architecture())]
        model: Architecture,
    },
    /// Find a learning rate: the loss while the rate rises from step to step.
    ///
    /// Settings without an effect on it, such as those of epochs and of the scheduler, are refused.
    LrFind(Box<LrFindArgs>),
    /// Evaluate a checkpoint on the test images.
    Eval(EvalArgs),
    /// Classify pictures.
    Predict(PredictArgs),
    /// Compare runs in a report, as Markdown and as one HTML file.
    Report(ReportArgs),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the reference of commands and flags as Markdown, for `cargo xtask docs`.
    #[command(hide = true)]
    MarkdownHelp,
}

/// Weights, and the device to run them on.
#[derive(Debug, clap::Args)]
pub(crate) struct WeightArgs {
    /// A checkpoint, or a safetensors file of weights made by PyTorch.
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: PathBuf,

    /// The network; needed where the file does not name it.
    #[arg(long, value_name = "NAME", value_parser = architecture())]
    pub(crate) model: Option<Architecture>,

    /// Threads [default: one per core].
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,

    /// The device: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: DevicePreference,

    /// How convolutions are computed.
    #[arg(long, value_enum, default_value = "winograd")]
    pub(crate) conv: ConvAlgorithm,

    /// Number format of products on a GPU; a processor computes in f32 [default: tf32 on a GPU].
    #[arg(long, value_enum)]
    pub(crate) precision: Option<Precision>,
}

/// Arguments of `lr-find`.
#[derive(Debug, clap::Args)]
pub(crate) struct LrFindArgs {
    #[command(flatten)]
    pub(crate) overrides: Overrides,

    /// Read settings from this TOML file: the output of --dry-run, or the run.toml of a run.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

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
    pub(crate) out: PathBuf,
}

/// Arguments of `eval`.
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

    /// Test-time augmentation: average the logits of each image and of its horizontal flip.
    #[arg(long)]
    pub(crate) tta: bool,

    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `predict`.
#[derive(Debug, clap::Args)]
pub(crate) struct PredictArgs {
    #[command(flatten)]
    pub(crate) weights: WeightArgs,

    /// How many classes to print for a picture.
    #[arg(long, value_name = "N", default_value = "3")]
    pub(crate) top: NonZeroUsize,

    /// PNG or JPEG files of any size; the largest square in the centre is used.
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<PathBuf>,
}

/// Arguments of `report`.
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
    /// Parses the command line. Exits where it is wrong, or asks for help.
    pub(crate) fn from_command_line() -> Self {
        let mut command = Self::described();
        let matches = command.get_matches_mut();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
    }

    /// The command line, with all names and defaults in its help text.
    fn described() -> clap::Command {
        with_names(Self::command()).mut_subcommand("lr-find", with_names)
    }

    /// Executes the command.
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
                clap_complete::generate(shell, &mut Self::described(), "trainer", &mut script);
                cli::text(&String::from_utf8_lossy(&script));
            }
            Some(Command::MarkdownHelp) => {
                cli::text(&run::command_reference::markdown(Self::described()));
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
        Args::described().debug_assert();
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
