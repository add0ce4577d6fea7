//! The files that a run leaves in its folder, apart from checkpoints.

use crate::backend::device_name;
use crate::run_page::mistakes_of_predictions;
use crate::settings::Resolved;
use crate::setup::Setup;
use anyhow::Context;
use candle_core::Device;
use engine::{Evaluation, Event, Position, SpanTimes, Training};
use models::Network;
use report::{Progress, RunPage, State};
use run::cli;
use run::layers::Layer;
use run::predictions::{Filters, IMAGE_BYTES};
use run::{EpochMetrics, MadeBy, Predictions, Record, RunFolder, Session, file, session};
use std::mem;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The minimum time between two drawings of the curves, or two versions of the predictions. On a GPU an epoch may take
/// little longer than these, for which the GPU waits.
const BETWEEN_CURVES: Duration = Duration::from_secs(2);

/// Writes the files of a run as it proceeds.
pub(crate) struct RunFiles<'a> {
    folder: &'a RunFolder,
    setup: &'a Setup,
    span_times: &'a SpanTimes,
    record: Record,
    /// When the predictions were last written.
    predicted: Option<Instant>,
    /// When the curves were last drawn.
    drawn: Option<Instant>,
    /// Whether they have all epochs.
    up_to_date: bool,
}

impl<'a> RunFiles<'a> {
    /// The files of a run with these settings, before its first step. Writes its record and its table of layers.
    pub(crate) fn create(
        folder: &'a RunFolder,
        setup: &'a Setup,
        span_times: &'a SpanTimes,
        training: &Training,
        processes: NonZeroUsize,
    ) -> anyhow::Result<Self> {
        let Setup {
            resolved,
            data,
            backend,
            ..
        } = setup;
        let position = training.position();
        let earlier = match Record::read(folder.path()) {
            Ok(record) => Some(record.made_by.sessions),
            Err(run::Error::NoRecord(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let machine = backend.machine(processes);
        let session = Session::new(position.epoch, position.step, machine.clone());
        let record = Record {
            settings: resolved.settings.clone(),
            made_by: MadeBy {
                record_version: file::RECORD_VERSION,
                version: machine.version,
                commit: machine.commit,
                device: device_name(&backend.device).to_owned(),
                gpu: backend.gpu.clone(),
                choices: setup.choices(training, earlier.is_some())?,
                parameters: resolved.architecture.parameter_count() as u64,
                train_images: data.train.len() as u64,
                test_images: data.test.len() as u64,
                data_sha256: data.digest.clone(),
                skipped_pictures: data.skipped as u64,
                test_split_seed: data.test_split_seed,
                sessions: session::resumed(earlier.unwrap_or_default(), session),
            },
        };
        folder.write(file::RECORD, record.to_toml()?.as_bytes())?;
        let summary = models::summary(resolved.architecture, resolved.settings.freeze_features);
        folder.write(file::SUMMARY, summary.as_bytes())?;
        Ok(Self {
            folder,
            setup,
            span_times,
            record,
            predicted: None,
            drawn: None,
            up_to_date: true,
        })
    }

    /// Replaces the metrics and curves by those of the epochs that the run resumes from. A process that was killed may
    /// have written more epochs than the checkpoint has, or fewer.
    pub(crate) fn rewrite(&mut self, history: &[EpochMetrics]) -> anyhow::Result<()> {
        run::metrics::write(&self.metrics(), history)?;
        self.write_csv(history)?;
        if !history.is_empty() {
            self.draw_curves(history)?;
        }
        Ok(())
    }

    /// Writes what an event adds.
    pub(crate) fn update(&mut self, event: &Event<'_>) -> anyhow::Result<()> {
        let Event::EpochFinished {
            history,
            last,
            evaluation,
            network,
            ..
        } = event
        else {
            return Ok(());
        };
        // Before the metrics, so that a run with the metrics of its last epoch has these files.
        if *last || is_due(self.predicted) {
            self.write_predictions(history.len() as u32, evaluation, network)?;
            self.predicted = Some(Instant::now());
        }
        if *last {
            self.write_layers()?;
        }
        if let Some(epoch) = history.last() {
            run::metrics::append(&self.metrics(), epoch)?;
        }
        self.write_csv(history)?;
        self.up_to_date = false;
        if is_due(self.drawn) {
            self.draw_curves(history)?;
        }
        Ok(())
    }

    /// Records where the training ended, and draws the curves where they lack epochs.
    pub(crate) fn finish(
        &mut self,
        position: Position,
        history: &[EpochMetrics],
    ) -> anyhow::Result<()> {
        // A run without a checkpoint resumes from its first step.
        let position = match self.folder.path().join(file::LAST_WEIGHTS).exists() {
            true => position,
            false => Position::default(),
        };
        let sessions = mem::take(&mut self.record.made_by.sessions);
        self.record.made_by.sessions = session::ended(sessions, position.epoch, position.step);
        let record = self.record.to_toml()?;
        self.folder.write(file::RECORD, record.as_bytes())?;
        if self.up_to_date {
            return Ok(());
        }
        self.draw_curves(history)
    }

    /// The record.
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// The page of the run before a step of this process.
    pub(crate) fn page(&self, epochs: &[EpochMetrics]) -> anyhow::Result<RunPage> {
        let Setup {
            resolved,
            data,
            backend,
            ..
        } = self.setup;
        let folder = self.folder.path();
        // Those of another epoch are not the latest mistakes.
        let predictions = Predictions::read(&folder.join(file::PREDICTIONS)).ok();
        let predictions =
            predictions.filter(|predictions| predictions.epoch as usize == epochs.len());
        Ok(RunPage {
            name: run::folder::name(folder),
            record: self.record.clone(),
            overrides: resolved.differences_from_recipe()?,
            device: backend.description(),
            split: data.evaluated,
            epochs: epochs.to_vec(),
            mistakes: predictions.as_ref().map(mistakes_of_predictions),
            state: State::Training(Progress::default()),
            resume: cli::resume_command(folder),
        })
    }

    fn metrics(&self) -> PathBuf {
        self.folder.path().join(file::METRICS)
    }

    fn write_csv(&self, history: &[EpochMetrics]) -> anyhow::Result<()> {
        let path = self.folder.path().join(file::METRICS_CSV);
        Ok(run::metrics::write_csv(
            &path,
            self.setup.data.evaluated,
            history,
        )?)
    }

    fn draw_curves(&mut self, history: &[EpochMetrics]) -> anyhow::Result<()> {
        let Resolved {
            architecture,
            settings,
            ..
        } = &self.setup.resolved;
        let title = format!(
            "{}, {} recipe, seed {}",
            architecture.display_name, settings.recipe, settings.seed
        );
        let plot = report::curves(&title, history)?;
        self.folder.write(file::CURVES_SVG, plot.svg.as_bytes())?;
        self.folder.write(file::CURVES_PNG, &plot.png)?;
        self.drawn = Some(Instant::now());
        self.up_to_date = true;
        Ok(())
    }

    /// Writes the outputs for all test images, and the filters of the first layer.
    fn write_predictions(
        &self,
        epoch: u32,
        evaluation: &Evaluation,
        network: &Network,
    ) -> anyhow::Result<()> {
        let first = network.variables().first();
        let (_, first) = first.context("a network without weights")?;
        let filters = Filters {
            side: first.dim(3)?,
            weights: first.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?,
        };
        let predictions = self.setup.data.test.with_slices(|labels, pixels| {
            let picture = |index: usize| pixels[index * IMAGE_BYTES..][..IMAGE_BYTES].to_vec();
            Predictions::new(
                epoch,
                &self.setup.data.class_names,
                labels,
                &evaluation.logits,
                picture,
                filters,
            )
        })?;
        Ok(predictions.write(&self.folder.path().join(file::PREDICTIONS))?)
    }

    /// Writes the layers and, on a CPU, their times. A GPU computes asynchronously.
    fn write_layers(&self) -> anyhow::Result<()> {
        let times = self.span_times.take();
        let seconds = |pass: &'static str, layer: &str| {
            let steps = times.get(&("step", String::new()))?.count;
            let total = times.get(&(pass, layer.to_owned()))?;
            Some(total.time.as_secs_f64() / f64::from(steps))
        };
        let seconds = |layer: &str| {
            let passes = ["forward", "backward"].map(|pass| seconds(pass, layer));
            let timed = self.setup.backend.device.is_cpu() && passes.iter().any(Option::is_some);
            timed.then(|| passes.map(|seconds| seconds.unwrap_or(0.0)))
        };
        let layers = self.setup.resolved.architecture.layers().into_iter();
        let layers: Vec<_> = layers
            .map(|layer| Layer {
                kind: layer.layer.type_name().to_owned(),
                parameters: layer.layer.parameter_count() as u64,
                multiply_adds: layer.layer.multiply_adds(&layer.output) as u64,
                seconds: seconds(&layer.name),
                output: layer.output,
                name: layer.name,
            })
            .collect();
        let path = self.folder.path().join(file::LAYERS);
        Ok(run::layers::write(&path, &layers)?)
    }
}

/// Whether what was last written at this time is to be written again.
fn is_due(written: Option<Instant>) -> bool {
    written.is_none_or(|written| written.elapsed() >= BETWEEN_CURVES)
}
