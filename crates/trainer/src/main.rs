//! Trains networks on CIFAR-10: arguments in, events out.

mod args;
mod backend;
mod data;
mod eval;
mod logging;
mod lr_find;
mod memory;
mod predict;
mod processes;
mod progress;
mod run_files;
mod run_page;
mod settings;
mod setup;
mod tensorboard;
mod train;
mod weights;
mod write_report;

use processes::Launched;
use run::cli::{self, Exit};

fn main() -> Exit {
    ops::keep_freed_memory();
    let launched = Launched::from_environment();
    cli::set_silent(launched.is_some_and(|launched| !launched.is_main()));
    let result = args::Args::from_command_line(launched).run(launched);
    if let (Err(_), Some(launched)) = (&result, launched) {
        launched.before_error();
    }
    Exit::of(result)
}
