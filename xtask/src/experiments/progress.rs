//! The progress of all runs of an experiment, read from their files and shown while it grows.

use crate::experiments::plan::{Planned, State};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use run::{cli, file};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The progress of all runs.
pub(crate) struct Progress {
    bar: ProgressBar,
    runs: Mutex<BTreeMap<String, RunProgress>>,
}

/// The progress of one run.
struct RunProgress {
    kind: String,
    epochs: u32,
    /// How many seconds each epoch took that is done.
    seconds: Vec<f64>,
    /// When its current epoch started; `None` where it is not running.
    epoch_started: Option<Instant>,
    /// The version of its metrics that was read last.
    metrics: Option<Version>,
}

/// What distinguishes a version of a file from the one before: when it was written, and its length.
type Version = (SystemTime, u64);

fn version(path: &Path) -> Option<Version> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// The seconds of each epoch of the run in `folder`, at most `epochs` of them.
fn seconds(folder: &Path, epochs: u32) -> Vec<f64> {
    let metrics = run::metrics::read(&folder.join(file::METRICS)).unwrap_or_default();
    let metrics = metrics.iter().take(epochs as usize);
    metrics.map(|epoch| epoch.seconds).collect()
}

impl Progress {
    pub(crate) fn new(plan: &[Planned]) -> Self {
        // It is hidden unless standard error is a terminal.
        let bar = ProgressBar::new(plan.iter().map(|run| u64::from(run.epochs())).sum());
        // A test checks the template.
        if let Ok(style) = style() {
            bar.set_style(style);
        }
        let runs = plan.iter().map(|run| {
            let progress = RunProgress {
                kind: run.kind(),
                epochs: match run.state {
                    // Early stopping may have ended it.
                    State::Finished => seconds(&run.folder, u32::MAX).len() as u32,
                    State::Missing | State::Started(_) => run.epochs(),
                },
                seconds: seconds(&run.folder, run.done()),
                epoch_started: None,
                metrics: None,
            };
            (run.name.clone(), progress)
        });
        let progress = Self {
            bar,
            runs: Mutex::new(runs.collect()),
        };
        let is_finished = |run: &&Planned| run.state == State::Finished;
        let (finished, all) = (plan.iter().filter(is_finished).count(), plan.len());
        if finished > 0 {
            progress.print(&format!("{finished} of {all} runs are finished already"));
        }
        progress
    }

    /// Prints a line above the progress bar.
    pub(crate) fn print(&self, text: &str) {
        self.bar.suspend(|| cli::note(text));
    }

    /// Removes the progress bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// A process is about to train the run. What its metrics file has now is from an earlier process.
    pub(crate) fn started(&self, run: &Planned) {
        let done = run::checkpoint::finished_epochs(&run.folder).unwrap_or(0);
        self.change(run, |progress| {
            progress.seconds = seconds(&run.folder, done);
            progress.epoch_started = Some(Instant::now());
            progress.metrics = version(&run.folder.join(file::METRICS));
        });
        self.print(&match (run.state, done) {
            (State::Missing | State::Finished, _) => format!("{} starts", run.name),
            (State::Started(_), 0) => format!("{} is resumed", run.name),
            (State::Started(_), _) => format!("{} is resumed after epoch {done}", run.name),
        });
        self.show();
    }

    /// Prints the epochs that the run's metrics file has gained.
    pub(crate) fn update(&self, run: &Planned) {
        let metrics = run.folder.join(file::METRICS);
        let now = version(&metrics);
        let mut new = Vec::new();
        self.change(run, |progress| {
            if now.is_none() || progress.metrics == now {
                return;
            }
            // The file is replaced as a whole, so it can be read at any time.
            let epochs = run::metrics::read(&metrics).unwrap_or_default();
            new.extend(epochs.iter().skip(progress.seconds.len()).cloned());
            progress.seconds = epochs.iter().map(|epoch| epoch.seconds).collect();
            progress.metrics = now;
            if !new.is_empty() {
                progress.epoch_started = Some(Instant::now());
            }
        });
        for epoch in &new {
            let left = self.left().map_or_else(String::new, |left| {
                format!("  ({} left for all runs)", HumanDuration(left))
            });
            self.print(&format!(
                "{}  epoch {}/{}  train loss {:.4}  {} accuracy {:.2} %  {:.1} s{left}",
                run.name,
                epoch.epoch,
                run.epochs(),
                epoch.train_loss,
                epoch.evaluated.split,
                100.0 * epoch.evaluated.accuracy,
                epoch.seconds,
            ));
        }
        self.show();
    }

    /// The process that trained the run has ended.
    pub(crate) fn ended(&self, run: &Planned) {
        self.update(run);
        self.change(run, |progress| {
            progress.epoch_started = None;
            progress.epochs = progress.seconds.len() as u32;
        });
        self.show();
    }

    fn change(&self, run: &Planned, change: impl FnOnce(&mut RunProgress)) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(progress) = runs.get_mut(&run.name) {
            change(progress);
        }
    }

    fn show(&self) {
        let left = match self.left() {
            Some(left) => format!("{} left", HumanDuration(left)),
            None => "time left not known yet".to_owned(),
        };
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let finished = runs.values().filter(|run| run.left() == 0).count();
        let running = runs.iter().filter(|(_, run)| run.epoch_started.is_some());
        let running: Vec<_> = running
            .map(|(name, run)| {
                let epoch = (run.seconds.len() + 1).min(run.epochs as usize);
                format!("{name} epoch {epoch}/{}", run.epochs)
            })
            .collect();
        let done = runs.values().map(|run| run.seconds.len() as u64);
        self.bar.set_position(done.sum());
        self.bar.set_message(format!(
            "{finished}/{} runs done  {}  {left}",
            runs.len(),
            running.join(", ")
        ));
    }

    /// The time left for all runs, estimated from the epochs that are done; `None` before the first.
    fn left(&self) -> Option<Duration> {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let mean = |kind: &str| {
            let same = runs.values().filter(|run| run.kind == kind);
            let seconds: Vec<_> = same.flat_map(|run| run.seconds.iter().copied()).collect();
            (!seconds.is_empty()).then(|| seconds.iter().sum::<f64>() / seconds.len() as f64)
        };
        // A network without epochs is assumed to be as slow as the slowest one.
        let slowest = runs
            .values()
            .filter_map(|run| mean(&run.kind))
            .reduce(f64::max)?;
        let running = runs.values().filter(|run| run.epoch_started.is_some());
        let at_a_time = running.count().max(1);
        let left = runs.values().map(|run| {
            let epoch = mean(&run.kind).unwrap_or(slowest);
            let elapsed = run.epoch_started.map(|started| started.elapsed());
            let elapsed = elapsed.unwrap_or_default().as_secs_f64().min(epoch);
            (f64::from(run.left()) * epoch - elapsed).max(0.0)
        });
        Duration::try_from_secs_f64(left.sum::<f64>() / at_a_time as f64).ok()
    }
}

impl RunProgress {
    /// Epochs that are not done.
    fn left(&self) -> u32 {
        self.epochs.saturating_sub(self.seconds.len() as u32)
    }
}

fn style() -> Result<ProgressStyle, indicatif::style::TemplateError> {
    Ok(ProgressStyle::with_template("{bar:24} {pos}/{len} epochs  {msg}")?.progress_chars("=> "))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_template_of_the_bar_is_valid() {
        super::style().unwrap();
    }
}
