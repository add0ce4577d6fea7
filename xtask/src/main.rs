//! The project's chores: `cargo xtask fetch-data`, `compare`, `reproduce`, `tune`, `verify`, `bench`, `gpu-check`, `cuda-toolkit`, `ci`.

mod archive;
mod bench;
mod ci;
mod compare;
mod cuda;
mod download;
mod fetch_data;
mod gpu_check;
mod plan;
mod printer;
mod reproduce;
mod trainer;
mod tune;
mod verify;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The project's chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put CIFAR-10 into the data folder: download, check, unpack.
    FetchData(fetch_data::Args),
    /// Train both networks where that is missing, and write a report that lays them side by side.
    Compare(compare::Args),
    /// Everything in one command: the data, both networks, the report.
    Reproduce(reproduce::Args),
    /// Search for the best settings, judged on training images that are held out.
    Tune(tune::Args),
    /// Train a run again and say whether its weights come out the same, to the bit.
    Verify(verify::Args),
    /// Measure training and evaluation on this machine, layer by layer and against PyTorch.
    Bench(bench::Args),
    /// Check an NVIDIA GPU: reference values, gradients, reproducibility, speed.
    GpuCheck(gpu_check::Args),
    /// Put together what builds the feature `cuda` on a machine without CUDA (Linux on x86-64).
    CudaToolkit(cuda::Args),
    /// Run every check: formatting, lints, tests, documentation.
    Ci,
}

/// An error in the command line.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::FetchData(args) => fetch_data::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Compare(args) => compare::run(&args),
        Command::Reproduce(args) => reproduce::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::GpuCheck(args) => gpu_check::run(&args),
        Command::CudaToolkit(args) => cuda::run_toolkit(&args).map(|()| ExitCode::SUCCESS),
        Command::Ci => ci::run().map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            printer::note(&format!("error: {error:#}"));
            if error.is::<Usage>() {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
