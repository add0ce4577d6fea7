//! What a run trains with.

use crate::data_loader::DataLoader;
use crate::lr_scheduler::{Plateau, Schedule, Scheduler, WarmUp};
use crate::optimiser::Sgd;
use crate::process_group::ProcessGroup;
use crate::progress::Progress;
use candle_core::{Device, Result};
use candle_nn::Optimizer;
use datasets::{Normalisation, Split};
use models::Network;
use ops::{Arithmetic, Shards};
use run::settings::{LrScheduler, WeightDecayOn};
use run::{EvaluationSplit, Settings};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

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
    /// Images per batch of an evaluation on a GPU, if they were chosen before.
    pub evaluation_batch: Option<NonZeroUsize>,
    /// The engines of cuDNN that were chosen before, on a GPU.
    pub cudnn_engines: BTreeMap<String, String>,
    /// The processes that train the network together, if there are several. There are at most as many as gradient shards.
    pub process_group: Option<Arc<dyn ProcessGroup>>,
}

/// The parts of training, made from the settings.
impl TrainingSetup {
    pub(crate) fn train_loader(&self) -> Result<DataLoader> {
        let mut loader = DataLoader::new(
            self.train.clone(),
            self.settings.batch_size,
            Normalisation::from(&self.settings),
            &self.device,
            self.arithmetic.precision,
        )?;
        if let Some(group) = &self.process_group {
            let (rank, size) = (group.rank(), group.size());
            let count = self.settings.gradient_shards.get() as usize;
            loader.part = Some(Arc::new(move |images| {
                Shards::new(images, count).of_rank(rank, size).images()
            }));
        }
        if self.settings.overfit_batches.is_some() {
            loader.host = loader.host.in_order();
        }
        Ok(loader)
    }

    /// The shards of a batch of `images` images, over all processes.
    pub(crate) fn shards(&self, images: usize) -> Shards {
        Shards::new(images, self.settings.gradient_shards.get() as usize)
    }

    /// The shards of a batch of `images` images that this process computes.
    pub(crate) fn own_shards(&self, images: usize) -> Shards {
        let shards = self.shards(images);
        match &self.process_group {
            Some(group) => shards.of_rank(group.rank(), group.size()),
            None => shards,
        }
    }

    /// Whether this process writes the files of the run.
    pub(crate) fn is_main(&self) -> bool {
        self.process_group
            .as_ref()
            .is_none_or(|group| group.rank() == 0)
    }

    pub(crate) fn optimiser(&self, network: &Network) -> Result<Sgd> {
        let settings = &self.settings;
        let factors = ops::Sgd {
            learning_rate: settings.lr.get(),
            momentum: settings.momentum.get(),
            weight_decay: settings.weight_decay.get(),
            nesterov: settings.nesterov,
        };
        let variables = network.variables().iter();
        let variables = variables.map(|(_, variable)| variable.clone()).collect();
        let mut sgd = Sgd::new(variables, factors)?;
        sgd.decay_biases = settings.weight_decay_on == WeightDecayOn::All;
        sgd.clip_grad_norm = settings.clip_grad_norm.get();
        Ok(sgd)
    }

    pub(crate) fn scheduler(&self, steps_per_epoch: usize) -> Scheduler {
        let settings = &self.settings;
        let lr = settings.lr.get();
        let final_factor = settings.lr_final_factor.get();
        let schedule = match settings.lr_scheduler {
            LrScheduler::Constant => Schedule::Constant,
            LrScheduler::Plateau => Schedule::Plateau(Plateau::new(
                lr,
                settings.patience,
                settings.plateau_factor.get(),
                settings.plateau_threshold.get(),
            )),
            LrScheduler::Cosine => Schedule::Cosine { final_factor },
            LrScheduler::OneCycle => Schedule::OneCycle { final_factor },
        };
        let warm_up = WarmUp::new(
            settings.lr_warmup_epochs.get(),
            steps_per_epoch,
            settings.lr_warmup_start_factor.get(),
        );
        let steps = u64::from(settings.epochs.get()) * steps_per_epoch as u64;
        Scheduler::new(lr, warm_up, schedule, steps)
    }

    /// The progress before the first step.
    pub(crate) fn initial_progress(&self) -> std::result::Result<Progress, run::Error> {
        let Settings {
            seed, batch_size, ..
        } = self.settings;
        Ok(Progress {
            settings: self.settings.fixed_on_resume()?,
            ..Progress::new(seed, self.train.len(), batch_size.get())
        })
    }
}
