//! A pool of child processes that train runs, and the progress of all of them.

use crate::experiments::plan::{Planned, State};
use crate::experiments::trainer::{Trainer, wait_for_writer};
use anyhow::{Context, bail};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use run::{cli, file};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Read, stderr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How training ended.
pub(crate) enum Ended {
    /// The names of runs that failed.
    Done(Vec<String>),
    Interrupted,
}

/// What Ctrl-C sets. The runs see the same Ctrl-C, and make a checkpoint.
fn stop_on_interrupt() -> anyhow::Result<&'static AtomicBool> {
    static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if STOP.get().is_none() {
        let asked = STOP.get_or_init(Arc::default).clone();
        ctrlc::set_handler(move || asked.store(true, Ordering::SeqCst))
            .context("cannot watch for Ctrl-C")?;
    }
    Ok(STOP.get_or_init(Arc::default))
}

/// How many threads each of several runs at a time is given; `None` for one run, which takes all.
pub(crate) fn threads(jobs: NonZeroUsize) -> Option<String> {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (jobs.get() > 1).then(|| (cores / jobs).max(1).to_string())
}

/// Trains what is not finished, `jobs` runs at a time.
pub(crate) fn train(
    trainer: &Trainer,
    plan: &[Planned],
    jobs: NonZeroUsize,
) -> anyhow::Result<Ended> {
    let stop = stop_on_interrupt()?;
    let progress = Progress::new(plan);
    let waiting: VecDeque<&Planned> = plan
        .iter()
        .filter(|run| run.state != State::Finished)
        .collect();
    let waiting = Mutex::new(waiting);
    let failed = Mutex::new(Vec::new());
    let next = || {
        waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    };
    thread::scope(|scope| {
        for _ in 0..jobs.get() {
            scope.spawn(|| {
                while let Some(run) = next().filter(|_| !stop.load(Ordering::SeqCst)) {
                    if let Err(error) = one_run(trainer, run, &progress)
                        && !stop.load(Ordering::SeqCst)
                    {
                        progress.say(&format!("{} failed: {error:#}", run.name));
                        failed
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(run.name.clone());
                    }
                }
            });
        }
    });
    progress.bar.finish_and_clear();
    if stop.load(Ordering::SeqCst) {
        return Ok(Ended::Interrupted);
    }
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Ended::Done(
        plan.iter()
            .map(|run| run.name.clone())
            .filter(|name| failed.contains(name))
            .collect(),
    ))
}

/// Lines of a failed run's log that are shown.
const LOG_LINES: usize = 10;

