//! The settings of a run. Each is declared once, below; flags, keys of settings files and records, defaults, what may
//! change when a run is resumed, and what two runs must share to be compared are derived from the declaration.

mod layers;
mod macros;
mod values;

pub use layers::{Difference, Layer, Source, check_value, last, with_defaults_in_help};
pub(crate) use values::named_values;
pub use values::{
    All, Augment, ConvAlgorithm, DevicePreference, DropoutEpochs, Flip, LrScheduler, PaddingMode,
    Precision, WeightDecayOn, WeightInit,
};

use crate::bounded::{
    Cutout, Finite, Fraction, NonNegative, OpenFraction, OutOfRange, PerChannel, Positive, Shards,
};
use crate::error::{Error, flag};
use crate::native_path::NativePath;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::num::{NonZeroU32, NonZeroUsize};
use toml::Value;

/// A property of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// It is part of a recipe, as opposed to what is trained, on what data and where.
    Recipe,
    /// It may be changed when a run is resumed: it does not affect what was computed before.
    MayChangeOnResume,
    /// Runs that differ in it alone are repetitions of one experiment.
    VariesBetweenRepetitions,
    /// It has no effect on a search for a learning rate.
    NotInLrFind,
    /// Only the learning-rate scheduler `plateau` uses it.
    PlateauOnly,
    /// It is a path on this machine, which says nothing about the run.
    LocalPath,
}

/// What is known of a setting apart from its type.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The key in files; the flag is the same with hyphens for underscores.
    pub key: &'static str,
    /// The default as it is typed, where there is a fixed one.
    pub default: Option<&'static str>,
    properties: &'static [Property],
}

impl Field {
    /// Whether the setting has a property.
    #[must_use]
    pub fn has(&self, property: Property) -> bool {
        self.properties.contains(&property)
    }

    /// Whether a value is the default.
    #[must_use]
    pub fn is_default(&self, value: &Value) -> bool {
        let Some(default) = self.default else {
            return false;
        };
        match value {
            Value::String(value) => value == default,
            Value::Boolean(value) => value.to_string() == default,
            Value::Integer(value) => default.parse() == Ok(*value),
            Value::Float(value) => default.parse() == Ok(*value),
            Value::Datetime(_) | Value::Array(_) | Value::Table(_) => false,
        }
    }

    /// The setting with this key.
    #[must_use]
    pub fn named(key: &str) -> Option<&'static Self> {
        FIELDS.iter().find(|field| field.key == key)
    }

    /// The flag on the command line, such as `--batch-size`.
    #[must_use]
    pub fn flag(&self) -> String {
        flag(self.key)
    }
}

/// A seed from a file. TOML writes no larger integers.
fn seed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let seed = u64::deserialize(deserializer)?;
    match i64::try_from(seed) {
        Ok(_) => Ok(Some(seed)),
        Err(_) => Err(D::Error::custom(OutOfRange::new(
            seed,
            "an integer from 0 to 9223372036854775807",
        ))),
    }
}

