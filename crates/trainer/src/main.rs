//! Trains AlexNet and SmallAlexNet on CIFAR-10: arguments in, events out.

mod args;
mod data;
mod device;
mod evaluate;
mod layer_times;
mod lr_find;
mod predict;
mod progress;
mod settings;
mod train;
mod write_report;

use run::cli::Exit;

/// Every step of training allocates the same large blocks.
#[global_allocator]
static ALLOCATOR: ops::Recycling = ops::Recycling::new();

fn main() -> Exit {
    Exit::of(args::Args::from_command_line().run())
}
