//! The command that trains.

use crate::args::{LogLevel, TrainArgs, use_threads};
use crate::data::{Data, Limits};
use crate::device;
use crate::layer_times::LayerTimes;
use crate::progress::Progress;
use crate::settings::{self, Resolved};
use anyhow::Context;
use atomic_file::Unfinished;
use candle_core::Device;
use engine::{Checkpoints, Evaluation, Event, Inputs, Outcome, Training, TrainingSetup, Weights};
use models::{Architecture, NamedLayer, Network, initial_parameters};
use ops::Arithmetic;
use run::cli::{self, Exit};
use run::layers::Layer;
use run::predictions::{Filters, PICTURE_BYTES};
use run::settings::Precision;
use run::{EpochMetrics, MadeBy, Predictions, Record, RunFolder, Settings, file, folder};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::BufWriter;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tracing_chrome::{ChromeLayerBuilder, FlushGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::prelude::*;

/// Trains, or continues training, as asked.
pub(crate) fn run(args: &TrainArgs) -> anyhow::Result<Exit> {
    let resumed = args.resume.as_deref();
    let resumed = resumed
        .map(|run| folder::find(&args.run_dir, run))
        .transpose()?;
    let resolved = match &resumed {
        Some(run) => settings::resolve_resumed(&args.overrides, &run.join(file::RECORD))?,
        None => settings::resolve(&args.overrides, args.config.as_deref())?,
    };
    if args.dry_run {
        cli::text(&resolved.settings.to_toml()?);
        return Ok(Exit::Success);
    }
    if args.fast_dev_run {
        return fast_dev_run(args, resolved);
    }
    run_with(args, &resolved, resumed, &args.run_dir)
}

/// One step, one batch of test images and all files, in a folder that is removed again.
fn fast_dev_run(args: &TrainArgs, mut resolved: Resolved) -> anyhow::Result<Exit> {
    let settings = &mut resolved.settings;
    let batch = settings.batch_size;
    let one_batch = |limit: Option<NonZeroUsize>| limit.map_or(batch, |limit| limit.min(batch));
    settings.epochs = NonZeroU32::MIN;
    settings.limit_train = Some(one_batch(settings.limit_train));
    settings.limit_test = Some(one_batch(settings.limit_test));
    settings.validation = None;
    settings.overfit_batches = None;
    let folder = tempfile::tempdir().context("cannot make a folder for the run")?;
    let ended = run_with(args, &resolved, None, folder.path())?;
    if ended == Exit::Success {
        cli::line(
            "everything ran: one step, one batch of test images, all files of a run; nothing was kept",
        );
    }
    Ok(ended)
}

/// Trains by these settings, in a new folder or in that of a run.
fn run_with(
    args: &TrainArgs,
    resolved: &Resolved,
    resumed: Option<PathBuf>,
    run_dir: &Path,
) -> anyhow::Result<Exit> {
    // Found at once: a file that cannot be written.
    let trace = args.trace.as_deref().map(trace_file).transpose()?;
    let stop = stop_on_interrupt()?;
    if args.stop_with_stdin {
        let stop = stop.clone();
        std::thread::spawn(move || {
            // Whatever ends it: an end, or a terminal that is gone.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            stop.store(true, Ordering::SeqCst);
        });
    }
    use_threads(Some(resolved.settings.threads))?;
    let place = Place::of(&resolved.settings)?;
    // Before the data, which take time: what must not be touched is found at once.
    let resumed = resumed.map(|run| RunFolder::lock(&run)).transpose()?;
    let data = data(resolved)?;
    let (folder, training) = match resumed {
        Some(folder) => {
            let training = resume(resolved, &data, &place, &folder)?;
            (folder, training)
        }
        None => {
            // The folder is made last, so that nothing is left behind where something is wrong.
            let training = start(resolved, &data, &place)?;
            let name = args.name.as_deref();
            (
                RunFolder::create(run_dir, name, &resolved.settings.default_name())?,
                training,
            )
        }
    };
    let _trace_until_the_end = start_log(&folder, args.log_level, trace, &place.layer_times)?;
    write_record(&folder, resolved, &data, &place)?;
    train(args, resolved, &data, &place, &folder, training, &stop)
}

/// The images that the settings ask for.
pub(crate) fn data(resolved: &Resolved) -> anyhow::Result<Data> {
    let run = &resolved.settings;
    let limits = Limits {
        train: run.limit_train,
        test: run.limit_test,
        validation: run.validation.map(|images| (images, run.seed)),
        overfit: run
            .overfit_batches
            .map(|batches| batches.saturating_mul(resolved.settings.batch_size)),
    };
    Data::load(resolved.dataset, &run.data_dir, limits)
}

/// Where a run computes, and in what numbers.
pub(crate) struct Place {
    device: Device,
    arithmetic: Arithmetic,
    /// A GPU's model name.
    model: Option<String>,
    /// How long layers take there.
    layer_times: LayerTimes,
}

impl Place {
    /// What the settings ask for.
    pub(crate) fn of(settings: &Settings) -> anyhow::Result<Self> {
        let device = device::open(settings.device)?;
        Ok(Self {
            arithmetic: device::arithmetic(settings.conv, settings.precision, &device)?,
            model: device::model(&device)?,
            device,
            layer_times: LayerTimes::default(),
        })
    }

    /// For people.
    fn description(&self) -> String {
        let device = device::name(&self.device);
        match &self.model {
            Some(model) => format!("{device} ({model}) in {}", self.arithmetic.precision),
            None => device.to_owned(),
        }
    }
}

/// The first Ctrl-C asks to stop after the step; the second ends the process.
pub(crate) fn stop_on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::SeqCst) {
            process::exit(Exit::Interrupted as i32);
        }
        cli::note("stopping after this step, with a checkpoint; once more stops at once");
    })
    .context("cannot watch for Ctrl-C")?;
    Ok(stop)
}

