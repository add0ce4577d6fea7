//! `cargo xtask bench`: builds and runs the crate `bench`.

use anyhow::Context;
use run::cli::Exit;
use std::env;
use std::ffi::OsString;
use std::process::Command;

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
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["run", "--package", "bench", "--"])
        .args(&args.arguments)
        .status()
        .context("cannot run cargo")?;
    Ok(status.into())
}
