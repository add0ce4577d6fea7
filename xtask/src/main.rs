//! `cargo xtask`: downloads CIFAR-10, runs experiments and runs the project's checks.

mod bench;
mod ci;
mod cuda;
mod docs;
mod experiments;
mod fetch;
mod files;
mod gpu_check;
mod lock;
mod process;
mod trainer;

use clap::{CommandFactory, Parser, Subcommand};
use experiments::{compare, reproduce, tune, verify};
use run::cli::{self, Exit};

/// Downloads CIFAR-10, runs experiments and runs the project's checks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Download CIFAR-10 into the data folder, verify it and unpack it.
    FetchData(fetch::Args),
    /// Train the networks and write a report that compares them. Finished runs are reused.
    Compare(compare::Args),
    /// Download the data, train both networks and write the report.
    Reproduce(reproduce::Args),
    /// Search for the best settings by the accuracy on held-out training images.
    Tune(tune::Args),
    /// Train a run again and check that its weights are the same, bit for bit.
    Verify(verify::Args),
    /// Measure training and evaluation on this machine or its GPU, layer by layer and against PyTorch.
    Bench(bench::Args),
    /// Run the tests that need an NVIDIA GPU, or build them for another machine.
    GpuCheck(gpu_check::Args),
    /// Generate the reference of commands and flags: crates/trainer/README.md and xtask/README.md.
    Docs(docs::Args),
    /// Run every check: formatting, lints, tests, documentation.
    Ci(ci::Args),
}

fn main() -> Exit {
    Exit::of(match cli::parse_or_exit(Args::try_parse()).command {
        Command::FetchData(args) => fetch::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Reproduce(args) => reproduce::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::GpuCheck(args) => gpu_check::run(&args),
        Command::Docs(args) => docs::run(&args, Args::command()),
        Command::Ci(args) => ci::run(&args),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