/// Training from its first step on.
pub(crate) fn start(resolved: &Resolved, data: &Data, place: &Place) -> anyhow::Result<Training> {
    let run = &resolved.settings;
    let architecture = resolved.architecture;
    let device = &place.device;
    let network = match &run.init {
        Some(path) => Weights::read(path, Some(architecture))?.into_network(device)?,
        None => {
            let parameters = initial_parameters(architecture, run.weight_init, run.seed, device)?;
            Network::new(architecture, parameters)?
        }
    };
    Ok(Training::new(setup(resolved, data, place), network)?)
}

/// Training from where a run stands; from its first step where it has no checkpoint yet.
fn resume(
    resolved: &Resolved,
    data: &Data,
    place: &Place,
    folder: &RunFolder,
) -> anyhow::Result<Training> {
    let checkpoints = checkpoints(resolved, data, folder);
    let Some(checkpoint) = checkpoints.read_last(resolved.architecture)? else {
        return start(resolved, data, place);
    };
    let recorded = Record::read(folder.path())?.made_by.data_sha256;
    if recorded != data.digest {
        anyhow::bail!(
            "the run `{}` was made with other data (SHA-256 {recorded}) than those in use now ({})",
            folder.path().display(),
            data.digest
        );
    }
    Ok(Training::resume(setup(resolved, data, place), checkpoint)?)
}

fn setup(resolved: &Resolved, data: &Data, place: &Place) -> TrainingSetup {
    TrainingSetup {
        settings: resolved.settings.clone(),
        train: data.train.clone(),
        test: data.test.clone(),
        split: data.evaluated,
        device: place.device.clone(),
        arithmetic: place.arithmetic,
    }
}

fn checkpoints(resolved: &Resolved, data: &Data, folder: &RunFolder) -> Checkpoints {
    Checkpoints::new(
        folder.path(),
        Inputs {
            mean: resolved.settings.mean.0,
            std: resolved.settings.std.0,
            class_names: data.class_names.map(str::to_owned),
        },
    )
}

fn write_record(
    folder: &RunFolder,
    resolved: &Resolved,
    data: &Data,
    place: &Place,
) -> anyhow::Result<()> {
    let record = Record {
        settings: resolved.settings.clone(),
        made_by: MadeBy {
            record_version: run::record::RECORD_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: env!("BUILT_FROM").to_owned(),
            device: device::name(&place.device).to_owned(),
            gpu: place.model.clone(),
            precision: match place.arithmetic.precision {
                ops::Precision::F32 => Precision::F32,
                ops::Precision::Tf32 => Precision::Tf32,
                ops::Precision::Bf16 => Precision::Bf16,
            },
            parameters: resolved.architecture.parameter_count() as u64,
            train_images: data.train.len() as u64,
            test_images: data.test.len() as u64,
            data_sha256: data.digest.clone(),
        },
    };
    folder.write(file::RECORD, record.to_toml()?.as_bytes())?;
    let summary = models::summary(resolved.architecture);
    Ok(folder.write(file::SUMMARY, summary.as_bytes())?)
}

fn trace_file(path: &Path) -> anyhow::Result<Unfinished> {
    Unfinished::create(path).with_context(|| format!("cannot write the trace `{}`", path.display()))
}

