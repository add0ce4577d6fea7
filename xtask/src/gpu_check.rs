//! `cargo xtask gpu-check`: builds the programs with the feature `cuda` and runs their check of the GPU.

use crate::cuda::{emulator, programs};
use crate::files::{create_folder, write};
use crate::process;
use anyhow::Context;
use run::NativePath;
use run::cli::{self, Exit};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The first checks on a machine with a GPU.
const RUN: &str = include_str!("../cuda/run.sh");

/// Options of `gpu-check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only build, and copy the programs into this folder, with a script. On a machine without cargo, `DIR/run.sh OUT` makes
    /// the first checks and writes their results into the folder OUT, in less than nine minutes.
    #[arg(long, value_name = "DIR", conflicts_with = "emulated")]
    bundle: Option<NativePath>,

    /// Check an emulated GPU, which is not a measure of speed.
    #[arg(long)]
    emulated: bool,

    /// Arguments of the check: see `cargo xtask gpu-check -- --help`.
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

impl Args {
    /// The quick check of the emulated GPU, which writes into `folder`.
    pub(crate) fn quick_emulated(folder: &Path) -> Self {
        let path = |name| folder.join(name).into_os_string();
        Self {
            bundle: None,
            emulated: true,
            arguments: vec![
                "--quick".into(),
                // Tests of single operations cover tf32.
                "--precisions=f32,bf16".into(),
                "--out".into(),
                path("gpu-check.json"),
                "--run-dir".into(),
                path("runs"),
            ],
        }
    }
}

/// Builds the programs, and runs the check unless `--bundle` is given.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let programs = programs()?;
    if let Some(bundle) = &args.bundle {
        create_folder(bundle)?;
        for program in ["bench", "trainer"] {
            let to = bundle.join(program);
            fs::copy(programs.join(program), &to)
                .with_context(|| format!("cannot write `{}`", to.display()))?;
            // Halves the size. Without `strip` the programs work as well.
            let _ = Command::new("strip").arg(&to).status();
        }
        let script = bundle.join("run.sh");
        write(&script, RUN)?;
        process::run("chmod", Command::new("chmod").arg("+x").arg(&script))?;
        cli::note(&format!(
            "built {0}/bench and {0}/trainer; on the machine with the GPU: {0}/run.sh OUT",
            bundle.display()
        ));
        return Ok(Exit::Success);
    }
    let mut command = Command::new(programs.join("bench"));
    command.arg("gpu-check").args(&args.arguments);
    if args.emulated {
        command.env("LD_LIBRARY_PATH", emulator()?);
    }
    let status = command.status().context("cannot run the check")?;
    Ok(status.into())
}
