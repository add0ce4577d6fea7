//! The command line.

use crate::backend;
use crate::eval::{self, EvalArgs};
use crate::lr_find::{self, LrFindArgs};
use crate::predict::{self, PredictArgs};
use crate::processes::Launched;
use crate::settings::{architecture, with_names};
use crate::train::{self, TrainArgs};
use crate::write_report::{self, ReportArgs};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use engine::Error;
use models::Architecture;
use run::cli::{self, Exit, UsageError};
use run::settings::{Field, Property};
use std::env;

/// Trains AlexNet, SmallAlexNet and LeNet on CIFAR-10; the same command gives the same bits.
///
/// Without a command it trains: `trainer --model small-alexnet`.
#[derive(Debug, Parser)]
// `cargo xtask` runs a copy, whose file has another name.
#[command(
    name = "trainer",
    bin_name = "trainer",
    version,
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: TrainArgs,
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
    LrFind(Box<LrFindArgs>),
    /// Evaluate a checkpoint on the test images.
    Eval(EvalArgs),
    /// Classify images.
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

impl Args {
    /// Parses the command line. Exits where it is wrong, or asks for help.
    pub(crate) fn from_command_line(launched: Option<Launched>) -> Self {
        let mut command = Self::described();
        let matches = command.try_get_matches_from_mut(env::args_os());
        let args = matches.and_then(|matches| Self::from_arg_matches(&matches));
        let args = args.map_err(|error| error.format(&mut command));
        if let (Err(error), Some(launched)) = (&args, launched)
            && error.use_stderr()
        {
            launched.before_error();
        }
        cli::parse_or_exit(args)
    }

    /// The command line, with all names and defaults in its help text.
    fn described() -> clap::Command {
        with_names(Self::command()).mut_subcommand("lr-find", |lr_find| {
            with_names(lr_find).mut_args(|arg| {
                let field = Field::named(arg.get_id().as_str());
                let refused = field.is_some_and(|field| field.has(Property::NotInLrFind));
                arg.hide(refused)
            })
        })
    }

    /// Executes the command.
    pub(crate) fn run(self, launched: Option<Launched>) -> anyhow::Result<Exit> {
        self.execute(launched).map_err(explained)
    }

    fn execute(self, launched: Option<Launched>) -> anyhow::Result<Exit> {
        if self.command.is_none() {
            return train::run(&self.train, launched);
        }
        ops::InstructionSet::check_selection().map_err(UsageError)?;
        Launched::check_alone(launched)?;
        match self.command {
            None => {}
            Some(Command::Summary { model }) => cli::text(&models::summary(model, false)),
            Some(Command::LrFind(args)) => return lr_find::run(&args),
            Some(Command::Eval(args)) => eval::run(&args)?,
            Some(Command::Predict(args)) => return predict::run(&args),
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

/// An error of a command as it is printed, and with its exit code.
pub(crate) fn explained(error: anyhow::Error) -> anyhow::Error {
    let error = backend::explained(error);
    match error.downcast_ref() {
        Some(Error::BatchTooLarge { .. }) => UsageError(error.to_string()).into(),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::described().debug_assert();
    }
}
