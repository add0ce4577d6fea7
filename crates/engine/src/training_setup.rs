//! What a run trains with.

use crate::data_loader::DataLoader;
use crate::dropout_schedule::DropoutSchedule;
use crate::early_stopping::EarlyStopping;
use crate::evaluation::Evaluator;
use crate::lr_scheduler::{Plateau, Scheduler, WarmUp};
use crate::optimiser::Sgd;
use crate::progress::Progress;
use crate::recipe::{DecayOn, DropoutEpochs, Recipe, Schedule};
use crate::training_step::StepSettings;
use candle_core::{Device, Result};
use candle_nn::Optimizer;
use datasets::{Augmentation, Split};
use models::Network;
use ops::Arithmetic;
use run::EvaluationSplit;
use std::num::NonZeroUsize;

/// What a run trains with, apart from weights.
pub struct TrainingSetup {
    /// The recipe.
    pub recipe: Recipe,
    /// The seed of the order of images, of augmentation and of dropout.
    pub seed: u64,
    /// The training images.
    pub train: Split,
    /// The images evaluated after every epoch.
    pub test: Split,
    /// What these are: the test set, or validation images.
    pub split: EvaluationSplit,
    /// Whether the training images are shuffled in every epoch.
    pub shuffle: bool,
    /// The device that computes; the weights are on it.
    pub device: Device,
    /// How it computes.
    pub arithmetic: Arithmetic,
}

/// The parts of training, made from the settings.
impl TrainingSetup {
    pub(crate) fn epochs(&self) -> u32 {
        self.recipe.epochs.get()
    }

    pub(crate) fn batch_size(&self) -> NonZeroUsize {
        self.recipe.batch_size
    }

    pub(crate) fn ema_decay(&self) -> f64 {
        self.recipe.average_decay.get()
    }

    pub(crate) fn augmentation(&self) -> Augmentation {
        self.recipe.augmentation()
    }

    pub(crate) fn early_stopping(&self) -> EarlyStopping {
        EarlyStopping::new(self.recipe.early_stopping)
    }

    pub(crate) fn train_loader(&self) -> Result<DataLoader> {
        let loader = DataLoader::new(
            self.train.clone(),
            self.batch_size(),
            self.recipe.normalisation(),
            &self.device,
            self.arithmetic.precision,
        )?;
        Ok(if self.shuffle {
            loader
        } else {
            loader.in_order()
        })
    }

    pub(crate) fn evaluator(&self) -> Result<Evaluator> {
        Evaluator::new(
            self.test.clone(),
            self.recipe.normalisation(),
            &self.device,
            self.arithmetic,
        )
    }

    pub(crate) fn optimiser(&self, network: &Network) -> Result<Sgd> {
        let recipe = &self.recipe;
        let factors = ops::Sgd {
            learning_rate: recipe.learning_rate.get(),
            momentum: recipe.momentum.get(),
            weight_decay: recipe.weight_decay.get(),
            nesterov: recipe.nesterov,
            ..ops::Sgd::default()
        };
        let variables = network.variables().iter();
        let variables = variables.map(|(_, variable)| variable.clone()).collect();
        Ok(Sgd::new(variables, factors)?
            .with_bias_decay(recipe.weight_decay_on == DecayOn::All)
            .with_clip_grad_norm(recipe.clip_norm.get()))
    }

    pub(crate) fn scheduler(&self, steps_per_epoch: usize) -> Scheduler {
        let recipe = &self.recipe;
        let lr = recipe.learning_rate.get();
        let final_factor = recipe.final_rate.get();
        let start_factor = recipe.warmup_start.get();
        let warm_up = WarmUp::new(recipe.warmup_epochs.get(), steps_per_epoch, start_factor);
        let steps = u64::from(self.epochs()) * steps_per_epoch as u64;
        match recipe.schedule {
            Schedule::Constant => Scheduler::constant(lr, warm_up, steps),
            Schedule::Plateau => {
                let (factor, threshold) = (recipe.plateau_factor, recipe.plateau_threshold);
                let plateau = Plateau::new(lr, recipe.patience, factor.get(), threshold.get());
                Scheduler::plateau(plateau, warm_up, steps)
            }
            Schedule::Cosine => Scheduler::cosine(lr, final_factor, warm_up, steps),
            Schedule::OneCycle => Scheduler::one_cycle(lr, final_factor, warm_up, steps),
        }
    }

    pub(crate) fn step_settings(&self, steps_per_epoch: usize) -> StepSettings {
        StepSettings {
            seed: self.seed,
            steps_per_epoch,
            batch_size: self.batch_size().get(),
            dropout: DropoutSchedule {
                probability: self.recipe.dropout.get(),
                epochs: match self.recipe.dropout_epochs {
                    DropoutEpochs::All(_) => None,
                    DropoutEpochs::First(epochs) => Some(epochs),
                },
                warmup_epochs: self.recipe.dropout_rise,
            },
            label_smoothing: self.recipe.label_smoothing.get(),
            arithmetic: self.arithmetic,
        }
    }

    /// The progress before the first step.
    pub(crate) fn initial_progress(&self) -> Progress {
        Progress::new(self.seed, self.train.len(), self.batch_size().get())
    }
}
