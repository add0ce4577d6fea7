//! Stopping a command: Ctrl-C, a console that closes, and the end of standard input.

use anyhow::Context;
use run::cli::{self, Exit};
use std::io;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// A flag that the first Ctrl-C sets, to stop after the step; the second one ends the process.
pub(crate) fn stop_on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::SeqCst) {
            process::exit(Exit::Interrupted as i32);
        }
        cli::note("stopping after this step; press Ctrl-C again to stop at once");
    })
    .context("cannot watch for Ctrl-C")?;
    stop_when_console_closes(stop.clone()).context("cannot watch the console")?;
    Ok(stop)
}

/// Sets `stop` when the console window closes. Windows ends the process as soon as its handler of this event returns, as
/// that of `ctrlc` does at once. That of `tokio` does not return: there are about five seconds for the step and its
/// checkpoint. Other systems send a signal, which `ctrlc` handles.
#[cfg(windows)]
fn stop_when_console_closes(stop: Arc<AtomicBool>) -> io::Result<()> {
    let mut close = tokio::signal::windows::ctrl_close()?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    thread::spawn(move || {
        runtime.block_on(close.recv());
        stop.store(true, Ordering::SeqCst);
    });
    Ok(())
}

#[cfg(not(windows))]
fn stop_when_console_closes(_: Arc<AtomicBool>) -> io::Result<()> {
    Ok(())
}

/// Sets `stop` when standard input ends or cannot be read.
pub(crate) fn stop_with_stdin(stop: Arc<AtomicBool>) {
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        stop.store(true, Ordering::SeqCst);
    });
}
