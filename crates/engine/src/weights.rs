//! Weights in safetensors files.
//!
//! A file has the parameters of a network under PyTorch's names and in PyTorch's shapes, and no other tensors, so that
//! `load_state_dict` takes it as it is. The rest is JSON in the metadata: the format version, the network and its inputs.

use crate::error::{Error, Unusable};
use crate::named_tensors::{NamedTensors, non_finite_value, to_device};
use candle_core::{DType, Device, Tensor};
use models::{Architecture, CLASSES, Network};
use run::Positive;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::{fs, io};

/// The version of the format that is written, and the latest that is read. Version 2 renamed keys of the metadata.
const FORMAT_VERSION: u32 = 2;

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
    /// The entry of the metadata.
    pub(crate) fn entry(&self) -> Entry {
        (key::INPUTS, serde_json::to_string(self))
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
    /// All metadata of the file.
    pub(crate) metadata: HashMap<String, String>,
}

/// The first bytes of a file of `torch.save`, which is a zip archive.
const ZIP: &[u8] = b"PK\x03\x04";

impl Weights {
    /// Reads a checkpoint, or a file of plain weights as written by `safetensors.torch.save_file`.
    /// `architecture` is the expected network; without it, the file must name one.
    ///
    /// # Errors
    /// When the file is unreadable, incomplete, of a later format or of another network; when a tensor is missing,
    /// unknown, of another shape or type, or has a value that is not finite.
    pub fn read(path: &Path, architecture: Option<Architecture>) -> Result<Self, Error> {
        let bytes = fs::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&bytes, architecture).map_err(|reason| reason.at(path))
    }

    fn parse(bytes: &[u8], wanted: Option<Architecture>) -> Result<Self, Unusable> {
        let damaged = |error: safetensors::SafeTensorError| {
            Unusable::NotSafetensors(if bytes.starts_with(ZIP) {
                "it was made by torch.save; save the weights with safetensors.torch.save_file instead"
                    .to_owned()
            } else {
                error.to_string()
            })
        };
        let tensors = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        // A file of plain weights has no version.
        if let Some(version) = metadata.get(key::VERSION)
            && !version
                .parse()
                .is_ok_and(|version: u32| version <= FORMAT_VERSION)
        {
            return Err(Unusable::LaterVersion(version.clone(), FORMAT_VERSION));
        }
        let architecture = match (metadata.get(key::MODEL), wanted) {
            (Some(named), Some(wanted)) if named != wanted.name => {
                return Err(Unusable::OtherModel(named.clone(), wanted));
            }
            (_, Some(wanted)) => wanted,
            (Some(named), None) => named.parse().map_err(misfit)?,
            (None, None) => return Err(Unusable::UnknownModel),
        };
        let tensors = architecture.in_order(tensors.tensors(), |view| view.shape());
        let tensors = tensors.map_err(misfit)?.into_iter().map(|(name, view)| {
            let tensor = tensor(&name, &view)?;
            Ok((name, tensor))
        });
        let tensors = tensors.collect::<Result<_, _>>()?;
        let inputs = metadata
            .get(key::INPUTS)
            .map(|text| serde_json::from_str(text));
        let inputs = inputs.transpose().map_err(|error| {
            misfit(format!(
                "its description of the inputs is damaged ({error})"
            ))
        })?;
        Ok(Self {
            architecture,
            inputs,
            tensors,
            metadata,
        })
    }

    /// The network with these weights, on `device`.
    ///
    /// # Errors
    /// When the device has no memory for them.
    pub fn into_network(self, device: &Device) -> candle_core::Result<Network> {
        Network::new(self.architecture, to_device(self.tensors, device)?)
    }
}

/// An entry of the metadata: its key, and its value as JSON.
pub(crate) type Entry = (&'static str, serde_json::Result<String>);

/// Writes tensors of a network, with more entries of metadata.
pub(crate) fn write(
    path: &Path,
    architecture: Architecture,
    tensors: &NamedTensors,
    entries: impl IntoIterator<Item = Entry>,
) -> Result<(), Error> {
    let write = || {
        let mut metadata = HashMap::from([
            // What Hugging Face's libraries look for.
            ("format".to_owned(), "pt".to_owned()),
            (key::VERSION.to_owned(), FORMAT_VERSION.to_string()),
            (key::MODEL.to_owned(), architecture.name.to_owned()),
        ]);
        for (key, value) in entries {
            metadata.insert(key.to_owned(), value?);
        }
        let tensors = tensors.iter().map(|(name, tensor)| (name, tensor));
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(io::Error::other)?;
        atomic_file::write(path, &sorted(bytes)?)
    };
    write().map_err(|source| Error::Write {
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
fn sorted(mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    let (length, _) = SafeTensors::read_metadata(&bytes).map_err(io::Error::other)?;
    let old = &mut bytes[8..8 + length];
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

fn misfit(reason: impl ToString) -> Unusable {
    Unusable::Misfit(reason.to_string())
}

/// One tensor as `f32`, with finite values only.
fn tensor(name: &str, view: &TensorView<'_>) -> Result<Tensor, Unusable> {
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => {
            return Err(misfit(format!(
                "the tensor `{name}` has type {other:?}, which is not a floating-point type"
            )));
        }
    };
    let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu);
    let tensor = tensor.and_then(|tensor| tensor.to_dtype(DType::F32));
    let tensor = tensor.map_err(misfit)?;
    match non_finite_value(&tensor).map_err(misfit)? {
        None => Ok(tensor),
        Some(value) => Err(Unusable::NotFinite(name.to_owned(), value)),
    }
}
