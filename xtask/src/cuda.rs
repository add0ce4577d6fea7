//! Builds with the feature `cuda` on machines without CUDA.

use crate::files::{create_folder, write};
use crate::process::{self, cargo};
use anyhow::{Context, bail};
use run::NativePath;
use run::cli::{self, Exit};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Options of `cuda-toolkit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder of the toolkit [default: target/cuda-toolkit].
    #[arg(long, value_name = "DIR")]
    dir: Option<NativePath>,
}

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

/// Assembles the toolkit and prints how to build with it.
pub(crate) fn run_toolkit(args: &Args) -> anyhow::Result<Exit> {
    let build = match &args.dir {
        Some(directory) => toolkit(directory),
        None => toolkit(&target().join("cuda-toolkit")),
    }?;
    for (name, value) in &build.variables {
        cli::line(&format!("export {name}=\"{}\"", value.to_string_lossy()));
    }
    cli::note("then build with: cargo build --package trainer --features cuda");
    Ok(Exit::Success)
}

/// Assembles NVIDIA's compiler in `directory`.
pub(crate) fn toolkit(directory: &Path) -> anyhow::Result<Build> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("the toolkit is for Linux on x86-64; install CUDA 13 with cuDNN 9 instead");
    }
    let directory = made(directory)?;
    process::run("bash", bash("cuda/toolkit.sh").arg(&directory)).context(
        "cannot assemble the CUDA toolkit (it needs bash, python3 with pip, and a C and a C++ compiler)",
    )?;
    let home = directory.join("nvidia/cu13");
    let compiler = home.join("bin/nvcc-lite");
    Build::without_cuda(&directory, &home, &compiler)
}

/// A stub of CUDA to build with, and the folder of the emulated GPU's libraries.
pub(crate) fn stub() -> anyhow::Result<(Build, PathBuf)> {
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
    /// With the installed CUDA, or with the toolkit where none is installed.
    pub(crate) fn any() -> anyhow::Result<Self> {
        let installed = Command::new("nvcc").arg("--version").output().is_ok();
        if installed || env::var_os("CUDA_HOME").is_some() || env::var_os("NVCC").is_some() {
            return Ok(Self {
                variables: Vec::new(),
            });
        }
        cli::note("nvcc is not installed: assembling one in target/cuda-toolkit");
        toolkit(&target().join("cuda-toolkit"))
    }

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
