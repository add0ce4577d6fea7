//! `cargo xtask gpu-check`: builds the programs with the feature `cuda` and has them check the GPU.

use crate::cuda::{Build, stub};
use anyhow::{Context, bail};
use run::cli::{self, Exit};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// What is asked of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Build alone, and put the programs into this folder, which can be carried to a machine without cargo and
    /// is run there as `DIR/bench gpu-check`.
    #[arg(long, value_name = "DIR", conflicts_with = "emulated")]
    bundle: Option<PathBuf>,

    /// Check an emulated GPU, on machines without one. It says nothing about speed.
    #[arg(long)]
    emulated: bool,

    /// Handed on: see `cargo xtask gpu-check -- --help`.
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// The programs that check a GPU.
const PROGRAMS: [&str; 2] = ["bench", "trainer"];

/// Does what is asked, and gives the exit code.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    Ok(execute(args)?.map_or(Exit::Success, Exit::from))
}

/// The least check of the emulated GPU.
///
/// # Errors
/// When it fails.
pub(crate) fn check_emulated(folder: &Path) -> anyhow::Result<()> {
    let path = |name| folder.join(name).into_os_string();
    let status = execute(&Args {
        bundle: None,
        emulated: true,
        arguments: vec![
            "--quick".into(),
            // The emulated GPU computes the third as the first.
            "--precisions=f32,bf16".into(),
            "--out".into(),
            path("gpu-check.json"),
            "--run-dir".into(),
            path("runs"),
        ],
    })?;
    if status.is_some_and(|status| status.success()) {
        Ok(())
    } else {
        bail!("the check of the emulated GPU failed")
    }
}

/// Builds, and checks unless a bundle is asked for.
fn execute(args: &Args) -> anyhow::Result<Option<ExitStatus>> {
    let (build, emulator) = if args.emulated {
        let (build, emulator) = stub()?;
        (build, Some(emulator))
    } else {
        (Build::any()?, None)
    };
    let mut arguments = vec!["build", "--features", "cuda"];
    for program in PROGRAMS {
        arguments.extend(["--package", program]);
    }
    let status = build
        .cargo(&arguments)
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the programs cannot be built with the feature `cuda`");
    }
    let programs = build.programs();
    if let Some(bundle) = &args.bundle {
        fs::create_dir_all(bundle)
            .with_context(|| format!("cannot make the folder `{}`", bundle.display()))?;
        for program in PROGRAMS {
            let to = bundle.join(program);
            fs::copy(programs.join(program), &to)
                .with_context(|| format!("cannot write `{}`", to.display()))?;
            // Half the size without symbols; it runs as well with them, where there is no `strip`.
            let _ = Command::new("strip").arg(&to).status();
        }
        cli::note(&format!(
            "{0}/bench and {0}/trainer; there: {0}/bench gpu-check",
            bundle.display()
        ));
        return Ok(None);
    }
    let mut command = Command::new(programs.join("bench"));
    command.arg("gpu-check").args(&args.arguments);
    if let Some(emulator) = emulator {
        command.env("LD_LIBRARY_PATH", emulator);
    }
    let status = command.status().context("cannot run the check")?;
    Ok(Some(status))
}
