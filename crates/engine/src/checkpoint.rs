//! Weights on disk.
//!
//! A checkpoint is a safetensors file with the network's parameters under PyTorch's names and in
//! PyTorch's shapes, and nothing else among its tensors, so that `load_state_dict` takes it as it is.
//! What else belongs to it is text in the file's metadata: format version, network and, in
//! `last.safetensors`, the whole [`Progress`]. The momentum, as large as the weights, lies beside it
//! in a file of the same shape, `momentum-<step>.safetensors`, which the metadata names; and so does the weights'
//! moving average, where there is one, in `average-<step>.safetensors`.
//!
//! `last.safetensors` takes its place only after these have, and older ones are removed only after that: killed at
//! any instant, those that belong together are there.

use crate::error::Error;
use crate::plateau::Plateau;
use crate::recipe::Positive;
use crate::training::{BestEpoch, Position};
use candle_core::{DType, Device, Tensor};
use models::{Architecture, CLASSES};
use run::EpochMetrics;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// The version of the format that this program writes, and the latest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Where training stands, apart from weights and momentum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The run's seed.
    pub seed: u64,
    /// Training images of an epoch.
    pub images: usize,
    /// Images a step.
    pub batch_size: usize,
    /// The next step.
    pub position: Position,
    /// The learning-rate schedule.
    pub plateau: Plateau,
    /// All finished epochs.
    pub history: Vec<EpochMetrics>,
    /// The best of them.
    pub best: Option<BestEpoch>,
}

/// What weights expect of their inputs and mean by their outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// Mean of each channel, taken out of the images; on a scale of 0 to 1.
    pub mean: [f64; 3],
    /// Standard deviation of each channel, by which the images are divided.
    pub standard_deviation: [Positive; 3],
    /// The classes by label.
    pub class_names: [String; CLASSES],
}

/// The parameters of a network, read from a file and checked.
pub struct Weights {
    /// The network.
    pub architecture: Architecture,
    /// What was known about its inputs; `None` in a bare file of weights.
    pub inputs: Option<Inputs>,
    /// All of its parameters, by name.
    pub tensors: Vec<(String, Tensor)>,
}

/// A checkpoint from which training goes on.
pub struct Checkpoint {
    /// The network's weights.
    pub weights: Weights,
    /// The momentum of each parameter, in the network's order.
    pub velocities: Vec<Tensor>,
    /// The moving average of each parameter, in the network's order, where there is one.
    pub averages: Option<Vec<Tensor>>,
    /// Everything else.
    pub progress: Progress,
}

/// The keys of a file's metadata.
mod key {
    pub(super) const VERSION: &str = "format_version";
    pub(super) const MODEL: &str = "model";
    pub(super) const INPUTS: &str = "inputs";
    pub(super) const PROGRESS: &str = "progress";
    pub(super) const MOMENTUM: &str = "momentum";
    pub(super) const AVERAGE: &str = "average";
}

impl Weights {
    /// Reads a checkpoint, or a bare file of weights as `safetensors.torch.save_file` makes it.
    /// `architecture` says which network's weights they must be; without it, the file must say.
    ///
    /// # Errors
    /// When the file is unreadable, incomplete, of a later format or of the other network; when a
    /// tensor is missing, unknown, of another shape or type, or holds a number that is not finite.
    pub fn read(path: &Path, architecture: Option<Architecture>) -> Result<Self, Error> {
        File::read(path)?.weights(architecture)
    }
}

/// The checkpoints of one run: `best.safetensors` and `last.safetensors` in its folder.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    inputs: Inputs,
}

