//! The algorithms of convolutions.

/// How convolutions are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ConvAlgorithm {
    /// By matrix products over unrolled images.
    Direct,
    /// In Winograd's transform domain if that takes less time; its rounding errors are 10 to 500 times as large.
    #[default]
    Winograd,
}

impl ConvAlgorithm {
    /// All algorithms.
    pub const ALL: [Self; 2] = [Self::Direct, Self::Winograd];
}
