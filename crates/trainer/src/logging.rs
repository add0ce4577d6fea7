//! The log of a run and its trace.

use anyhow::Context;
use atomic_file::Unfinished;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use engine::{Event, SpanTimes};
use run::{RunFolder, cli, file};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};
use tracing::Level;
use tracing_chrome::{ChromeLayerBuilder, FlushGuard};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::prelude::*;

/// The parser of a log's level.
pub(crate) fn level() -> impl TypedValueParser<Value = LevelFilter> {
    let levels = [
        ("off", "Nothing"),
        ("error", "Failures"),
        ("warn", "What needs attention"),
        ("info", "Epochs and checkpoints"),
        ("debug", "Steps"),
        ("trace", "Everything"),
    ];
    let levels = levels.map(|(name, help)| PossibleValue::new(name).help(help));
    PossibleValuesParser::new(levels).try_map(|name| name.parse::<LevelFilter>())
}

/// Creates the file of a trace.
pub(crate) fn trace_file(path: &Path) -> anyhow::Result<Unfinished> {
    Unfinished::create(path).with_context(|| format!("cannot write the trace `{}`", path.display()))
}

/// The log of a run and its trace, which is complete when this is dropped.
pub(crate) struct Logging {
    log: Log,
    level: LevelFilter,
    _trace: Option<FlushGuard>,
    /// The file of the trace, until the run has a folder: a run that does not begin leaves none behind.
    unfinished_trace: Option<Unfinished>,
}

impl Logging {
    /// Starts both, with warnings on standard error as well. The log is kept in memory until the run has a folder.
    pub(crate) fn start(
        level: LevelFilter,
        trace: Option<Unfinished>,
        span_times: &SpanTimes,
    ) -> anyhow::Result<Self> {
        let log = Log(Arc::new(Mutex::new(Target::Memory(Vec::new()))));
        let writer = log.clone();
        let file = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || writer.clone());
        let terminal = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(std::io::stderr)
            .without_time();
        let unfinished_trace = trace;
        let trace = unfinished_trace.as_ref().map(Unfinished::handle);
        let trace = trace.transpose().context("cannot write the trace")?;
        let (trace, guard) = trace
            .map(|file| {
                ChromeLayerBuilder::new()
                    .writer(BufWriter::new(file))
                    .include_args(true)
                    .include_locations(false)
                    .build()
            })
            .unzip();
        tracing_subscriber::registry()
            .with(span_times.clone().with_filter(LevelFilter::DEBUG))
            .with(trace.with_filter(LevelFilter::DEBUG))
            .with(file.with_filter(level))
            .with(terminal.with_filter(filter_fn(move |event| {
                // An error is printed when the program ends.
                *event.level() == Level::WARN && level >= LevelFilter::WARN
            })))
            .try_init()?;
        Ok(Self {
            log,
            level,
            _trace: guard,
            unfinished_trace,
        })
    }

    /// Writes the log into the folder of the run, from its first line on, and puts the trace into its place.
    pub(crate) fn write_into(&mut self, folder: &RunFolder) -> anyhow::Result<()> {
        let trace = self.unfinished_trace.take().map(Unfinished::keep);
        trace.transpose().context("cannot write the trace")?;
        let file = folder.log()?;
        let mut target = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
        let path = folder.path().join(file::LOG);
        let before = std::mem::replace(&mut *target, Target::File { file, path });
        if let Target::Memory(lines) = before {
            target.write(&lines);
        }
        Ok(())
    }
}

impl Drop for Logging {
    /// Prints the log of a run that did not begin, where details were asked for.
    fn drop(&mut self) {
        let target = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Target::Memory(lines) = &*target
            && self.level >= LevelFilter::DEBUG
        {
            cli::note(String::from_utf8_lossy(lines).trim_end());
        }
    }
}

/// Where a log is written.
#[derive(Clone)]
struct Log(Arc<Mutex<Target>>);

enum Target {
    Memory(Vec<u8>),
    File { file: File, path: PathBuf },
}

impl Target {
    /// Training goes on where the log cannot be written; a warning says so once.
    fn write(&mut self, bytes: &[u8]) {
        static WARNING: Once = Once::new();
        match self {
            Self::Memory(lines) => lines.extend(bytes),
            Self::File { file, path } => {
                if let Err(error) = file.write_all(bytes) {
                    WARNING.call_once(|| {
                        let path = path.display();
                        cli::note(&format!("warning: cannot write the log `{path}`: {error}"));
                    });
                }
            }
        }
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut target = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        target.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs an event.
pub(crate) fn log(event: &Event<'_>) {
    match *event {
        Event::EpochStarted {
            epoch,
            done,
            steps,
            learning_rate,
            ..
        } => {
            tracing::info!(epoch, done, steps, learning_rate, "epoch started");
        }
        Event::Step {
            epoch,
            done,
            loss,
            accuracy,
            images_per_second,
        } => {
            tracing::debug!(epoch, done, loss, accuracy, images_per_second, "step");
        }
        Event::IntervalFinished {
            steps,
            learning_rate,
            gradient_norm,
            ..
        } => {
            tracing::debug!(steps, learning_rate, gradient_norm, "interval finished");
        }
        Event::EvaluationStarted { epoch } => tracing::debug!(epoch, "evaluation begins"),
        Event::EpochFinished { history, best, .. } => {
            if let Some(last) = history.last() {
                tracing::info!(
                    epoch = last.epoch,
                    train_loss = last.train_loss,
                    train_accuracy = last.train_accuracy,
                    loss = last.evaluated.loss,
                    accuracy = last.evaluated.accuracy,
                    seconds = last.seconds,
                    best = best.epoch,
                    "epoch finished"
                );
            }
        }
        Event::CheckpointWritten { path } => {
            tracing::info!(path = %path.display(), "checkpoint written")
        }
    }
}
