//! The types in which activations are stored.

use crate::simd::Real;
use half::bf16;

/// Types whose bit patterns are all valid values, which working memory relies on.
mod sealed {
    pub trait AnyBits {}
    impl AnyBits for f32 {}
    impl AnyBits for f64 {}
    impl AnyBits for half::bf16 {}
}

/// A type in which activations and their gradients are stored: `f32`, `f64` or `bf16`. They are computed in
/// [`Element::Real`].
pub trait Element: sealed::AnyBits + Copy + Default + Send + Sync + 'static {
    /// The type in which they are computed.
    type Real: Real;

    /// The nearest value of this type; of two, the one whose last bit is 0.
    fn from_real(value: Self::Real) -> Self;

    /// The same value.
    fn to_real(self) -> Self::Real;
}

macro_rules! real {
    ($real:ty) => {
        impl Element for $real {
            type Real = Self;

            #[inline(always)]
            fn from_real(value: Self) -> Self {
                value
            }

            #[inline(always)]
            fn to_real(self) -> Self {
                self
            }
        }
    };
}

real!(f32);
real!(f64);

impl Element for bf16 {
    type Real = f32;

    // Without branches, so that loops over it are vectorised.
    #[inline(always)]
    fn from_real(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let nan = bits >> 16 | 0x40;
        Self::from_bits(if value.is_nan() { nan } else { rounded } as u16)
    }

    #[inline(always)]
    fn to_real(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bf16_is_rounded_as_by_the_crate_half(bits: u32) {
            for bits in [bits, bits | 0x7f80_0000, bits & 0x007f_ffff, bits & 0xffff_8000] {
                let value = f32::from_bits(bits);
                let found = <bf16 as Element>::from_real(value);
                prop_assert_eq!(found.to_bits(), bf16::from_f32(value).to_bits());
                prop_assert_eq!(found.to_real().to_bits(), found.to_f32().to_bits());
            }
        }
    }
}
