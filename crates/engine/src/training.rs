//! Training over epochs, from the first step or from a checkpoint.

use crate::checkpoint::{Best, Checkpoint, Checkpoints};
use crate::checkpoint_writer::CheckpointWriter;
use crate::data_loader::DataLoader;
use crate::early_stopping::EarlyStopping;
use crate::ema::Ema;
use crate::error::{Error, TEST_LOSS, Unusable};
use crate::evaluation::{Evaluation, Evaluator};
use crate::event::Event;
use crate::lr_finder::LrFinder;
use crate::lr_scheduler::Scheduler;
use crate::named_tensors::{NamedTensors, copied_weights, named, sha256, to_device, weights};
use crate::progress::{BestEpoch, Position, Progress};
use crate::training_setup::TrainingSetup;
use crate::training_step::TrainingStep;
use candle_core::{DType, Device, Tensor};
use datasets::Augmentation;
use models::Network;
use ops::GradientNorm;
use run::{EpochMetrics, LrFinderStep, Settings, SplitMetrics};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};
use tracing::debug_span;

/// The result of an observer.
pub type Observed = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// How training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done, or early stopping ended the run.
    Finished,
    /// It was asked to stop, and a checkpoint is written.
    Interrupted,
}

/// Bytes of a GPU's memory for what is not tried: the order of an epoch, metrics, fragmentation.
const GPU_RESERVE: usize = 64 << 20;

/// The training of a network.
pub struct Training {
    step: TrainingStep,
    train: DataLoader,
    evaluator: Evaluator,
    scheduler: Scheduler,
    progress: Progress,
    /// The weights of the best epoch, if they are not written to `best.safetensors` yet.
    unwritten_best: Option<NamedTensors>,
}

/// What a run is connected to.
struct Connections<'a> {
    writer: CheckpointWriter<'a>,
    stop: &'a dyn Fn() -> bool,
    observe: &'a mut dyn FnMut(Event<'_>) -> Result<(), Error>,
}

/// The evaluations after an epoch.
struct EpochEvaluation {
    plain: Evaluation,
    ema: Option<Evaluation>,
    tta: Option<Evaluation>,
    /// Duration without TTA.
    seconds: f64,
    stops_early: bool,
    is_last: bool,
}

impl Training {
    /// Training of `network` from its first step.
    ///
    /// # Errors
    /// When the training set is smaller than a batch, or the device has too little memory.
    pub fn new(setup: TrainingSetup, network: Network) -> Result<Self, Error> {
        let progress = setup.initial_progress()?;
        Self::start(setup, network, None, None, progress, false)
    }

    /// Training from a checkpoint.
    ///
    /// # Errors
    /// When the checkpoint is of a run with other settings or another number of images, or lacks the EMA, or as for
    /// [`Training::new`].
    pub fn resume(setup: TrainingSetup, checkpoint: Checkpoint) -> Result<Self, Error> {
        let (mut progress, ema) = (checkpoint.progress, checkpoint.ema);
        // Format 1 has the keys of the test set for validation images, too.
        for epoch in &mut progress.history {
            epoch.evaluated.split = setup.split;
        }
        // Before the first step there is none.
        let has_steps = progress.position.epoch > 0 || progress.position.step > 0;
        let has_ema = setup.settings.model_ema_decay.get() > 0.0;
        let lacks_ema = has_ema && has_steps && ema.is_none();
        let mismatch = progress
            .mismatch(&setup.initial_progress()?)
            .or_else(|| lacks_ema.then(|| "it has no EMA of the weights".to_owned()));
        if let Some(reason) = mismatch {
            return Err(Unusable::NotResumable(reason).at(&checkpoint.path));
        }
        let on_device = |tensors: Vec<Tensor>| {
            let tensors = tensors.iter();
            let tensors = tensors.map(|tensor| tensor.to_device(&setup.device));
            tensors.collect::<candle_core::Result<_>>()
        };
        let network = checkpoint.weights.into_network(&setup.device)?;
        let momentum_buffers = on_device(checkpoint.momentum_buffers)?;
        let ema = ema.map(on_device).transpose()?;
        // A run keeps its batch size of evaluations, since logits may depend on it in the last bit.
        let is_kept = setup.evaluation_batch.is_some();
        let buffers = Some(momentum_buffers);
        Self::start(setup, network, buffers, ema, progress, is_kept)
    }

