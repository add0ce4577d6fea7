//! `cargo xtask bench`: builds and runs the crate that measures.

use anyhow::Context;
use run::cli::Exit;
use std::env;
use std::ffi::OsString;
use std::process::Command;

/// What is asked of the command.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Handed on: see `cargo xtask bench --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Measures, and gives the exit code. A crate of its own does it, so that the other commands are built
/// without candle.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["run", "--package", "bench", "--"])
        .args(&args.arguments)
        .status()
        .context("cannot run cargo")?;
    Ok(status.into())
}
