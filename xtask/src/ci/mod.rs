//! `cargo xtask ci`: the checks that every change must pass.
//!
//! A test of the crate `tests` checks that the generated documentation is up to date.

mod cluster;
mod log_file;
mod packages;
mod platforms;
mod relay;

use crate::cuda;
use crate::files::create_folder;
use crate::gpu_check;
use crate::process::{self, cargo};
use anyhow::Context;
use log_file::logged_check;
use run::cli::{self, Exit};
use std::panic::resume_unwind;
use std::path::Path;
use std::process::Command;
use std::thread;

/// Options of `ci`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Check other systems instead, which takes about an hour: the tests for 64-bit ARM Linux under QEMU and for Windows
    /// under Wine, the same bits there and here, and that macOS compiles. It installs Debian's
    /// packages for it.
    #[arg(long)]
    platforms: bool,
}

/// The checks that find most mistakes soonest: arguments of cargo.
const LINTS: [&str; 2] = [
    "fmt --all --check",
    "clippy --workspace --all-targets -- -D warnings",
];

/// The other checks: arguments of cargo.
const CHECKS: [&str; 2] = [
    "test --workspace",
    "doc --workspace --no-deps --document-private-items",
];

/// Lints the crates that have the feature `cuda`.
const CUDA_LINTS: &str = "--all-targets -- -D warnings";

/// Unit tests of the CUDA backend that need neither a GPU nor NVIDIA's libraries.
const UNIT_TESTS: &str = "--lib cuda";

/// The same and those that need NVIDIA's NVRTC and cuDNN, but no GPU: kernels compile, convolutions are planned.
const LIBRARY_TESTS: &str = "--lib cuda -- --include-ignored --skip cuda_";

/// A Python program that prints the folders of NVIDIA's libraries in Python packages. It fails where NVRTC or cuDNN is
/// missing.
const PYTHON_LIBRARIES: &str = "import nvidia, glob; \
    folders = [f for p in nvidia.__path__ for f in sorted(glob.glob(p + '/*/lib'))]; \
    assert all(any(glob.glob(f'{f}/lib{name}.so*') for f in folders) for name in ('nvrtc', 'cudnn')); \
    print(':'.join(folders))";

/// Runs the checks in order, those of other systems and of the feature `cuda` beside the tests. After a failure no further
/// check starts, but those beside it run to their end.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    if args.platforms {
        return platforms::run();
    }
    for arguments in LINTS {
        check_cargo(arguments)?;
    }
    let emulator = cfg!(target_os = "linux").then(cuda::emulator);
    let emulator = emulator.transpose()?;
    if emulator.is_none() {
        cli::note("--- skipped: the feature `cuda`, which is checked on Linux only");
    }
    let emulator = emulator.as_deref();
    thread::scope(|scope| {
        // None of the three uses all cores all the time.
        let beside = [
            scope.spawn(platforms::quick),
            scope.spawn(|| emulator.map_or(Ok(()), cuda_tests)),
        ];
        let here = slow_checks();
        let beside = beside.map(|checks| {
            let result = checks.join();
            result.unwrap_or_else(|panic| resume_unwind(panic))
        });
        let results = beside.into_iter().chain([here]);
        let mut errors: Vec<_> = results.filter_map(Result::err).collect();
        let last = errors.pop();
        for error in errors {
            cli::error(&cli::message(error.as_ref()));
        }
        last.map_or(Ok(()), Err)
    })?;
    // Later, because the programs with the feature replace those that the tests start.
    emulator.map_or(Ok(()), cuda_programs)?;
    cli::line("all checks passed");
    Ok(Exit::Success)
}

/// The checks of this system that take minutes.
fn slow_checks() -> anyhow::Result<()> {
    let has_cluster = cluster::install();
    for arguments in CHECKS {
        check_cargo(arguments)?;
    }
    if has_cluster {
        cluster::checks()?;
    }
    Ok(())
}

fn check_cargo(arguments: &str) -> anyhow::Result<()> {
    let mut command = cargo();
    command.args(arguments.split(' '));
    if arguments.starts_with("doc ") {
        command.env("RUSTDOCFLAGS", "-D warnings");
    }
    check(&format!("cargo {arguments}"), &mut command)
}

/// Lints the feature `cuda` and tests the libraries that have it, on the GPU that `emulator` emulates, with the output in
/// files. CUDA is not needed.
fn cuda_tests(emulator: &Path) -> anyhow::Result<()> {
    let folder = cuda::target().join("cuda-checks");
    create_folder(&folder)?;
    let cargo_cuda = |command: &str, arguments: &str| {
        cuda::cargo_cuda(&format!("{command} {} {arguments}", cuda::PACKAGES))
    };
    let mut lints = cargo_cuda("clippy", CUDA_LINTS);
    logged_check(&folder, "CUDA, lints", &mut lints)?;
    let mut unit_tests = if let Some(folders) = python_libraries() {
        let mut tests = cargo_cuda("test", LIBRARY_TESTS);
        tests.env("LD_LIBRARY_PATH", folders);
        tests
    } else {
        cli::note("--- skipped: what needs NVRTC and cuDNN, which python3 does not have");
        cargo_cuda("test", UNIT_TESTS)
    };
    logged_check(&folder, "CUDA, unit tests", &mut unit_tests)?;
    let mut tests = gpu_check::tests(Some(emulator), &[]);
    logged_check(&folder, "CUDA, on the emulated GPU", &mut tests)
}

/// Builds the programs for another machine with a GPU, and runs them on the emulated one.
fn cuda_programs(emulator: &Path) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let folder = folder.path();
    cli::note("--- cargo xtask gpu-check --bundle DIR");
    gpu_check::bundle(folder)?;
    let mut script = Command::new(folder.join("run.sh"));
    script.arg(folder.join("results")).env("QUICK", "1");
    // NVIDIA's libraries in Python packages do not go with the emulated GPU.
    script
        .env("LD_LIBRARY_PATH", emulator)
        .env("PYTHON", "false");
    check("QUICK=1 DIR/run.sh OUT (on the emulated GPU)", &mut script)?;
    let mut behaviour = cargo();
    behaviour
        // The same packages as before, so that nothing is rebuilt.
        .args(["test", "--workspace", "--test", "gpu", "--"])
        .arg("--include-ignored")
        .env("CUDA_TRAINER", folder.join("trainer"))
        .env("CUDA_EMULATOR", emulator);
    check(
        "cargo test --workspace --test gpu -- --include-ignored (on the emulated GPU)",
        &mut behaviour,
    )
}

/// The folders of NVIDIA's libraries, where python3 has NVRTC and cuDNN.
fn python_libraries() -> Option<String> {
    let mut python = Command::new("python3");
    let output = python.args(["-c", PYTHON_LIBRARIES]).output().ok()?;
    let folders = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| folders.trim().to_owned())
}

fn check(name: &str, command: &mut Command) -> anyhow::Result<()> {
    cli::note(&format!("--- {name}"));
    process::run(name, command)
}
