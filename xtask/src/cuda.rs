//! Builds with the feature `cuda` on machines without CUDA.

use crate::files::{create_folder, write};
use crate::process::{self, cargo};
use anyhow::{Context, bail};
use run::NativePath;
use run::cli::{self, Exit};
use std::env;
use std::ffi::OsString;
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
    /// A configuration with which the program opens CUDA's libraries at run time, so that it starts on any machine;
    /// `None` where it is linked with an installed CUDA.
    configuration: Option<PathBuf>,
    /// The target folder of cargo.
    target: PathBuf,
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

/// The target is named to cargo, so that its flags do not apply to build scripts.
const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};

/// Assembles the toolkit and prints how to build with it.
pub(crate) fn run_toolkit(args: &Args) -> anyhow::Result<Exit> {
    let build = match &args.dir {
        Some(directory) => toolkit(directory),
        None => toolkit(&target().join("cuda-toolkit")),
    }?;
    for (name, value) in &build.variables {
        cli::line(&format!("export {name}=\"{}\"", value.to_string_lossy()));
    }
    if let Some(configuration) = &build.configuration {
        cli::note(&format!(
            "build with: cargo build --config {} --package trainer --features cuda\n\
             the program is then target/{TARGET}/debug/trainer",
            configuration.display()
        ));
    }
    Ok(Exit::Success)
}

/// Assembles NVIDIA's compiler in `directory`.
pub(crate) fn toolkit(directory: &Path) -> anyhow::Result<Build> {
    if TARGET != "x86_64-unknown-linux-gnu" || !cfg!(target_os = "linux") {
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
                configuration: None,
                target: target(),
            });
        }
        cli::note("nvcc is not installed: assembling one in target/cuda-toolkit");
        toolkit(&target().join("cuda-toolkit"))
    }

    fn without_cuda(directory: &Path, home: &Path, compiler: &Path) -> anyhow::Result<Self> {
        // candle enables `dynamic-linking` of its CUDA bindings, whose build script refuses `dynamic-loading` as well.
        // As a compiler flag it reaches the bindings, which then open the libraries at run time, but not the build
        // script, because a target is named.
        let configuration = directory.join("cargo.toml");
        let text = format!(
            "[build]\ntarget = \"{TARGET}\"\n[target.{TARGET}]\nrustflags = ['--cfg', 'feature=\"dynamic-loading\"']\n"
        );
        write(&configuration, &text)?;
        Ok(Self {
            variables: vec![
                ("CUDA_HOME", home.into()),
                ("CUDA_PATH", home.into()),
                ("NVCC", compiler.into()),
                ("CUDA_COMPUTE_CAP", "90".into()),
                ("CUDARC_CUDA_VERSION", "13000".into()),
            ],
            configuration: Some(configuration),
            // A separate one, because cargo rebuilds candle when the compiler changes.
            target: directory.join("target"),
        })
    }

    /// Cargo with `arguments`, the first of which is its command.
    pub(crate) fn cargo(&self, arguments: &str) -> Command {
        let mut command = cargo();
        let mut arguments = arguments.split_whitespace();
        command.args(arguments.next());
        if let Some(configuration) = &self.configuration {
            command.arg("--config").arg(configuration);
        }
        command.arg("--target-dir").arg(&self.target);
        command.args(arguments).envs(self.variables.clone());
        command
    }

    /// The folder of the built programs.
    pub(crate) fn programs(&self) -> PathBuf {
        let target = self.configuration.as_ref().map_or("", |_| TARGET);
        self.target.join(target).join("debug")
    }
}
