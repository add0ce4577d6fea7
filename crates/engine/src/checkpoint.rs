//! The checkpoints of a run: `best.safetensors` and `last.safetensors`, from which training resumes.
//!
//! The metadata of `last.safetensors` contains the [`Progress`]. The momentum buffers, as large as the weights, are in a
//! file of the same form, `momentum-EPOCH-STEP.safetensors`, which the metadata names; so is the EMA of the weights, if
//! there is one, in `ema-EPOCH-STEP.safetensors`.
//!
//! `last.safetensors` is replaced after these are complete, and older ones are removed after that: killed at any instant,
//! a process leaves files that belong together.

use crate::error::{Error, Unusable};
use crate::named_tensors::NamedTensors;
use crate::progress::{Position, Progress};
use crate::weights::{Content, Inputs, Weights, write};
use candle_core::Tensor;
use models::Architecture;
use run::file;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Keys of the metadata of `last.safetensors`.
mod key {
    pub(super) const PROGRESS: &str = "progress";
    pub(super) const MOMENTUM: &str = "momentum";
    pub(super) const EMA: &str = "ema";
    /// SHA-256 of the tensors in the files that these name.
    pub(super) const MOMENTUM_SHA256: &str = "momentum_sha256";
    pub(super) const EMA_SHA256: &str = "ema_sha256";
    /// [`EMA`] in format 1.
    pub(super) const EMA_1: &str = "average";
}

const MOMENTUM_PREFIX: &str = "momentum-";
const EMA_PREFIX: &str = "ema-";
/// [`EMA_PREFIX`] in format 1.
const EMA_PREFIX_1: &str = "average-";

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

/// The weights of the best epoch, on the CPU.
pub(crate) struct Best {
    pub(crate) weights: NamedTensors,
    /// Their SHA-256, if it is known.
    pub(crate) sha256: Option<String>,
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

    /// The error that `last.safetensors` cannot be written.
    pub(crate) fn not_written(&self, reason: io::Error) -> Error {
        let path = self.folder.join(file::LAST_WEIGHTS);
        Error::Write { path, reason }
    }

    /// Writes `best.safetensors`.
    pub(crate) fn write_best(
        &self,
        architecture: Architecture,
        Best { weights, sha256 }: &Best,
    ) -> Result<PathBuf, Error> {
        let path = self.folder.join(file::BEST_WEIGHTS);
        let (entries, sha256) = ([self.inputs.entry()], sha256.as_deref());
        let content = Content::Weights;
        write(&path, architecture, content, weights, sha256, entries)?;
        Ok(path)
    }

    /// Writes `last.safetensors`, its momentum buffers and its EMA. `sha256` is that of the weights.
    pub(crate) fn write_last(
        &self,
        architecture: Architecture,
        state: &State,
        sha256: &str,
        progress: &Progress,
    ) -> Result<PathBuf, Error> {
        let Position { epoch, step, .. } = progress.position;
        let name = |prefix| format!("{prefix}{epoch}-{step}.safetensors");
        let momentum = name(MOMENTUM_PREFIX);
        let path = self.folder.join(&momentum);
        let buffers = &state.momentum_buffers;
        let content = Content::MomentumBuffers;
        let momentum_sha256 = write(&path, architecture, content, buffers, None, [])?;
        let mut current = vec![momentum.clone()];
        let mut entries = vec![
            self.inputs.entry(),
            (key::PROGRESS, serde_json::to_string(progress)),
            (key::MOMENTUM, Ok(momentum)),
            (key::MOMENTUM_SHA256, Ok(momentum_sha256)),
        ];
        if let Some(ema) = &state.ema {
            let name = name(EMA_PREFIX);
            // Weights that can be evaluated, as those of `best.safetensors`.
            let path = self.folder.join(&name);
            let inputs = [self.inputs.entry()];
            let sha256 = write(&path, architecture, Content::Weights, ema, None, inputs)?;
            current.push(name.clone());
            entries.push((key::EMA, Ok(name)));
            entries.push((key::EMA_SHA256, Ok(sha256)));
        }
        let path = self.folder.join(file::LAST_WEIGHTS);
        let (content, weights) = (Content::Weights, &state.weights);
        write(&path, architecture, content, weights, Some(sha256), entries)?;
        self.remove_older(&current);
        Ok(path)
    }

    /// Reads `last.safetensors` and the files that belong to it; `None` if the run has not written it yet. Checkpoints of
    /// format 1 are read as well.
    ///
    /// # Errors
    /// As for [`Weights::read`], for each of the files, and when they lack the progress of the run.
    pub fn read_last(&self, architecture: Architecture) -> Result<Option<Checkpoint>, Error> {
        let path = self.folder.join(file::LAST_WEIGHTS);
        let not_resumable = |reason: &str| Unusable::NotResumable(reason.to_owned()).at(&path);
        if !path.exists() {
            return Ok(None);
        }
        let weights = Weights::read(&path, Some(architecture))?;
        weights.check_classes(&path, architecture.num_classes)?;
        let metadata = &weights.metadata;
        let entry = |key, missing| metadata.get(key).ok_or_else(|| not_resumable(missing));
        let progress = entry(key::PROGRESS, "it contains weights alone")?;
        let progress: Progress = serde_json::from_str(progress)
            .map_err(|error| not_resumable(&format!("its progress is damaged ({error})")))?;
        let tensors = |name: &String, content, sha256_key| {
            if !is_ours(name) || name.contains(['/', '\\']) {
                return Err(not_resumable(&format!(
                    "`{name}` is not the name of a file of momentum buffers or of an EMA"
                )));
            }
            let path = self.folder.join(name);
            let file = Weights::read_content(&path, Some(architecture), content)?;
            file.check_classes(&path, architecture.num_classes)?;
            // Earlier versions did not write the digest.
            let expected = metadata.get(sha256_key);
            if expected.is_some() && file.sha256() != expected {
                return Err(Unusable::OtherCheckpoint.at(&path));
            }
            let tensors = file.tensors.into_iter();
            Ok(tensors.map(|(_, tensor)| tensor).collect())
        };
        let momentum = entry(key::MOMENTUM, "it does not name its momentum file")?;
        let mut ema = [key::EMA, key::EMA_1].into_iter();
        let ema = ema.find_map(|key| metadata.get(key));
        Ok(Some(Checkpoint {
            momentum_buffers: tensors(momentum, Content::MomentumBuffers, key::MOMENTUM_SHA256)?,
            ema: ema
                .map(|name| tensors(name, Content::Weights, key::EMA_SHA256))
                .transpose()?,
            path: path.clone(),
            weights,
            progress,
        }))
    }

    /// Removes the files of older checkpoints. One that cannot be removed only takes space.
    fn remove_older(&self, current: &[String]) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if is_ours(&name)
                && !current.iter().any(|current| *current == name)
                && let Err(error) = atomic_file::remove_file(&entry.path())
            {
                tracing::warn!(file = %entry.path().display(), %error, "cannot remove an older checkpoint's file");
            }
        }
    }
}

/// Whether a file of this name has the momentum buffers or the EMA of a checkpoint.
fn is_ours(name: &str) -> bool {
    let mut prefixes = [MOMENTUM_PREFIX, EMA_PREFIX, EMA_PREFIX_1].iter();
    prefixes.any(|prefix| name.starts_with(prefix))
}
