//! `cargo xtask gpu-check`: builds the programs with the feature `cuda` and runs their check of the GPU.

use crate::cuda::{Build, stub};
use crate::files::create_folder;
use anyhow::Context;
use run::NativePath;
use run::cli::{self, Exit};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Options of `gpu-check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only build, and copy the programs into this folder. On a machine without cargo, `DIR/bench gpu-check` runs the
    /// check.
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
                // The emulated GPU computes tf32 as f32.
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
    let (build, emulator) = match args.emulated {
        true => stub().map(|(build, emulator)| (build, Some(emulator)))?,
        false => (Build::any()?, None),
    };
    let programs = build.programs()?;
    if let Some(bundle) = &args.bundle {
        create_folder(bundle)?;
        for program in ["bench", "trainer"] {
            let to = bundle.join(program);
            fs::copy(programs.join(program), &to)
                .with_context(|| format!("cannot write `{}`", to.display()))?;
            // Halves the size. Without `strip` the programs work as well.
            let _ = Command::new("strip").arg(&to).status();
        }
        cli::note(&format!(
            "built {0}/bench and {0}/trainer; run the check with: {0}/bench gpu-check",
            bundle.display()
        ));
        return Ok(Exit::Success);
    }
    let mut command = Command::new(programs.join("bench"));
    command.arg("gpu-check").args(&args.arguments);
    command.envs(emulator.map(|folder| ("LD_LIBRARY_PATH", folder)));
    let status = command.status().context("cannot run the check")?;
    Ok(status.into())
}