/// The log of the run, warnings on standard error as well, and the trace, which is complete when the
/// guard is dropped.
fn start_log(
    folder: &RunFolder,
    level: LogLevel,
    trace: Option<Unfinished>,
    layer_times: &LayerTimes,
) -> anyhow::Result<Option<FlushGuard>> {
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let file = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(Arc::new(folder.log()?));
    let terminal = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(std::io::stderr);
    let trace = trace.map(Unfinished::keep).transpose();
    let (trace, guard) = trace
        .context("cannot write the trace")?
        .map(|file| {
            ChromeLayerBuilder::new()
                .writer(BufWriter::new(file))
                .include_args(true)
                .include_locations(false)
                .build()
        })
        .unzip();
    tracing_subscriber::registry()
        .with(layer_times.clone().with_filter(LevelFilter::DEBUG))
        .with(trace.with_filter(LevelFilter::DEBUG))
        .with(file.with_filter(level))
        .with(
            terminal
                .without_time()
                .with_filter(LevelFilter::WARN.min(level)),
        )
        .try_init()?;
    Ok(guard)
}

fn train(
    args: &TrainArgs,
    resolved: &Resolved,
    data: &Data,
    place: &Place,
    folder: &RunFolder,
    mut training: Training,
    stop: &AtomicBool,
) -> anyhow::Result<Exit> {
    let began = Instant::now();
    let run = &resolved.settings;
    let epochs = resolved.settings.epochs.get();
    let path = folder.path().display();
    let position = training.position();
    cli::note(&format!(
        "{}: {} parameters, {} training and {} {} images, {} on {} with {} threads, in {path}",
        resolved.architecture,
        resolved.architecture.parameter_count(),
        data.train.len(),
        data.test.len(),
        data.evaluated,
        resolved.settings.recipe,
        place.description(),
        run.threads,
    ));
    tracing::info!(
        model = run.model,
        recipe = run.recipe,
        seed = run.seed,
        data = data.digest,
        "run begins"
    );
    if position != engine::Position::default() {
        cli::note(&format!(
            "resumed after {} of {epochs} epochs and {} steps",
            position.epoch, position.step
        ));
        tracing::info!(epoch = position.epoch, step = position.step, "resumed");
        // A process that was killed may have written more, or less, than belongs to the checkpoint.
        write_metrics(folder, training.history())?;
        write_curves(folder, resolved, training.history())?;
    }
    let mut progress = Progress::new(!args.no_progress, data.train.len(), data.evaluated);
    let minutes = run.checkpoint_minutes.get();
    let interval = Duration::try_from_secs_f64(60.0 * minutes).unwrap_or(Duration::MAX);
    // What ends the process, with a checkpoint, before the run is done, though nobody interrupted it.
    let enough = Cell::new(false);
    let out_of_time = || args.max_time.is_some_and(|time| began.elapsed() >= time.0);
    if let Some(epochs) = args.stop_after
        && position.epoch >= epochs.get()
    {
        cli::line(&format!("{} epochs are done already", position.epoch));
        return Ok(Exit::Success);
    }
    let mut drawn = true;
    let mut last_drawn: Option<Instant> = None;
    let outcome = training.run(
        &checkpoints(resolved, data, folder),
        interval,
        &|| stop.load(Ordering::SeqCst) || enough.get() || out_of_time(),
        &mut |event| {
            log(event);
            if let Event::EpochFinished {
                history,
                last,
                evaluation,
                network,
                ..
            } = event
            {
                let epoch = history.len() as u32;
                // Before the metrics, so that the last epoch's are there only where these are.
                if *last {
                    write_predictions(folder, data, epoch, evaluation, network)?;
                    write_layers(folder, resolved.architecture, place)?;
                }
                enough.set(args.stop_after.is_some_and(|epochs| epoch >= epochs.get()));
                write_metrics(folder, history)?;
                drawn = false;
                if last_drawn.is_none_or(|time| time.elapsed() >= BETWEEN_CURVES) {
                    write_curves(folder, resolved, history)?;
                    drawn = true;
                    last_drawn = Some(Instant::now());
                }
            }
            progress.show(event);
            Ok(())
        },
    );
    drop(progress);
    if !drawn {
        write_curves(folder, resolved, training.history())?;
    }
    let outcome = outcome.inspect_err(|error| tracing::error!("{error}"))?;
    match outcome {
        Outcome::Finished => {
            if let Some(last) = training.history().last() {
                let evaluated = data.evaluated;
                if last.stopped_early {
                    cli::line(&format!(
                        "stopped early: the {evaluated} loss has not become lower for {} epochs",
                        resolved.settings.early_stopping
                    ));
                }
                let share = |name: &str, accuracy: Option<f64>| {
                    accuracy.map_or_else(String::new, |accuracy| {
                        format!(", {:.2} % {name}", 100.0 * accuracy)
                    })
                };
                cli::line(&format!(
                    "done: {:.2} % of the {evaluated} images after {}{}{}; curves in {path}/curves.svg",
                    100.0 * last.evaluated().accuracy,
                    match last.epoch {
                        1 => "1 epoch".to_owned(),
                        epochs => format!("{epochs} epochs"),
                    },
                    share(
                        "with the EMA of the weights",
                        last.evaluated().model_ema_accuracy
                    ),
                    share("with test-time augmentation", last.evaluated().tta_accuracy),
                ));
            }
            tracing::info!("run ends");
            Ok(Exit::Success)
        }
        Outcome::Interrupted => {
            let position = training.position();
            let asked = stop.load(Ordering::SeqCst);
            let verb = if asked {
                "interrupted"
            } else {
                "stopped, as asked,"
            };
            cli::note(&format!(
                "{verb} after {} of {epochs} epochs and {} steps; continue with: cargo run -p trainer -- --resume {path}",
                position.epoch, position.step
            ));
            tracing::info!(epoch = position.epoch, step = position.step, "interrupted");
            Ok(if asked {
                Exit::Interrupted
            } else {
                Exit::Success
            })
        }
    }
}