    fn start(
        setup: TrainingSetup,
        network: Network,
        momentum_buffers: Option<Vec<Tensor>>,
        ema: Option<Vec<Tensor>>,
        progress: Progress,
        keeps_evaluation_batch: bool,
    ) -> Result<Self, Error> {
        let (batch_size, images) = (setup.settings.batch_size.get(), setup.train.len());
        if batch_size > images {
            return Err(Error::BatchTooLarge { batch_size, images });
        }
        let is_resumed = momentum_buffers.is_some();
        let network = match setup.settings.freeze_features {
            true => network.with_frozen_features(),
            false => network,
        };
        let mut optimiser = setup.optimiser(&network)?;
        if let Some(buffers) = momentum_buffers {
            optimiser = optimiser.with_momentum_buffers(buffers)?;
        }
        let train = setup.train_loader()?;
        let mut scheduler = setup.scheduler(train.host.batches());
        scheduler.restore(progress.lr_scheduler);
        let decay = setup.settings.model_ema_decay.get();
        let ema = (decay > 0.0).then(|| Ema::new(decay, ema));
        let mut evaluator = Evaluator::new(
            setup.test.clone(),
            (&setup.settings).into(),
            &setup.device,
            setup.arithmetic,
            setup.evaluation_batch,
        )?;
        evaluator.process_group = setup.process_group.clone();
        let mut training = Self {
            evaluator,
            step: TrainingStep::new(setup, train.host.batches(), network, optimiser, ema)?,
            train,
            scheduler,
            progress,
            unwritten_best: None,
        };
        training.step.is_resumed = is_resumed;
        training.choose_engines()?;
        training.fit_into_memory(keeps_evaluation_batch)?;
        Ok(training)
    }

