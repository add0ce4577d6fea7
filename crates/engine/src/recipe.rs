//! What is done to a network, as numbers: the recipe, and the types that keep them in range.

use datasets::{Augmentation, Edges, Flip, Normalisation};
use models::{Architecture, Initialisation};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::str::FromStr;

/// A number that is outside its range, or none at all.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{found} is out of range: expected {expected}")]
pub struct OutOfRange {
    found: String,
    expected: &'static str,
}

/// A number type with a range, read from text and from files.
macro_rules! ranged {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $value:ident => $condition:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(try_from = "f64", into = "f64")]
        pub struct $name(f64);

        impl $name {
            /// The number.
            #[must_use]
            pub fn get(self) -> f64 {
                self.0
            }
        }

        impl TryFrom<f64> for $name {
            type Error = OutOfRange;

            fn try_from($value: f64) -> Result<Self, OutOfRange> {
                if $condition {
                    Ok(Self($value))
                } else {
                    Err(OutOfRange { found: $value.to_string(), expected: $expected })
                }
            }
        }

        impl From<$name> for f64 {
            fn from(number: $name) -> f64 {
                number.0
            }
        }

        impl FromStr for $name {
            type Err = OutOfRange;

            fn from_str(text: &str) -> Result<Self, OutOfRange> {
                let number = text.parse::<f64>().map_err(|_| OutOfRange {
                    found: format!("`{text}`"),
                    expected: $expected,
                })?;
                Self::try_from(number)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

ranged!(
    /// A finite number of at least 0.
    NonNegative, "a finite number of at least 0", value => value.is_finite() && value >= 0.0
);
ranged!(
    /// A number of at least 0 and below 1.
    Fraction, "a number of at least 0 and below 1", value => (0.0..1.0).contains(&value)
);
ranged!(
    /// A finite number above 0.
    Positive, "a finite number above 0", value => value.is_finite() && value > 0.0
);
ranged!(
    /// A number above 0 and below 1.
    OpenFraction, "a number above 0 and below 1", value => value > 0.0 && value < 1.0
);

/// How the learning rate changes after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Not at all.
    Constant,
    /// It is reduced when the test loss stops improving.
    Plateau,
    /// Half a period of a cosine.
    Cosine,
    /// A straight line.
    OneCycle,
}

impl Schedule {
    /// Whether the rate depends on how many epochs the run has.
    #[must_use]
    pub fn depends_on_length(self) -> bool {
        matches!(self, Self::Cosine | Self::OneCycle)
    }
}

/// What weight decay is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecayOn {
    /// All parameters.
    All,
    /// Weights, but not biases.
    Weights,
}

/// What is done to training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Augment {
    /// Nothing.
    None,
    /// Pad, random crop, flip and, where it is asked for, a hole.
    Standard,
}

/// Side of the hole that is cut into training images, in pixels: 0, for none, to 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Cutout(u8);

impl Cutout {
    const EXPECTED: &'static str = "a number of pixels, 0 to 32";
}

impl TryFrom<u32> for Cutout {
    type Error = OutOfRange;

    fn try_from(side: u32) -> Result<Self, OutOfRange> {
        match side {
            0..=32 => Ok(Self(side as u8)),
            _ => Err(OutOfRange {
                found: side.to_string(),
                expected: Self::EXPECTED,
            }),
        }
    }
}

impl From<Cutout> for u32 {
    fn from(cutout: Cutout) -> Self {
        cutout.0.into()
    }
}

impl FromStr for Cutout {
    type Err = OutOfRange;

    fn from_str(text: &str) -> Result<Self, OutOfRange> {
        let side: u32 = text.parse().map_err(|_| OutOfRange {
            found: format!("`{text}`"),
            expected: Self::EXPECTED,
        })?;
        Self::try_from(side)
    }
}

/// In how many epochs, from the first, dropout is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected \"all\" or a number of epochs")]
pub enum DropoutEpochs {
    /// In all of them.
    All(All),
    /// In that many.
    First(u32),
}

/// The word `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum All {
    /// The word itself.
    All,
}

impl FromStr for DropoutEpochs {
    type Err = OutOfRange;

    fn from_str(text: &str) -> Result<Self, OutOfRange> {
        match text {
            "all" => Ok(Self::All(All::All)),
            _ => text.parse().map(Self::First).map_err(|_| OutOfRange {
                found: format!("`{text}`"),
                expected: "`all` or a number of epochs",
            }),
        }
    }
}

