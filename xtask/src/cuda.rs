//! Builds with the feature `cuda` on machines without CUDA.

use crate::files::{create_folder, write};
use crate::process::{self, cargo};
use anyhow::{Context, ensure};
use serde_json::Value;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Selects the packages with the feature `cuda`: the same in all commands, so that dependencies are built once.
pub(crate) const PACKAGES: &str = "--features cuda --package ops --package models --package engine \
    --package bench --package trainer";

/// The tests that run on each device: those of the crates `ops` and `engine`.
pub(crate) const DEVICE_TESTS: &str = "devices";

/// What cargo needs to build with the feature `cuda`.
pub(crate) struct Build {
    variables: Vec<(&'static str, OsString)>,
}

/// A path in the folder of this crate.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Bash with a script of this crate.
fn bash(script: &str) -> Command {
    let mut command = Command::new("bash");
    command.arg(path(script));
    command
}

/// The target folder of cargo.
pub(crate) fn target() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR");
    target.map_or_else(|| path("../target"), PathBuf::from)
}

/// A stub of CUDA to build with, and the folder of the emulated GPU's libraries. What is built with it opens the libraries
/// of CUDA that are there when it runs; no kernel of candle's is called.
pub(crate) fn stub() -> anyhow::Result<(Build, PathBuf)> {
    ensure!(
        cfg!(target_os = "linux"),
        "the feature `cuda` is built on Linux only"
    );
    let directory = made(&target().join("cuda-stub"))?;
    let mut script = bash("cuda/stub.sh");
    script.arg(&directory).arg(path("../crates/ops/src/cuda"));
    process::run("bash", &mut script)
        .context("cannot build the emulated GPU (it needs bash and a C compiler)")?;
    let build = Build::without_cuda(&directory, &directory, &directory.join("bin/nvcc"))?;
    Ok((build, directory.join("emulator")))
}

fn made(directory: &Path) -> anyhow::Result<PathBuf> {
    create_folder(directory)?;
    Ok(directory.canonicalize()?)
}

impl Build {
    fn without_cuda(directory: &Path, home: &Path, compiler: &Path) -> anyhow::Result<Self> {
        // candle enables `dynamic-linking` of its CUDA bindings, whose build script refuses `dynamic-loading` as well. As
        // a compiler flag it reaches the bindings alone, which then open the libraries at run time, so that the program
        // starts on any machine.
        let wrapper = directory.join("rustc-wrapper");
        let script = "#!/bin/sh\ncase \" $* \" in\n\
            *' --crate-name cudarc '*) exec \"$@\" --cfg 'feature=\"dynamic-loading\"' ;;\n\
            *) exec \"$@\" ;;\nesac\n";
        write(&wrapper, script)?;
        process::run("chmod", Command::new("chmod").arg("+x").arg(&wrapper))?;
        Ok(Self {
            variables: vec![
                ("CUDA_HOME", home.into()),
                ("CUDA_PATH", home.into()),
                ("NVCC", compiler.into()),
                ("CUDA_COMPUTE_CAP", "90".into()),
                ("CUDARC_CUDA_VERSION", "13000".into()),
                ("RUSTC_WRAPPER", wrapper.into()),
            ],
        })
    }

    /// Cargo with `arguments`, the first of which is its command.
    pub(crate) fn cargo(&self, arguments: &str) -> Command {
        let mut command = cargo();
        command.args(arguments.split_whitespace());
        command.envs(self.variables.clone());
        command
    }

    /// Builds `trainer`, `bench` and the tests on a GPU, `ops-devices` and `engine-devices`, and copies them into `folder`: the
    /// next build without CUDA replaces them. Returns the names.
    pub(crate) fn programs(&self, folder: &Path) -> anyhow::Result<Vec<String>> {
        create_folder(folder)?;
        let mut cargo = self.cargo(&format!("build {PACKAGES} --bins --test {DEVICE_TESTS}"));
        cargo.args(["--message-format", "json-render-diagnostics"]);
        let output = cargo.stderr(Stdio::inherit()).output();
        let output = output.context("cannot run cargo")?;
        ensure!(
            output.status.success(),
            "the programs cannot be built with the feature `cuda`"
        );
        let mut names = Vec::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let message: Value =
                serde_json::from_str(line).context("cannot read cargo's output")?;
            let Some((name, program)) = program(&message) else {
                continue;
            };
            let to = folder.join(&name);
            fs::copy(program, &to).with_context(|| format!("cannot write `{}`", to.display()))?;
            names.push(name);
        }
        Ok(names)
    }
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
