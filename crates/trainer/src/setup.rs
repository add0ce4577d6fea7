//! From resolved settings to data and training.

use crate::backend::Backend;
use crate::data::{Data, Limits};
use crate::settings::Resolved;
use anyhow::bail;
use engine::{Checkpoints, Inputs, Training, TrainingSetup, Weights};
use models::{Network, initial_parameters};
use run::{Record, RunFolder};

/// What training needs: the settings of a run, its images, and what it computes with.
pub(crate) struct Setup {
    pub(crate) resolved: Resolved,
    pub(crate) data: Data,
    pub(crate) backend: Backend,
}

impl Setup {
    /// Opens the device and loads the images.
    pub(crate) fn new(resolved: Resolved) -> anyhow::Result<Self> {
        let run = &resolved.settings;
        let backend = Backend::new(run)?;
        let overfit = run.overfit_batches;
        let limits = Limits {
            train: run.limit_train,
            test: run.limit_test,
            validation: run.validation.map(|images| (images, run.seed)),
            overfit: overfit.map(|batches| batches.saturating_mul(run.batch_size)),
            ..Limits::default()
        };
        Ok(Self {
            data: Data::load(resolved.dataset, &run.data_dir, limits)?,
            resolved,
            backend,
        })
    }

    /// Training from the first step.
    pub(crate) fn start(&self) -> anyhow::Result<Training> {
        let run = &self.resolved.settings;
        let architecture = self.resolved.architecture;
        let device = &self.backend.device;
        let network = match &run.init {
            Some(path) => Weights::read(path, Some(architecture))?.into_network(device)?,
            None => {
                let parameters =
                    initial_parameters(architecture, run.weight_init, run.seed, device)?;
                Network::new(architecture, parameters)?
            }
        };
        Ok(Training::new(self.training_setup(), network)?)
    }

    /// Training from the last checkpoint of a run, or from the first step where there is none yet.
    pub(crate) fn resume(&self, folder: &RunFolder) -> anyhow::Result<Training> {
        let checkpoints = self.checkpoints(folder);
        let Some(checkpoint) = checkpoints.read_last(self.resolved.architecture)? else {
            return self.start();
        };
        let recorded = Record::read(folder.path())?.made_by.data_sha256;
        if recorded != self.data.digest {
            bail!(
                "the run `{}` was made with other data (SHA-256 {recorded}) than those in use now ({})",
                folder.path().display(),
                self.data.digest
            );
        }
        Ok(Training::resume(self.training_setup(), checkpoint)?)
    }

    fn training_setup(&self) -> TrainingSetup {
        TrainingSetup {
            settings: self.resolved.settings.clone(),
            train: self.data.train.clone(),
            test: self.data.test.clone(),
            split: self.data.evaluated,
            device: self.backend.device.clone(),
            arithmetic: self.backend.arithmetic,
        }
    }

    /// The checkpoints in a run's folder.
    pub(crate) fn checkpoints(&self, folder: &RunFolder) -> Checkpoints {
        let settings = &self.resolved.settings;
        let inputs = Inputs {
            mean: settings.mean.0,
            std: settings.std.0,
            class_names: self.data.class_names.map(str::to_owned),
        };
        Checkpoints::new(folder.path(), inputs)
    }
}
