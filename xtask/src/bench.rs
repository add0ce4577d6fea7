//! `cargo xtask bench`: builds and runs the crate `bench`.

use crate::process::cargo;
use anyhow::Context;
use run::cli::Exit;
use std::ffi::OsString;

/// Options of `bench`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Arguments of the program `bench`: see `cargo xtask bench --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the measurements. They are a crate of their own, so that the other commands build without candle.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let status = cargo()
        .args(["run", "--package", "bench", "--"])
        .args(&args.arguments)
        .status()
        .context("cannot run cargo")?;
    Ok(status.into())
}
