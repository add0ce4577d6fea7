//! Builds with the feature `cuda`, which need nothing of CUDA, and the emulated GPU.

use crate::files::create_folder;
use crate::process::{self, cargo};
use anyhow::{Context, ensure};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A path in the folder of this crate.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The target folder of cargo.
pub(crate) fn target() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR");
    target.map_or_else(|| path("../target"), PathBuf::from)
}

/// Builds the emulated GPU: gives the folder of its libraries.
pub(crate) fn emulator() -> anyhow::Result<PathBuf> {
    ensure!(
        cfg!(target_os = "linux"),
        "the feature `cuda` is built on Linux only"
    );
    let folder = target().join("cuda-emulator");
    create_folder(&folder)?;
    let mut script = Command::new("bash");
    script.arg(path("cuda/emulator.sh"));
    script.arg(&folder).arg(path("../crates/ops/src/cuda"));
    process::run("bash", &mut script)
        .context("cannot build the emulated GPU (it needs bash and a C compiler)")?;
    Ok(folder.canonicalize()?)
}

/// Cargo with `arguments`, the first of which is its command, and the settings for the feature `cuda`.
pub(crate) fn cargo_cuda(arguments: &str) -> Command {
    let mut command = cargo();
    let mut arguments = arguments.split_whitespace();
    // A wrapper in the environment would replace that of the settings.
    command.env_remove("RUSTC_WRAPPER").args(arguments.next());
    // Behind the command, because `clippy` sees only what follows it.
    command.arg("--config").arg(path("cuda/config.toml"));
    command.args(arguments);
    command
}

/// Builds the programs `trainer` and `bench` with the feature `cuda`, and copies them into a folder, which is returned: the
/// next build without it replaces them.
pub(crate) fn programs() -> anyhow::Result<PathBuf> {
    let mut cargo = cargo_cuda("build --features cuda --package bench --package trainer");
    process::run("cargo", &mut cargo)
        .context("the programs cannot be built with the feature `cuda`")?;
    let folder = target().join("cuda");
    create_folder(&folder)?;
    for program in ["bench", "trainer"] {
        let to = folder.join(program);
        fs::copy(target().join("debug").join(program), &to)
            .with_context(|| format!("cannot write `{}`", to.display()))?;
    }
    Ok(folder.canonicalize()?)
}
