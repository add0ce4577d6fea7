//! `cargo xtask compare`: trains what is missing, and reports on all.

use crate::plan::{Planned, State};
use crate::trainer::{self, Trainer, wait_for_writer};
use crate::{Usage, printer};
use anyhow::{Context, bail};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use report::{Comparison, METRICS, Run};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Read, stderr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What is asked of the command.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The networks.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "alexnet,small-alexnet"
    )]
    pub(crate) models: Vec<String>,

    /// The seeds; every network is trained with each.
    #[arg(
        long,
        value_name = "NUMBERS",
        value_delimiter = ',',
        default_value = "0,1,2"
    )]
    pub(crate) seeds: Vec<u64>,

    /// The recipes; every network is trained by each.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "reference"
    )]
    pub(crate) recipe: Vec<String>,

    /// Passes over the training images [default: the recipe's].
    #[arg(long, value_name = "N")]
    pub(crate) epochs: Option<NonZeroU32>,

    /// The images, cifar10 or synthetic [default: cifar10].
    #[arg(long, value_name = "NAME")]
    pub(crate) dataset: Option<String>,

    /// The folder that holds `cifar-10-batches-bin` [default: data].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Use the first N training images only.
    #[arg(long, value_name = "N")]
    pub(crate) limit_train: Option<NonZeroUsize>,

    /// The device that computes: auto, cpu, cuda or cuda:N [default: auto].
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,

    /// Runs at a time; they share the processor's cores.
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) jobs: NonZeroUsize,

    /// The folder for the runs, report.md and report.html.
    #[arg(long, value_name = "DIR", default_value = "runs/compare")]
    pub(crate) out: PathBuf,

    /// Train nothing, report on the runs that are finished.
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) report_only: bool,

    /// List what would be trained, and how long that would take by a few measured steps.
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) trainer: trainer::Args,

    /// More flags of the trainer, for every run, such as `-- --batch-size 100`.
    #[arg(last = true, value_name = "FLAGS")]
    pub(crate) flags: Vec<String>,
}

/// Exit code of a command that Ctrl-C stopped, as shells report it.
pub(crate) const INTERRUPTED: u8 = 130;

