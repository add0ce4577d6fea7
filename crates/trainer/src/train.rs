//! The command that trains.

use crate::data::{self, first_names};
use crate::logging::{self, Logging};
use crate::processes::{Launched, Processes};
use crate::progress::Progress;
use crate::run_files::RunFiles;
use crate::run_page::RunPageWriter;
use crate::settings::{self, Resolved};
use crate::setup::{self, Setup};
use crate::tensorboard::TensorBoard;
use anyhow::Context;
use datasets::DatasetSource;
use engine::{Event, Outcome, Position, SpanTimes, Training};
use report::State;
use run::cli::{self, Exit, UsageError};
use run::settings::{FIELDS, Field};
use run::{EpochMetrics, NativePath, Overrides, RunFolder, Settings, Shards, file, folder, stop};
use std::cell::Cell;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tracing_subscriber::filter::LevelFilter;

/// Arguments of training.
#[derive(Debug, clap::Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) overrides: Overrides,

    /// Read settings from this TOML file: the output of --dry-run, or the run.toml of a run.
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub(crate) config: Option<NativePath>,

    /// Resume this run: its folder, or its name in the folder of runs.
    #[arg(long, value_name = "RUN", help_heading = "Run", conflicts_with_all = ["config", "name", "init"])]
    pub(crate) resume: Option<NativePath>,

    /// Stop, with a checkpoint, when this process has trained for TIME: 90s, 30m, 2h 15m, or DD:HH:MM:SS.
    #[arg(long, value_name = "TIME", help_heading = "Run")]
    pub(crate) max_time: Option<MaxTime>,

    /// Stop, with a checkpoint, after epoch N; the learning-rate scheduler still covers all epochs.
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub(crate) stop_after: Option<NonZeroU32>,

    /// Stop, with a checkpoint, when standard input ends: for programs that start this one through a pipe.
    #[arg(long, help_heading = "Run")]
    pub(crate) stop_with_stdin: bool,

    /// Train one step and evaluate one batch as a test; nothing is kept.
    #[arg(long, help_heading = "Run", conflicts_with_all = ["resume", "name", "dry_run", "max_time", "stop_after"])]
    pub(crate) fast_dev_run: bool,

    /// Print the resolved settings as TOML and exit. Of a folder of pictures, this reads the training images for their mean
    /// and standard deviation.
    #[arg(long, help_heading = "Run")]
    pub(crate) dry_run: bool,

    /// The folder of runs.
    #[arg(
        long,
        value_name = "DIR",
        help_heading = "Output",
        default_value = "runs",
        value_parser = NativePath::text_parser()
    )]
    pub(crate) run_dir: NativePath,

    /// The run's name, which is the name of its folder [default: network, data set (except cifar10), recipe and seed;
    /// numbered from the second such run on].
    #[arg(long, help_heading = "Output", value_parser = run::name::check)]
    pub(crate) name: Option<String>,

    /// Show no progress bar, only one line per epoch.
    #[arg(long, help_heading = "Output")]
    pub(crate) no_progress: bool,

    /// Write the curves into the run's folder as TensorBoard reads them (`tensorboard --logdir runs`). A run that has them
    /// continues them when it is resumed.
    #[arg(long, help_heading = "Output")]
    pub(crate) tensorboard: bool,

    /// The level of the run's log.
    #[arg(
        long,
        value_name = "LEVEL",
        help_heading = "Output",
        default_value = "info",
        value_parser = logging::level()
    )]
    pub(crate) log_level: LevelFilter,

    /// Write a trace to this file, for Chrome's trace viewer or Perfetto.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) trace: Option<NativePath>,
}

/// A time span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MaxTime(pub(crate) Duration);

impl FromStr for MaxTime {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let time = if text.contains(':') {
            days_to_seconds(text)
        } else {
            humantime::parse_duration(text).ok()
        };
        time.map(Self).ok_or_else(|| {
            UsageError(format!(
                "`{text}` is not a time: give it as 90s, 30m, 2h 15m, or DD:HH:MM:SS"
            ))
        })
    }
}

