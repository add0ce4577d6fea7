//! Weights from a file, and the network that they belong to.

use crate::backend;
use crate::settings::{self, architecture};
use candle_core::Device;
use engine::{Inputs, Weights};
use models::{Architecture, Network};
use ops::Arithmetic;
use run::settings::{ConvAlgorithm, DevicePreference, Precision};
use run::{NativePath, Overrides};
use std::num::NonZeroUsize;

/// Weights, and the device to run them on.
#[derive(Debug, clap::Args)]
pub(crate) struct WeightArgs {
    /// A checkpoint, or a safetensors file of weights made by PyTorch.
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: NativePath,

    /// The network; needed where the file does not name it.
    #[arg(long, value_name = "NAME", value_parser = architecture())]
    pub(crate) model: Option<Architecture>,

    /// Threads [default: one per core].
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,

    /// The device: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: DevicePreference,

    /// How convolutions are computed.
    #[arg(long, value_enum, default_value = "winograd")]
    pub(crate) conv: ConvAlgorithm,

    /// Precision of matrix products and convolutions on a GPU; the CPU computes in f32 [default: tf32 on a GPU].
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

/// Reads the weights of a command.
pub(crate) fn load(args: &WeightArgs) -> anyhow::Result<Loaded> {
    backend::use_threads(args.threads)?;
    let device = backend::open(args.device)?;
    let arithmetic = backend::arithmetic(args.conv, args.precision, &device)?;
    let weights = Weights::read(&args.checkpoint, args.model)?;
    let inputs_are_known = weights.inputs.is_some();
    let inputs = match &weights.inputs {
        Some(inputs) => inputs.clone(),
        None => reference_inputs(weights.architecture)?,
    };
    let network = weights.into_network(&device)?;
    Ok(Loaded {
        network,
        inputs,
        inputs_are_known,
        device,
        arithmetic,
    })
}

/// The inputs of weights made elsewhere: those of the reference recipe.
fn reference_inputs(architecture: Architecture) -> anyhow::Result<Inputs> {
    let reference = Overrides {
        model: Some(architecture.name.to_owned()),
        ..Overrides::default()
    };
    let reference = settings::resolve(&reference, None)?;
    Ok(Inputs {
        mean: reference.settings.mean.0,
        std: reference.settings.std.0,
        class_names: reference.dataset.class_names.map(str::to_owned),
    })
}

impl Loaded {
    /// The normalisation that the weights were trained with.
    pub(crate) fn normalisation(&self) -> datasets::Normalisation {
        datasets::Normalisation::new(
            self.inputs.mean.map(|value| value as f32),
            self.inputs.std.map(|value| value.get() as f32),
        )
    }
}
