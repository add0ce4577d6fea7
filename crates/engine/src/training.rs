//! Training over epochs, from the first step or from a checkpoint.

use crate::best_checkpoint::BestCheckpoint;
use crate::checkpoint::{Checkpoint, Checkpoints};
use crate::checkpoint_writer::CheckpointWriter;
use crate::data_loader::DataLoader;
use crate::early_stopping::EarlyStopping;
use crate::ema::Ema;
use crate::error::Error;
use crate::evaluation::{Evaluation, Evaluator};
use crate::event::Event;
use crate::lr_finder::LrFinder;
use crate::lr_scheduler::Scheduler;
use crate::named_tensors::{copied_weights, sha256, weights};
use crate::progress::{BestEpoch, Position, Progress};
use crate::training_setup::TrainingSetup;
use crate::training_step::TrainingStep;
use candle_core::Tensor;
use datasets::Augmentation;
use models::Network;
use run::{EpochMetrics, EvaluationSplit, LrFinderStep, SplitMetrics};
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

/// The training of a network.
pub struct Training {
    step: TrainingStep,
    train: DataLoader,
    evaluator: Evaluator,
    split: EvaluationSplit,
    augmentation: Augmentation,
    scheduler: Scheduler,
    early_stopping: EarlyStopping,
    best: BestCheckpoint,
    epochs: u32,
    position: Position,
    history: Vec<EpochMetrics>,
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
        let progress = setup.initial_progress();
        Self::start(setup, network, None, None, progress)
    }

    /// Training from a checkpoint.
    ///
    /// # Errors
    /// When the checkpoint is of a run with another seed, batch size or number of images, or lacks the EMA, or as for
    /// [`Training::new`].
    pub fn resume(setup: TrainingSetup, checkpoint: Checkpoint) -> Result<Self, Error> {
        let Checkpoint {
            path,
            weights,
            momentum_buffers,
            ema,
            mut progress,
        } = checkpoint;
        // Format 1 has the keys of the test set for validation images, too.
        for epoch in &mut progress.history {
            epoch.evaluated.split = setup.split;
        }
        // Before the first step there is none.
        let has_steps = progress.position.epoch > 0 || progress.position.step > 0;
        let lacks_ema = setup.ema_decay() > 0.0 && has_steps && ema.is_none();
        let mismatch = progress
            .mismatch(&setup.initial_progress())
            .or_else(|| lacks_ema.then(|| "it has no EMA of the weights".to_owned()));
        if let Some(reason) = mismatch {
            return Err(Error::NotResumable { path, reason });
        }
        let on_device = |tensors: Vec<Tensor>| -> candle_core::Result<Vec<Tensor>> {
            let tensors = tensors.iter();
            tensors
                .map(|tensor| tensor.to_device(&setup.device))
                .collect()
        };
        let network = weights.into_network(&setup.device)?;
        let momentum_buffers = on_device(momentum_buffers)?;
        let ema = ema.map(on_device).transpose()?;
        Self::start(setup, network, Some(momentum_buffers), ema, progress)
    }

    fn start(
        setup: TrainingSetup,
        network: Network,
        momentum_buffers: Option<Vec<Tensor>>,
        ema: Option<Vec<Tensor>>,
        progress: Progress,
    ) -> Result<Self, Error> {
        if setup.batch_size().get() > setup.train.len() {
            return Err(Error::BatchTooLarge {
                batch_size: setup.batch_size().get(),
                images: setup.train.len(),
            });
        }
        let mut optimiser = setup.optimiser(&network)?;
        if let Some(buffers) = momentum_buffers {
            optimiser = optimiser.with_momentum_buffers(buffers)?;
        }
        let train = setup.train_loader()?;
        let evaluator = setup.evaluator()?;
        let mut scheduler = setup.scheduler(train.batches());
        scheduler.restore(progress.lr_scheduler);
        let decay = setup.ema_decay();
        let ema = (decay > 0.0).then(|| Ema::new(decay, ema));
        let settings = setup.step_settings(train.batches());
        Ok(Self {
            augmentation: setup.augmentation(),
            early_stopping: setup.early_stopping(),
            epochs: setup.epochs(),
            split: setup.split,
            step: TrainingStep::new(network, optimiser, ema, settings, setup.device)?,
            train,
            evaluator,
            scheduler,
            best: BestCheckpoint::new(progress.best),
            position: progress.position,
            history: progress.history,
        })
    }

    /// All finished epochs.
    #[must_use]
    pub fn history(&self) -> &[EpochMetrics] {
        &self.history
    }

    /// The next step.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Whether early stopping ended the run.
    #[must_use]
    pub fn stopped_early(&self) -> bool {
        self.history.last().is_some_and(|last| last.stopped_early)
    }

    /// Trains until all epochs are done or `stop` returns true, which is called before every step. Writes a checkpoint
    /// after every epoch, within one every `interval`, and on stopping. On a GPU, where an epoch may take less time than
    /// a checkpoint, those after epochs are at least 20 seconds apart, except the last.
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
        let mut connections = Connections {
            writer: CheckpointWriter::new(checkpoints, interval, self.step.device()),
            stop,
            observe: &mut |event| observe(&event).map_err(Error::Observer),
        };
        let outcome = self.run_epochs(&mut connections);
        if outcome.is_err() {
            // The best weights before the error are kept. The first error is the one to report.
            let _ = self.write_best(&mut connections);
        }
        outcome
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
        let seed = self.step.settings().seed;
        let batches = |epoch| self.train.training(seed, epoch, self.augmentation, 0);
        finder.run(&mut self.step, batches, stop, observe)
    }

    fn run_epochs(&mut self, connections: &mut Connections<'_>) -> Result<Outcome, Error> {
        while self.position.epoch < self.epochs && !self.stopped_early() {
            let clock = self.train_epoch(connections)?;
            let evaluation = match clock {
                Some(clock) => self.evaluate(clock, connections)?,
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
        let epoch = self.position.epoch + 1;
        (connections.observe)(Event::EpochStarted {
            epoch,
            epochs: self.epochs,
            done: self.position.step,
            steps: self.train.batches(),
            learning_rate: self.epoch_lr(),
        })?;
        let mut batches = self.train.training(
            self.step.settings().seed,
            self.position.epoch,
            self.augmentation,
            self.position.step,
        )?;
        let mut clock = Instant::now();
        let mut next = || debug_span!("data").in_scope(|| batches.next());
        while let Some(batch) = next() {
            if (connections.stop)() {
                self.collect(&mut clock)?;
                return Ok(None);
            }
            let lr = self.scheduler.lr(self.step.number(&self.position));
            let step = debug_span!("step", number = self.position.step)
                .in_scope(|| self.step.step(&batch?, &mut self.position, lr));
            step.map_err(|error| self.step.explain(error))?;
            let is_due = connections.writer.is_due();
            if !is_due && !self.step.is_collected(&self.position) {
                continue;
            }
            self.collect(&mut clock)?;
            (connections.observe)(Event::Step {
                epoch,
                done: self.position.step,
                loss: self.position.loss(),
                accuracy: self.position.accuracy(),
                images_per_second: self.position.images_per_second(),
            })?;
            if is_due {
                self.write_checkpoint(connections)?;
                clock = Instant::now();
            }
        }
        Ok(Some(clock))
    }

    /// Adds the metrics of the last steps, and the time since `clock`, which is restarted, to the position.
    fn collect(&mut self, clock: &mut Instant) -> Result<(), Error> {
        self.step.collect(&mut self.position)?;
        self.position.seconds += clock.elapsed().as_secs_f64();
        *clock = Instant::now();
        Ok(())
    }

    /// Evaluates the weights after an epoch; `None` if it was asked to stop.
    fn evaluate(
        &self,
        clock: Instant,
        connections: &mut Connections<'_>,
    ) -> Result<Option<EpochEvaluation>, Error> {
        let epoch = self.position.epoch + 1;
        (connections.observe)(Event::EvaluationStarted { epoch })?;
        let stop = connections.stop;
        let evaluate = |network: &Network| {
            debug_span!("evaluation").in_scope(|| self.evaluator.evaluate(network, stop))
        };
        let network = self.step.network();
        let Some(plain) = evaluate(network)? else {
            return Ok(None);
        };
        let ema = match self.step.ema() {
            Some(ema) => ema.network(network)?,
            None => None,
        };
        let ema = match ema.as_ref().map(evaluate).transpose()? {
            Some(None) => return Ok(None),
            ema => ema.flatten(),
        };
        let seconds = clock.elapsed().as_secs_f64();
        let losses = self.history.iter().map(|epoch| epoch.evaluated.loss);
        let stops_early = self.early_stopping.stops(losses, plain.loss);
        let is_last = epoch == self.epochs || stops_early;
        let mut tta = None;
        if is_last {
            tta = debug_span!("evaluation")
                .in_scope(|| self.evaluator.evaluate_tta(network, &plain, stop))?;
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
        let EpochEvaluation {
            plain,
            ema,
            tta,
            seconds,
            stops_early,
            is_last,
        } = evaluation;
        // On a GPU not every epoch has a checkpoint; the weights of the best epoch are kept until the next one.
        let is_due = connections.writer.is_due_after_epoch(is_last);
        let digest = is_due.then(|| sha256(weights(self.step.network())));
        let weights_sha256 = digest.transpose()?;
        if !plain.loss.is_finite() {
            return Err(Error::diverged("test loss", &self.position));
        }
        let position = self.position;
        let epoch = position.epoch + 1;
        self.history.push(EpochMetrics {
            epoch,
            train_loss: position.loss(),
            train_accuracy: position.accuracy(),
            evaluated: SplitMetrics {
                split: self.split,
                loss: plain.loss,
                accuracy: plain.accuracy,
                model_ema_loss: ema.as_ref().map(|ema| ema.loss),
                model_ema_accuracy: ema.as_ref().map(|ema| ema.accuracy),
                tta_accuracy: tta.map(|tta| tta.accuracy),
            },
            learning_rate: self.epoch_lr(),
            seconds: position.seconds + seconds,
            images_per_second: position.images_per_second(),
            weights_sha256,
            stopped_early: stops_early,
        });
        self.scheduler.end_epoch(plain.loss);
        self.position = Position::start_of(epoch);
        if self.best.is_improved_by(plain.accuracy) {
            let network = self.step.network();
            let best = BestEpoch {
                epoch,
                test_accuracy: plain.accuracy,
            };
            let weights = if is_due {
                weights(network)
            } else {
                copied_weights(network)?
            };
            self.best.replace(best, weights);
        }
        if is_due {
            self.write_best(connections)?;
        }
        if let Some(best) = self.best.best() {
            (connections.observe)(Event::EpochFinished {
                history: &self.history,
                best,
                evaluation: &plain,
                network: self.step.network(),
                last: is_last,
            })?;
        }
        if is_due {
            self.write_checkpoint(connections)?;
        }
        Ok(())
    }

    /// The learning rate of the first step of the current epoch.
    fn epoch_lr(&self) -> f64 {
        let first = Position::start_of(self.position.epoch);
        self.scheduler.lr(self.step.number(&first))
    }

    fn write_best(&mut self, connections: &mut Connections<'_>) -> Result<(), Error> {
        let architecture = self.step.network().architecture();
        connections
            .writer
            .write_best(&mut self.best, architecture, connections.observe)
    }

    fn write_checkpoint(&mut self, connections: &mut Connections<'_>) -> Result<(), Error> {
        let settings = self.step.settings();
        let progress = Progress {
            position: self.position,
            lr_scheduler: self.scheduler.state(),
            history: self.history.clone(),
            best: self.best.best(),
            ..Progress::new(settings.seed, self.train.images(), settings.batch_size)
        };
        connections
            .writer
            .write(&self.step, &mut self.best, &progress, connections.observe)
    }
}
