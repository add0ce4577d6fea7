//! What is done to a network, as numbers: the recipe, and the types that keep them in range.

use cifar::{Augmentation, Normalisation};
use models::Architecture;
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

impl DropoutEpochs {
    /// Whether dropout is active in the epoch of this number, the first being 0.
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
    /// Step size at the start.
    pub learning_rate: NonNegative,
    /// How much of the last direction is kept.
    pub momentum: Fraction,
    /// The parameter's share that is added to its gradient.
    pub weight_decay: NonNegative,
    /// The share of features that dropout sets to 0.
    pub dropout: Fraction,
    /// In how many epochs dropout is active.
    pub dropout_epochs: DropoutEpochs,
    /// What is done to training images.
    pub augment: Augmentation,
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
}

impl Recipe {
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
const BUILT_IN: [(&str, &str); 1] = [("reference", include_str!("../recipes/reference.toml"))];

/// The keys of a compiled-in recipe as they hold for a network, or `None` where there is no recipe
/// of that name. A recipe file gives keys for every network and, in a table of the network's name,
/// keys for one.
#[must_use]
pub fn built_in(name: &str, architecture: Architecture) -> Option<toml::Table> {
    let (_, text) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
    // The compiled-in text is read by a test; a recipe that is no TOML has no keys.
    let mut table: toml::Table = text.parse().unwrap_or_default();
    for known in Architecture::ALL {
        if let Some(toml::Value::Table(own)) = table.remove(known.name())
            && known == architecture
        {
            table.extend(own);
        }
    }
    Some(table)
}

/// The names of the compiled-in recipes.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(architecture: Architecture) -> Recipe {
        built_in("reference", architecture)
            .unwrap()
            .try_into()
            .unwrap()
    }

    /// The facts of the original code.
    #[test]
    fn the_reference_is_the_originals() {
        let recipe = reference(Architecture::AlexNet);
        assert_eq!(recipe.epochs.get(), 50);
        assert_eq!(recipe.batch_size.get(), 500);
        assert_eq!(recipe.learning_rate.get(), 0.01);
        assert_eq!(recipe.momentum.get(), 0.9);
        assert_eq!(recipe.weight_decay.get(), 5e-4);
        assert_eq!(recipe.dropout.get(), 0.5);
        assert_eq!(recipe.dropout_epochs, DropoutEpochs::All(All::All));
        assert_eq!(recipe.patience, 5);
        assert_eq!(recipe.plateau_factor.get(), 0.1);
        assert_eq!(recipe.plateau_threshold.get(), 1e-4);
        assert_eq!(reference(Architecture::SmallAlexNet).patience, 2);
    }

    #[test]
    fn every_built_in_recipe_is_whole() {
        for name in names() {
            for architecture in Architecture::ALL {
                let table = built_in(name, architecture).unwrap();
                let _: Recipe = table.try_into().unwrap();
            }
        }
        assert!(built_in("none", Architecture::AlexNet).is_none());
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert!("-0.1".parse::<NonNegative>().is_err());
        assert!("inf".parse::<NonNegative>().is_err());
        assert!("nan".parse::<Fraction>().is_err());
        assert!("1".parse::<Fraction>().is_err());
        assert!("0".parse::<OpenFraction>().is_err());
        assert!("some".parse::<DropoutEpochs>().is_err());
        assert_eq!("0".parse::<Fraction>().unwrap().get(), 0.0);
        assert_eq!(
            "x".parse::<Fraction>().unwrap_err().to_string(),
            "`x` is out of range: expected a number of at least 0 and below 1"
        );
    }

    #[test]
    fn dropout_ends_after_its_epochs() {
        let all: DropoutEpochs = "all".parse().unwrap();
        let one: DropoutEpochs = "1".parse().unwrap();
        assert!(all.contains(0) && all.contains(49));
        assert!(one.contains(0) && !one.contains(1));
    }
}
