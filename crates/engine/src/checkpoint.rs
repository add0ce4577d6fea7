//! The checkpoints of a run: `best.safetensors` and `last.safetensors`, from which training resumes.
//!
//! The metadata of `last.safetensors` contains the [`Progress`]. The momentum buffers, as large as the weights, are in a
//! file of the same form, `momentum-EPOCH-STEP.safetensors`, which the metadata names; so is the EMA of the weights, if
//! there is one, in `ema-EPOCH-STEP.safetensors`.
//!
//! `last.safetensors` is replaced after these are complete, and older ones are removed after that: killed at any instant,
//! a process leaves files that belong together.

use crate::error::Error;
use crate::named_tensors::NamedTensors;
use crate::progress::Progress;
use crate::weights::{Inputs, Weights, WeightsFile, json, write};
use candle_core::Tensor;
use models::Architecture;
use run::file;
use std::fs;
use std::path::{Path, PathBuf};

/// Keys of the metadata of `last.safetensors`.
mod key {
    pub(super) const PROGRESS: &str = "progress";
    pub(super) const MOMENTUM: &str = "momentum";
    pub(super) const EMA: &str = "ema";
    /// [`EMA`] in format 1.
    pub(super) const EMA_1: &str = "average";
}

const MOMENTUM_PREFIX: &str = "momentum-";
const EMA_PREFIX: &str = "ema-";
/// [`EMA_PREFIX`] in format 1.
const EMA_PREFIX_1: &str = "average-";
const PREFIXES: [&str; 3] = [MOMENTUM_PREFIX, EMA_PREFIX, EMA_PREFIX_1];

/// A checkpoint to resume training from.
pub struct Checkpoint {
    /// Its file.
    pub path: PathBuf,
    /// The weights of the network.
    pub weights: Weights,
    /// The momentum buffer of each parameter, in the order of the network.
    pub momentum_buffers: Vec<Tensor>,
    /// The EMA of each parameter, in the order of the network, if there is one.
    pub ema: Option<Vec<Tensor>>,
    /// Everything else.
    pub progress: Progress,
}

/// The tensors of a checkpoint, on the CPU.
pub(crate) struct State {
    pub(crate) weights: NamedTensors,
    pub(crate) momentum_buffers: NamedTensors,
    pub(crate) ema: Option<NamedTensors>,
}

/// The checkpoints of one run: `best.safetensors` and `last.safetensors` in its folder.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    inputs: Inputs,
}

impl Checkpoints {
    /// The checkpoints in the folder of a run.
    #[must_use]
    pub fn new(folder: &Path, inputs: Inputs) -> Self {
        Self {
            folder: folder.to_owned(),
            inputs,
        }
    }

    /// The weights of the epoch with the best test accuracy.
    #[must_use]
    pub fn best_path(&self) -> PathBuf {
        self.folder.join(file::BEST_WEIGHTS)
    }

    /// The latest checkpoint, from which training resumes.
    #[must_use]
    pub fn last_path(&self) -> PathBuf {
        self.folder.join(file::LAST_WEIGHTS)
    }

    /// Writes `best.safetensors`.
    pub(crate) fn write_best(
        &self,
        architecture: Architecture,
        weights: &NamedTensors,
    ) -> Result<PathBuf, Error> {
        let path = self.best_path();
        write(&path, architecture, weights, [self.inputs.entry(&path)?])?;
        Ok(path)
    }

    /// Writes `last.safetensors`, its momentum buffers and its EMA.
    pub(crate) fn write_last(
        &self,
        architecture: Architecture,
        state: &State,
        progress: &Progress,
    ) -> Result<PathBuf, Error> {
        let position = progress.position;
        let name =
            |prefix: &str| format!("{prefix}{}-{}.safetensors", position.epoch, position.step);
        let momentum = name(MOMENTUM_PREFIX);
        let path = self.folder.join(&momentum);
        write(&path, architecture, &state.momentum_buffers, [])?;
        let ema = state.ema.as_ref().map(|ema| {
            let name = name(EMA_PREFIX);
            let path = self.folder.join(&name);
            // Weights that can be evaluated, as those of `best.safetensors`.
            write(&path, architecture, ema, [self.inputs.entry(&path)?])?;
            Ok::<_, Error>(name)
        });
        let ema = ema.transpose()?;
        let path = self.last_path();
        let mut entries = vec![
            self.inputs.entry(&path)?,
            (key::PROGRESS, json(&path, progress)?),
            (key::MOMENTUM, momentum.clone()),
        ];
        entries.extend(ema.clone().map(|ema| (key::EMA, ema)));
        write(&path, architecture, &state.weights, entries)?;
        self.remove_older(&[Some(momentum), ema]);
        Ok(path)
    }

    /// Reads `last.safetensors` and the files that belong to it; `None` if the run has not written it yet. Checkpoints of
    /// format 1 are read as well.
    ///
    /// # Errors
    /// As for [`Weights::read`], for each of the files, and when they lack the progress of the run.
    pub fn read_last(&self, architecture: Architecture) -> Result<Option<Checkpoint>, Error> {
        let path = self.last_path();
        let not_resumable = |reason: &str| Error::NotResumable {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        if !path.exists() {
            return Ok(None);
        }
        let file = WeightsFile::read(&path)?;
        let weights = file.weights(Some(architecture))?;
        let progress = file.metadata.get(key::PROGRESS);
        let progress = progress.ok_or_else(|| not_resumable("it contains weights alone"))?;
        let progress: Progress = serde_json::from_str(progress)
            .map_err(|error| not_resumable(&format!("its progress is damaged ({error})")))?;
        let tensors = |name: &String| {
            let ours = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            if !ours || name.contains(['/', '\\']) {
                return Err(not_resumable(&format!(
                    "`{name}` is not the name of a file of momentum buffers or of an EMA"
                )));
            }
            let file = WeightsFile::read(&self.folder.join(name))?;
            let tensors = file.weights(Some(architecture))?.tensors.into_iter();
            Ok(tensors.map(|(_, tensor)| tensor).collect())
        };
        let momentum = file.metadata.get(key::MOMENTUM);
        let momentum =
            momentum.ok_or_else(|| not_resumable("it does not name its momentum file"))?;
        let ema = file
            .metadata
            .get(key::EMA)
            .or_else(|| file.metadata.get(key::EMA_1));
        Ok(Some(Checkpoint {
            momentum_buffers: tensors(momentum)?,
            ema: ema.map(tensors).transpose()?,
            path: path.clone(),
            weights,
            progress,
        }))
    }

    /// Removes the files of older checkpoints. One that cannot be removed only takes space.
    fn remove_older(&self, current: &[Option<String>]) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let ours = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            if ours
                && !current.iter().flatten().any(|current| *current == name)
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!(file = %entry.path().display(), %error, "cannot remove an older checkpoint's file");
            }
        }
    }
}
