//! What a run trains with.

use crate::data_loader::DataLoader;
use crate::dropout_schedule::DropoutSchedule;
use crate::early_stopping::EarlyStopping;
use crate::evaluation::Evaluator;
use crate::lr_scheduler::{Plateau, Scheduler, WarmUp};
use crate::optimiser::Sgd;
use crate::progress::Progress;
use crate::training_step::StepSettings;
use candle_core::{Device, Result};
use candle_nn::Optimizer;
use datasets::{Augmentation, Normalisation, Split};
use models::Network;
use ops::Arithmetic;
use run::settings::{DropoutEpochs, LrScheduler, WeightDecayOn};
use run::{EvaluationSplit, Settings};
use std::num::NonZeroUsize;

/// What a run trains with, apart from weights.
pub struct TrainingSetup {
    /// The settings of the run.
    pub settings: Settings,
    /// The training images.
    pub train: Split,
    /// The images evaluated after every epoch.
    pub test: Split,
    /// What these are: the test set, or validation images.
    pub split: EvaluationSplit,
    /// The device that computes; the weights are on it.
    pub device: Device,
    /// How it computes.
    pub arithmetic: Arithmetic,
}

/// The parts of training, made from the settings.
impl TrainingSetup {
    pub(crate) fn epochs(&self) -> u32 {
        self.settings.epochs.get()
    }

    pub(crate) fn batch_size(&self) -> NonZeroUsize {
        self.settings.batch_size
    }

    pub(crate) fn ema_decay(&self) -> f64 {
        self.settings.model_ema_decay.get()
    }

    pub(crate) fn augmentation(&self) -> Augmentation {
        Augmentation::from(&self.settings)
    }

    pub(crate) fn early_stopping(&self) -> EarlyStopping {
        EarlyStopping::new(self.settings.early_stopping)
    }

    pub(crate) fn train_loader(&self) -> Result<DataLoader> {
        let loader = DataLoader::new(
            self.train.clone(),
            self.batch_size(),
            Normalisation::from(&self.settings),
            &self.device,
            self.arithmetic.precision,
        )?;
        Ok(match self.settings.overfit_batches {
            None => loader,
            Some(_) => loader.in_order(),
        })
    }

    pub(crate) fn evaluator(&self) -> Result<Evaluator> {
        Evaluator::new(
            self.test.clone(),
            Normalisation::from(&self.settings),
            &self.device,
            self.arithmetic,
        )
    }

    pub(crate) fn optimiser(&self, network: &Network) -> Result<Sgd> {
        let settings = &self.settings;
        let factors = ops::Sgd {
            learning_rate: settings.lr.get(),
            momentum: settings.momentum.get(),
            weight_decay: settings.weight_decay.get(),
            nesterov: settings.nesterov,
            ..ops::Sgd::default()
        };
        let variables = network.variables().iter();
        let variables = variables.map(|(_, variable)| variable.clone()).collect();
        Ok(Sgd::new(variables, factors)?
            .with_bias_decay(settings.weight_decay_on == WeightDecayOn::All)
            .with_clip_grad_norm(settings.clip_grad_norm.get()))
    }

    pub(crate) fn scheduler(&self, steps_per_epoch: usize) -> Scheduler {
        let settings = &self.settings;
        let lr = settings.lr.get();
        let final_factor = settings.lr_final_factor.get();
        let start_factor = settings.lr_warmup_start_factor.get();
        let warm_up = WarmUp::new(
            settings.lr_warmup_epochs.get(),
            steps_per_epoch,
            start_factor,
        );
        let steps = u64::from(self.epochs()) * steps_per_epoch as u64;
        match settings.lr_scheduler {
            LrScheduler::Constant => Scheduler::constant(lr, warm_up, steps),
            LrScheduler::Plateau => {
                let (factor, threshold) = (settings.plateau_factor, settings.plateau_threshold);
                let plateau = Plateau::new(lr, settings.patience, factor.get(), threshold.get());
                Scheduler::plateau(plateau, warm_up, steps)
            }
            LrScheduler::Cosine => Scheduler::cosine(lr, final_factor, warm_up, steps),
            LrScheduler::OneCycle => Scheduler::one_cycle(lr, final_factor, warm_up, steps),
        }
    }

    pub(crate) fn step_settings(&self, steps_per_epoch: usize) -> StepSettings {
        StepSettings {
            seed: self.settings.seed,
            steps_per_epoch,
            batch_size: self.batch_size().get(),
            dropout: DropoutSchedule {
                probability: self.settings.dropout.get(),
                epochs: match self.settings.dropout_epochs {
                    DropoutEpochs::All(_) => None,
                    DropoutEpochs::First(epochs) => Some(epochs),
                },
                warmup_epochs: self.settings.dropout_warmup_epochs,
            },
            label_smoothing: self.settings.label_smoothing.get(),
            arithmetic: self.arithmetic,
        }
    }

    /// The progress before the first step.
    pub(crate) fn initial_progress(&self) -> Progress {
        Progress::new(
            self.settings.seed,
            self.train.len(),
            self.batch_size().get(),
        )
    }
}