/// A time as `DD:HH:MM:SS`.
fn days_to_seconds(text: &str) -> Option<Duration> {
    let parts: Result<Vec<u64>, _> = text.split(':').map(str::parse).collect();
    let [days, hours, minutes, seconds] = parts.ok()?.try_into().ok()?;
    let hours = days.checked_mul(24)?.checked_add(hours)?;
    let minutes = hours.checked_mul(60)?.checked_add(minutes)?;
    let seconds = minutes.checked_mul(60)?.checked_add(seconds)?;
    Some(Duration::from_secs(seconds))
}

/// Trains, or resumes training.
pub(crate) fn run(args: &TrainArgs, launched: Option<Launched>) -> anyhow::Result<Exit> {
    let processes = Processes::connect(launched)?;
    processes.run(|| run_in(args, &processes))
}

/// The default number of gradient shards of a run that MPI starts.
const MPI_SHARDS: u32 = 8;

/// Trains, or resumes training, in these processes.
fn run_in(args: &TrainArgs, processes: &Processes) -> anyhow::Result<Exit> {
    let found = resolve(args, processes);
    let (resolved, resumed) = processes.agree(found)?;
    let work = format!("{:?}", (args.dry_run, args.fast_dev_run));
    processes.check_same("another command", &work)?;
    if processes.is_main() {
        settings::note_flags_without_effect(&args.overrides, &resolved)?;
    }
    if args.dry_run {
        return print_settings(args, resolved, processes);
    }
    if args.fast_dev_run {
        return fast_dev_run(args, resolved, processes);
    }
    run_with(args, resolved, resumed, &args.run_dir, processes)
}

/// The settings that the arguments ask for, and the folder of the run that is resumed.
fn resolve(args: &TrainArgs, processes: &Processes) -> anyhow::Result<(Resolved, Option<PathBuf>)> {
    ops::InstructionSet::check_selection().map_err(UsageError)?;
    let resumed = args.resume.as_ref();
    let resumed = resumed.map(|run| run::folder::find(&args.run_dir, run));
    let resumed = resumed.transpose()?;
    let resolved = match &resumed {
        Some(run) => settings::resolve_resumed(&args.overrides, &run.join(file::RECORD))?,
        None => {
            let shards = processes.group.is_some().then_some(MPI_SHARDS);
            let shards = shards.map(Shards::try_from).transpose()?;
            settings::resolve_with(&args.overrides, args.config.as_deref(), shards)?
        }
    };
    processes.check_shards(resolved.settings.gradient_shards.get())?;
    Ok((resolved, resumed))
}

/// Prints the settings.
fn print_settings(
    args: &TrainArgs,
    resolved: Resolved,
    processes: &Processes,
) -> anyhow::Result<Exit> {
    let print = || {
        let resolved = setup::with_channels(resolved, !args.no_progress)?;
        cli::text(&resolved.settings.to_toml()?);
        Ok(())
    };
    processes.agree(match processes.is_main() {
        true => print(),
        false => Ok(()),
    })?;
    Ok(Exit::Success)
}

/// Trains one step, evaluates one batch and writes all files, in a folder that is then removed.
fn fast_dev_run(
    args: &TrainArgs,
    resolved: Resolved,
    processes: &Processes,
) -> anyhow::Result<Exit> {
    let folder = tempfile::tempdir().context("cannot make a folder for the run")?;
    let ended = run_with(args, resolved, None, folder.path(), processes)?;
    if ended == Exit::Success {
        cli::line(
            "everything works: one step, one batch of test images, all files of a run; nothing was kept",
        );
    }
    Ok(ended)
}

