//! From resolved settings to data and training.

use crate::backend::Backend;
use crate::data::{Data, Limits};
use crate::settings::Resolved;
use anyhow::bail;
use engine::{Checkpoints, Inputs, Training, TrainingSetup, Weights};
use models::{Network, initial_parameters};
use run::{Record, RunFolder};

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

/// Training from the first step.
pub(crate) fn start(
    resolved: &Resolved,
    data: &Data,
    backend: &Backend,
) -> anyhow::Result<Training> {
    let run = &resolved.settings;
    let architecture = resolved.architecture;
    let device = &backend.device;
    let network = match &run.init {
        Some(path) => Weights::read(path, Some(architecture))?.into_network(device)?,
        None => {
            let parameters = initial_parameters(architecture, run.weight_init, run.seed, device)?;
            Network::new(architecture, parameters)?
        }
    };
    Ok(Training::new(setup(resolved, data, backend), network)?)
}

/// Training from the last checkpoint of a run, or from the first step where there is none yet.
pub(crate) fn resume(
    resolved: &Resolved,
    data: &Data,
    backend: &Backend,
    folder: &RunFolder,
) -> anyhow::Result<Training> {
    let checkpoints = checkpoints(resolved, data, folder);
    let Some(checkpoint) = checkpoints.read_last(resolved.architecture)? else {
        return start(resolved, data, backend);
    };
    let recorded = Record::read(folder.path())?.made_by.data_sha256;
    if recorded != data.digest {
        bail!(
            "the run `{}` was made with other data (SHA-256 {recorded}) than those in use now ({})",
            folder.path().display(),
            data.digest
        );
    }
    Ok(Training::resume(
        setup(resolved, data, backend),
        checkpoint,
    )?)
}

fn setup(resolved: &Resolved, data: &Data, backend: &Backend) -> TrainingSetup {
    TrainingSetup {
        settings: resolved.settings.clone(),
        train: data.train.clone(),
        test: data.test.clone(),
        split: data.evaluated,
        device: backend.device.clone(),
        arithmetic: backend.arithmetic,
    }
}

/// The checkpoints in a run's folder.
pub(crate) fn checkpoints(resolved: &Resolved, data: &Data, folder: &RunFolder) -> Checkpoints {
    Checkpoints::new(
        folder.path(),
        Inputs {
            mean: resolved.settings.mean.0,
            std: resolved.settings.std.0,
            class_names: data.class_names.map(str::to_owned),
        },
    )
}
