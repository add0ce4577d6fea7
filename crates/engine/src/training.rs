//! The loops over epochs and steps.

use crate::checkpoint::{Checkpoints, Progress, not_finite};
use crate::error::Error;
use crate::evaluation::{Evaluation, Views, evaluate, evaluation_feed};
use crate::event::Event;
use crate::feed::Feed;
use crate::optimiser::Sgd;
use crate::plateau::Plateau;
use crate::range_test::{self, RangeTest, Tried};
use crate::recipe::Recipe;
use crate::schedule::Rates;
use candle_core::{Device, Tensor};
use candle_nn::Optimizer;
use datasets::{Batch, Split};
use models::{CLASSES, DropoutMasks, Network};
use ops::{Arithmetic, Tally, Tape};
use run::{EpochMetrics, EvaluationSplit, SplitMetrics};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};
use tracing::debug_span;

/// The next training step, and what the epoch's steps before it came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Finished epochs.
    pub epoch: u32,
    /// Finished steps of the next one.
    pub step: usize,
    /// Sum of the loss over the images of those steps.
    pub loss_sum: f64,
    /// Images of those steps.
    pub images: u64,
    /// Images of those steps that were classified rightly.
    pub right: u64,
    /// Time that those steps took, over all processes that worked on them.
    pub seconds: f64,
}

/// The epoch with the best test accuracy, the first of equals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestEpoch {
    /// Its number, from 1.
    pub epoch: u32,
    /// Its test accuracy, 0 to 1.
    pub test_accuracy: f64,
}

/// Whether an observer could do its part.
pub type Observed = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// How training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done.
    Finished,
    /// It was asked to stop, and a checkpoint is written.
    Interrupted,
}

/// One network on its way through a recipe.
pub struct Training {
    recipe: Recipe,
    seed: u64,
    device: Device,
    arithmetic: Arithmetic,
    network: Network,
    optimiser: Sgd,
    train: Feed,
    test: Feed,
    /// What `test` holds.
    split: EvaluationSplit,
    position: Position,
    /// What the steps came to that `position` does not count yet.
    tally: Tally,
    plateau: Plateau,
    rates: Rates,
    /// The weights' moving average, in the network's order; from the first step on where the recipe has one.
    averages: Option<Vec<Tensor>>,
    history: Vec<EpochMetrics>,
    best: Option<BestEpoch>,
    /// The best epoch's weights, where they are not written yet.
    best_weights: Option<Vec<(String, Tensor)>>,
    /// Bytes of a GPU's memory that were free before the first step.
    #[cfg(feature = "cuda")]
    free: usize,
}

/// Steps after which a GPU is waited for, to see what they came to.
const STEPS_UNSEEN: usize = 32;

/// Bytes of a GPU's memory that are left to libraries in the estimate of what fits.
#[cfg(feature = "cuda")]
const LIBRARIES: usize = 64 << 20;

/// The least time between two checkpoints on a GPU, on which an epoch may take less than writing one.
const GPU_PAUSE: Duration = Duration::from_secs(20);

impl Training {
    /// Training from the first step on, with the network's present weights.
    ///
    /// # Errors
    /// When the training set is smaller than a batch.
    pub fn new(
        recipe: Recipe,
        seed: u64,
        network: Network,
        train: Split,
        test: Split,
        device: Device,
        arithmetic: Arithmetic,
    ) -> Result<Self, Error> {
        if recipe.batch_size.get() > train.len() {
            return Err(Error::BatchTooLarge {
                batch_size: recipe.batch_size.get(),
                images: train.len(),
            });
        }
        let variables = network.variables().iter();
        let optimiser = Sgd::new(
            variables.map(|(_, variable)| variable.clone()).collect(),
            ops::Sgd {
                learning_rate: recipe.learning_rate.get(),
                momentum: recipe.momentum.get(),
                weight_decay: recipe.weight_decay.get(),
                nesterov: recipe.nesterov,
                ..ops::Sgd::default()
            },
        )?
        .with_decay_on(recipe.weight_decay_on)
        .with_clip_norm(recipe.clip_norm.get());
        let train = Feed::new(
            train,
            recipe.batch_size,
            recipe.normalisation(),
            &device,
            arithmetic.precision,
        )?;
        let test = evaluation_feed(test, recipe.normalisation(), &device, arithmetic.precision)?;
        let batches = train.batches();
        #[cfg(feature = "cuda")]
        let free = match &device {
            Device::Cuda(gpu) => ops::cuda::memory(gpu)?.free,
            _ => 0,
        };
        Ok(Self {
            train,
            test,
            split: EvaluationSplit::Test,
            tally: Tally::new(CLASSES, &device)?,
            plateau: Plateau::new(&recipe),
            rates: Rates::new(&recipe, batches),
            averages: None,
            recipe,
            seed,
            device,
            arithmetic,
            network,
            optimiser,
            position: Position::default(),
            history: Vec::new(),
            best: None,
            best_weights: None,
            #[cfg(feature = "cuda")]
            free,
        })
    }

