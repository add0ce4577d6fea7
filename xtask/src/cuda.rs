//! Builds with the feature `cuda`, which need nothing of CUDA, and the emulated GPU.

use crate::files::create_folder;
use crate::process::{self, cargo};
use anyhow::{Context, ensure};
use serde_json::Value;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Selects the packages with the feature `cuda`: the same in all commands, so that dependencies are built once.
pub(crate) const PACKAGES: &str = "--features cuda --package ops --package models --package engine \
    --package bench --package trainer";

/// The tests that run on each device: those of the crates `ops` and `engine`.
pub(crate) const DEVICE_TESTS: &str = "devices";

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

/// Builds `trainer`, `bench` and the tests on a GPU, `ops-devices` and `engine-devices`, and copies them into `folder`: the
/// next build without CUDA replaces them. Returns the names.
pub(crate) fn programs(folder: &Path) -> anyhow::Result<Vec<String>> {
    create_folder(folder)?;
    let mut cargo = cargo_cuda(&format!("build {PACKAGES} --bins --test {DEVICE_TESTS}"));
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output();
    let output = output.context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "the programs cannot be built with the feature `cuda`"
    );
    let mut names = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Value = serde_json::from_str(line).context("cannot read cargo's output")?;
        let Some((name, program)) = program(&message) else {
            continue;
        };
        let to = folder.join(&name);
        fs::copy(program, &to).with_context(|| format!("cannot write `{}`", to.display()))?;
        names.push(name);
    }
    Ok(names)
}

/// The name and path of a program that cargo has built, from its message. Tests of the same name are told apart by that of
/// their crate.
fn program(message: &Value) -> Option<(String, &str)> {
    let path = message["executable"].as_str()?;
    let name = message["target"]["name"].as_str()?;
    let is_test = message["target"]["kind"][0] == "test";
    let manifest = Path::new(message["manifest_path"].as_str()?);
    let package = manifest.parent()?.file_name()?.to_str()?;
    let name = match is_test {
        true => format!("{package}-{name}"),
        false => name.to_owned(),
    };
    Some((name, path))
}
