//! Weights from a file, and the network that they belong to.

use crate::backend;
use crate::memory;
use crate::settings::{self, architecture};
use candle_core::Device;
use datasets::DatasetSource;
use engine::{Error, Inputs, Unusable, Weights};
use models::{Architecture, Network};
use ops::Arithmetic;
use run::cli::{self, UsageError};
use run::settings::{ConvAlgorithm, DevicePreference, Precision, Source};
use run::{Finite, NativePath, Overrides, PerChannel, Positive, file};
use std::fs;
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::Path;

/// Weights, and the device to run them on.
#[derive(Debug, clap::Args)]
pub(crate) struct WeightArgs {
    /// A checkpoint, or weights from PyTorch: a safetensors file, or one of torch.save (.pth, .pt, .ckpt).
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: NativePath,

    /// The network; needed where the file does not name it.
    #[arg(long, value_name = "NAME", value_parser = architecture())]
    pub(crate) model: Option<Architecture>,

    /// Mean of each channel, subtracted from pixels of 0 to 1 [default: the file's, or else ImageNet's;
    /// in `eval --dataset cifar100`, CIFAR-100's].
    #[arg(long, value_name = "R,G,B", allow_negative_numbers = true)]
    pub(crate) mean: Option<PerChannel<Finite>>,

    /// Standard deviation of each channel, by which pixels are divided [default: the file's, or else ImageNet's;
    /// in `eval --dataset cifar100`, CIFAR-100's].
    #[arg(long, value_name = "R,G,B", allow_negative_numbers = true)]
    pub(crate) std: Option<PerChannel<Positive>>,

    /// Threads [default: one per core].
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,

    /// The device: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: DevicePreference,

    /// How convolutions are computed: the algorithm in f32 on a CPU; by cuDNN or without it on a GPU.
    #[arg(long, value_enum, default_value = "winograd")]
    pub(crate) conv: ConvAlgorithm,

    /// Precision of matrix products and convolutions; tf32 is for GPUs [default: bf16 on a GPU from compute capability
    /// 8.0 on, else f32].
    #[arg(long, value_enum)]
    pub(crate) precision: Option<Precision>,
}

/// A network with its weights, ready to compute.
pub(crate) struct Loaded {
    pub(crate) network: Network,
    pub(crate) inputs: Inputs,
    /// Whether the file itself said what the inputs are.
    pub(crate) inputs_are_known: bool,
    pub(crate) device: Device,
    pub(crate) arithmetic: Arithmetic,
}

/// Reads the weights of a command, and notes what is assumed about them. A file that does not name its classes is taken
/// for one of `dataset`.
pub(crate) fn load(args: &WeightArgs, dataset: &DatasetSource) -> anyhow::Result<Loaded> {
    backend::use_threads(args.threads)?;
    let device = backend::open(args.device)?;
    let arithmetic = backend::arithmetic(
        args.conv,
        args.precision,
        &Source::CommandLine,
        None,
        &device,
    )?;
    let weights = read(&args.checkpoint, args.model)?;
    let mut inputs = match &weights.inputs {
        Some(inputs) => inputs.clone(),
        None => reference_inputs(weights.architecture, dataset)?,
    };
    inputs.mean = args.mean.map_or(inputs.mean, |mean| mean.0);
    inputs.std = args.std.map_or(inputs.std, |std| std.0);
    let is_given = args.mean.is_some() && args.std.is_some();
    note_normalisation(&args.checkpoint, &weights, &inputs, is_given);
    let inputs_are_known = weights.inputs.is_some();
    if !inputs_are_known && !is_given {
        let name = dataset.to_string();
        let classes = match inputs.class_names == numbered(weights.architecture) {
            true => "they are numbered".to_owned(),
            false => format!(
                "assumed: the classes of {}",
                DatasetSource::display_name(&name)
            ),
        };
        cli::note(&format!(
            "note: `{}` does not say what its classes are; {classes}",
            args.checkpoint.display()
        ));
    }
    let network = weights.into_network(&device)?;
    Ok(Loaded {
        network,
        inputs,
        inputs_are_known,
        device,
        arithmetic,
    })
}