    /// Lets cuDNN choose engines as the settings and the record ask for.
    #[cfg_attr(
        not(feature = "cuda"),
        allow(clippy::unused_self, clippy::unnecessary_wraps)
    )]
    fn choose_engines(&self) -> Result<(), Error> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(gpu) = &self.step.setup.device {
            let setup = &self.step.setup;
            let (known, benchmark) = (&setup.cudnn_engines, setup.settings.cudnn_benchmark);
            ops::cuda::choose_engines(gpu, known.clone(), benchmark)?;
        }
        Ok(())
    }

    /// The engines of cuDNN that compute the convolutions of this run, which a run keeps; `None` on a CPU.
    ///
    /// # Errors
    /// When the GPU fails.
    #[cfg_attr(
        not(feature = "cuda"),
        allow(clippy::unused_self, clippy::unnecessary_wraps)
    )]
    pub fn cudnn_engines(&self) -> Result<Option<BTreeMap<String, String>>, Error> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(gpu) = &self.step.setup.device {
            return Ok(Some(ops::cuda::engine_choices(gpu)?));
        }
        Ok(None)
    }

    /// Chooses the batch size of evaluations on a GPU: what fits beside everything that a run keeps in memory.
    fn fit_into_memory(&mut self, keeps_evaluation_batch: bool) -> Result<(), Error> {
        let (step, evaluator) = (&self.step, &mut self.evaluator);
        if step.setup.device.is_cpu() {
            return Ok(());
        }
        let network = &step.network;
        // The weights of the best epoch, and the EMA.
        let copies = 1 + step.ema.as_ref().map_or(0, Ema::copies_to_come);
        let copies = (0..copies).map(|_| copied_weights(network));
        let _copies: Vec<_> = copies.collect::<candle_core::Result<_>>()?;
        let _reserve = Tensor::zeros(GPU_RESERVE, DType::U8, &step.setup.device)?;
        let batch_size = step.setup.settings.batch_size.get();
        let dry_run = || step.dry_run(batch_size);
        let fitted = evaluator.fit(network, keeps_evaluation_batch, dry_run);
        fitted.map_err(|error| step.explain(error))?;
        let found = evaluator.batch_size();
        if let Some(recorded) = step.setup.evaluation_batch
            && recorded > found
            && recorded.get() <= evaluator.images()
        {
            tracing::warn!(%recorded, %found, "evaluations take smaller batches than recorded, to fit into memory");
        }
        // The last batches, which may be smaller, have engines of their own.
        let rest = self.train.host.images() % batch_size;
        if rest > 0 {
            step.dry_run(rest)?;
        }
        evaluator.try_last_batch(network)?;
        Ok(())
    }

    /// Images per batch of an evaluation on a GPU, which a run keeps. On a CPU they do not affect the result.
    #[must_use]
    pub fn evaluation_batch(&self) -> Option<NonZeroUsize> {
        let is_gpu = !self.step.setup.device.is_cpu();
        is_gpu.then(|| self.evaluator.batch_size())
    }

    /// All finished epochs.
    #[must_use]
    pub fn history(&self) -> &[EpochMetrics] {
        &self.progress.history
    }

    /// The next step.
    #[must_use]
    pub fn position(&self) -> Position {
        self.progress.position
    }

    /// SHA-256 of weights, momentum buffers and EMA, which processes that train together have in common.
    ///
    /// # Errors
    /// When they cannot be copied to the CPU.
    pub fn state_sha256(&self) -> Result<String, Error> {
        let TrainingStep {
            network,
            optimiser,
            ema,
            ..
        } = &self.step;
        let mut tensors = weights(network);
        tensors.extend(named(network, optimiser.momentum_buffers()));
        let ema = ema.as_ref().and_then(|ema| ema.named(network));
        tensors.extend(ema.into_iter().flatten());
        Ok(sha256(&tensors)?)
    }

    /// Measures the norm of the gradients from now on, for [`Event::IntervalFinished`]: once an interval, or in every step that
    /// is a CUDA graph.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn measure_gradient_norm(&mut self) -> Result<(), Error> {
        self.step.gradient_norm = Some(GradientNorm::new(&self.step.setup.device)?);
        Ok(())
    }

    /// The norm of the gradients of the last step of an interval, if it is measured.
    fn gradient_norm(&self) -> Result<Option<f64>, Error> {
        let norm = self.step.gradient_norm.as_ref();
        Ok(norm.map_or(Ok(None), GradientNorm::get)?)
    }

    /// Steps of an epoch.
    #[must_use]
    pub fn steps_per_epoch(&self) -> usize {
        self.step.steps_per_epoch
    }

    /// Whether early stopping ended the run.
    #[must_use]
    pub fn stopped_early(&self) -> bool {
        self.history().last().is_some_and(|last| last.stopped_early)
    }

    /// Trains until all epochs are done or `stop` returns true, which is called before every step. Writes a checkpoint
    /// after every epoch, within one every `interval`, on stopping, and before an evaluation if the last one is a minute
    /// old. On a GPU, where an epoch may take less time than a checkpoint, those before evaluations and after epochs, except
    /// the last, are at least 20 seconds apart, and training goes on meanwhile. When this returns, all are written.
    ///
    /// # Errors
    /// When the loss or the weights are no longer finite, a checkpoint cannot be written, `observe` fails, or a tensor
    /// operation does.
    pub fn run(
        &mut self,
        checkpoints: &Checkpoints,
        interval: Duration,
        stop: &dyn Fn() -> bool,
        observe: &mut dyn FnMut(&Event<'_>) -> Observed,
    ) -> Result<Outcome, Error> {
        let writer = CheckpointWriter::new(checkpoints, interval, &self.step.setup.device);
        self.run_with(writer, stop, observe)
    }

    fn run_with(
        &mut self,
        writer: CheckpointWriter<'_>,
        stop: &dyn Fn() -> bool,
        observe: &mut dyn FnMut(&Event<'_>) -> Observed,
    ) -> Result<Outcome, Error> {
        let mut connections = Connections {
            writer,
            stop,
            observe: &mut |event| observe(&event).map_err(Error::Observer),
        };
        let outcome = self.run_epochs(&mut connections);
        let written = connections.finish_writing();
        if outcome.is_err() {
            // The best weights before the error are kept. The first error is the one to report.
            let _ = self.write_best(&mut connections);
        }
        let outcome = outcome?;
        written?;
        Ok(outcome)
    }

    /// Runs the LR finder, which changes the weights. The result ends early if the loss explodes or `stop` returns true.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn find_lr(
        mut self,
        finder: LrFinder,
        stop: &dyn Fn() -> bool,
        observe: &mut dyn FnMut(&LrFinderStep),
    ) -> Result<Vec<LrFinderStep>, Error> {
        let settings = &self.step.setup.settings;
        let (seed, augmentation) = (settings.seed, Augmentation::from(settings));
        let batches = |epoch| self.train.training(seed, epoch, augmentation, 0);
        finder.run(&mut self.step, batches, stop, observe)
    }

    fn run_epochs(&mut self, connections: &mut Connections<'_>) -> Result<Outcome, Error> {
        let epochs = self.settings().epochs.get();
        while self.progress.position.epoch < epochs && !self.stopped_early() {
            let evaluation = match self.train_epoch(connections)? {
                Some(mut clock) => {
                    if connections.writer.is_due_before_evaluation() {
                        self.write_checkpoint(connections)?;
                        clock = Instant::now();
                    }
                    self.evaluate(clock, connections)?
                }
                None => None,
            };
            let Some(evaluation) = evaluation else {
                self.write_checkpoint(connections)?;
                return Ok(Outcome::Interrupted);
            };
            self.finish_epoch(evaluation, connections)?;
        }
        Ok(Outcome::Finished)
    }

    /// The remaining steps of the epoch. Returns the time since which nothing is counted in its duration; `None` if it
    /// was asked to stop.
    fn train_epoch(&mut self, connections: &mut Connections<'_>) -> Result<Option<Instant>, Error> {
        let epoch = self.progress.position.epoch + 1;
        (connections.observe)(Event::EpochStarted {
            epoch,
            epochs: self.settings().epochs.get(),
            done: self.progress.position.step,
            steps: self.train.host.batches(),
            learning_rate: self.epoch_lr(),
        })?;
        let (settings, position) = (self.settings(), self.progress.position);
        let (seed, augmentation) = (settings.seed, Augmentation::from(settings));
        let first = position.step;
        let batches = self
            .train
            .training(seed, position.epoch, augmentation, first);
        let mut batches = batches?;
        let mut clock = Instant::now();
        let mut interval = position;
        let mut next = || debug_span!("data").in_scope(|| batches.next());
        while let Some(batch) = next() {
            let is_first = self.progress.position.step == first;
            if self.step.must_stop(connections.stop, is_first)? {
                self.collect(&mut clock)?;
                return Ok(None);
            }
            let lr = self.scheduler.lr(self.step.number(&self.progress.position));
            let step = debug_span!("step", number = self.progress.position.step)
                .in_scope(|| self.step.step(&batch?, &mut self.progress.position, lr));
            step.map_err(|error| self.step.explain(error))?;
            self.step.make_room(&self.evaluator)?;
            let is_due = connections.writer.is_due();
            if !is_due && !self.step.is_collected(&self.progress.position) {
                continue;
            }
            self.collect(&mut clock)?;
            if connections.writer.has_ended() {
                connections.finish_writing()?;
            }
            let position = &self.progress.position;
            (connections.observe)(Event::Step {
                epoch,
                done: position.step,
                loss: position.loss(),
                accuracy: position.accuracy(),
                images_per_second: position.images_per_second(),
            })?;
            if self.step.ends_interval(position.step) {
                let mean = position.since(&interval);
                interval = *position;
                (connections.observe)(Event::IntervalFinished {
                    steps: self.step.number(position),
                    loss: mean.loss(),
                    accuracy: mean.accuracy(),
                    images_per_second: mean.images_per_second(),
                    learning_rate: lr,
                    gradient_norm: self.gradient_norm()?,
                })?;
            }
            if is_due {
                self.write_checkpoint(connections)?;
                clock = Instant::now();
            }
        }
        Ok(Some(clock))
    }

    /// Adds the metrics of the last steps, and the time since `clock`, which is restarted, to the position.
    fn collect(&mut self, clock: &mut Instant) -> Result<(), Error> {
        self.step.collect(&mut self.progress.position)?;
        self.progress.position.seconds += clock.elapsed().as_secs_f64();
        *clock = Instant::now();
        Ok(())
    }

    /// Evaluates the weights after an epoch; `None` if it was asked to stop.
    fn evaluate(
        &self,
        clock: Instant,
        connections: &mut Connections<'_>,
    ) -> Result<Option<EpochEvaluation>, Error> {
        let epoch = self.progress.position.epoch + 1;
        (connections.observe)(Event::EvaluationStarted { epoch })?;
        let (network, stop) = (&self.step.network, connections.stop);
        let span = || debug_span!("evaluation").entered();
        let evaluate = |network: &Network| {
            let _span = span();
            let evaluated = self.evaluator.evaluate(network, stop);
            evaluated.map_err(|error| self.evaluator.explain(error))
        };
        let Some(plain) = evaluate(network)? else {
            return Ok(None);
        };
        let ema = match &self.step.ema {
            Some(ema) => ema.network(network)?,
            None => None,
        };
        let ema = match ema.as_ref().map(evaluate).transpose()? {
            Some(None) => return Ok(None),
            ema => ema.flatten(),
        };
        let seconds = clock.elapsed().as_secs_f64();
        let losses = self.history().iter().map(|epoch| epoch.evaluated.loss);
        let early_stopping = EarlyStopping(self.settings().early_stopping);
        let stops_early = early_stopping.stops(losses, plain.loss);
        let is_last = epoch == self.settings().epochs.get() || stops_early;
        let mut tta = None;
        if is_last {
            let _span = span();
            let evaluated = self.evaluator.evaluate_tta(network, &plain, stop);
            tta = evaluated.map_err(|error| self.evaluator.explain(error))?;
            if tta.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(EpochEvaluation {
            plain,
            ema,
            tta,
            seconds,
            stops_early,
            is_last,
        }))
    }

    /// Records an epoch and writes its checkpoint, if one is due.
    fn finish_epoch(
        &mut self,
        evaluation: EpochEvaluation,
        connections: &mut Connections<'_>,
    ) -> Result<(), Error> {
        let EpochEvaluation { plain, is_last, .. } = evaluation;
        // On a GPU not every epoch has a checkpoint; the weights of the best epoch are kept until the next one.
        let is_due = connections.writer.is_due_after_epoch(is_last);
        let position = self.progress.position;
        let weights_sha256 = match connections.writer.weights_sha256(position) {
            None if is_due && self.step.setup.is_main() => {
                Some(sha256(&weights(&self.step.network))?)
            }
            known => known,
        };
        if !plain.loss.is_finite() {
            return Err(Error::diverged(TEST_LOSS, position.epoch, position.step));
        }
        let epoch = position.epoch + 1;
        self.progress.history.push(EpochMetrics {
            epoch,
            train_loss: position.loss(),
            train_accuracy: position.accuracy(),
            evaluated: SplitMetrics {
                split: self.step.setup.split,
                loss: plain.loss,
                accuracy: plain.accuracy,
                model_ema_loss: evaluation.ema.as_ref().map(|ema| ema.loss),
                model_ema_accuracy: evaluation.ema.map(|ema| ema.accuracy),
                tta_accuracy: evaluation.tta.map(|tta| tta.accuracy),
            },
            learning_rate: self.epoch_lr(),
            seconds: position.seconds + evaluation.seconds,
            images_per_second: position.images_per_second(),
            weights_sha256,
            stopped_early: evaluation.stops_early,
        });
        self.scheduler.end_epoch(plain.loss);
        self.progress.position = Position::start_of(epoch);
        let best = BestEpoch {
            epoch,
            test_accuracy: plain.accuracy,
        };
        if self.progress.is_improved_by(best) && self.step.setup.is_main() {
            let network = &self.step.network;
            self.unwritten_best = Some(match is_due {
                true => weights(network),
                false => copied_weights(network)?,
            });
        }
        if let Some(best) = self.progress.best {
            (connections.observe)(Event::EpochFinished {
                history: &self.progress.history,
                best,
                evaluation: &plain,
                network: &self.step.network,
                last: is_last,
            })?;
        }
        if is_due {
            self.write_checkpoint(connections)?;
        }
        Ok(())
    }

    fn settings(&self) -> &Settings {
        &self.step.setup.settings
    }

    /// The learning rate of the first step of the current epoch.
    fn epoch_lr(&self) -> f64 {
        let first = Position::start_of(self.progress.position.epoch);
        self.scheduler.lr(self.step.number(&first))
    }

    /// What is to be written to `best.safetensors`, if that is not up to date.
    fn take_best(&mut self) -> Result<Option<Best>, Error> {
        let Some(weights) = self.unwritten_best.take() else {
            return Ok(None);
        };
        let epoch = self.progress.best.map_or(0, |best| best.epoch);
        let sha256 = self.progress.weights_sha256(epoch);
        Ok(Some(Best {
            weights: to_device(weights, &Device::Cpu)?,
            sha256: sha256.map(str::to_owned),
        }))
    }

    /// Writes `best.safetensors`, if it is not up to date.
    fn write_best(&mut self, connections: &mut Connections<'_>) -> Result<(), Error> {
        let Some(best) = self.take_best()? else {
            return Ok(());
        };
        let architecture = self.step.network.architecture();
        let checkpoints = connections.writer.checkpoints;
        let path = checkpoints.write_best(architecture, &best)?;
        (connections.observe)(Event::CheckpointWritten { path: &path })
    }

    /// Writes `best.safetensors`, if it is not up to date, and `last.safetensors`, which refers to its epoch. On a GPU it
    /// does not wait until they are written.
    fn write_checkpoint(&mut self, connections: &mut Connections<'_>) -> Result<(), Error> {
        if !self.step.setup.is_main() {
            return Ok(());
        }
        let _span = debug_span!("checkpoint").entered();
        connections.finish_writing()?;
        let best = self.take_best()?;
        self.progress.lr_scheduler = self.scheduler.state();
        let writer = &mut connections.writer;
        writer.start(&self.step, &self.progress, best)?;
        if self.step.setup.device.is_cpu() {
            connections.finish_writing()?;
        }
        Ok(())
    }
}

