//! Trains AlexNet and SmallAlexNet on CIFAR-10: arguments in, events out.

mod args;
mod data;
mod device;
mod evaluate;
mod exit;
mod layer_times;
mod lr_find;
mod predict;
mod printer;
mod progress;
mod run_folder;
mod settings;
mod train;
mod write_report;

use clap::Parser;
use std::process::ExitCode;

/// Every step of training allocates the same large blocks.
#[global_allocator]
static ALLOCATOR: ops::Recycling = ops::Recycling::new();

fn main() -> ExitCode {
    let args = args::Args::parse();
    exit::code(args.run())
}