    /// The same with the training images in the set's order in every epoch.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.train = self.train.in_order();
        self
    }

    /// The same with metrics under the names of this split; without it, they are those of the test set.
    #[must_use]
    pub fn evaluated_on(mut self, split: EvaluationSplit) -> Self {
        self.split = split;
        self
    }

    /// The same at the place that a checkpoint's progress says, with its momentum and averages. The network must
    /// hold the checkpoint's weights already.
    ///
    /// # Errors
    /// When the checkpoint was made with another seed, batch size or number of images, or lacks the averages.
    pub fn resumed(
        mut self,
        checkpoints: &Checkpoints,
        velocities: Vec<Tensor>,
        averages: Option<Vec<Tensor>>,
        progress: Progress,
    ) -> Result<Self, Error> {
        let not_resumable = |reason: String| Error::NotResumable {
            path: checkpoints.last_path(),
            reason,
        };
        for (what, found, expected) in [
            ("seed", progress.seed, self.seed),
            (
                "batch size",
                progress.batch_size as u64,
                self.recipe.batch_size.get() as u64,
            ),
            (
                "number of training images",
                progress.images as u64,
                self.train.images() as u64,
            ),
        ] {
            if found != expected {
                return Err(not_resumable(format!(
                    "it was made with {what} {found}, the run has {expected}"
                )));
            }
        }
        if progress.position.step > self.train.batches()
            || progress.history.len() != progress.position.epoch as usize
        {
            return Err(not_resumable("its progress contradicts itself".to_owned()));
        }
        let begun = progress.position.epoch > 0 || progress.position.step > 0;
        if self.recipe.average_decay.get() > 0.0 && begun && averages.is_none() {
            return Err(not_resumable(
                "it has no moving average of the weights".to_owned(),
            ));
        }
        let on_device = |tensors: Vec<Tensor>| -> candle_core::Result<Vec<Tensor>> {
            let tensors = tensors.iter();
            tensors
                .map(|tensor| tensor.to_device(&self.device))
                .collect()
        };
        self.averages = averages.map(on_device).transpose()?;
        let velocities = on_device(velocities)?;
        self.optimiser = self.optimiser.with_velocities(velocities)?;
        self.position = progress.position;
        self.plateau = progress.plateau;
        // Checkpoints of earlier versions say `test_loss` for validation samples too.
        self.history = progress.history;
        for epoch in &mut self.history {
            epoch.evaluation = self.split.metrics(*epoch.evaluated());
        }
        self.best = progress.best;
        Ok(self)
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

    /// Trains until all epochs are done or `stop` says so; it is asked before every step. A
    /// checkpoint is written after every epoch, after every `interval` inside one, and on stopping. On a GPU,
    /// where an epoch may take less time than writing one, those after epochs are at least 20 seconds apart
    /// but for the last.
    ///
    /// # Errors
    /// When the loss or the weights are no longer finite, a checkpoint cannot be written, the
    /// observer fails, or a tensor operation does.
    pub fn run(
        &mut self,
        checkpoints: &Checkpoints,
        interval: Duration,
        stop: &dyn Fn() -> bool,
        observe: &mut dyn FnMut(&Event<'_>) -> Observed,
    ) -> Result<Outcome, Error> {
        let mut observe = |event: Event<'_>| observe(&event).map_err(Error::Observer);
        let outcome = self.all_epochs(checkpoints, interval, stop, &mut observe);
        if outcome.is_err() {
            // What was best before it failed is not lost. The first error is the one to report.
            let _ = self.save_best(checkpoints, &mut observe);
        }
        outcome
    }

    /// Takes a step at each rate of a search, from the present weights on, which it spends. It ends early where the
    /// loss explodes, or `stop` says so.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn range_test(
        &mut self,
        test: RangeTest,
        stop: &dyn Fn() -> bool,
        observe: &mut dyn FnMut(&Tried),
    ) -> Result<Vec<Tried>, Error> {
        let mut all = Vec::new();
        let mut rates = test.rates();
        for epoch in 0.. {
            self.position = Position {
                epoch,
                ..Position::default()
            };
            let augmentation = self.recipe.augmentation();
            let batches = self.train.training(self.seed, epoch, augmentation, 0)?;
            for batch in batches {
                let Some(rate) = rates.next() else {
                    return Ok(all);
                };
                if stop() {
                    return Ok(all);
                }
                let before = self.position;
                let stepped = self.step_at(&batch?, rate).and_then(|()| self.count());
                match stepped {
                    Err(Error::Diverged { .. }) => return Ok(all),
                    other => other.map_err(|error| self.explained(error))?,
                }
                let images = (self.position.images - before.images) as f64;
                let loss = (self.position.loss_sum - before.loss_sum) / images;
                let Some(tried) = range_test::tried(&all, rate, loss) else {
                    return Ok(all);
                };
                observe(&tried);
                all.push(tried);
            }
        }
        Ok(all)
    }

    fn all_epochs(
        &mut self,
        checkpoints: &Checkpoints,
        interval: Duration,
        stop: &dyn Fn() -> bool,
        observe: &mut dyn FnMut(Event<'_>) -> Result<(), Error>,
    ) -> Result<Outcome, Error> {
        let epochs = self.recipe.epochs.get();
        let mut saved = Instant::now();
        while self.position.epoch < epochs && !self.stopped_early() {
            let epoch = self.position.epoch + 1;
            observe(Event::EpochStarted {
                epoch,
                epochs,
                done: self.position.step,
                steps: self.train.batches(),
                learning_rate: self.learning_rate(0),
            })?;
            let mut batches = self.train.training(
                self.seed,
                self.position.epoch,
                self.recipe.augmentation(),
                self.position.step,
            )?;
            let mut clock = Instant::now();
            let mut next = || debug_span!("data").in_scope(|| batches.next());
            while let Some(batch) = next() {
                if stop() {
                    self.collect(&mut clock)?;
                    return self.interrupted(checkpoints, observe);
                }
                let step = debug_span!("step", number = self.position.step)
                    .in_scope(|| self.step(&batch?));
                step.map_err(|error| self.explained(error))?;
                let due = saved.elapsed() >= interval;
                let seen = self.device.is_cpu()
                    || self.position.step.is_multiple_of(STEPS_UNSEEN)
                    || self.position.step == self.train.batches();
                if !seen && !due {
                    continue;
                }
                self.collect(&mut clock)?;
                let images = self.position.images as f64;
                observe(Event::Step {
                    epoch,
                    done: self.position.step,
                    loss: self.position.loss_sum / images,
                    accuracy: self.position.right as f64 / images,
                    images_per_second: images / self.position.seconds,
                })?;
                if due {
                    self.save(checkpoints, observe)?;
                    saved = Instant::now();
                    clock = Instant::now();
                }
            }
            observe(Event::EvaluationStarted { epoch })?;
            let Some(evaluation) = self.evaluate(&self.network, Views::Whole, stop)? else {
                return self.interrupted(checkpoints, observe);
            };
            let average = self.average_network()?.map(|network| {
                let evaluation = self.evaluate(&network, Views::Whole, stop)?;
                Ok::<_, Error>(evaluation)
            });
            let average = match average.transpose()? {
                Some(None) => return self.interrupted(checkpoints, observe),
                average => average.flatten(),
            };
            // With mirrored views the time says nothing about an epoch.
            let seconds = clock.elapsed().as_secs_f64();
            let stops_early = self.stops_early_after(evaluation.loss);
            let last = self.position.epoch + 1 == epochs || stops_early;
            let mirrored = if last {
                let mirrored =
                    self.evaluate(&self.network, Views::MirroredWith(&evaluation), stop)?;
                match mirrored {
                    None => return self.interrupted(checkpoints, observe),
                    mirrored => mirrored,
                }
            } else {
                None
            };
            // Where epochs are short, not each of them is worth a checkpoint; its weights are kept if they are
            // the best, and the last epoch's always.
            let due = self.device.is_cpu() || last || saved.elapsed() >= GPU_PAUSE;
            let digest = due.then(|| self.weights_digest()).transpose()?;
            let improved = self.finish_epoch(EpochEnd {
                evaluation: &evaluation,
                average,
                mirrored,
                seconds,
                weights_sha256: digest,
                stops_early,
            })?;
            if improved {
                self.best_weights = Some(self.weights(!due)?);
            }
            if due {
                self.save_best(checkpoints, observe)?;
            }
            if let Some(best) = self.best {
                observe(Event::EpochFinished {
                    history: &self.history,
                    best,
                    evaluation: &evaluation,
                    network: &self.network,
                    last,
                })?;
            }
            if due {
                self.save(checkpoints, observe)?;
                saved = Instant::now();
            }
        }
        Ok(Outcome::Finished)
    }

    /// The epoch's next step of gradient descent.
    fn step(&mut self, batch: &Batch) -> Result<(), Error> {
        self.step_at(batch, self.learning_rate(self.position.step))
    }

    /// One step of gradient descent. What it came to is in the tally.
    fn step_at(&mut self, batch: &Batch, learning_rate: f64) -> Result<(), Error> {
        let position = self.position;
        let labels = &batch.labels;
        let probability = self.recipe.dropout_in(position.epoch) as f32;
        let dropout = (probability > 0.0).then(|| DropoutMasks {
            probability,
            seed: self.seed,
            step: self.steps_before(position.step) as u32,
        });
        let mut tape = Tape::recording(self.arithmetic);
        let logits = self.network.forward(&mut tape, &batch.images, dropout)?;
        self.tally.add(&logits, labels, position.step as u64)?;
        if self.device.is_cpu() {
            // Nothing is waited for here, so a loss that is not finite is seen before it does harm.
            self.count()?;
        }
        let smoothing = self.recipe.label_smoothing.get();
        let slope = ops::smoothed_cross_entropy_gradient(&logits, labels, smoothing)?;
        let gradients = tape.backward(slope)?;
        self.optimiser.set_learning_rate(learning_rate);
        debug_span!("update").in_scope(|| {
            self.optimiser.step(&gradients)?;
            self.average()
        })?;
        self.position.step += 1;
        Ok(())
    }

    /// Steps of the run before that one of the current epoch.
    fn steps_before(&self, step: usize) -> u64 {
        u64::from(self.position.epoch) * self.train.batches() as u64 + step as u64
    }

    /// The rate of a step of the current epoch.
    fn learning_rate(&self, step: usize) -> f64 {
        self.rates.at(self.steps_before(step), &self.plateau)
    }

    /// Takes the weights into their moving average, which begins with those of the first step.
    fn average(&mut self) -> candle_core::Result<()> {
        let decay = self.recipe.average_decay.get();
        if decay == 0.0 {
            return Ok(());
        }
        match &self.averages {
            None => {
                let weights = self.weights(true)?.into_iter();
                self.averages = Some(weights.map(|(_, weight)| weight).collect());
                Ok(())
            }
            Some(averages) => {
                let variables = self.network.variables().iter();
                let pairs: Vec<[&Tensor; 2]> = averages
                    .iter()
                    .zip(variables)
                    .map(|(average, (_, variable))| [average, variable.as_tensor()])
                    .collect();
                ops::ema_step(decay, &pairs)
            }
        }
    }

    /// The moving averages by their parameters' names.
    fn named_averages(&self) -> Option<Vec<(String, Tensor)>> {
        let averages = self.averages.as_ref()?;
        let names = self.network.variables().iter().map(|(name, _)| name);
        Some(names.cloned().zip(averages.iter().cloned()).collect())
    }

    /// The network with the moving average for its weights.
    fn average_network(&self) -> Result<Option<Network>, Error> {
        let network = self
            .named_averages()
            .map(|averages| Network::new(self.network.architecture(), averages));
        let network = network.transpose();
        Ok(network.map_err(candle_core::Error::wrap)?)
    }

    fn evaluate(
        &self,
        network: &Network,
        views: Views<'_>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Evaluation>, Error> {
        let evaluation = debug_span!("evaluation").in_scope(|| {
            evaluate(
                network,
                self.arithmetic,
                &self.test,
                &self.device,
                views,
                stop,
            )
        });
        Ok(evaluation?)
    }

    /// Whether the run ended before all its epochs were done.
    #[must_use]
    pub fn stopped_early(&self) -> bool {
        self.history.last().is_some_and(|last| last.stopped_early)
    }

    /// Whether an epoch with this test loss is the last because none was lower for as long as the recipe waits.
    fn stops_early_after(&self, loss: f64) -> bool {
        let patience = self.recipe.early_stopping as usize;
        let losses = || {
            let before = self.history.iter().map(|epoch| epoch.evaluated().loss);
            before.chain([loss])
        };
        let lowest = losses().fold(f64::INFINITY, f64::min);
        let since = losses().skip_while(|loss| *loss > lowest).count();
        patience > 0 && since > patience
    }

    /// The error of a step; want of memory on a GPU with what would fit.
    #[cfg_attr(not(feature = "cuda"), allow(clippy::unused_self))]
    fn explained(&self, error: Error) -> Error {
        #[cfg(feature = "cuda")]
        if let Error::Tensor(cause) = &error
            && ops::cuda::is_out_of_memory(cause)
        {
            let width = self.arithmetic.precision.activations().size_in_bytes();
            let architecture = self.network.architecture();
            // The parameters' gradients, in bf16 with the weights as they are used, and what the libraries need.
            let fixed = 4 * architecture.parameter_count() + LIBRARIES;
            let image = width * architecture.training_elements();
            let left = (self.free / 10 * 9).saturating_sub(fixed);
            return Error::OutOfMemory {
                batch_size: self.recipe.batch_size.get(),
                fits: (left / image).min(self.recipe.batch_size.get() - 1),
            };
        }
        error
    }

    /// Adds to the position what the steps came to since the last time.
    fn count(&mut self) -> Result<(), Error> {
        let totals = self.tally.take()?;
        if let Some(step) = totals.diverged {
            return Err(Error::Diverged {
                what: "loss",
                epoch: self.position.epoch + 1,
                steps: step as usize,
            });
        }
        self.position.loss_sum += totals.loss;
        self.position.images += totals.images();
        self.position.right += totals.right();
        Ok(())
    }

    /// The same, waiting for a GPU, and the time since `clock`, which then starts anew.
    fn collect(&mut self, clock: &mut Instant) -> Result<(), Error> {
        self.count()?;
        self.position.seconds += clock.elapsed().as_secs_f64();
        *clock = Instant::now();
        Ok(())
    }

    /// The network's weights; those that will be changed meanwhile are to be copied.
    fn weights(&self, copied: bool) -> candle_core::Result<Vec<(String, Tensor)>> {
        let variables = self.network.variables().iter();
        variables
            .map(|(name, variable)| {
                let weight = variable.as_detached_tensor();
                let weight = if copied { weight.copy()? } else { weight };
                Ok((name.clone(), weight))
            })
            .collect()
    }

    /// SHA-256 of all weights, in hexadecimal.
    fn weights_digest(&self) -> candle_core::Result<String> {
        let mut hasher = Sha256::new();
        for (_, weight) in on_host(self.weights(false)?)? {
            hasher.update(safetensors::View::data(&weight));
        }
        let digest = hasher.finalize();
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Writes `best.safetensors` where it is behind.
    fn save_best(
        &mut self,
        checkpoints: &Checkpoints,
        observe: &mut dyn FnMut(Event<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(weights) = self.best_weights.take() else {
            return Ok(());
        };
        let path = checkpoints.write_best(self.network.architecture(), &on_host(weights)?)?;
        observe(Event::CheckpointWritten { path: &path })
    }

    /// Takes in what an epoch came to; whether it is the best so far.
    fn finish_epoch(&mut self, end: EpochEnd<'_>) -> Result<bool, Error> {
        let evaluation = end.evaluation;
        if !evaluation.loss.is_finite() {
            return Err(self.diverged("test loss"));
        }
        let position = self.position;
        let images = position.images as f64;
        let epoch = position.epoch + 1;
        self.history.push(EpochMetrics {
            epoch,
            train_loss: position.loss_sum / images,
            train_accuracy: position.right as f64 / images,
            evaluation: self.split.metrics(SplitMetrics {
                loss: evaluation.loss,
                accuracy: evaluation.accuracy,
                model_ema_loss: end.average.as_ref().map(|average| average.loss),
                model_ema_accuracy: end.average.as_ref().map(|average| average.accuracy),
                tta_accuracy: end.mirrored.map(|mirrored| mirrored.accuracy),
            }),
            learning_rate: self.learning_rate(0),
            seconds: position.seconds + end.seconds,
            images_per_second: images / position.seconds,
            weights_sha256: end.weights_sha256,
            stopped_early: end.stops_early,
        });
        self.plateau = self.plateau.after(evaluation.loss);
        self.position = Position {
            epoch,
            ..Position::default()
        };
        let improved = self
            .best
            .is_none_or(|best| evaluation.accuracy > best.test_accuracy);
        if improved {
            self.best = Some(BestEpoch {
                epoch,
                test_accuracy: evaluation.accuracy,
            });
        }
        Ok(improved)
    }

    fn interrupted(
        &mut self,
        checkpoints: &Checkpoints,
        observe: &mut dyn FnMut(Event<'_>) -> Result<(), Error>,
    ) -> Result<Outcome, Error> {
        self.save(checkpoints, observe)?;
        Ok(Outcome::Interrupted)
    }

    /// Writes `last.safetensors`, unless its weights are not finite: a checkpoint is always usable. The best
    /// weights of the epochs that it knows of are written before it.
    fn save(
        &mut self,
        checkpoints: &Checkpoints,
        observe: &mut dyn FnMut(Event<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let _span = debug_span!("checkpoint").entered();
        self.save_best(checkpoints, observe)?;
        let weights = on_host(self.weights(false)?)?;
        let names = weights.iter().map(|(name, _)| name.clone());
        let velocities = on_host(names.zip(self.optimiser.velocities().cloned()).collect())?;
        let averages = self.named_averages().map(on_host).transpose()?;
        for (_, tensor) in weights.iter().chain(&velocities) {
            if not_finite(tensor)?.is_some() {
                return Err(self.diverged("network"));
            }
        }
        let progress = Progress {
            seed: self.seed,
            images: self.train.images(),
            batch_size: self.recipe.batch_size.get(),
            position: self.position,
            plateau: self.plateau,
            history: self.history.clone(),
            best: self.best,
        };
        let architecture = self.network.architecture();
        let averages = averages.as_deref();
        let path =
            checkpoints.write_last(architecture, &weights, &velocities, averages, &progress)?;
        observe(Event::CheckpointWritten { path: &path })
    }

    fn diverged(&self, what: &'static str) -> Error {
        Error::Diverged {
            what,
            epoch: self.position.epoch + 1,
            steps: self.position.step,
        }
    }
}

/// What is known at the end of an epoch.
struct EpochEnd<'a> {
    evaluation: &'a Evaluation,
    average: Option<Evaluation>,
    mirrored: Option<Evaluation>,
    seconds: f64,
    weights_sha256: Option<String>,
    stops_early: bool,
}

/// Tensors in the host's memory.
fn on_host(tensors: Vec<(String, Tensor)>) -> candle_core::Result<Vec<(String, Tensor)>> {
    let tensors = tensors.into_iter();
    tensors
        .map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?)))
        .collect()
}