impl Checkpoints {
    /// The checkpoints in a run's folder.
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
        self.folder.join("best.safetensors")
    }

    /// The latest weights, from which training goes on.
    #[must_use]
    pub fn last_path(&self) -> PathBuf {
        self.folder.join("last.safetensors")
    }

    /// Writes `best.safetensors`.
    pub(crate) fn write_best(
        &self,
        architecture: Architecture,
        weights: &[(String, Tensor)],
    ) -> Result<PathBuf, Error> {
        let path = self.best_path();
        let entries = [(key::INPUTS, text(&path, &self.inputs)?)];
        write(&path, architecture, weights, entries)?;
        Ok(path)
    }

    /// Writes `last.safetensors`, its momentum and, where there is one, its moving average.
    pub(crate) fn write_last(
        &self,
        architecture: Architecture,
        weights: &[(String, Tensor)],
        velocities: &[(String, Tensor)],
        averages: Option<&[(String, Tensor)]>,
        progress: &Progress,
    ) -> Result<PathBuf, Error> {
        let position = progress.position;
        let name = |prefix: &str| format!("{prefix}{}-{}{SUFFIX}", position.epoch, position.step);
        let momentum = name(MOMENTUM_PREFIX);
        write(&self.folder.join(&momentum), architecture, velocities, [])?;
        let average = averages.map(|averages| {
            let average = name(AVERAGE_PREFIX);
            let path = self.folder.join(&average);
            // Weights to evaluate by, as those of `best.safetensors`.
            let entries = [(key::INPUTS, text(&path, &self.inputs)?)];
            write(&path, architecture, averages, entries)?;
            Ok::<_, Error>(average)
        });
        let average = average.transpose()?;
        let path = self.last_path();
        let mut entries = vec![
            (key::INPUTS, text(&path, &self.inputs)?),
            (key::PROGRESS, text(&path, progress)?),
            (key::MOMENTUM, momentum.clone()),
        ];
        entries.extend(average.clone().map(|average| (key::AVERAGE, average)));
        write(&path, architecture, weights, entries)?;
        self.remove_older(&[Some(momentum), average]);
        Ok(path)
    }

    /// Reads `last.safetensors` and its momentum; `None` where the run has not written one yet.
    ///
    /// # Errors
    /// As for [`Weights::read`], for either file, and when they do not say where training stands.
    pub fn read_last(&self, architecture: Architecture) -> Result<Option<Checkpoint>, Error> {
        let path = self.last_path();
        let not_resumable = |reason: &str| Error::NotResumable {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        if !path.exists() {
            return Ok(None);
        }
        let file = File::read(&path)?;
        let weights = file.weights(Some(architecture))?;
        let text = file.metadata.get(key::PROGRESS);
        let text = text.ok_or_else(|| not_resumable("it holds weights alone"))?;
        let progress: Progress = serde_json::from_str(text)
            .map_err(|error| not_resumable(&format!("its progress is damaged ({error})")))?;
        let momentum = file.metadata.get(key::MOMENTUM);
        let momentum = momentum
            .filter(|name| name.starts_with(MOMENTUM_PREFIX) && !name.contains(['/', '\\']))
            .ok_or_else(|| not_resumable("it does not name its momentum file"))?;
        let momentum = File::read(&self.folder.join(momentum))?.weights(Some(architecture))?;
        let average = file.metadata.get(key::AVERAGE).map(|name| {
            if !name.starts_with(AVERAGE_PREFIX) || name.contains(['/', '\\']) {
                return Err(not_resumable("it names no proper file of averages"));
            }
            File::read(&self.folder.join(name))?.weights(Some(architecture))
        });
        let tensors = |weights: Weights| {
            let tensors = weights.tensors.into_iter();
            tensors.map(|(_, tensor)| tensor).collect()
        };
        Ok(Some(Checkpoint {
            weights,
            velocities: tensors(momentum),
            averages: average.transpose()?.map(tensors),
            progress,
        }))
    }

    /// Older files of momentum and averages. One that cannot be removed does no harm but to the space it takes.
    fn remove_older(&self, current: &[Option<String>]) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let ours = name.starts_with(MOMENTUM_PREFIX) || name.starts_with(AVERAGE_PREFIX);
            if ours
                && !current.iter().flatten().any(|current| *current == name)
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!(file = %entry.path().display(), %error, "cannot remove an older checkpoint's file");
            }
        }
    }
}

const MOMENTUM_PREFIX: &str = "momentum-";
const AVERAGE_PREFIX: &str = "average-";
const SUFFIX: &str = ".safetensors";

fn text(path: &Path, value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Write {
        path: path.to_owned(),
        source: error.into(),
    })
}

fn write<'a>(
    path: &Path,
    architecture: Architecture,
    tensors: &[(String, Tensor)],
    entries: impl IntoIterator<Item = (&'a str, String)>,
) -> Result<(), Error> {
    let mut metadata = HashMap::from([
        // What Hugging Face's readers look for.
        ("format".to_owned(), "pt".to_owned()),
        (key::VERSION.to_owned(), FORMAT_VERSION.to_string()),
        (key::MODEL.to_owned(), architecture.name.to_owned()),
    ]);
    let entries = entries.into_iter();
    metadata.extend(entries.map(|(key, value)| (key.to_owned(), value)));
    let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(std::io::Error::other);
    let bytes = bytes.and_then(|bytes| Ok(sorted(bytes)?));
    bytes
        .and_then(|bytes| atomic_file::write(path, &bytes))
        .map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })
}

/// The header of a safetensors file, its entries in the order of their names.
#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, serde_json::Value>,
}

/// The same safetensors file with its metadata in the order of the keys, which the library leaves
/// open: equal checkpoints are equal files.
fn sorted(mut bytes: Vec<u8>) -> serde_json::Result<Vec<u8>> {
    let (length, rest) = bytes.split_at_mut(8);
    let length = length
        .iter()
        .rev()
        .fold(0, |length, byte| length << 8 | usize::from(*byte));
    let old = &mut rest[..length];
    let header: Header = serde_json::from_slice(old)?;
    let header = serde_json::to_vec(&header)?;
    // The header ends in spaces, as the format allows, so that the tensors stay where they are.
    if header.len() <= old.len() {
        let (new, padding) = old.split_at_mut(header.len());
        new.copy_from_slice(&header);
        padding.fill(b' ');
    }
    Ok(bytes)
}

/// How the files of `torch.save` begin, which are zip archives.
const ZIP: &[u8] = b"PK\x03\x04";

