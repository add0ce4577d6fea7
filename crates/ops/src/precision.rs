//! In what numbers operations compute.

use crate::Convolution;
use candle_core::{DType, Result, Tensor};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// In what numbers a GPU computes products. Weights, momentum and loss are `f32` in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 24 bits of precision. What a processor computes in.
    #[default]
    F32,
    /// Factors of 11 bits with the range of `f32`, sums in `f32`.
    Tf32,
    /// Activations and gradients of 8 bits with the range of `f32`, sums in `f32`.
    Bf16,
}

impl Precision {
    /// All precisions.
    pub const ALL: [Self; 3] = [Self::F32, Self::Tf32, Self::Bf16];

    /// The name on the command line and in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    /// The type of activations and gradients on a GPU.
    #[must_use]
    pub fn activations(self) -> DType {
        match self {
            Self::F32 | Self::Tf32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no precision's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no precision: use `f32`, `tf32` or `bf16`")]
pub struct UnknownPrecision(String);

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(name: &str) -> std::result::Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|precision| precision.name() == name)
            .ok_or_else(|| UnknownPrecision(name.to_owned()))
    }
}

/// How operations compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Arithmetic {
    /// How convolutions are computed.
    pub convolution: Convolution,
    /// In what numbers a GPU computes. On a processor the tensors' own type decides.
    pub precision: Precision,
}

impl From<Convolution> for Arithmetic {
    fn from(convolution: Convolution) -> Self {
        Self {
            convolution,
            precision: Precision::F32,
        }
    }
}

/// Numbers in the type of the activations in which `precision` computes; on a processor, as they are.
///
/// # Errors
/// When `x` lies on a GPU and is neither of `f32` nor of that type.
pub fn activations(x: &Tensor, precision: Precision) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if precision == Precision::Bf16 && x.device().is_cuda() && x.dtype() != DType::BF16 {
        return crate::cuda::narrowed::<half::bf16>(&x.contiguous()?);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = precision;
    Ok(x.clone())
}
