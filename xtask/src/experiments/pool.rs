//! A pool of child processes that train runs.

use crate::experiments::flags::SettingFlags;
use crate::experiments::plan::{Planned, State};
use crate::experiments::progress::Progress;
use crate::trainer::{self, Trainer, flag, wait_for_writer};
use anyhow::{Context, bail};
use run::{cli, file, stop};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// The trainer's arguments for each of `jobs` concurrent runs: these settings and other flags. The runs divide the cores
/// among them, unless `--threads` is given.
pub(crate) fn arguments<S>(
    mut settings: SettingFlags<S>,
    jobs: NonZeroUsize,
    flags: &[OsString],
) -> Vec<OsString> {
    if jobs.get() > 1 && settings.get("threads").is_none() {
        settings = settings.with("threads", (cores().get() / jobs).max(1).to_string());
    }
    let mut arguments = settings.arguments();
    arguments.extend_from_slice(flags);
    arguments
}

fn cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Trains the runs that are not finished, `jobs` at a time. Returns the names of those that failed; `None` if Ctrl-C
/// stopped it, or a flag such as `--stop-after` a run.
pub(crate) fn train(
    trainer: &Trainer,
    plan: &[Planned],
    jobs: NonZeroUsize,
) -> anyhow::Result<Option<Vec<String>>> {
    let stop = stop::requested("stopping: the runs write their checkpoints");
    let stop = stop.context("cannot watch for Ctrl-C")?;
    let progress = Progress::new(plan);
    let stopped = || stop.load(Ordering::SeqCst);
    let runs = plan.iter().enumerate();
    let waiting = Mutex::new(runs.filter(|(_, run)| run.state != State::Finished));
    let next = || {
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.next().filter(|_| !stopped())
    };
    let failed = Mutex::new(BTreeMap::new());
    let is_incomplete = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..jobs.get() {
            scope.spawn(|| {
                while let Some((index, run)) = next() {
                    match train_one(trainer, run, &progress, &stopped) {
                        _ if stopped() => {}
                        Ok(State::Finished) => {}
                        Ok(State::Missing | State::Started(_)) => {
                            is_incomplete.store(true, Ordering::SeqCst);
                        }
                        Err(error) => {
                            progress.print(&format!(
                                "{} failed: {}",
                                run.name,
                                cli::message(error.as_ref())
                            ));
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            failed.insert(index, run.name.clone());
                        }
                    }
                }
            });
        }
    });
    progress.finish();
    if stopped() {
        cli::note("interrupted; run the same command again to resume");
        return Ok(None);
    }
    if is_incomplete.load(Ordering::SeqCst) {
        cli::note("not all runs are finished; the same command without --stop-after resumes them");
        return Ok(None);
    }
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Some(failed.into_values().collect()))
}

/// The number of lines of a failed run's log that are shown.
const LOG_LINES: usize = 10;

/// Trains one run, to its end unless a flag stops it. Returns its state then.
fn train_one(
    trainer: &Trainer,
    run: &Planned,
    progress: &Progress,
    stopped: &dyn Fn() -> bool,
) -> anyhow::Result<State> {
    wait_for_writer(&run.folder)?;
    let mut command = trainer.command();
    // The child of a killed command may have started the run since it was planned.
    if run.state == State::Missing && !run.folder.join(file::RECORD).exists() {
        let out = run.folder.parent().unwrap_or(Path::new("."));
        command.args(&run.arguments).args(["--name", &run.name]);
        command.arg(flag("--run-dir", out));
    } else {
        command.arg(flag("--resume", &run.folder));
        command.args(run.arguments_to_resume()?);
        // Not those of the record, which another number of jobs or another machine may have had.
        if run.settings.threads.is_none() {
            command.arg(flag("--threads", cores().to_string()));
        }
    }
    progress.started(run);
    let mut lines = Vec::new();
    let status = trainer::train(
        &mut command,
        stopped,
        || progress.update(run),
        |line| {
            if line.starts_with("warning: ") {
                progress.print(&line);
            }
            lines.push(line);
        },
    );
    progress.ended(run);
    let status = status?;
    if status.success() {
        let run = run.again()?;
        if run.state != State::Finished {
            let (name, done, epochs) = (&run.name, run.done(), run.epochs());
            progress.print(&format!(
                "{name} was stopped after {done} of {epochs} epochs"
            ));
        }
        return Ok(run.state);
    }
    let mut message = trainer::failure(&lines, status);
    let log = run.folder.join(file::LOG);
    if let Ok(text) = fs::read_to_string(&log) {
        let lines: Vec<_> = text.lines().collect();
        let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
        message += &format!("\nthe end of `{}`:\n  {}", log.display(), end.join("\n  "));
    }
    bail!(message)
}