/// Trains one run to its end.
fn one_run(trainer: &Trainer, run: &Planned, progress: &Progress) -> anyhow::Result<()> {
    wait_for_writer(&run.folder)?;
    let mut command = trainer.command();
    // A process of a killed command may have begun it meanwhile.
    if run.state == State::Missing && !run.folder.join(file::RECORD).exists() {
        let out = run.folder.parent().unwrap_or(Path::new("."));
        command
            .args(&run.arguments)
            .arg("--run-dir")
            .arg(out)
            .args(["--name", &run.name]);
    } else {
        command
            .arg("--resume")
            .arg(&run.folder)
            .args(resumed(&run.arguments));
    }
    // Where this process is killed, the pipe ends, and the run stops with a checkpoint.
    command.args(["--no-progress", "--stop-with-stdin"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run the program `trainer`")?;
    let errors = child.stderr.take().map(|errors| {
        thread::spawn(move || {
            let mut text = String::new();
            let _ = BufReader::new(errors).read_to_string(&mut text);
            text
        })
    });
    progress.began(run);
    if let Some(lines) = child.stdout.take() {
        for line in BufReader::new(lines).lines().map_while(Result::ok) {
            if line.starts_with("epoch ") {
                progress.epoch(run, &line);
            }
        }
    }
    let status = child
        .wait()
        .context("cannot wait for the program `trainer`")?;
    let errors = errors
        .and_then(|errors| errors.join().ok())
        .unwrap_or_default();
    progress.ended(run);
    if status.success() {
        return Ok(());
    }
    let mut message = errors
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("error: "))
        .unwrap_or("")
        .to_owned();
    if message.is_empty() {
        message = format!("it ended with {status}");
    }
    let log = run.folder.join(file::LOG);
    if let Ok(text) = fs::read_to_string(&log) {
        let lines: Vec<_> = text.lines().collect();
        let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
        message += &format!("\nthe end of `{}`:\n  {}", log.display(), end.join("\n  "));
    }
    bail!(message)
}

/// Those of a run's arguments that may be given where it is resumed: its length, its data, and what computes.
fn resumed(arguments: &[String]) -> Vec<&String> {
    const FLAGS: [&str; 4] = ["--epochs", "--data-dir", "--threads", "--device"];
    let pairs = arguments
        .windows(2)
        .filter(|pair| FLAGS.contains(&pair[0].as_str()));
    pairs.flatten().collect()
}

/// What is known of all runs together, shown as it grows.
struct Progress {
    bar: ProgressBar,
    runs: usize,
    state: Mutex<BTreeMap<String, Watched>>,
}

/// One run that is watched.
struct Watched {
    kind: String,
    folder: PathBuf,
    epochs: u32,
    done: u32,
    /// When its running epoch began.
    since: Option<Instant>,
}

impl Progress {
    fn new(plan: &[Planned]) -> Self {
        let bar = if stderr().is_terminal() {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        // The template is checked by a test.
        if let Ok(style) = style() {
            bar.set_style(style);
        }
        bar.set_length(plan.iter().map(|run| u64::from(run.epochs())).sum());
        let watched = plan.iter().map(|run| {
            let watched = Watched {
                kind: run.kind.clone(),
                folder: run.folder.clone(),
                epochs: run.epochs(),
                done: run.done(),
                since: None,
            };
            (run.name.clone(), watched)
        });
        let progress = Self {
            bar,
            runs: plan.len(),
            state: Mutex::new(watched.collect()),
        };
        let finished = plan
            .iter()
            .filter(|run| run.state == State::Finished)
            .count();
        if finished > 0 {
            progress.say(&format!(
                "{finished} of {} runs are finished already",
                plan.len()
            ));
        }
        progress
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| cli::note(text));
    }

    fn began(&self, run: &Planned) {
        self.change(run, |watched| watched.since = Some(Instant::now()));
        let verb = match run.state {
            State::Begun(epochs) if epochs > 0 => format!("goes on after epoch {epochs}"),
            State::Begun(_) => "goes on".to_owned(),
            State::Missing | State::Finished => "begins".to_owned(),
        };
        self.say(&format!("{} {verb}", run.name));
        self.show();
    }

    fn epoch(&self, run: &Planned, line: &str) {
        let number = line
            .trim_start_matches("epoch ")
            .trim_start()
            .split('/')
            .next();
        let number = number.and_then(|number| number.parse().ok());
        self.change(run, |watched| {
            watched.done = number.unwrap_or(watched.done + 1);
            watched.since = Some(Instant::now());
        });
        let left = self.left().map_or_else(String::new, |left| {
            format!("  ({} left for all)", HumanDuration(left))
        });
        self.say(&format!("{}  {line}{left}", run.name));
        self.show();
    }

    fn ended(&self, run: &Planned) {
        self.change(run, |watched| watched.since = None);
        self.show();
    }

    fn change(&self, run: &Planned, change: impl FnOnce(&mut Watched)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watched) = state.get_mut(&run.name) {
            change(watched);
        }
    }

    fn show(&self) {
        let left = self.left();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let finished = state.values().filter(|run| run.done >= run.epochs).count();
        let running: Vec<_> = state
            .iter()
            .filter(|(_, run)| run.since.is_some())
            .map(|(name, run)| {
                format!(
                    "{name} epoch {}/{}",
                    (run.done + 1).min(run.epochs),
                    run.epochs
                )
            })
            .collect();
        self.bar
            .set_position(state.values().map(|run| u64::from(run.done)).sum());
        let left = left.map_or_else(
            || "time left not known yet".to_owned(),
            |left| format!("{} left", HumanDuration(left)),
        );
        self.bar.set_message(format!(
            "{finished}/{} runs done  {}  {left}",
            self.runs,
            running.join(", ")
        ));
    }

    /// The time that is left for all runs, by the epochs that are done; `None` before the first.
    fn left(&self) -> Option<Duration> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for run in state.values() {
            let epochs = run::metrics::read(&run.folder.join(file::METRICS)).unwrap_or_default();
            known
                .entry(&run.kind)
                .or_default()
                .extend(epochs.iter().map(|epoch| epoch.seconds));
        }
        let mean = |seconds: &Vec<f64>| seconds.iter().sum::<f64>() / seconds.len() as f64;
        let known: BTreeMap<&str, f64> = known
            .into_iter()
            .filter(|(_, seconds)| !seconds.is_empty())
            .map(|(kind, seconds)| (kind, mean(&seconds)))
            .collect();
        // A network that has no epoch yet is taken to be as slow as the slowest that has.
        let slowest = known
            .values()
            .copied()
            .fold(None, |slowest: Option<f64>, seconds| {
                Some(slowest.map_or(seconds, |s| s.max(seconds)))
            })?;
        let at_a_time = state
            .values()
            .filter(|run| run.since.is_some())
            .count()
            .max(1);
        let left: f64 = state
            .values()
            .map(|run| {
                let epoch = known.get(run.kind.as_str()).copied().unwrap_or(slowest);
                let begun = run
                    .since
                    .map_or(0.0, |since| since.elapsed().as_secs_f64().min(epoch));
                (f64::from(run.epochs.saturating_sub(run.done)) * epoch - begun).max(0.0)
            })
            .sum();
        Duration::try_from_secs_f64(left / at_a_time as f64).ok()
    }
}

fn style() -> Result<ProgressStyle, indicatif::style::TemplateError> {
    Ok(ProgressStyle::with_template("{bar:24} {pos}/{len} epochs  {msg}")?.progress_chars("=> "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bars_template_is_right() {
        style().unwrap();
    }

    #[test]
    fn a_resumed_run_is_told_what_may_change() {
        let arguments = [
            "--model",
            "alexnet",
            "--epochs",
            "5",
            "--seed",
            "1",
            "--threads",
            "2",
        ]
        .map(str::to_owned);
        assert_eq!(resumed(&arguments), ["--epochs", "5", "--threads", "2"]);
    }
}
