//! Requests to stop a program: Ctrl-C, signals, a console that closes, the end of standard input.

use crate::cli::{self, Exit};
use std::io;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use tokio::runtime::{Builder, Runtime};

/// Whether the program was asked to stop.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// How often a person pressed Ctrl-C.
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Requester {
    /// A person who presses Ctrl-C, for the second time to stop at once.
    Person,
    /// The system. It may ask several times, in several ways, and means one request.
    System,
}

/// A flag that the first request sets, after which `note` tells a person what happens. On Linux, signals that were ignored
/// when the program was started, as by `nohup`, stay ignored; other systems do not tell without `unsafe` code.
///
/// # Errors
/// When the operating system refuses to watch for requests.
pub fn requested(note: &'static str) -> io::Result<&'static AtomicBool> {
    static WATCHING: Mutex<bool> = Mutex::new(false);
    let mut watching = WATCHING.lock().unwrap_or_else(PoisonError::into_inner);
    if !*watching {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        watch(&runtime, move |requester| {
            let is_person = requester == Requester::Person;
            if is_person && INTERRUPTS.fetch_add(1, Ordering::SeqCst) > 0 {
                process::exit(Exit::Interrupted as i32);
            }
            if !REQUESTED.swap(true, Ordering::SeqCst) {
                let again = match requester {
                    Requester::Person => "; press Ctrl-C again to stop at once",
                    Requester::System => "",
                };
                cli::note(&format!("{note}{again}"));
            }
        })?;
        thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        *watching = true;
    }
    Ok(&REQUESTED)
}

/// Makes the flag of [`requested`] true when standard input ends or cannot be read.
pub fn request_when_stdin_ends() {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        REQUESTED.store(true, Ordering::SeqCst);
    });
}

/// Calls `request` for every request that reaches the program.
#[cfg(unix)]
fn watch(runtime: &Runtime, request: impl Fn(Requester) + Copy + Send + 'static) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let _context = runtime.enter();
    for (kind, requester) in [
        (SignalKind::interrupt(), Requester::Person),
        (SignalKind::terminate(), Requester::System),
        (SignalKind::hangup(), Requester::System),
    ] {
        if is_ignored(kind.as_raw_value()) {
            continue;
        }
        let mut signals = signal(kind)?;
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                request(requester);
            }
        });
    }
    Ok(())
}

/// Whether a signal is ignored, as Linux tells.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let ignored = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Calls `request` for every request that reaches the program. When the console closes, Windows ends a program as soon as
/// its handler returns; that of `tokio` does not return, which leaves about five seconds for the step and its checkpoint.
#[cfg(windows)]
fn watch(runtime: &Runtime, request: impl Fn(Requester) + Copy + Send + 'static) -> io::Result<()> {
    use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close};
    let (mut c, mut ctrl_break, mut close) = (ctrl_c()?, ctrl_break()?, ctrl_close()?);
    runtime.spawn(async move {
        while c.recv().await.is_some() {
            request(Requester::Person);
        }
    });
    runtime.spawn(async move {
        while ctrl_break.recv().await.is_some() {
            request(Requester::Person);
        }
    });
    runtime.spawn(async move {
        while close.recv().await.is_some() {
            request(Requester::System);
        }
    });
    Ok(())
}
