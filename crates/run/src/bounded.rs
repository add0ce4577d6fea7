//! Numbers with a range: a value outside of it cannot be made.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A value outside the range of its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found} is out of range: expected {expected}")]
pub struct OutOfRange {
    found: String,
    expected: &'static str,
}

impl OutOfRange {
    /// `found` where `expected` describes the valid values.
    #[must_use]
    pub fn new(found: impl fmt::Display, expected: &'static str) -> Self {
        Self {
            found: found.to_string(),
            expected,
        }
    }
}

/// Defines a number type with a range, which is read from text, and in files is a `$wire`.
macro_rules! bounded {
    ($(#[$doc:meta])* $name:ident($number:ty) in $wire:ty as $wire_name:literal, $expected:literal, $value:ident => $condition:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(try_from = $wire_name, into = $wire_name)]
        pub struct $name($number);

        impl $name {
            /// The value.
            #[must_use]
            pub fn get(self) -> $number {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl TryFrom<$wire> for $name {
            type Error = OutOfRange;

            fn try_from($value: $wire) -> Result<Self, OutOfRange> {
                if $condition {
                    Ok(Self($value as $number))
                } else {
                    // Large numbers with an exponent.
                    Err(OutOfRange::new(format_args!("{:?}", $value), $expected))
                }
            }
        }

        impl From<$name> for $wire {
            fn from(number: $name) -> $wire {
                number.0.into()
            }
        }

        impl FromStr for $name {
            type Err = OutOfRange;

            fn from_str(text: &str) -> Result<Self, OutOfRange> {
                let number: $wire = text
                    .parse()
                    .map_err(|_| OutOfRange::new(format_args!("`{text}`"), $expected))?;
                Self::try_from(number)
            }
        }
    };
}

bounded!(
    /// A finite number of at least 0.
    NonNegative(f64) in f64 as "f64", "a finite number of at least 0", value => value.is_finite() && value >= 0.0
);
bounded!(
    /// A number of at least 0 and below 1, also in single precision.
    Fraction(f64) in f64 as "f64", "a number of at least 0 and below 1 in single precision",
    value => value >= 0.0 && (value as f32) < 1.0
);
bounded!(
    /// A number that is finite in single precision, in which networks compute.
    Finite(f64) in f64 as "f64", "a finite number", value => (value as f32).is_finite()
);
bounded!(
    /// A number that is finite and above 0 in single precision.
    Positive(f64) in f64 as "f64", "a finite number above 0", value => (value as f32).is_finite() && value as f32 > 0.0
);
bounded!(
    /// A number above 0 and below 1, also in single precision.
    OpenFraction(f64) in f64 as "f64", "a number above 0 and below 1 in single precision",
    value => value as f32 > 0.0 && (value as f32) < 1.0
);

bounded!(
    /// A number of shards of a batch: a power of two of at most 1024.
    Shards(u32) in u32 as "u32", "a power of two from 1 to 1024", count => count.is_power_of_two() && count <= 1024
);
bounded!(
    /// The side of the square that cutout sets to the mean colour, in pixels: 0 to 32; 0 switches cutout off.
    Cutout(u8) in u32 as "u32", "a number of pixels, 0 to 32", side => side <= 32
);

/// A value for each of the channels red, green and blue; comma-separated on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<T>", bound(deserialize = "T: Deserialize<'de>"))]
pub struct PerChannel<T>(pub [T; 3]);

impl<T> TryFrom<Vec<T>> for PerChannel<T> {
    type Error = OutOfRange;

    fn try_from(values: Vec<T>) -> Result<Self, OutOfRange> {
        let count = values.len();
        let values = values.try_into().map(Self);
        values.map_err(|_| OutOfRange::new(format_args!("an array of {count}"), "three numbers"))
    }
}

impl<T: TryFrom<f64, Error = OutOfRange>> TryFrom<[f64; 3]> for PerChannel<T> {
    type Error = OutOfRange;

    fn try_from([red, green, blue]: [f64; 3]) -> Result<Self, OutOfRange> {
        Ok(Self([red.try_into()?, green.try_into()?, blue.try_into()?]))
    }
}

impl<T: FromStr<Err = OutOfRange>> FromStr for PerChannel<T> {
    type Err = OutOfRange;

    fn from_str(text: &str) -> Result<Self, OutOfRange> {
        let parts: Vec<_> = text.split(',').map(str::trim).collect();
        let parts: [&str; 3] = parts.try_into().map_err(|_| {
            let expected = "three comma-separated numbers, one per channel";
            OutOfRange::new(format_args!("`{text}`"), expected)
        })?;
        let [red, green, blue] = parts.map(str::parse);
        Ok(Self([red?, green?, blue?]))
    }
}

impl<T: fmt::Display> fmt::Display for PerChannel<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [red, green, blue] = &self.0;
        write!(f, "{red},{green},{blue}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_refused() {
        assert!("-0.1".parse::<NonNegative>().is_err());
        assert!("inf".parse::<NonNegative>().is_err());
        assert!("nan".parse::<Fraction>().is_err());
        assert!("1".parse::<Fraction>().is_err());
        for text in ["0", "1", "0.99999999", "1e-50"] {
            assert!(text.parse::<OpenFraction>().is_err(), "{text}");
        }
        assert!("0.99999999".parse::<Fraction>().is_err());
        assert!("-1e-50".parse::<Fraction>().is_err());
        for text in ["0", "1e-50", "1e39", "inf", "nan"] {
            assert!(text.parse::<Positive>().is_err(), "{text}");
        }
        for text in ["1e39", "-inf", "nan", "0,1", ""] {
            assert!(text.parse::<Finite>().is_err(), "{text}");
        }
        assert!("33".parse::<Cutout>().is_err());
        assert!("-1".parse::<Cutout>().is_err());
        assert!(Cutout::try_from(256 + 8).is_err());
        for text in ["", "1,2", "1,2,3,4", "a,b,c", "1,2,0"] {
            assert!(text.parse::<PerChannel<Positive>>().is_err(), "{text}");
        }
        let error = "1e300".parse::<Positive>().unwrap_err().to_string();
        assert!(error.starts_with("1e300 is out of range"), "{error}");
        assert_eq!("0".parse::<Fraction>().map(Fraction::get), Ok(0.0));
        assert_eq!(
            "x".parse::<Fraction>().unwrap_err().to_string(),
            "`x` is out of range: expected a number of at least 0 and below 1 in single precision"
        );
    }
}
