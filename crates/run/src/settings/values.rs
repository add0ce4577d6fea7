//! Settings with named values. The command line, files and messages share one spelling.

use crate::OutOfRange;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Defines an enum whose variants are written in kebab case everywhere: by clap, serde, `Display` and `FromStr`.
macro_rules! named_values {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[derive(serde::Serialize, serde::Deserialize, clap::ValueEnum)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                clap::ValueEnum::to_possible_value(self).map_or(Ok(()), |value| f.pad(value.get_name()))
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                clap::ValueEnum::from_str(text, false)
            }
        }
    };
}
pub(crate) use named_values;

named_values! {
    /// Weight initialisation. All distributions are uniform around 0.
    WeightInit {
        /// PyTorch's default: weights and biases are uniform in `[-a, a]`, a = `1/sqrt(fan_in)`.
        Pytorch,
        /// Kaiming's bounds for ReLU: weights are uniform in `[-a, a]`, a = `sqrt(6/fan_in)`, and biases are 0.
        Kaiming,
    }
}

named_values! {
    /// The scheduler of the learning rate after its warm-up.
    LrScheduler {
        /// The peak learning rate in every epoch.
        Constant,
        /// Reduced when the loss on the evaluated images stops improving (`ReduceLROnPlateau`).
        Plateau,
        /// Half a cosine down to the final factor (`CosineAnnealingLR`).
        Cosine,
        /// Linear decay to the final factor (`OneCycleLR` with linear annealing).
        OneCycle,
    }
}

impl LrScheduler {
    /// Whether the learning rate depends on the number of epochs.
    #[must_use]
    pub fn depends_on_epochs(self) -> bool {
        match self {
            Self::Constant | Self::Plateau => false,
            Self::Cosine | Self::OneCycle => true,
        }
    }
}

named_values! {
    /// The parameters that weight decay applies to.
    WeightDecayOn {
        /// All parameters.
        All,
        /// Weights, but not biases.
        Weights,
    }
}

named_values! {
    /// Augmentation of training images.
    Augment {
        /// No augmentation.
        None,
        /// Pad by 4, random crop, horizontal flip and, where it is on, cutout.
        Standard,
    }
}

named_values! {
    /// Padding of images before a random crop.
    PaddingMode {
        /// Zeros (black).
        #[serde(alias = "zero")]
        Constant,
        /// Reflection of the image, without repeating the edge.
        Reflect,
    }
}

named_values! {
    /// When training images are flipped horizontally.
    Flip {
        /// With probability 1/2.
        Random,
        /// Every image in every second epoch: half of them in even epochs, half in odd ones.
        Alternating,
    }
}

named_values! {
    /// How convolutions are computed.
    ConvAlgorithm {
        /// Winograd's minimal filtering: fewer operations, relative errors of 1e-6 to 1e-4 instead of 1e-7; on a GPU, by
        /// cuDNN.
        #[serde(alias = "fast")]
        Winograd,
        /// Directly, by the definition; on a GPU, by matrix products without cuDNN.
        Direct,
    }
}

named_values! {
    /// The precision of matrix products and convolutions. Weights, momentum buffers and the loss are `f32` in all of them.
    Precision {
        /// Single precision.
        F32,
        /// TensorFloat-32 operands (10-bit mantissa), accumulated in `f32`.
        Tf32,
        /// bfloat16 activations and gradients, accumulated in `f32`.
        Bf16,
    }
}

/// The device to compute on: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DevicePreference {
    /// The first GPU where there is one that works, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this index.
    Cuda(usize),
}

impl fmt::Display for DevicePreference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for DevicePreference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| {
                    format!("`{text}` is not a device: expected auto, cpu, cuda or cuda:N")
                }),
        }
    }
}

impl TryFrom<String> for DevicePreference {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DevicePreference> for String {
    fn from(device: DevicePreference) -> Self {
        device.to_string()
    }
}

/// The epochs with dropout: all of them, or the first ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected \"all\" or a number of epochs")]
pub enum DropoutEpochs {
    /// All epochs.
    All(All),
    /// This many epochs, from the first.
    First(u32),
}

/// The word `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum All {
    /// The word itself.
    All,
}

impl DropoutEpochs {
    /// Whether the epoch of this index, from 0, has dropout.
    #[must_use]
    pub fn contains(self, epoch: u32) -> bool {
        match self {
            Self::All(All::All) => true,
            Self::First(count) => epoch < count,
        }
    }
}

impl FromStr for DropoutEpochs {
    type Err = OutOfRange;

    fn from_str(text: &str) -> Result<Self, OutOfRange> {
        match text {
            "all" => Ok(Self::All(All::All)),
            _ => text.parse().map(Self::First).map_err(|_| {
                OutOfRange::new(format_args!("`{text}`"), "`all` or a number of epochs")
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;
    use serde::de::DeserializeOwned;
    use std::fmt::Debug;

    /// clap, serde, `Display` and `FromStr` agree on the spelling of every value.
    fn one_spelling<T>()
    where
        T: ValueEnum + fmt::Display + Debug + PartialEq + FromStr + Serialize + DeserializeOwned,
        T::Err: Debug,
    {
        for value in T::value_variants() {
            let text = value.to_string();
            let serialized = toml::Value::try_from(value).unwrap();
            assert_eq!(serialized.as_str(), Some(text.as_str()));
            assert_eq!(&text.parse::<T>().unwrap(), value);
            assert_eq!(&serialized.try_into::<T>().unwrap(), value);
        }
    }

    #[test]
    fn values_have_one_spelling() {
        one_spelling::<WeightInit>();
        one_spelling::<LrScheduler>();
        one_spelling::<WeightDecayOn>();
        one_spelling::<Augment>();
        one_spelling::<PaddingMode>();
        one_spelling::<Flip>();
        one_spelling::<ConvAlgorithm>();
        one_spelling::<Precision>();
    }

    #[test]
    fn spellings_of_earlier_versions_are_read() {
        let read = |text: &str| toml::Value::String(text.to_owned());
        assert_eq!(read("fast").try_into(), Ok(ConvAlgorithm::Winograd));
        assert_eq!(read("zero").try_into(), Ok(PaddingMode::Constant));
    }

    #[test]
    fn devices_are_read_and_written() {
        for text in ["auto", "cpu", "cuda", "cuda:3"] {
            assert_eq!(text.parse::<DevicePreference>().unwrap().to_string(), text);
        }
        for text in ["", "gpu", "cuda:", "cuda:x", "cpu:1", "cuda:-1"] {
            assert!(text.parse::<DevicePreference>().is_err(), "{text}");
        }
    }

    #[test]
    fn dropout_ends_after_its_epochs() {
        let all: DropoutEpochs = "all".parse().unwrap();
        let one: DropoutEpochs = "1".parse().unwrap();
        assert!(all.contains(0) && all.contains(49));
        assert!(one.contains(0) && !one.contains(1));
        assert!("some".parse::<DropoutEpochs>().is_err());
    }
}
