//! Builds with the feature `cuda` on machines without CUDA.

use crate::files::{create_folder, write};
use crate::process::{self, cargo};
use anyhow::{Context, ensure};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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

    /// Builds the programs `trainer` and `bench`, and copies them into a folder, which is returned: the next build
    /// without CUDA replaces them.
    pub(crate) fn programs(&self) -> anyhow::Result<PathBuf> {
        let mut cargo = self.cargo("build --features cuda --package bench --package trainer");
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
}