impl Connections<'_> {
    /// Waits until no checkpoint is being written.
    fn finish_writing(&mut self) -> Result<(), Error> {
        for path in self.writer.finish()? {
            (self.observe)(Event::CheckpointWritten { path: &path })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Inputs;
    use datasets::Dataset;
    use models::{Architecture, initial_parameters};
    use ops::ConvAlgorithm;
    use run::settings::{Source, WeightInit};
    use run::{EvaluationSplit, file};
    use std::fs;
    use std::path::Path;

    /// Two epochs of two steps of LeNet, with EMA.
    fn setup() -> TrainingSetup {
        let set = Dataset::synthetic(5, 4).unwrap();
        let changes =
            "model = \"lenet\"\npatience = 1\nepochs = 2\nbatch_size = 3\nmodel_ema_decay = 0.5";
        let layers = [(Source::Defaults, toml::from_str(changes).unwrap())];
        TrainingSetup {
            settings: Settings::resolve(&layers).unwrap(),
            train: set.training(),
            test: set.test(),
            split: EvaluationSplit::Test,
            device: Device::Cpu,
            arithmetic: ConvAlgorithm::Direct.into(),
            evaluation_batch: None,
            cudnn_engines: Default::default(),
            process_group: None,
        }
    }

    fn lenet() -> Architecture {
        "lenet".parse().unwrap()
    }

    fn start() -> Training {
        let parameters = initial_parameters(lenet(), WeightInit::Kaiming, 1, &Device::Cpu).unwrap();
        Training::new(setup(), Network::new(lenet(), parameters).unwrap()).unwrap()
    }

    /// Trains with a checkpoint before every evaluation.
    fn run(
        training: &mut Training,
        checkpoints: &Checkpoints,
        observe: &mut dyn FnMut(&Event<'_>) -> Observed,
    ) -> Result<Outcome, Error> {
        let mut writer = CheckpointWriter::new(checkpoints, Duration::MAX, &Device::Cpu);
        writer.min_age_before_evaluation = Duration::ZERO;
        training.run_with(writer, &|| false, observe)
    }

    /// The names of a run's files, the best weights, the history without times, and the tensors of the last checkpoint.
    fn outcome(
        training: &Training,
        folder: &Path,
    ) -> (Vec<String>, Vec<u8>, Vec<EpochMetrics>, Vec<Vec<f32>>) {
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        let best = fs::read(folder.join(file::BEST_WEIGHTS)).unwrap();
        let history = training.history().iter().map(|epoch| EpochMetrics {
            seconds: 0.0,
            images_per_second: 0.0,
            ..epoch.clone()
        });
        let last = Checkpoints::new(folder, Inputs::example())
            .read_last(lenet())
            .unwrap()
            .unwrap();
        let weights = last.weights.tensors.into_iter().map(|(_, tensor)| tensor);
        let tensors = weights
            .chain(last.momentum_buffers)
            .chain(last.ema.unwrap());
        let values = tensors.map(|tensor| tensor.flatten_all().unwrap().to_vec1().unwrap());
        (names, best, history.collect(), values.collect())
    }

    #[test]
    fn an_error_in_an_evaluation_loses_no_step_and_changes_no_bit() {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [undisturbed, failed] = [0, 1].map(|index| folders[index].path());
        let checkpoints = |folder| Checkpoints::new(folder, Inputs::example());
        let mut whole = start();
        let ended = run(&mut whole, &checkpoints(undisturbed), &mut |_| Ok(()));
        assert_eq!(ended.unwrap(), Outcome::Finished);

        let mut training = start();
        let checkpoints = checkpoints(failed);
        for (epoch, history) in [(1, 0), (2, 1)] {
            let ended = run(&mut training, &checkpoints, &mut |event| match event {
                Event::EvaluationStarted { epoch: started } if *started == epoch => {
                    Err("no memory".into())
                }
                _ => Ok(()),
            });
            assert!(matches!(ended, Err(Error::Observer(_))), "{ended:?}");
            let checkpoint = checkpoints.read_last(lenet()).unwrap().unwrap();
            training = Training::resume(setup(), checkpoint).unwrap();
            let Position {
                epoch: done, step, ..
            } = training.position();
            assert_eq!((done, step), (epoch - 1, 2));
            assert_eq!(training.history().len(), history);
        }
        let ended = run(&mut training, &checkpoints, &mut |_| Ok(()));
        assert_eq!(ended.unwrap(), Outcome::Finished);
        assert!(outcome(&training, failed) == outcome(&whole, undisturbed));
    }

    #[test]
    fn a_checkpoint_that_cannot_be_written_ends_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let checkpoints = Checkpoints::new(&missing, Inputs::example());
        let ended = run(&mut start(), &checkpoints, &mut |event| match event {
            Event::EvaluationStarted { .. } => Err("training went on".into()),
            _ => Ok(()),
        });
        let error = ended.unwrap_err().to_string();
        assert!(error.contains("cannot write `"), "{error}");
    }
}