/// A safetensors file in memory.
struct File {
    path: PathBuf,
    bytes: Vec<u8>,
    metadata: HashMap<String, String>,
}

impl File {
    fn read(path: &Path) -> Result<Self, Error> {
        let bytes = fs::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        let damaged = |error: safetensors::SafeTensorError| Error::NotSafetensors {
            path: path.to_owned(),
            reason: if bytes.starts_with(ZIP) {
                "it was made by torch.save; save the weights with safetensors.torch.save_file instead"
                    .to_owned()
            } else {
                error.to_string()
            },
        };
        // The whole file is checked first: the header alone could be right in one that is cut short.
        SafeTensors::deserialize(&bytes).map_err(damaged)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Self {
            path: path.to_owned(),
            bytes,
            metadata,
        })
    }

    /// The network's parameters in the network's order.
    fn weights(&self, architecture: Option<Architecture>) -> Result<Weights, Error> {
        self.check_version()?;
        let architecture = self.architecture(architecture)?;
        let tensors =
            SafeTensors::deserialize(&self.bytes).map_err(|error| Error::NotSafetensors {
                path: self.path.clone(),
                reason: error.to_string(),
            })?;
        let expected = architecture.parameters();
        if let Some(name) = tensors
            .names()
            .into_iter()
            .find(|name| expected.iter().all(|p| p.name != *name))
        {
            return Err(self.misfit(format!(
                "the tensor `{name}` is not a parameter of {architecture}"
            )));
        }
        let tensors = expected
            .into_iter()
            .map(|parameter| {
                let view = tensors.tensor(&parameter.name);
                let view = view.map_err(|_| {
                    self.misfit(format!("the tensor `{}` is missing", parameter.name))
                })?;
                if view.shape() != parameter.shape {
                    return Err(self.misfit(format!(
                        "the tensor `{}` has shape {:?}, but {architecture} expects {:?}",
                        parameter.name,
                        view.shape(),
                        parameter.shape
                    )));
                }
                let tensor = self.tensor(&parameter.name, &view)?;
                Ok((parameter.name, tensor))
            })
            .collect::<Result<_, Error>>()?;
        let inputs = self
            .metadata
            .get(key::INPUTS)
            .map(|text| serde_json::from_str(text));
        let inputs = inputs.transpose().map_err(|error| {
            self.misfit(format!(
                "its description of the inputs is damaged ({error})"
            ))
        })?;
        Ok(Weights {
            architecture,
            inputs,
            tensors,
        })
    }

    fn check_version(&self) -> Result<(), Error> {
        match self
            .metadata
            .get(key::VERSION)
            .map(|text| (text, text.parse::<u32>()))
        {
            // A bare file of weights has no version.
            None => Ok(()),
            Some((_, Ok(version))) if version <= FORMAT_VERSION => Ok(()),
            Some((text, _)) => Err(Error::FutureVersion {
                path: self.path.clone(),
                found: text.clone(),
            }),
        }
    }

    fn architecture(&self, wanted: Option<Architecture>) -> Result<Architecture, Error> {
        let named = self.metadata.get(key::MODEL);
        match (named, wanted) {
            (Some(named), Some(wanted)) if named == wanted.name => Ok(wanted),
            (Some(named), Some(wanted)) => Err(Error::OtherModel {
                path: self.path.clone(),
                found: named.clone(),
                expected: wanted,
            }),
            (Some(named), None) => named
                .parse()
                .map_err(|error: models::UnknownArchitecture| self.misfit(error.to_string())),
            (None, Some(wanted)) => Ok(wanted),
            (None, None) => Err(Error::UnknownModel {
                path: self.path.clone(),
            }),
        }
    }

    /// One tensor as `f32`, every number of it finite.
    fn tensor(
        &self,
        name: &str,
        view: &safetensors::tensor::TensorView<'_>,
    ) -> Result<Tensor, Error> {
        use safetensors::Dtype;
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(self.misfit(format!(
                    "the tensor `{name}` holds {other:?}, not floating-point numbers"
                )));
            }
        };
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?;
        let tensor = tensor.to_dtype(DType::F32)?;
        match not_finite(&tensor)? {
            None => Ok(tensor),
            Some(value) => Err(Error::NotFinite {
                path: self.path.clone(),
                tensor: name.to_owned(),
                value,
            }),
        }
    }

    fn misfit(&self, reason: String) -> Error {
        Error::Misfit {
            path: self.path.clone(),
            reason,
        }
    }
}

/// A number of an `f32` tensor that is infinite or not a number, if there is one.
pub(crate) fn not_finite(tensor: &Tensor) -> candle_core::Result<Option<f64>> {
    // The sum of squares is finite where all are, but for numbers that no network holds; only
    // otherwise is every number looked at.
    let squares = tensor.sqr()?.sum_all()?.to_scalar::<f32>()?;
    if squares.is_finite() {
        return Ok(None);
    }
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    Ok(values
        .into_iter()
        .find(|value| !value.is_finite())
        .map(f64::from))
}