/// Trains with these settings, in a new folder or in that of a resumed run.
fn run_with(
    args: &TrainArgs,
    resolved: Resolved,
    resumed: Option<PathBuf>,
    run_dir: &Path,
    processes: &Processes,
) -> anyhow::Result<Exit> {
    let stop = stop::requested("stopping after this step").context("cannot watch for Ctrl-C")?;
    let span_times = SpanTimes::within("step");
    let opened = processes.main_first(|| {
        let main = match processes.is_main() {
            true => Some(MainProcess::new(
                args,
                resumed.as_deref(),
                run_dir,
                &span_times,
            )?),
            false => None,
        };
        let setup = load(args, resolved, resumed.as_deref(), processes, stop)?;
        Ok((setup, main))
    });
    let (mut setup, main) = match opened {
        Err(error) if data::is_stopped(&error) => {
            cli::note("interrupted while the pictures were read");
            return Ok(Exit::Interrupted);
        }
        opened => opened?,
    };
    // First, since other versions may have other settings.
    let version = [env!("CARGO_PKG_VERSION"), env!("BUILT_FROM")];
    processes.check_same("another version of the program", &version.concat())?;
    let settings = &setup.resolved.settings;
    let (fixed, epochs) = (settings.fixed_on_resume()?, settings.epochs);
    processes.check_same("another number of epochs", &epochs.to_string())?;
    for Field { key, .. } in FIELDS {
        processes.check_same(
            &format!("another value of {key}"),
            &format!("{:?}", fixed.get(*key)),
        )?;
    }
    processes.check_same("other images", &setup.data.digest)?;
    let training = processes.agree(match &resumed {
        Some(run) => setup.resume(run).and_then(|training| {
            check_epochs(args, epochs, &training, run)?;
            Ok(training)
        }),
        None => setup.start(),
    })?;
    let position = format!("{:?}", training.position());
    processes.check_same("another checkpoint", &position)?;
    if processes.group.is_some() {
        let state = processes.agree(training.state_sha256().map_err(Into::into))?;
        processes.check_same("other weights", &state)?;
    }
    let Some(mut main) = main else {
        processes.agree(Ok(()))?;
        return train_beside_main(args, &setup, training, processes, stop);
    };
    // The folder is created last, so that an error leaves nothing behind.
    let created = processes.agree(
        main.create_folder(args, &setup.resolved.settings, run_dir)
            .and_then(|folder| {
                let count = processes.count();
                let files = RunFiles::create(folder, &setup, &span_times, &training, count)?;
                Ok((folder, files))
            }),
    );
    let (folder, files) = created?;
    let run = ReadyRun {
        args,
        setup: &setup,
        folder,
        processes,
        stop,
    };
    run.train(training, files)
}

/// Loads what a process needs to train.
fn load(
    args: &TrainArgs,
    resolved: Resolved,
    resumed: Option<&Path>,
    processes: &Processes,
    stop: &AtomicBool,
) -> anyhow::Result<Setup> {
    let group = processes.group.clone();
    let setup = Setup::new(resolved, group, resumed.is_some(), !args.no_progress, stop)?;
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(gpu) = &setup.backend.device {
        ops::cuda::log_environment(gpu)?;
    }
    match resumed {
        _ if !processes.is_main() => {}
        Some(run) => setup.check_disk(run, true)?,
        // Also for a test, which is in a temporary folder.
        None => setup.check_disk(&args.run_dir, false)?,
    }
    match args.fast_dev_run {
        true => setup.limited_to_one_batch(),
        false => Ok(setup),
    }
}

/// What the process has that writes the files of a run.
struct MainProcess {
    /// `None` before it is created.
    folder: Option<RunFolder>,
    logging: Logging,
}

impl MainProcess {
    fn new(
        args: &TrainArgs,
        resumed: Option<&Path>,
        run_dir: &Path,
        span_times: &SpanTimes,
    ) -> anyhow::Result<Self> {
        // Found at once: a file that cannot be written.
        let trace = args.trace.as_deref().map(logging::trace_file).transpose()?;
        if args.stop_with_stdin {
            stop::request_when_stdin_ends();
        }
        if let (None, Some(name)) = (resumed, &args.name) {
            folder::check_free(&run_dir.join(name))?;
        }
        Ok(Self {
            // Before the data are loaded, which takes time.
            folder: resumed.map(RunFolder::lock).transpose()?,
            logging: Logging::start(args.log_level, trace, span_times)?,
        })
    }

