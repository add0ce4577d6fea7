//! The project's chores: `cargo xtask fetch-data`, `bench`, `gpu-check`, `cuda-toolkit`, `ci`.

mod archive;
mod bench;
mod ci;
mod cuda;
mod download;
mod fetch_data;
mod gpu_check;
mod printer;

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
    /// Measure training and evaluation on this machine, layer by layer and against PyTorch.
    Bench(bench::Args),
    /// Check an NVIDIA GPU: reference values, gradients, reproducibility, speed.
    GpuCheck(gpu_check::Args),
    /// Put together what builds the feature `cuda` on a machine without CUDA (Linux on x86-64).
    CudaToolkit(cuda::Args),
    /// Run every check: formatting, lints, tests, documentation.
    Ci,
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::FetchData(args) => fetch_data::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Bench(args) => bench::run(&args),
        Command::GpuCheck(args) => gpu_check::run(&args),
        Command::CudaToolkit(args) => cuda::run_toolkit(&args).map(|()| ExitCode::SUCCESS),
        Command::Ci => ci::run().map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            printer::note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