macros::settings! {
    "Model" {
        /// The network to train.
        #[arg(value_name = "NAME")]
        model: String [];

        /// Weight initialisation.
        #[arg(value_enum)]
        #[serde(alias = "initialisation")]
        weight_init: WeightInit = "pytorch" [Recipe];

        /// Start from the weights in this file: a checkpoint, or weights from PyTorch, as for `eval --checkpoint`.
        #[arg(value_name = "FILE", value_parser = NativePath::text_parser())]
        init: Option<NativePath> [];

        /// Train the fully connected layers alone; the convolutional layers keep the weights of --init.
        #[arg(value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
        freeze_features: bool = "false" [Recipe];
    }

    "Data" {
        /// The data set: its name, such as cifar100, or the folder of your own pictures (PNG or JPEG), with
        /// `train/CLASS/...` and `test/CLASS/...`, or with `CLASS/...`, of which a sixth is held out to test on.
        #[arg(value_name = "NAME|DIR")]
        dataset: String = "cifar10" [];

        /// The folder with the data sets.
        #[arg(value_name = "DIR", value_parser = NativePath::text_parser())]
        data_dir: NativePath = "data" [MayChangeOnResume, VariesBetweenRepetitions, LocalPath];

        /// Use the first N training images only.
        #[arg(value_name = "N")]
        limit_train: Option<NonZeroUsize> [];

        /// Use the first N test images only.
        #[arg(value_name = "N")]
        limit_test: Option<NonZeroUsize> [NotInLrFind];

        /// Leave out pictures of a folder that cannot be read.
        #[arg(value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
        skip_unreadable: bool = "false" [MayChangeOnResume, VariesBetweenRepetitions];

        /// Hold out N training images, the same number of each class, and evaluate on them instead of the test images.
        #[arg(value_name = "N", conflicts_with = "overfit_batches")]
        validation: Option<NonZeroUsize> [];

        /// Train and evaluate on the first N batches, in the same order in every epoch: a working network memorises them.
        #[arg(value_name = "N")]
        overfit_batches: Option<NonZeroUsize> [];
    }

    "Optimisation" {
        /// The recipe: settings that apply unless a file or a flag says otherwise.
        #[arg(value_name = "NAME")]
        recipe: String = "reference" [];

        /// Passes over the training images.
        #[arg(value_name = "N")]
        epochs: NonZeroU32 = "50" [Recipe, MayChangeOnResume, NotInLrFind];

        /// Images per step; the last batch of an epoch may be smaller.
        #[arg(value_name = "N")]
        batch_size: NonZeroUsize = "500" [Recipe];

        /// Peak learning rate.
        #[arg(value_name = "RATE")]
        #[serde(alias = "learning_rate")]
        lr: NonNegative = "0.01" [Recipe, NotInLrFind];

        /// Learning-rate scheduler.
        #[arg(value_enum)]
        #[serde(alias = "schedule")]
        lr_scheduler: LrScheduler = "plateau" [Recipe, NotInLrFind];

        /// Epochs of linear warm-up; fractions are allowed.
        #[arg(value_name = "N")]
        #[serde(alias = "warmup_epochs")]
        lr_warmup_epochs: NonNegative = "0" [Recipe, NotInLrFind];

        /// The learning rate of the first warm-up step, as a fraction of the peak.
        #[arg(value_name = "FACTOR")]
        #[serde(alias = "warmup_start")]
        lr_warmup_start_factor: Fraction = "0" [Recipe, NotInLrFind];

        /// The learning rate at the end of `cosine` and `one-cycle`, as a fraction of the peak.
        #[arg(value_name = "FACTOR")]
        #[serde(alias = "final_rate")]
        lr_final_factor: Fraction = "0" [Recipe, NotInLrFind];

        /// Epochs without improvement after which `plateau` reduces the learning rate [default: the network's].
        #[arg(value_name = "N")]
        patience: u32 [Recipe, NotInLrFind, PlateauOnly];

        /// The factor by which `plateau` reduces the learning rate.
        #[arg(value_name = "FACTOR")]
        plateau_factor: OpenFraction = "0.1" [Recipe, NotInLrFind, PlateauOnly];

        /// The smallest relative improvement that `plateau` counts, of the loss on the evaluated images.
        #[arg(value_name = "FRACTION")]
        plateau_threshold: Fraction = "0.0001" [Recipe, NotInLrFind, PlateauOnly];

        /// Momentum.
        #[arg(value_name = "FACTOR")]
        momentum: Fraction = "0.9" [Recipe];

        /// Nesterov momentum.
        #[arg(value_name = "true|false")]
        nesterov: bool = "false" [Recipe];

        /// Clip the norm of all gradients together to this value (`clip_grad_norm_`); 0 switches clipping off.
        #[arg(value_name = "NORM")]
        #[serde(alias = "clip_norm")]
        clip_grad_norm: NonNegative = "0" [Recipe];

        /// Decay of the exponential moving average of the weights, per step, which is evaluated beside them; 0 switches
        /// it off.
        #[arg(value_name = "DECAY")]
        #[serde(alias = "average_decay")]
        model_ema_decay: Fraction = "0" [Recipe, NotInLrFind];

        /// Stop after N epochs without a lower loss on the evaluated images; 0 switches early stopping off.
        #[arg(value_name = "N")]
        early_stopping: u32 = "0" [Recipe, NotInLrFind];
    }

    "Regularisation" {
        /// Weight decay (L2 penalty).
        #[arg(value_name = "FACTOR")]
        weight_decay: NonNegative = "0.0005" [Recipe];

        /// The parameters that weight decay applies to.
        #[arg(value_enum)]
        weight_decay_on: WeightDecayOn = "all" [Recipe];

        /// Label smoothing. Recorded losses are without it.
        #[arg(value_name = "FRACTION")]
        label_smoothing: Fraction = "0" [Recipe];

        /// Dropout probability.
        #[arg(value_name = "FRACTION")]
        dropout: Fraction = "0.5" [Recipe];

        /// The number of epochs with dropout, from the first, or `all`. The post's figures were made with 1, by accident.
        #[arg(value_name = "N|all")]
        dropout_epochs: DropoutEpochs = "all" [Recipe];

        /// Epochs in which the dropout probability rises linearly from 0.
        #[arg(value_name = "N")]
        #[serde(alias = "dropout_rise")]
        dropout_warmup_epochs: u32 = "0" [Recipe];
    }

    "Augmentation" {
        /// Augmentation of training images.
        #[arg(value_enum)]
        augment: Augment = "standard" [Recipe];

        /// Padding of crops.
        #[arg(value_enum)]
        #[serde(alias = "padding")]
        padding_mode: PaddingMode = "constant" [Recipe];

        /// When images are flipped.
        #[arg(value_enum)]
        flip: Flip = "random" [Recipe];

        /// Side of the cutout square in pixels; 0 switches cutout off.
        #[arg(value_name = "PIXELS")]
        cutout: Cutout = "0" [Recipe];

        /// Mean of each channel, subtracted from pixels of 0 to 1. The default is ImageNet's; for CIFAR-100 and your own
        /// pictures, that of their training images.
        #[arg(value_name = "R,G,B")]
        mean: PerChannel<Finite> = "0.485,0.456,0.406" [Recipe];

        /// Standard deviation of each channel, by which pixels are divided. The default is ImageNet's; for CIFAR-100 and your
        /// own pictures, that of their training images.
        #[arg(value_name = "R,G,B")]
        #[serde(alias = "standard_deviation")]
        std: PerChannel<Positive> = "0.229,0.224,0.225" [Recipe];
    }

    "Run" {
        /// Seed of all random numbers.
        #[arg(value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
        #[serde(default, deserialize_with = "seed")]
        seed: u64 = "0" [VariesBetweenRepetitions];

        /// Minutes between checkpoints within an epoch.
        #[arg(value_name = "MINUTES")]
        checkpoint_minutes: NonNegative = "10" [MayChangeOnResume, VariesBetweenRepetitions, NotInLrFind];
    }

    "Hardware" {
        /// Threads; they do not affect the result [default: one per core].
        #[arg(value_name = "N")]
        threads: Option<NonZeroUsize> [MayChangeOnResume, VariesBetweenRepetitions];

        /// The device: auto, cpu, cuda or cuda:N.
        #[arg(value_name = "DEVICE")]
        device: DevicePreference = "auto" [MayChangeOnResume, VariesBetweenRepetitions];

        /// How convolutions are computed: the algorithm in f32 on a CPU; by cuDNN or without it on a GPU.
        #[arg(value_enum)]
        conv: ConvAlgorithm = "winograd" [];

        /// Precision of matrix products and convolutions; tf32 is for GPUs [default: bf16 on a GPU from compute capability
        /// 8.0 on, else f32].
        #[arg(value_enum)]
        precision: Option<Precision> [];

        /// Cut every batch into N shards, a power of two, and add their gradients along a fixed binary tree: up to N processes
        /// (MPI) give the same bits. Not for GPUs. The default under MPI is 8.
        #[arg(value_name = "N")]
        gradient_shards: Shards = "1" [];

        /// On a GPU, take the fastest of the first engines of cuDNN for each convolution; each is timed once, at the start.
        #[arg(value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
        cudnn_benchmark: bool = "false" [];

        /// On a GPU, replay training steps as a CUDA graph, with the same bits as without.
        #[arg(value_name = "true|false")]
        cuda_graphs: bool = "true" [MayChangeOnResume, VariesBetweenRepetitions];
    }
}

#[cfg(test)]
mod tests;