    /// The folder of the run, which is created if the run is new.
    fn create_folder(
        &mut self,
        args: &TrainArgs,
        settings: &Settings,
        run_dir: &Path,
    ) -> anyhow::Result<&RunFolder> {
        let folder = match self.folder.take() {
            Some(folder) => folder,
            None => RunFolder::create(run_dir, args.name.as_deref(), &settings.default_name())?,
        };
        if !folder.has_lock() {
            cli::note(&format!(
                "warning: the file system of `{}` has no locks: do not train this run in two processes at once",
                folder.path().display()
            ));
        }
        self.logging.write_into(&folder)?;
        Ok(self.folder.insert(folder))
    }
}

/// Trains in a process that neither prints nor writes files.
fn train_beside_main(
    args: &TrainArgs,
    setup: &Setup,
    mut training: Training,
    processes: &Processes,
    stop: &AtomicBool,
) -> anyhow::Result<Exit> {
    let began = Instant::now();
    let limits = Limits::new(args, began);
    if limits.is_reached(training.position().epoch) {
        return Ok(Exit::Success);
    }
    let outcome = training.run(
        // Only the main process writes them.
        &setup.checkpoints(&args.run_dir),
        Duration::MAX,
        &|| stop.load(Ordering::SeqCst) || limits.stop(),
        &mut |event| {
            limits.update(event);
            Ok(())
        },
    );
    if outcome? == Outcome::Interrupted {
        processes.any(stop.load(Ordering::SeqCst))?;
    }
    Ok(Exit::Success)
}

/// What stops a run before its last epoch, apart from requests.
struct Limits<'a> {
    args: &'a TrainArgs,
    began: Instant,
    last_epoch_done: Cell<bool>,
}

impl<'a> Limits<'a> {
    fn new(args: &'a TrainArgs, began: Instant) -> Self {
        Self {
            args,
            began,
            last_epoch_done: Cell::new(false),
        }
    }

    /// Whether a run with this many epochs has all of --stop-after.
    fn is_reached(&self, epochs: u32) -> bool {
        self.args
            .stop_after
            .is_some_and(|last| epochs >= last.get())
    }

    fn update(&self, event: &Event<'_>) {
        if let Event::EpochFinished { history, .. } = event {
            self.last_epoch_done
                .set(self.is_reached(history.len() as u32));
        }
    }

    /// Whether the run is to stop now.
    fn stop(&self) -> bool {
        let max_time = self.args.max_time;
        let out_of_time = max_time.is_some_and(|time| self.began.elapsed() >= time.0);
        self.last_epoch_done.get() || out_of_time
    }
}

/// Checks that a resumed run can have the epochs that are asked for.
fn check_epochs(
    args: &TrainArgs,
    epochs: NonZeroU32,
    training: &Training,
    run: &Path,
) -> Result<(), UsageError> {
    let (wanted, run) = (epochs.get(), run.display());
    let (setting, omit) = match args.overrides.epochs {
        Some(_) => (format!("--epochs {wanted}"), ", or omit --epochs"),
        None => (format!("epochs = {wanted} in {}", file::RECORD), ""),
    };
    let Position { epoch, step, .. } = training.position();
    let done = cli::count(epoch as usize, "epoch");
    if (epoch, step) > (wanted, 0) {
        let step = if step > 0 {
            " and a part of the next"
        } else {
            ""
        };
        return Err(UsageError(format!(
            "{setting}: the run `{run}` has trained for {done}{step}; give at least as many{omit}"
        )));
    }
    let was_last = |epoch: &EpochMetrics| epoch.evaluated.tta_accuracy.is_some();
    if (epoch, step) == (wanted, 0)
        && args.overrides.epochs.is_some()
        && !training.history().last().is_some_and(was_last)
    {
        return Err(UsageError(format!(
            "{setting}: the run `{run}` has trained for {done}, but lacks the evaluation that follows the last epoch of a \
             run; give more{omit}"
        )));
    }
    if training.stopped_early() && wanted > epoch && args.overrides.epochs.is_some() {
        return Err(UsageError(format!(
            "{setting}: early stopping ended the run `{run}` after {done}; for more epochs start a new run with \
             another --early-stopping"
        )));
    }
    Ok(())
}

