//! Measures the two networks on this machine: `cargo xtask bench`.
//!
//! Every figure is measured in a process of its own (this program again, or Python), so that contestants share neither
//! memory nor caches. Contestants take turns, so that a machine that slows down slows them all.

mod accuracy;
mod candle_graph;
mod candle_network;
mod cluster;
mod comparison;
mod device;
mod layers;
mod machine;
mod rival;
mod throughput;

use clap::{Parser, Subcommand};
use run::cli::{self, Exit};

/// Measures the networks on this machine: throughput, layers, the fraction of the machine's peak, and PyTorch in turn.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    comparison: comparison::Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train for some steps, then compare each convolution's results and gradients with a direct convolution in double
    /// precision.
    Accuracy(accuracy::Args),
    /// Simulate training on several machines, from the times of two runs on one.
    Cluster(cluster::Args),
    /// One figure, as JSON, in this process.
    #[command(hide = true)]
    Throughput(throughput::Args),
    /// The layers of one network, as JSON, in this process.
    #[command(hide = true)]
    Layers(throughput::Measurement),
    /// What the machine can do, as JSON, in this process.
    #[command(hide = true)]
    Machine(machine::Args),
}

fn main() -> Exit {
    ops::keep_freed_memory();
    let args = cli::parse_or_exit(Args::try_parse());
    let result = match &args.command {
        None => comparison::run(&args.comparison),
        Some(Command::Accuracy(args)) => accuracy::run(args),
        Some(Command::Cluster(args)) => cluster::run(args),
        Some(Command::Throughput(args)) => throughput::run(args),
        Some(Command::Layers(args)) => layers::run(args),
        Some(Command::Machine(args)) => machine::run(args),
    };
    Exit::of(result.map(|()| Exit::Success))
}
