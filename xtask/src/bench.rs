//! `cargo xtask bench`: builds and runs the crate `bench`.

use crate::cuda::{programs, target};
use crate::process::cargo;
use anyhow::Context;
use run::cli::Exit;
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

impl Args {
    fn on_gpu(&self) -> bool {
        let mut pairs = self.arguments.windows(2);
        let has_pair = pairs.any(|pair| pair[0] == "--device" && pair[1] == "cuda");
        has_pair
            || self
                .arguments
                .iter()
                .any(|argument| argument == "--device=cuda")
    }
}

/// Runs the measurements. They are a crate of their own, so that the other commands build without candle.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let mut command = if args.on_gpu() {
        let folder = target().join("cuda");
        programs(&folder)?;
        Command::new(folder.join("bench"))
    } else {
        let mut cargo = cargo();
        cargo.args(["run", "--package", "bench", "--"]);
        cargo
    };
    let status = command.args(&args.arguments).status();
    Ok(status.context("cannot run the measurements")?.into())
}