/// A run that is ready to train.
struct ReadyRun<'a> {
    args: &'a TrainArgs,
    setup: &'a Setup,
    folder: &'a RunFolder,
    processes: &'a Processes,
    stop: &'a AtomicBool,
}

impl ReadyRun<'_> {
    /// Trains until the run is finished or stopped.
    fn train(&self, mut training: Training, mut files: RunFiles<'_>) -> anyhow::Result<Exit> {
        let began = Instant::now();
        let args = self.args;
        self.announce(&training);
        let position = training.position();
        if args.resume.is_some() {
            files.rewrite(training.history())?;
        }
        let data = &self.setup.data;
        let folder = self.folder.path();
        let mut tensorboard = None;
        if args.tensorboard || TensorBoard::is_in(folder)? {
            training.measure_gradient_norm()?;
            tensorboard = Some(TensorBoard::create(folder, &training)?);
        }
        let page = files.page(training.history())?;
        let mut page = RunPageWriter::start(folder.join(file::PAGE), page, data)?;
        let limits = Limits::new(args, began);
        if limits.is_reached(position.epoch) {
            let done = cli::count(position.epoch as usize, "epoch");
            cli::line(&format!("already trained for {done}"));
            files.finish(position, training.history())?;
            page.finish(files.record(), training.history(), self.state(&training))?;
            return Ok(Exit::Success);
        }
        let mut progress = Progress::new(!args.no_progress, data.train.len(), data.evaluated);
        let minutes = self.setup.resolved.settings.checkpoint_minutes.get();
        let interval = Duration::try_from_secs_f64(60.0 * minutes).unwrap_or(Duration::MAX);
        let outcome = training.run(
            &self.setup.checkpoints(folder),
            interval,
            &|| self.stop.load(Ordering::SeqCst) || limits.stop(),
            &mut |event| {
                logging::log(event);
                if let Some(tensorboard) = &mut tensorboard {
                    tensorboard.update(event)?;
                }
                files.update(event)?;
                page.update(event)?;
                limits.update(event);
                progress.show(event);
                Ok(())
            },
        );
        drop(progress);
        let finished = files.finish(training.position(), training.history());
        let state = match (&outcome, &finished) {
            (Err(error @ engine::Error::Diverged { .. }), _) => {
                State::Diverged(cli::message(error))
            }
            (Err(error), _) => State::Failed(cli::message(error)),
            (_, Err(error)) => State::Failed(cli::message(error.as_ref())),
            _ => self.state(&training),
        };
        let page = page.finish(files.record(), training.history(), state);
        let outcome = outcome.inspect_err(|error| tracing::error!("{}", cli::message(error)))?;
        finished?;
        page?;
        match outcome {
            Outcome::Finished => {
                // The curves of a test are not kept.
                if let Some(last) = training.history().last()
                    && !args.fast_dev_run
                {
                    self.print_result(last);
                }
                tracing::info!("run finished");
                Ok(Exit::Success)
            }
            Outcome::Interrupted => {
                let is_requested = self.processes.any(self.stop.load(Ordering::SeqCst))?;
                Ok(self.print_interruption(training.position(), is_requested))
            }
        }
    }

    /// The state of a run that is not going, and has not failed.
    fn state(&self, training: &Training) -> State {
        let Position { epoch, step, .. } = training.position();
        match epoch >= self.setup.resolved.settings.epochs.get() || training.stopped_early() {
            true => State::Finished,
            false => State::Interrupted(step),
        }
    }

    /// Says what is trained, on what, where.
    fn announce(&self, training: &Training) {
        let Setup {
            resolved,
            data,
            backend,
            ..
        } = self.setup;
        let (settings, architecture) = (&resolved.settings, resolved.architecture);
        // A folder that is not the one meant has other classes.
        let classes = match resolved.dataset {
            DatasetSource::Folder(_) => format!(" (classes: {})", first_names(&data.class_names)),
            DatasetSource::Known(_) => String::new(),
        };
        cli::note(&format!(
            "{architecture}: {} parameters, {} training and {} {} images{classes}, recipe {}, on {} with {}, in {}",
            architecture.parameter_count(),
            data.train.len(),
            data.test.len(),
            data.evaluated,
            settings.recipe,
            backend.description(),
            self.setup
                .backend
                .machine(self.processes.count())
                .threads_in_words(),
            self.folder.path().display(),
        ));
        tracing::info!(
            model = settings.model,
            recipe = settings.recipe,
            seed = settings.seed,
            data = data.digest,
            "run started"
        );
        let Position { epoch, step, .. } = training.position();
        if training.position() != Position::default() {
            cli::note(&format!(
                "resumed after {epoch} of {} epochs and {}",
                settings.epochs,
                cli::count(step, "step")
            ));
            tracing::info!(epoch, step, "resumed");
        }
    }

    fn print_result(&self, last: &EpochMetrics) {
        let evaluated = self.setup.data.evaluated;
        if last.stopped_early {
            cli::line(&format!(
                "stopped early: no lower {evaluated} loss in {} epochs",
                self.setup.resolved.settings.early_stopping
            ));
        }
        let metrics = last.evaluated;
        let others = [
            ("with the EMA of the weights", metrics.model_ema_accuracy),
            ("with test-time augmentation", metrics.tta_accuracy),
        ];
        let others: String = others
            .iter()
            .filter_map(|(name, accuracy)| Some(format!(", {:.2} % {name}", 100.0 * (*accuracy)?)))
            .collect();
        cli::line(&format!(
            "done: {evaluated} accuracy {:.2} % after {} epoch{}{others}; curves in {}",
            100.0 * metrics.accuracy,
            last.epoch,
            if last.epoch == 1 { "" } else { "s" },
            self.folder.path().join(file::CURVES_SVG).display(),
        ));
    }

    /// `is_requested`: somebody asked this process, or another one, to stop.
    fn print_interruption(
        &self,
        Position { epoch, step, .. }: Position,
        is_requested: bool,
    ) -> Exit {
        let (verb, exit) = if is_requested {
            ("interrupted", Exit::Interrupted)
        } else {
            ("stopped", Exit::Success)
        };
        let resume = if self.args.fast_dev_run {
            "; nothing was kept".to_owned()
        } else if self.args.stop_with_stdin {
            // The program that started this one resumes the run, or has no use for it.
            String::new()
        } else if self.processes.count().get() > 1 {
            let run = cli::quoted(self.folder.path());
            format!("; resume with --resume {run}, in as many processes or fewer")
        } else {
            format!("; resume with: {}", cli::resume_command(self.folder.path()))
        };
        cli::note(&format!(
            "{verb} after {epoch} of {} epochs and {}{resume}",
            self.setup.resolved.settings.epochs,
            cli::count(step, "step"),
        ));
        tracing::info!(epoch, step, "{verb}");
        exit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("90s", 90),
            ("2h 15m", 8100),
            ("00:00:30:00", 1800),
            ("01:02:03:04", 93_784),
        ] {
            let time: MaxTime = text.parse().unwrap();
            assert_eq!(time.0.as_secs(), seconds, "{text}");
        }
        for text in [
            "",
            "5",
            "1:2",
            "a:b:c:d",
            "99999999999999999999:0:0:0",
            "-5m",
        ] {
            assert!(text.parse::<MaxTime>().is_err(), "{text}");
        }
        let huge = format!("{}:0:0:0", u64::MAX);
        assert!(huge.parse::<MaxTime>().is_err());
    }
}
