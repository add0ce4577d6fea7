//! Weights in safetensors files.
//!
//! A file has the parameters of a network under PyTorch's names and in PyTorch's shapes, and no other tensors, so that
//! `load_state_dict` takes it as it is. The rest is JSON in the metadata: the format version, the network and its inputs.

use crate::error::Error;
use crate::named_tensors::{NamedTensors, non_finite_value, to_device};
use candle_core::{DType, Device, Tensor};
use models::{Architecture, CLASSES, Network};
use run::Positive;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// The version of the format that is written, and the latest that is read. Version 2 renamed keys of the metadata.
pub const FORMAT_VERSION: u32 = 2;

/// Keys of the metadata.
mod key {
    pub(super) const VERSION: &str = "format_version";
    pub(super) const MODEL: &str = "model";
    pub(super) const INPUTS: &str = "inputs";
}

/// The inputs and outputs that weights are trained for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// Mean of each channel, which is subtracted from images on a scale of 0 to 1.
    pub mean: [f64; 3],
    /// Standard deviation of each channel, by which images are divided.
    #[serde(alias = "standard_deviation")]
    pub std: [Positive; 3],
    /// The classes by label.
    pub class_names: [String; CLASSES],
}

impl Inputs {
    /// The entry of the metadata of the file at `path`.
    pub(crate) fn entry(&self, path: &Path) -> Result<(&'static str, String), Error> {
        Ok((key::INPUTS, json(path, self)?))
    }

    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self {
            mean: [0.5, 0.25, 0.75],
            std: [0.25; 3].map(|value: f64| value.try_into().unwrap()),
            class_names: std::array::from_fn(|class| class.to_string()),
        }
    }
}

/// The parameters of a network, read from a file and checked.
pub struct Weights {
    /// The network.
    pub architecture: Architecture,
    /// The inputs it was trained for; `None` in a file of plain weights.
    pub inputs: Option<Inputs>,
    /// All parameters by name, in the order of the network, `f32`, on the CPU.
    pub tensors: NamedTensors,
}

impl Weights {
    /// Reads a checkpoint, or a file of plain weights as written by `safetensors.torch.save_file`.
    /// `architecture` is the expected network; without it, the file must name one.
    ///
    /// # Errors
    /// When the file is unreadable, incomplete, of a later format or of another network; when a tensor is missing,
    /// unknown, of another shape or type, or has a value that is not finite.
    pub fn read(path: &Path, architecture: Option<Architecture>) -> Result<Self, Error> {
        WeightsFile::read(path)?.weights(architecture)
    }

    /// The network with these weights, on `device`.
    ///
    /// # Errors
    /// When the device has no memory for them.
    pub fn into_network(self, device: &Device) -> candle_core::Result<Network> {
        Network::new(self.architecture, to_device(self.tensors, device)?)
            .map_err(candle_core::Error::wrap)
    }
}

/// A value of the metadata as JSON.
pub(crate) fn json(path: &Path, value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Write {
        path: path.to_owned(),
        source: error.into(),
    })
}

/// Writes tensors of a network, with more entries of metadata.
pub(crate) fn write<'a>(
    path: &Path,
    architecture: Architecture,
    tensors: &[(String, Tensor)],
    entries: impl IntoIterator<Item = (&'a str, String)>,
) -> Result<(), Error> {
    let mut metadata = HashMap::from([
        // What Hugging Face's libraries look for.
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

/// The header of a safetensors file, sorted by key.
#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, serde_json::Value>,
}

/// Sorts the metadata of a safetensors file by key, so that equal checkpoints are equal files: the library writes it in
/// any order.
fn sorted(mut bytes: Vec<u8>) -> serde_json::Result<Vec<u8>> {
    let (length, rest) = bytes.split_at_mut(8);
    let length = length
        .iter()
        .rev()
        .fold(0, |length, byte| length << 8 | usize::from(*byte));
    let old = &mut rest[..length];
    let header: Header = serde_json::from_slice(old)?;
    let header = serde_json::to_vec(&header)?;
    // The format allows spaces at the end of the header; the tensors keep their offsets.
    if header.len() <= old.len() {
        let (new, padding) = old.split_at_mut(header.len());
        new.copy_from_slice(&header);
        padding.fill(b' ');
    }
    Ok(bytes)
}

/// The first bytes of a file of `torch.save`, which is a zip archive.
const ZIP: &[u8] = b"PK\x03\x04";

/// A safetensors file in memory.
pub(crate) struct WeightsFile {
    path: PathBuf,
    bytes: Vec<u8>,
    pub(crate) metadata: HashMap<String, String>,
}

impl WeightsFile {
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
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
        // Checks the whole file: the header of a truncated one can be intact.
        SafeTensors::deserialize(&bytes).map_err(damaged)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Self {
            path: path.to_owned(),
            bytes,
            metadata,
        })
    }

    /// The parameters of the network, in its order. `architecture` is the expected network; without it, the file must
    /// name one.
    pub(crate) fn weights(&self, architecture: Option<Architecture>) -> Result<Weights, Error> {
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
            // A file of plain weights has no version.
            None => Ok(()),
            Some((_, Ok(version))) if version <= FORMAT_VERSION => Ok(()),
            Some((text, _)) => Err(Error::FutureVersion {
                path: self.path.clone(),
                found: text.clone(),
                supported: FORMAT_VERSION,
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

    /// One tensor as `f32`, with finite values only.
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
                    "the tensor `{name}` has type {other:?}, which is not a floating-point type"
                )));
            }
        };
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?;
        let tensor = tensor.to_dtype(DType::F32)?;
        match non_finite_value(&tensor)? {
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
