//! Weights in files.
//!
//! A safetensors file has the parameters of a network under PyTorch's names and in PyTorch's shapes, and no other tensors,
//! so that `load_state_dict` takes it as it is. The rest is JSON in the metadata: the format version, the network and its
//! inputs, and the SHA-256 of the tensors, by which a damaged file is found. Momentum buffers are in files of the same form.
//!
//! Files from elsewhere are read as well: those of `torch.save`, and safetensors files without metadata or with other
//! people's. All names may have a prefix, as `DistributedDataParallel` (`module.`), `torch.compile` (`_orig_mod.`) and
//! Lightning (`model.`) leave it.

use crate::error::{Error, Unusable};
use crate::named_tensors::{NamedTensors, non_finite_value, sha256, to_device};
use crate::pytorch;
use crate::view::{Float, NamedViews, View};
use candle_core::{Device, Tensor};
use models::{Architecture, Network, initial_last_layer};
use run::predictions::NUM_CLASSES;
use run::settings::WeightInit;
use run::{Finite, Positive, cli};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
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
    pub(super) const CONTENT: &str = "content";
    pub(super) const SHA256: &str = "tensors_sha256";
}

/// What the tensors of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The weights of a network, or their EMA.
    Weights,
    /// The momentum buffers of the weights.
    MomentumBuffers,
}

impl Content {
    /// The value in the metadata. Earlier versions did not write it.
    fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::MomentumBuffers => "momentum buffers",
        }
    }
}

/// The inputs and outputs that weights are trained for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// Mean of each channel, which is subtracted from images on a scale of 0 to 1.
    pub mean: [Finite; 3],
    /// Standard deviation of each channel, by which images are divided.
    #[serde(alias = "standard_deviation")]
    pub std: [Positive; 3],
    /// The classes by label.
    pub class_names: Vec<String>,
}

impl Inputs {
    /// The entry of the metadata.
    pub(crate) fn entry(&self) -> Entry {
        (key::INPUTS, serde_json::to_string(self))
    }

    /// The inputs of a network with this number of classes.
    fn parse(text: &str, classes: usize) -> Result<Self, String> {
        let inputs: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let found = inputs.class_names.len();
        if found != classes {
            return Err(format!(
                "it names {}, but the network has {classes}",
                cli::count(found, "class")
            ));
        }
        let is_printable =
            |name: &String| cli::printable(name) == *name && !name.contains(['\n', '\t']);
        match inputs.class_names.iter().find(|name| !is_printable(name)) {
            Some(name) => Err(format!(
                "the class name {name:?} has characters that cannot be printed"
            )),
            None => Ok(inputs),
        }
    }

    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self {
            mean: [0.5, 0.25, 0.75].map(|value: f64| value.try_into().unwrap()),
            std: [0.25; 3].map(|value: f64| value.try_into().unwrap()),
            class_names: (0..10).map(|class| class.to_string()).collect(),
        }
    }
}

/// The parameters of a network, read from a file and checked.
pub struct Weights {
    /// The network.
    pub architecture: Architecture,
    /// The inputs it was trained for; `None` in a file of plain weights.
    pub inputs: Option<Inputs>,
    /// What the names of all tensors in the file begin with, such as `module.`; empty where they are the network's.
    pub prefix: String,
    /// The network that the metadata names, where it is another one than the caller's, whose shapes the tensors have.
    pub other_model: Option<String>,
    /// All parameters by name, in the order of the network, `f32`, on the CPU.
    pub tensors: NamedTensors,
    /// All metadata of the file.
    pub(crate) metadata: HashMap<String, String>,
}

impl Weights {
    /// Reads a checkpoint, or a file of plain weights as written by `safetensors.torch.save_file` or `torch.save`.
    /// `architecture` is the expected network; without it, the file must name one. The network has the file's number of
    /// classes.
    ///
    /// # Errors
    /// When the file is unreadable, incomplete, of a later format or of another network; when a tensor is missing,
    /// unknown, of another shape or type, or has a value that is not finite; when the tensors are momentum buffers, or do
    /// not have the SHA-256 in the metadata.
    pub fn read(path: &Path, architecture: Option<Architecture>) -> Result<Self, Error> {
        Self::read_content(path, architecture, Content::Weights)
    }

    /// Reads a file with this content.
    ///
    /// # Errors
    /// As for [`Weights::read`]; momentum buffers are refused only where weights are asked for.
    pub fn read_content(
        path: &Path,
        architecture: Option<Architecture>,
        content: Content,
    ) -> Result<Self, Error> {
        let bytes = fs::read(path).map_err(|reason| Error::Read {
            path: path.to_owned(),
            reason,
        })?;
        Self::parse(&bytes, architecture, content).map_err(|reason| reason.at(path))
    }

    /// These weights for another number of classes: the parameters of all layers but the last, which is initialised as in
    /// a new network.
    ///
    /// # Errors
    /// When the last layer does not fit into memory.
    pub fn with_new_last_layer(
        self,
        num_classes: usize,
        weight_init: WeightInit,
        seed: u64,
    ) -> candle_core::Result<Self> {
        let architecture = self.architecture.with_classes(num_classes);
        let last = initial_last_layer(architecture, weight_init, seed, &Device::Cpu)?;
        let mut tensors = self.tensors;
        tensors.truncate(tensors.len() - last.len());
        tensors.extend(last);
        Ok(Self {
            architecture,
            tensors,
            ..self
        })
    }