/// Does what is asked, and gives the exit code.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    for (flag, values) in [
        ("--models", args.models.clone()),
        ("--seeds", args.seeds.iter().map(u64::to_string).collect()),
        ("--recipe", args.recipe.clone()),
    ] {
        if let Some((_, twice)) = values
            .iter()
            .enumerate()
            .find(|(place, value)| values[..*place].contains(value))
        {
            return Err(Usage(format!("{flag}: `{twice}` is given twice; give each once")).into());
        }
    }
    if args.report_only {
        // From the records alone: nothing is built.
        let (finished, others): (Vec<_>, Vec<_>) =
            names(args).partition(|name| is_finished(&args.out.join(name)));
        for name in others.iter().filter(|_| !finished.is_empty()) {
            printer::note(&format!("{name}: left out, it is not finished"));
        }
        write_report(args, &finished)?;
        return Ok(ExitCode::SUCCESS);
    }
    let trainer = Trainer::new(&args.trainer, args.device.as_deref())?;
    let mut plan = Vec::new();
    // Seed by seed, so that every network has a run early.
    for seed in &args.seeds {
        for recipe in &args.recipe {
            for model in &args.models {
                let arguments = arguments(args, model, recipe, *seed);
                plan.push(Planned::new(
                    &trainer,
                    &args.out,
                    name(model, recipe, *seed),
                    arguments,
                )?);
            }
        }
    }
    if args.dry_run {
        dry_run(&trainer, &plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make the folder `{}`", args.out.display()))?;
    let failed = match train(&trainer, &plan, args.jobs)? {
        Ended::Interrupted => {
            printer::note("interrupted; the same command goes on where it stopped");
            return Ok(ExitCode::from(INTERRUPTED));
        }
        Ended::Done(failed) => failed,
    };
    let trained: Vec<_> = names(args).filter(|name| !failed.contains(name)).collect();
    write_report(args, &trained)?;
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    printer::note(&format!(
        "error: failed, and not in the report: {}",
        failed.join(", ")
    ));
    Ok(ExitCode::FAILURE)
}

/// The name of a run in the comparison's folder.
fn name(model: &str, recipe: &str, seed: u64) -> String {
    format!("{model}-{recipe}-seed{seed}")
}

/// The names of all runs in the report's order: network by network, as the post has them.
fn names(args: &Args) -> impl Iterator<Item = String> {
    args.models.iter().flat_map(move |model| {
        let recipes = args.recipe.iter();
        recipes.flat_map(move |recipe| {
            args.seeds
                .iter()
                .map(move |seed| name(model, recipe, *seed))
        })
    })
}

/// Whether all epochs are done that the run in `folder` was asked for, and its last weights are there.
fn is_finished(folder: &Path) -> bool {
    Run::read(folder).is_ok_and(|run| {
        run.finished()
            && report::checkpoint_epochs(folder)
                .is_some_and(|epochs| epochs as usize >= run.epochs.len())
    })
}

/// Writes the report on the runs of these names, and says where it is.
fn write_report(args: &Args, names: &[String]) -> anyhow::Result<()> {
    if names.is_empty() {
        bail!(
            "there is no finished run in `{}` to report on",
            args.out.display()
        );
    }
    let runs = names.iter().map(|name| Run::read(&args.out.join(name)));
    let comparison = Comparison::new(runs.collect::<Result<_, _>>()?)?;
    let [markdown, html] = report::write_report(&args.out, &comparison)
        .with_context(|| format!("cannot write the report into `{}`", args.out.display()))?;
    printer::line(&format!(
        "the report: {} and {}",
        markdown.display(),
        html.display()
    ));
    Ok(())
}

/// The trainer's arguments for a run.
fn arguments(args: &Args, model: &str, recipe: &str, seed: u64) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--model",
        model,
        "--recipe",
        recipe,
        "--seed",
        &seed.to_string(),
    ]
    .map(str::to_owned)
    .into();
    let mut add = |flag: &str, value: Option<String>| {
        arguments.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]))
    };
    add("--epochs", args.epochs.map(|epochs| epochs.to_string()));
    add("--dataset", args.dataset.clone());
    add(
        "--data-dir",
        args.data_dir
            .as_ref()
            .map(|folder| folder.display().to_string()),
    );
    add(
        "--limit-train",
        args.limit_train.map(|images| images.to_string()),
    );
    add("--device", args.device.clone());
    add("--threads", threads(args.jobs));
    arguments.extend(args.flags.iter().cloned());
    arguments
}

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
    if run.state == State::Missing && !run.folder.join(report::RECORD).exists() {
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
    let log = run.folder.join("log.txt");
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
        self.bar.suspend(|| printer::note(text));
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
            let epochs = report::read_metrics(&run.folder.join(METRICS)).unwrap_or_default();
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

/// Images of CIFAR-10 and of the synthetic set, where no limit is given.
const ALL_IMAGES: [(&str, u64, u64); 2] =
    [("cifar10", 50_000, 10_000), ("synthetic", 10_000, 2_000)];

/// Lists the runs, with the time that each would take.
fn dry_run(trainer: &Trainer, plan: &[Planned]) -> anyhow::Result<()> {
    let mut paces: BTreeMap<&str, Pace> = BTreeMap::new();
    let mut all = 0.0;
    for run in plan {
        let left = run.epochs() - run.done().min(run.epochs());
        let seconds = if run.state == State::Finished {
            0.0
        } else {
            let pace = match paces.get(run.kind.as_str()) {
                Some(pace) => *pace,
                None => *paces
                    .entry(&run.kind)
                    .or_insert(Pace::measure(trainer, run)?),
            };
            let dataset = run
                .settings
                .get("dataset")
                .and_then(toml::Value::as_str)
                .unwrap_or_default();
            let (_, train, test) = ALL_IMAGES
                .into_iter()
                .find(|(name, ..)| *name == dataset)
                .unwrap_or(ALL_IMAGES[0]);
            let mut train = run.number("limit_train").unwrap_or(train);
            let mut test = run.number("limit_test").unwrap_or(test);
            if let Some(images) = run.number("validation") {
                (train, test) = (train.saturating_sub(images), images);
            }
            let batch = run.number("batch_size").unwrap_or(1);
            if let Some(batches) = run.number("overfit_batches") {
                train = batches.saturating_mul(batch);
                test = train;
            }
            let (train, test) = (train as f64, test as f64);
            f64::from(left) * (train / pace.training + test / pace.evaluation)
        };
        all += seconds;
        let state = match run.state {
            State::Missing => format!("to be trained, {} epochs", run.epochs()),
            State::Begun(epochs) => format!(
                "to be continued, {epochs} of {} epochs are done",
                run.epochs()
            ),
            State::Finished => "finished".to_owned(),
        };
        let time = if seconds > 0.0 {
            format!(
                ", about {}",
                HumanDuration(Duration::from_secs_f64(seconds))
            )
        } else {
            String::new()
        };
        printer::line(&format!("{}: {state}{time}", run.name));
    }
    printer::line(&format!(
        "in all about {}, by a few steps measured now",
        HumanDuration(Duration::from_secs_f64(all))
    ));
    Ok(())
}

/// Images a second.
#[derive(Clone, Copy)]
struct Pace {
    training: f64,
    evaluation: f64,
}

/// Steps and test images that are measured, in the last of as many epochs: the first steps are slow, since they are the
/// first to touch their memory.
const MEASURED_EPOCHS: u64 = 2;
const MEASURED_STEPS: u64 = 2;
const MEASURED_IMAGES: u64 = 250;

impl Pace {
    /// Measures a few steps with a run's settings, on the synthetic set, which needs no data.
    fn measure(trainer: &Trainer, run: &Planned) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder to measure in")?;
        let train = MEASURED_STEPS * run.number("batch_size").unwrap_or(1);
        let settings = folder.path().join("settings.toml");
        let mut table = run.settings.clone();
        for (key, value) in [
            ("limit_train", train),
            ("limit_test", MEASURED_IMAGES),
            ("epochs", MEASURED_EPOCHS),
        ] {
            table.insert(key.to_owned(), toml::Value::Integer(value as i64));
        }
        table.remove("validation");
        table.remove("overfit_batches");
        table.insert(
            "dataset".to_owned(),
            toml::Value::String("synthetic".to_owned()),
        );
        fs::write(&settings, table.to_string())
            .context("cannot write the settings to measure with")?;
        let path = |path: &Path| path.display().to_string();
        trainer.output([
            "--config",
            &path(&settings),
            "--run-dir",
            &path(folder.path()),
            "--name",
            "pace",
            "--no-progress",
        ])?;
        let epochs = report::read_metrics(&folder.path().join("pace").join(METRICS))?;
        let epoch = epochs.last().context("no step was measured")?;
        let evaluation = epoch.seconds - train as f64 / epoch.images_per_second;
        Ok(Self {
            training: epoch.images_per_second,
            evaluation: MEASURED_IMAGES as f64 / evaluation.max(1e-3),
        })
    }
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
