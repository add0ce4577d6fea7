//! How operations compute: the algorithm of convolutions and the precision.

use candle_core::DType;
pub use kernels::conv2d::ConvAlgorithm;

/// The precision of products. Weights, momentum buffers and loss are `f32` in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Significands of 24 bits.
    #[default]
    F32,
    /// Factors with significands of 11 bits and the range of `f32`, sums in `f32`: on a GPU. A CPU computes in `f32`.
    Tf32,
    /// Activations and gradients with significands of 8 bits and the range of `f32`, sums in `f32`.
    Bf16,
}

impl Precision {
    /// All precisions.
    pub const ALL: [Self; 3] = [Self::F32, Self::Tf32, Self::Bf16];

    /// The type of activations and gradients.
    #[must_use]
    pub fn activations(self) -> DType {
        match self {
            Self::F32 | Self::Tf32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// How operations compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Arithmetic {
    /// The algorithm of convolutions. On a GPU `Winograd` is cuDNN's choice, and `Direct` is matrix products
    /// without cuDNN.
    pub conv_algorithm: ConvAlgorithm,
    /// The precision. On a CPU the tensors' own type decides between `f32`, `f64` and `bf16`.
    pub precision: Precision,
}

impl From<ConvAlgorithm> for Arithmetic {
    fn from(conv_algorithm: ConvAlgorithm) -> Self {
        Self {
            conv_algorithm,
            precision: Precision::F32,
        }
    }
}