/// A recipe, resolved: every number that decides what training does, apart from the network, the
/// data and the seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Passes over the training images.
    pub epochs: NonZeroU32,
    /// Images a step; the last step of an epoch may have fewer.
    pub batch_size: NonZeroUsize,
    /// How initial weights are drawn.
    pub initialisation: Initialisation,
    /// Step size, at its highest.
    pub learning_rate: NonNegative,
    /// How the step size changes.
    pub schedule: Schedule,
    /// Epochs, or parts of one, in which the step size rises to its highest.
    pub warmup_epochs: NonNegative,
    /// The first step's size where it rises, as a share of the highest.
    pub warmup_start: Fraction,
    /// What the schedules `cosine` and `one-cycle` end at, as a share of the highest.
    pub final_rate: Fraction,
    /// How much of the last direction is kept.
    pub momentum: Fraction,
    /// Whether the momentum is Nesterov's.
    pub nesterov: bool,
    /// The parameter's share that is added to its gradient.
    pub weight_decay: NonNegative,
    /// Which parameters that is done to.
    pub weight_decay_on: DecayOn,
    /// The most that the norm of all gradients together may be, to which they are scaled down
    /// (`torch.nn.utils.clip_grad_norm_`); 0 for no limit.
    pub clip_norm: NonNegative,
    /// The share of the labels that is spread over all classes.
    pub label_smoothing: Fraction,
    /// How much of the weights' moving average is kept in a step; 0 for no average.
    pub average_decay: Fraction,
    /// The share of features that dropout sets to 0.
    pub dropout: Fraction,
    /// In how many epochs dropout is active.
    pub dropout_epochs: DropoutEpochs,
    /// Epochs, from the first, over which that share rises from 0 in equal steps.
    pub dropout_rise: u32,
    /// What is done to training images.
    pub augment: Augment,
    /// What lies beyond their edges.
    pub padding: Edges,
    /// When they are mirrored.
    pub flip: Flip,
    /// The hole that is cut into them.
    pub cutout: Cutout,
    /// Mean of each channel, taken out of the images; on a scale of 0 to 1.
    pub mean: [f64; 3],
    /// Standard deviation of each channel, by which the images are divided.
    pub standard_deviation: [Positive; 3],
    /// Epochs without a better test loss that are waited for before the rate falls.
    pub patience: u32,
    /// What the rate is then multiplied by.
    pub plateau_factor: OpenFraction,
    /// By what share of the best loss another must be lower to be better.
    pub plateau_threshold: Fraction,
    /// Epochs without a lower test loss after which the run ends; 0 for never.
    pub early_stopping: u32,
}

impl Recipe {
    /// What is done to training images.
    #[must_use]
    pub fn augmentation(&self) -> Augmentation {
        match self.augment {
            Augment::None => Augmentation::None,
            Augment::Standard => Augmentation::Standard {
                edges: self.padding,
                flip: self.flip,
                cutout: self.cutout.0,
            },
        }
    }

    /// How pixels become numbers.
    #[must_use]
    pub fn normalisation(&self) -> Normalisation {
        Normalisation::new(
            self.mean.map(|value| value as f32),
            self.standard_deviation.map(|value| value.get() as f32),
        )
    }
}

/// The recipes that are compiled in, by name.
const BUILT_IN: [(&str, &str); 3] = [
    ("reference", include_str!("../recipes/reference.toml")),
    ("best", include_str!("../recipes/best.toml")),
    ("sprint", include_str!("../recipes/sprint.toml")),
];

/// The keys of a built-in recipe for a network, or `None` where there is no recipe of that name. The
/// network's own default patience stands where the recipe sets none.
#[must_use]
pub fn built_in(name: &str, architecture: Architecture) -> Option<toml::Table> {
    let (_, text) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
    // The compiled-in text is read by a test; a recipe that is no TOML has no keys.
    let mut table: toml::Table = text.parse().unwrap_or_default();
    table
        .entry("patience")
        .or_insert_with(|| toml::Value::Integer(architecture.patience.into()));
    Some(table)
}

/// The names of the compiled-in recipes.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(architecture: &str) -> Recipe {
        built_in("reference", architecture.parse().unwrap())
            .unwrap()
            .try_into()
            .unwrap()
    }

    /// The facts of the original code.
    #[test]
    fn the_reference_is_the_originals() {
        let recipe = reference("alexnet");
        assert_eq!(recipe.epochs.get(), 50);
        assert_eq!(recipe.batch_size.get(), 500);
        assert_eq!(recipe.learning_rate.get(), 0.01);
        assert_eq!(recipe.momentum.get(), 0.9);
        assert_eq!(recipe.weight_decay.get(), 5e-4);
        assert_eq!(recipe.dropout.get(), 0.5);
        assert_eq!(recipe.dropout_epochs, DropoutEpochs::All(All::All));
        assert_eq!(recipe.schedule, Schedule::Plateau);
        assert_eq!(recipe.augmentation(), Augmentation::STANDARD);
        assert_eq!(recipe.initialisation, Initialisation::PyTorch);
        assert_eq!(recipe.weight_decay_on, DecayOn::All);
        assert!(!recipe.nesterov && recipe.early_stopping == 0);
        for off in [
            recipe.warmup_epochs.get(),
            recipe.clip_norm.get(),
            recipe.label_smoothing.get(),
            recipe.average_decay.get(),
        ] {
            assert_eq!(off, 0.0);
        }
        assert_eq!(recipe.patience, 5);
        assert_eq!(recipe.plateau_factor.get(), 0.1);
        assert_eq!(recipe.plateau_threshold.get(), 1e-4);
        assert_eq!(reference("small-alexnet").patience, 2);
    }

    #[test]
    fn every_built_in_recipe_is_whole() {
        for name in names() {
            for architecture in Architecture::ALL {
                let table = built_in(name, *architecture).unwrap();
                let _: Recipe = table.try_into().unwrap();
            }
        }
        assert!(built_in("none", Architecture::ALL[0]).is_none());
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert!("-0.1".parse::<NonNegative>().is_err());
        assert!("inf".parse::<NonNegative>().is_err());
        assert!("nan".parse::<Fraction>().is_err());
        assert!("1".parse::<Fraction>().is_err());
        assert!("0".parse::<OpenFraction>().is_err());
        assert!("some".parse::<DropoutEpochs>().is_err());
        assert!("33".parse::<Cutout>().is_err());
        assert!("-1".parse::<Cutout>().is_err());
        assert_eq!("0".parse::<Fraction>().unwrap().get(), 0.0);
        assert_eq!(
            "x".parse::<Fraction>().unwrap_err().to_string(),
            "`x` is out of range: expected a number of at least 0 and below 1"
        );
    }
}