/// Reads a file of weights that a person named, and notes what is unusual about it.
///
/// # Errors
/// A usage error where the file is missing, or is not of weights of this network.
pub(crate) fn read(path: &Path, model: Option<Architecture>) -> anyhow::Result<Weights> {
    if path.is_dir() {
        return Err(UsageError(format!(
            "cannot read `{}`: it is a folder; name a file of weights, such as `{}`",
            path.display(),
            path.join(file::BEST_WEIGHTS).display()
        ))
        .into());
    }
    // The file, its tensors as f32, and the network. A file that names its network has f32 itself.
    let file = fs::metadata(path).map_or(0, |file| file.len());
    let tensors = model.map_or(file, |model| 4 * model.parameter_count() as u64);
    let bytes = file.saturating_add(2 * tensors);
    memory::require(bytes, &format!("to read `{}`", path.display()))?;
    let weights = Weights::read(path, model).map_err(|error| match error {
        Error::Read { ref reason, .. } if reason.kind() == ErrorKind::NotFound => usage(error),
        Error::Unusable {
            reason:
                Unusable::OtherModel(..) | Unusable::UnknownModel(_) | Unusable::MomentumBuffers,
            ..
        } => usage(error),
        error => error.into(),
    })?;
    let path = path.display();
    if !weights.prefix.is_empty() {
        let prefix = cli::one_line(&weights.prefix);
        cli::note(&format!(
            "note: the names of all tensors in `{path}` begin with `{prefix}`, which is removed"
        ));
    }
    if let Some(other) = &weights.other_model {
        let model = weights.architecture;
        cli::note(&format!(
            "note: `{path}` says that it is of `{other}`; its tensors have the names and shapes of {model}"
        ));
    }
    Ok(weights)
}

fn usage(error: Error) -> anyhow::Error {
    UsageError(error.to_string()).into()
}

/// Notes the normalisation of images for weights from a file, where it is not the one that the file says. `is_given` tells
/// whether a person gave the normalisation.
pub(crate) fn note_normalisation(path: &Path, weights: &Weights, used: &Inputs, is_given: bool) {
    let text = |inputs: &Inputs| {
        // Those of a folder of pictures have many digits.
        let rounded = |value: f64| (1e4 * value).round() / 1e4;
        let mean = PerChannel(inputs.mean.map(|mean| rounded(mean.get())));
        let std = PerChannel(inputs.std.map(|std| rounded(std.get())));
        format!("mean {mean} and std {std}")
    };
    let (path, used_text) = (path.display(), text(used));
    match &weights.inputs {
        None if !is_given => cli::note(&format!(
            "note: `{path}` does not say for which normalisation it was trained; images are normalised with {used_text}, \
             unless --mean and --std are given",
        )),
        Some(own) if (own.mean, own.std) != (used.mean, used.std) => cli::note(&format!(
            "note: `{path}` was trained with {}; images are normalised with {used_text}, unless --mean and --std are given",
            text(own)
        )),
        _ => {}
    }
}

/// Names for the outputs of a network whose classes are not known.
fn numbered(architecture: Architecture) -> Vec<String> {
    (0..architecture.num_classes)
        .map(|class| format!("class {class}"))
        .collect()
}

/// The inputs of weights made elsewhere: those of the data set and the reference recipe.
fn reference_inputs(architecture: Architecture, dataset: &DatasetSource) -> anyhow::Result<Inputs> {
    let reference = Overrides {
        model: Some(architecture.name.to_owned()),
        dataset: Some(dataset.to_string()),
        ..Overrides::default()
    };
    let reference = settings::resolve(&reference, None)?;
    let class_names = dataset.class_names()?;
    let class_names = match class_names.len() == architecture.num_classes {
        true => class_names,
        false => numbered(architecture),
    };
    Ok(Inputs {
        mean: reference.settings.mean.0,
        std: reference.settings.std.0,
        class_names,
    })
}

impl Loaded {
    /// The normalisation that the weights were trained with.
    pub(crate) fn normalisation(&self) -> datasets::Normalisation {
        datasets::Normalisation::new(
            self.inputs.mean.map(|value| value.get() as f32),
            self.inputs.std.map(|value| value.get() as f32),
        )
    }
}
