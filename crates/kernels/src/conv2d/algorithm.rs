//! The algorithms of convolutions.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How convolutions are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConvAlgorithm {
    /// By matrix products over unrolled images.
    #[serde(rename = "direct")]
    Direct,
    /// In Winograd's transform domain if that takes less time; with rounding errors a few times as large.
    #[default]
    #[serde(rename = "fast")]
    Winograd,
}

impl ConvAlgorithm {
    /// All algorithms.
    pub const ALL: [Self; 2] = [Self::Direct, Self::Winograd];

    /// The name on the command line and in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Winograd => "fast",
        }
    }
}

impl fmt::Display for ConvAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is not an algorithm's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no way to compute convolutions: use `direct` or `fast`")]
pub struct UnknownConvAlgorithm(String);

impl FromStr for ConvAlgorithm {
    type Err = UnknownConvAlgorithm;

    fn from_str(name: &str) -> std::result::Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|algorithm| algorithm.name() == name)
            .ok_or_else(|| UnknownConvAlgorithm(name.to_owned()))
    }
}
