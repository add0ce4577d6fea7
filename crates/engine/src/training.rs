//! The loops over epochs and steps.

use crate::checkpoint::{Checkpoints, Progress, not_finite};
use crate::error::Error;
use crate::evaluation::{Evaluation, evaluate, evaluation_feed};
use crate::event::Event;
use crate::feed::Feed;
use crate::optimiser::Sgd;
use crate::plateau::Plateau;
use crate::recipe::Recipe;
use candle_core::{Device, Tensor};
use candle_nn::Optimizer;
use cifar::{Batch, Split};
use models::{CLASSES, DropoutMasks, Network};
use ops::{Arithmetic, Tally, Tape};
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

/// What an epoch came to. Accuracies are shares, 0 to 1; losses and accuracies are means over
/// images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochResult {
    /// Its number, from 1.
    pub epoch: u32,
    /// Loss on the training images, as they came up while training.
    pub train_loss: f64,
    /// Accuracy on the training images, as they came up while training.
    pub train_accuracy: f64,
    /// Loss on the test images, after the epoch.
    pub test_loss: f64,
    /// Accuracy on the test images, after the epoch.
    pub test_accuracy: f64,
    /// Learning rate of the epoch.
    pub learning_rate: f64,
    /// Wall-clock time of training and evaluation.
    pub seconds: f64,
    /// Training images a second, evaluation not counted.
    pub images_per_second: f64,
    /// SHA-256, in hexadecimal, of the weights after the epoch: their numbers in the order of PyTorch's `state_dict`,
    /// little-endian. On a GPU only of epochs after which a checkpoint was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_sha256: Option<String>,
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
    position: Position,
    /// What the steps came to that `position` does not count yet.
    tally: Tally,
    plateau: Plateau,
    history: Vec<EpochResult>,
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
            },
        )?;
        let train = Feed::new(
            train,
            recipe.batch_size,
            recipe.normalisation(),
            &device,
            arithmetic.precision,
        )?;
        let test = evaluation_feed(test, recipe.normalisation(), &device, arithmetic.precision)?;
        #[cfg(feature = "cuda")]
        let free = match &device {
            Device::Cuda(gpu) => ops::cuda::memory(gpu)?.free,
            _ => 0,
        };
        Ok(Self {
            train,
            test,
            tally: Tally::new(CLASSES, &device)?,
            plateau: Plateau::new(&recipe),
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

    /// The same at the place that a checkpoint's progress says, with its momentum. The network must
    /// hold the checkpoint's weights already.
    ///
    /// # Errors
    /// When the checkpoint was made with another seed, batch size or number of images.
    pub fn resumed(
        mut self,
        checkpoints: &Checkpoints,
        velocities: Vec<candle_core::Tensor>,
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
        let velocities = velocities
            .iter()
            .map(|velocity| velocity.to_device(&self.device))
            .collect::<Result<_, _>>()?;
        self.optimiser = self.optimiser.with_velocities(velocities)?;
        self.position = progress.position;
        self.plateau = progress.plateau;
        self.history = progress.history;
        self.best = progress.best;
        Ok(self)
    }

    /// All finished epochs.
    #[must_use]
    pub fn history(&self) -> &[EpochResult] {
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

    fn all_epochs(
        &mut self,
        checkpoints: &Checkpoints,
        interval: Duration,
        stop: &dyn Fn() -> bool,
        observe: &mut dyn FnMut(Event<'_>) -> Result<(), Error>,
    ) -> Result<Outcome, Error> {
        let epochs = self.recipe.epochs.get();
        let mut saved = Instant::now();
        while self.position.epoch < epochs {
            let epoch = self.position.epoch + 1;
            self.optimiser
                .set_learning_rate(self.plateau.learning_rate());
            observe(Event::EpochStarted {
                epoch,
                epochs,
                done: self.position.step,
                steps: self.train.batches(),
                learning_rate: self.plateau.learning_rate(),
            })?;
            let mut batches = self.train.training(
                self.seed,
                self.position.epoch,
                self.recipe.augment,
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
            let evaluation = debug_span!("evaluation").in_scope(|| {
                evaluate(
                    &self.network,
                    self.arithmetic,
                    &self.test,
                    &self.device,
                    stop,
                )
            })?;
            let Some(evaluation) = evaluation else {
                return self.interrupted(checkpoints, observe);
            };
            // Where epochs are short, not each of them is worth a checkpoint; its weights are kept if they are
            // the best, and the last epoch's always.
            let last = self.position.epoch + 1 == epochs;
            let due = self.device.is_cpu() || last || saved.elapsed() >= GPU_PAUSE;
            let seconds = clock.elapsed().as_secs_f64();
            let digest = due.then(|| self.weights_digest()).transpose()?;
            let improved = self.finish_epoch(&evaluation, seconds, digest)?;
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
                    epochs,
                })?;
            }
            if due {
                self.save(checkpoints, observe)?;
                saved = Instant::now();
            }
        }
        Ok(Outcome::Finished)
    }

    /// One step of gradient descent. What it came to is in the tally.
    fn step(&mut self, batch: &Batch) -> Result<(), Error> {
        let position = self.position;
        let labels = &batch.labels;
        let probability = self.recipe.dropout.get() as f32;
        let active = probability > 0.0 && self.recipe.dropout_epochs.contains(position.epoch);
        let dropout = active.then(|| DropoutMasks {
            probability,
            seed: self.seed,
            step: (u64::from(position.epoch) * self.train.batches() as u64 + position.step as u64)
                as u32,
        });
        let mut tape = Tape::recording(self.arithmetic);
        let logits = self.network.forward(&mut tape, &batch.images, dropout)?;
        self.tally.add(&logits, labels, position.step as u64)?;
        if self.device.is_cpu() {
            // Nothing is waited for here, so a loss that is not finite is seen before it does harm.
            self.count()?;
        }
        let gradients = tape.backward(ops::cross_entropy_gradient(&logits, labels)?)?;
        debug_span!("update").in_scope(|| self.optimiser.step(&gradients))?;
        self.position.step += 1;
        Ok(())
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
            let image = width * architecture.training_numbers();
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

    /// Takes an epoch's evaluation in; whether it is the best so far.
    fn finish_epoch(
        &mut self,
        evaluation: &Evaluation,
        seconds: f64,
        weights_sha256: Option<String>,
    ) -> Result<bool, Error> {
        if !evaluation.loss.is_finite() {
            return Err(self.diverged("test loss"));
        }
        let position = self.position;
        let images = position.images as f64;
        let epoch = position.epoch + 1;
        self.history.push(EpochResult {
            epoch,
            train_loss: position.loss_sum / images,
            train_accuracy: position.right as f64 / images,
            test_loss: evaluation.loss,
            test_accuracy: evaluation.accuracy,
            learning_rate: self.plateau.learning_rate(),
            seconds: position.seconds + seconds,
            images_per_second: images / position.seconds,
            weights_sha256,
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
        let path = checkpoints.write_last(architecture, &weights, &velocities, &progress)?;
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

/// Tensors in the host's memory.
fn on_host(tensors: Vec<(String, Tensor)>) -> candle_core::Result<Vec<(String, Tensor)>> {
    let tensors = tensors.into_iter();
    tensors
        .map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?)))
        .collect()
}
