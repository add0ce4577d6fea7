//! Building with the feature `cuda` on machines without CUDA.

use anyhow::{Context, bail};
use run::cli::{self, Exit};
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is asked of `cuda-toolkit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the toolkit is put [default: target/cuda-toolkit].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Everything that cargo must be told to build with the feature `cuda`.
pub(crate) struct Build {
    variables: Vec<(&'static str, OsString)>,
    /// A configuration that lets the program open CUDA's libraries when it runs, so that it starts on every
    /// machine; none where the program is linked with an installed CUDA.
    configuration: Option<PathBuf>,
    /// The folder of cargo's results.
    target: PathBuf,
}

/// The scripts beside this crate's sources.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("cuda")
        .join(name)
}

/// The folder of cargo's results.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(target) => target.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
    }
}

/// The target that is named to cargo, so that its flags are kept from build scripts.
const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};

fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot run `{name}`"))?;
    if !status.success() {
        bail!("`{name}` failed ({status})");
    }
    Ok(())
}

/// Puts the toolkit together and says how to build with it.
pub(crate) fn run_toolkit(args: &Args) -> anyhow::Result<Exit> {
    let directory = args
        .dir
        .clone()
        .unwrap_or_else(|| target().join("cuda-toolkit"));
    let build = toolkit(&directory)?;
    for (name, value) in &build.variables {
        cli::line(&format!("export {name}=\"{}\"", value.to_string_lossy()));
    }
    if let Some(configuration) = &build.configuration {
        let configuration = configuration.display();
        cli::note(&format!(
            "the program is built with: cargo build --config {configuration} --package trainer --features cuda"
        ));
        cli::note(&format!("it is then: target/{TARGET}/debug/trainer"));
    }
    Ok(Exit::Success)
}

/// NVIDIA's compiler, assembled in `directory`.
pub(crate) fn toolkit(directory: &Path) -> anyhow::Result<Build> {
    if TARGET != "x86_64-unknown-linux-gnu" || !cfg!(target_os = "linux") {
        bail!("the toolkit is for Linux on x86-64; install CUDA 13 with cuDNN 9 instead");
    }
    let directory = made(directory)?;
    run(Command::new("bash").arg(script("toolkit.sh")).arg(&directory))
        .context("the CUDA toolkit cannot be put together (it needs bash, python3 with pip, and a C and a C++ compiler)")?;
    let home = directory.join("nvidia/cu13");
    let compiler = home.join("bin/nvcc-lite");
    Build::without_cuda(&directory, &home, &compiler)
}

/// A stand-in for CUDA, and the folder of an emulated GPU's libraries.
pub(crate) fn stub() -> anyhow::Result<(Build, PathBuf)> {
    let directory = made(&target().join("cuda-stub"))?;
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/ops/src/cuda");
    run(Command::new("bash")
        .arg(script("stub.sh"))
        .arg(&directory)
        .arg(kernels))
    .context("the emulated GPU cannot be built (it needs bash and a C compiler)")?;
    let build = Build::without_cuda(&directory, &directory, &directory.join("bin/nvcc"))?;
    Ok((build, directory.join("emulator")))
}

fn made(directory: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(directory)
        .and_then(|()| directory.canonicalize())
        .with_context(|| format!("cannot make the folder `{}`", directory.display()))
}

impl Build {
    /// With the CUDA that is installed.
    fn installed() -> Self {
        Self {
            variables: Vec::new(),
            configuration: None,
            target: target(),
        }
    }

    /// With the CUDA that is installed, or with the toolkit where there is none.
    pub(crate) fn any() -> anyhow::Result<Self> {
        let installed = Command::new("nvcc").arg("--version").output().is_ok();
        if installed || env::var_os("CUDA_HOME").is_some() || env::var_os("NVCC").is_some() {
            return Ok(Self::installed());
        }
        cli::note("no nvcc is installed: putting one together in target/cuda-toolkit");
        toolkit(&target().join("cuda-toolkit"))
    }

    fn without_cuda(directory: &Path, home: &Path, compiler: &Path) -> anyhow::Result<Self> {
        // candle turns on `dynamic-linking` of its CUDA bindings, and their build script refuses
        // `dynamic-loading` beside it. As a bare flag it reaches the bindings, which then open the libraries
        // at run time, and, because a target is named, not the build script.
        let configuration = directory.join("cargo.toml");
        let text = format!(
            "[build]\ntarget = \"{TARGET}\"\n[target.{TARGET}]\nrustflags = ['--cfg', 'feature=\"dynamic-loading\"']\n"
        );
        std::fs::write(&configuration, text)
            .with_context(|| format!("cannot write `{}`", configuration.display()))?;
        Ok(Self {
            variables: vec![
                ("CUDA_HOME", home.into()),
                ("CUDA_PATH", home.into()),
                ("NVCC", compiler.into()),
                ("CUDA_COMPUTE_CAP", "90".into()),
                ("CUDARC_CUDA_VERSION", "13000".into()),
            ],
            configuration: Some(configuration),
            // Of its own, since cargo builds candle again for every other compiler.
            target: directory.join("target"),
        })
    }

    /// Cargo with `arguments`, of which the first is its command.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        let (name, rest) = arguments.split_first().unwrap_or((&"help", &[]));
        command.arg(name);
        if let Some(configuration) = &self.configuration {
            command.arg("--config").arg(configuration);
        }
        command
            .arg("--target-dir")
            .arg(&self.target)
            .args(rest)
            .envs(self.variables.iter().map(|(name, value)| (*name, value)));
        command
    }

    /// Where `cargo build` puts programs.
    pub(crate) fn programs(&self) -> PathBuf {
        match self.configuration {
            Some(_) => self.target.join(TARGET).join("debug"),
            None => self.target.join("debug"),
        }
    }
}
