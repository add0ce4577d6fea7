//! `cargo xtask gpu-check`: runs the tests that need a GPU, or builds them for another machine.

use crate::cuda::{DEVICE_TESTS, PACKAGES, cargo_cuda, emulator, programs};
use crate::files::write;
use crate::process;
use anyhow::{Context, ensure};
use run::NativePath;
use run::cli::{self, Exit, UsageError};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// The first checks on a machine with a GPU.
const RUN: &str = include_str!("../cuda/run.sh");

/// The most that the programs may take, in MiB: they are copied to machines that are lent for minutes.
const MAX_MIB: f64 = 60.0;

/// Tests that take most of the time on the emulated GPU. They run there where they are asked for.
const SLOW: [&str; 4] = [
    "networks::alexnet",
    "layers_of_alexnet",
    "ends_with_the_same_bits::cuda_f32",
    "ends_with_the_same_bits::cuda_tf32",
];

/// Options of `gpu-check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only build, for a machine with a GPU but no cargo: the tests, `trainer`, `bench` and a script. There,
    /// `DIR/run.sh OUT` makes the first checks and measurements in less than nine minutes, and writes each result into the
    /// folder OUT as it comes.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["emulated", "arguments"])]
    bundle: Option<NativePath>,

    /// Use an emulated GPU, by default without the slowest tests.
    #[arg(long)]
    emulated: bool,

    /// Run the tests with one of these in their names, such as `cuda_bf16`, or pass other arguments to the test programs
    /// [default: cuda_].
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// Builds the tests, and runs them unless `--bundle` is given.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    if let Some(folder) = &args.bundle {
        bundle(folder)?;
        cli::note(&format!(
            "on the machine with the GPU: {}/run.sh OUT",
            folder.display()
        ));
        return Ok(Exit::Success);
    }
    // Of the driver, on Linux and on Windows' Linux: without one, every test fails.
    let has_driver = ["/dev/nvidiactl", "/dev/dxg"]
        .map(Path::new)
        .iter()
        .any(|path| path.exists());
    ensure!(
        args.emulated || has_driver,
        "NVIDIA's driver does not run here; --emulated uses an emulated GPU"
    );
    let emulator = args.emulated.then(emulator).transpose()?;
    if !args.arguments.is_empty() {
        let mut list = tests(emulator.as_deref(), &args.arguments);
        let list = list.arg("--list").stderr(Stdio::inherit()).output();
        let list = list.context("cannot run cargo")?;
        let is_test = |line: &str| line.ends_with(": test");
        if list.status.success() && !String::from_utf8_lossy(&list.stdout).lines().any(is_test) {
            let arguments: Vec<_> = args.arguments.iter().map(|a| a.display()).collect();
            let arguments = arguments.iter().map(ToString::to_string);
            let arguments = arguments.collect::<Vec<_>>().join(" ");
            return Err(UsageError(format!("no test is selected by `{arguments}`")).into());
        }
    }
    let status = tests(emulator.as_deref(), &args.arguments).status();
    Ok(status.context("cannot run cargo")?.into())
}

/// The tests on a GPU, or on the emulated one in this folder: those that `arguments` select.
pub(crate) fn tests(emulator: Option<&Path>, arguments: &[OsString]) -> Command {
    // One after the other: they share the GPU's memory, and the emulated GPU has one thread.
    let mut tests = cargo_cuda(&format!(
        "test {PACKAGES} --lib --test {DEVICE_TESTS} -- --include-ignored --test-threads=1"
    ));
    if let Some(emulator) = emulator {
        tests.env("LD_LIBRARY_PATH", emulator);
    }
    if arguments.is_empty() {
        tests.arg("cuda_");
        if emulator.is_some() {
            tests.args(SLOW.iter().flat_map(|name| ["--skip", name]));
        }
    }
    tests.args(arguments);
    tests
}

/// Builds the programs for another machine into `folder`, stripped, with the script that runs them.
pub(crate) fn bundle(folder: &Path) -> anyhow::Result<()> {
    let names = programs(folder)?;
    let mut strip = Command::new("strip");
    strip.args(&names).current_dir(folder);
    process::run("strip", &mut strip)?;
    let script = folder.join("run.sh");
    write(&script, RUN)?;
    process::run("chmod", Command::new("chmod").arg("+x").arg(&script))?;
    let mut bytes = 0;
    for name in &names {
        bytes += fs::metadata(folder.join(name))?.len();
    }
    let mib = bytes as f64 / f64::from(1 << 20);
    let text = format!("{} in {}: {mib:.0} MiB", names.join(", "), folder.display());
    ensure!(mib <= MAX_MIB, "{text}, more than {MAX_MIB} MiB");
    cli::note(&text);
    Ok(())
}