    /// Checks that the network has this number of classes.
    ///
    /// # Errors
    /// When it has another one.
    pub fn check_classes(&self, path: &Path, classes: usize) -> Result<(), Error> {
        match self.architecture.num_classes {
            found if found == classes => Ok(()),
            found => Err(Unusable::Classes(found, classes).at(path)),
        }
    }

    /// SHA-256 of the tensors; `None` in a file from elsewhere or of an earlier version.
    pub(crate) fn sha256(&self) -> Option<&String> {
        self.metadata.get(key::SHA256)
    }

    fn parse(
        bytes: &[u8],
        wanted: Option<Architecture>,
        content: Content,
    ) -> Result<Self, Unusable> {
        let (tensors, metadata) = match read_safetensors(bytes) {
            Ok(read) => read,
            Err(_) if pytorch::is_recognised(bytes) => {
                let tensors = pytorch::read(bytes);
                let tensors =
                    tensors.map_err(|reason| Unusable::NotPyTorch(cli::one_line(&reason)));
                (tensors?, HashMap::new())
            }
            Err(error) => {
                let description = describe(bytes).unwrap_or_else(|| describe_error(&error));
                let description = cli::one_line(&format!("it {description}"));
                return Err(Unusable::NotWeights(description));
            }
        };
        // Files of plain weights have no version; those of other programs may have anything.
        let version = metadata.get(key::VERSION);
        let version = version.and_then(|version| version.parse::<u32>().ok());
        if let Some(version) = version
            && version > FORMAT_VERSION
        {
            return Err(Unusable::LaterVersion(version, FORMAT_VERSION));
        }
        let is_momentum = |name: &String| name == Content::MomentumBuffers.name();
        if metadata.get(key::CONTENT).is_some_and(is_momentum) && content == Content::Weights {
            return Err(Unusable::MomentumBuffers);
        }
        let named = metadata.get(key::MODEL).map(|name| cli::one_line(name));
        let architecture = match (wanted, &named) {
            (Some(wanted), _) => wanted,
            (None, Some(name)) => {
                let known = name.parse();
                known.map_err(|_| Unusable::UnknownModel(named.clone()))?
            }
            (None, None) => return Err(Unusable::UnknownModel(None)),
        };
        let other_model = named.filter(|name| name != architecture.name);
        let prefix = prefix(&tensors, architecture);
        let architecture = with_classes_of(&tensors, &prefix, architecture);
        let tensors = tensors.into_iter().map(|(name, view)| {
            let name = name.strip_prefix(&prefix).unwrap_or(&name).to_owned();
            (name, view)
        });
        let tensors = architecture.in_order(tensors, |view| &view.shape);
        let tensors = tensors.map_err(|mismatch| match &other_model {
            Some(name) if name.parse::<Architecture>().is_ok() => {
                Unusable::OtherModel(name.clone(), architecture)
            }
            _ => misfit(mismatch),
        })?;
        let tensors = tensors.into_iter().map(|(name, view)| {
            let tensor = tensor(&name, &view)?;
            Ok((name, tensor))
        });
        let tensors = tensors.collect::<Result<_, _>>()?;
        if let Some(expected) = metadata.get(key::SHA256)
            && *expected != sha256(&tensors).map_err(misfit)?
        {
            return Err(Unusable::WrongDigest);
        }
        let inputs = metadata.get(key::INPUTS);
        // Other programs may use the key for something else.
        let inputs = inputs.filter(|text| version.is_some() || text.contains("\"mean\""));
        let inputs = inputs
            .map(|text| Inputs::parse(text, architecture.num_classes))
            .transpose();
        let inputs = inputs.map_err(|reason| {
            misfit(format!(
                "its description of the inputs is damaged ({reason})"
            ))
        })?;
        Ok(Self {
            architecture,
            inputs,
            prefix,
            other_model,
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

/// The network with as many classes as its last layer has outputs in a file. Other numbers than those of data are left to
/// the comparison of shapes.
fn with_classes_of(
    tensors: &[(String, View<'_>)],
    prefix: &str,
    architecture: Architecture,
) -> Architecture {
    let parameters = architecture.parameters();
    let last = parameters.last().map_or("", |bias| &bias.name);
    let mut tensors = tensors.iter();
    let bias = tensors.find(|(name, _)| name.strip_prefix(prefix) == Some(last));
    match bias.map(|(_, bias)| bias.shape.as_slice()) {
        Some(&[classes]) if NUM_CLASSES.contains(&classes) => architecture.with_classes(classes),
        _ => architecture,
    }
}

/// An entry of the metadata: its key, and its value as JSON.
pub(crate) type Entry = (&'static str, serde_json::Result<String>);

/// Writes tensors of a network, with more entries of metadata. Returns their SHA-256, which is computed unless it is
/// given.
pub(crate) fn write(
    path: &Path,
    architecture: Architecture,
    content: Content,
    tensors: &NamedTensors,
    known_sha256: Option<&str>,
    entries: impl IntoIterator<Item = Entry>,
) -> Result<String, Error> {
    let sha256 = match known_sha256 {
        Some(known) => known.to_owned(),
        None => sha256(tensors)?,
    };
    let write = || {
        let mut metadata = HashMap::from([
            // What Hugging Face's libraries look for.
            ("format".to_owned(), "pt".to_owned()),
            (key::VERSION.to_owned(), FORMAT_VERSION.to_string()),
            (key::MODEL.to_owned(), architecture.name.to_owned()),
            (key::CONTENT.to_owned(), content.name().to_owned()),
            (key::SHA256.to_owned(), sha256.clone()),
        ]);
        for (key, value) in entries {
            metadata.insert(key.to_owned(), value?);
        }
        let tensors = tensors.iter().map(|(name, tensor)| (name, tensor));
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(io::Error::other)?;
        atomic_file::write(path, &sorted(bytes)?)
    };
    write().map_err(|reason| Error::Write {
        path: path.to_owned(),
        reason,
    })?;
    Ok(sha256)
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

/// What is wrong with a file that the parser of safetensors refuses, as the end of a sentence.
fn describe_error(error: &SafeTensorError) -> String {
    match error {
        SafeTensorError::HeaderTooSmall
        | SafeTensorError::InvalidHeaderLength
        | SafeTensorError::MetadataIncompleteBuffer => {
            "ends too early or too late; download or copy it again".to_owned()
        }
        SafeTensorError::HeaderTooLarge => {
            "does not begin with the length of a header; it is of another format, or damaged"
                .to_owned()
        }
        SafeTensorError::InvalidHeader(_) | SafeTensorError::InvalidHeaderDeserialization(_) => {
            format!("is of another format, or damaged ({error})")
        }
        error => format!("is damaged ({error})"),
    }
}

/// What a file of weights is instead; `None` where that is unknown.
fn describe(bytes: &[u8]) -> Option<String> {
    match bytes {
        [0, ..] if bytes.iter().all(|byte| *byte == 0) => {
            Some("has nothing but zeros; download or copy it again".to_owned())
        }
        // The version of the format, and the name of the program that made it.
        [0x08, 1..32, 0x12, ..] => Some(
            "seems to be an ONNX model; in Python, save the weights of the network with \
             safetensors.torch.save_file(model.state_dict(), FILE) instead"
                .to_owned(),
        ),
        // The beginning of a safetensors file, which may look like a text.
        [_, rest @ ..] if rest.len() < 7 => None,
        _ => run::describe_format(bytes),
    }
}

/// What the name of the network's first parameter, and of all other tensors, begins with.
fn prefix(tensors: &[(String, View<'_>)], architecture: Architecture) -> String {
    let parameters = architecture.parameters();
    let first = parameters.first().map_or("", |parameter| &parameter.name);
    let names = tensors.iter().map(|(name, _)| name);
    let mut prefixes = names.clone().filter_map(|name| name.strip_suffix(first));
    let prefix = prefixes
        .find(|prefix| prefix.ends_with('.') && names.clone().all(|name| name.starts_with(prefix)));
    prefix.unwrap_or_default().to_owned()
}

fn misfit(reason: impl ToString) -> Unusable {
    Unusable::Misfit(cli::one_line(&reason.to_string()))
}

/// The tensors of a safetensors file, and its metadata.
fn read_safetensors(
    bytes: &[u8],
) -> Result<(NamedViews<'_>, HashMap<String, String>), SafeTensorError> {
    let tensors = SafeTensors::deserialize(bytes)?;
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let views = tensors.iter().map(|(name, tensor)| {
        let element = match tensor.dtype() {
            Dtype::F16 => Ok(Float::F16),
            Dtype::BF16 => Ok(Float::BF16),
            Dtype::F32 => Ok(Float::F32),
            Dtype::F64 => Ok(Float::F64),
            other => Err(format!("{other:?}")),
        };
        let view = View::contiguous(element, tensor.shape().into(), tensor.data());
        // `deserialize` checks it.
        let view = view.ok_or(SafeTensorError::TensorInvalidInfo)?;
        Ok((name.to_owned(), view))
    });
    Ok((
        views.collect::<Result<_, SafeTensorError>>()?,
        header.metadata().clone().unwrap_or_default(),
    ))
}

/// One tensor as `f32`, with finite values only.
fn tensor(name: &str, view: &View<'_>) -> Result<Tensor, Unusable> {
    let values = view.values().map_err(|element| {
        misfit(format!(
            "the tensor `{name}` has type {element}, which is not a floating-point type"
        ))
    })?;
    let tensor = Tensor::from_vec(values, view.shape.clone(), &Device::Cpu).map_err(misfit)?;
    match non_finite_value(&tensor).map_err(misfit)? {
        None => Ok(tensor),
        Some(value) => Err(Unusable::NotFinite(name.to_owned(), value)),
    }
}