/// The least time between two drawings of the curves. On a GPU an epoch may take not much longer than a
/// drawing, and the GPU waits for it.
const BETWEEN_CURVES: Duration = Duration::from_secs(2);

fn write_metrics(folder: &RunFolder, history: &[EpochMetrics]) -> anyhow::Result<()> {
    Ok(run::metrics::write(
        &folder.path().join(file::METRICS),
        history,
    )?)
}

/// What the last epoch's weights made of the test images.
fn write_predictions(
    folder: &RunFolder,
    data: &Data,
    epoch: u32,
    evaluation: &Evaluation,
    network: &Network,
) -> anyhow::Result<()> {
    let (_, first) = network
        .variables()
        .first()
        .context("a network without weights")?;
    let filters = Filters {
        side: first.dim(3)?,
        weights: first.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?,
    };
    let predictions = data.test.with_bytes(|labels, pixels| {
        let picture = |number: usize| pixels[number * PICTURE_BYTES..][..PICTURE_BYTES].to_vec();
        Predictions::new(
            epoch,
            &data.class_names,
            labels,
            &evaluation.logits,
            picture,
            filters,
        )
    })?;
    Ok(predictions.write(&folder.path().join(file::PREDICTIONS))?)
}

/// The layers and, on a processor, the time that each took. A GPU works behind the host's back.
fn write_layers(folder: &RunFolder, model: Architecture, place: &Place) -> anyhow::Result<()> {
    let times = if place.device.is_cpu() {
        place.layer_times.means()
    } else {
        BTreeMap::new()
    };
    let layers: Vec<_> = model
        .layers()
        .into_iter()
        .map(
            |NamedLayer {
                 name,
                 layer,
                 output,
                 ..
             }| Layer {
                kind: layer.type_name().to_owned(),
                parameters: layer.parameter_count() as u64,
                multiply_adds: layer.multiply_adds(&output) as u64,
                seconds: times.get(&name).copied(),
                output,
                name,
            },
        )
        .collect();
    let path = folder.path().join(file::LAYERS);
    Ok(run::layers::write(&path, &layers)?)
}

fn write_curves(
    folder: &RunFolder,
    resolved: &Resolved,
    history: &[EpochMetrics],
) -> anyhow::Result<()> {
    let title = format!(
        "{}, {} recipe, seed {}",
        resolved.architecture.display_name, resolved.settings.recipe, resolved.settings.seed
    );
    folder.write(
        file::CURVES_SVG,
        report::curves_svg(&title, history)?.as_bytes(),
    )?;
    Ok(folder.write(file::CURVES_PNG, &report::curves_png(&title, history)?)?)
}

fn log(event: &Event<'_>) {
    match *event {
        Event::EpochStarted {
            epoch,
            done,
            steps,
            learning_rate,
            ..
        } => {
            tracing::info!(epoch, done, steps, learning_rate, "epoch begins");
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
        Event::EvaluationStarted { epoch } => tracing::debug!(epoch, "evaluation begins"),
        Event::EpochFinished { history, best, .. } => {
            if let Some(last) = history.last() {
                tracing::info!(
                    epoch = last.epoch,
                    train_loss = last.train_loss,
                    train_accuracy = last.train_accuracy,
                    loss = last.evaluated().loss,
                    accuracy = last.evaluated().accuracy,
                    seconds = last.seconds,
                    best = best.epoch,
                    "epoch ends"
                );
            }
        }
        Event::CheckpointWritten { path } => {
            tracing::info!(path = %path.display(), "checkpoint written")
        }
    }
}
