//! Random numbers as a function of `(seed, purpose, epoch, index)`, not as a state.
//!
//! There is nothing to advance, to save or to share between threads: the same four numbers always
//! give the same 128 bits, in any order and on any device. The function is Philox4x32-10 of
//! J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as
//! 1, 2, 3" (SC '11): the seed is its key; purpose, epoch and index are its counter.

use std::array;

/// What a random number is for. Numbers for different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights; the epoch is the index of the parameter, the index that of the element.
    Initialisation = 1,
    /// The order of the training images in an epoch.
    Order = 2,
    /// Crop, flip and cutout of an image in an epoch; the index is that of the image.
    Augmentation = 3,
    /// Dropout masks; the epoch is the training step.
    Dropout = 4,
    /// The images of the synthetic data set; the epoch is the split.
    Synthetic = 5,
    /// Which training images are held out for validation; the epoch is the class.
    Validation = 6,
    /// The trials of a search; the epoch is the trial, the index that of the key.
    Search = 7,
    /// Which pictures of a folder are test pictures; the epoch is the class.
    TestSplit = 8,
}

/// All random numbers for one seed, purpose and epoch, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    purpose: Purpose,
    epoch: u32,
}

impl Stream {
    /// The numbers for `seed` and `purpose` in `epoch` (or step, or parameter: see [`Purpose`]).
    #[must_use]
    pub fn new(seed: u64, purpose: Purpose, epoch: u32) -> Self {
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            purpose,
            epoch,
        }
    }

    /// The four 32-bit words at `index`.
    #[inline]
    #[must_use]
    pub fn words(&self, index: u64) -> [u32; 4] {
        self.words_of::<1>(index).map(|[word]| word)
    }

    /// The four words at each of `N` indices from `index` on: word `w` of number `n` is `[w][n]`. For many
    /// of them at once, in vectors.
    // Inlined into a function for certain vectors, it is compiled for those.
    #[inline(always)]
    #[must_use]
    pub fn words_of<const N: usize>(&self, index: u64) -> [[u32; N]; 4] {
        let index = |n: usize| index.wrapping_add(n as u64);
        philox4x32_10(
            [
                array::from_fn(|n| index(n) as u32),
                array::from_fn(|n| (index(n) >> 32) as u32),
                [self.epoch; N],
                [self.purpose as u32; N],
            ],
            self.key,
        )
    }

    /// A whole number in `0..bound` at `index`; 0 for a bound of 0. Its deviation from uniform is
    /// below `bound / 2^64`.
    #[inline]
    #[must_use]
    pub fn below(&self, index: u64, bound: u64) -> u64 {
        let [low, high, ..] = self.words(index);
        let bits = u64::from(low) | (u64::from(high) << 32);
        ((u128::from(bits) * u128::from(bound)) >> 64) as u64
    }
}

/// A word as a number in `[0, 1)`: its top 24 bits, so that every value is exact in `f32`.
#[inline]
#[must_use]
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// The block function on `N` counters: multipliers and Weyl constants as in the paper's section 3.3.
#[inline(always)]
fn philox4x32_10<const N: usize>(mut counter: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    for _ in 0..10 {
        #[allow(clippy::needless_range_loop)] // Of four arrays.
        for n in 0..N {
            let a = u64::from(counter[0][n]) * 0xD251_1F53;
            let b = u64::from(counter[2][n]) * 0xCD9E_8D57;
            counter[0][n] = (b >> 32) as u32 ^ counter[1][n] ^ key[0];
            counter[1][n] = b as u32;
            counter[2][n] = (a >> 32) as u32 ^ counter[3][n] ^ key[1];
            counter[3][n] = a as u32;
        }
        key = [
            key[0].wrapping_add(0x9E37_79B9),
            key[1].wrapping_add(0xBB67_AE85),
        ];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers published with the Random123 library (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_gives_the_published_answers() {
        let max = u32::MAX;
        for (counter, key, answer) in [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [max; 4],
                [max; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(
                philox4x32_10(counter.map(|word| [word]), key),
                answer.map(|word| [word])
            );
        }
    }

    #[test]
    fn many_numbers_are_those_of_their_indices() {
        let stream = Stream::new(1 << 40 | 5, Purpose::Dropout, 9);
        let first = (1 << 32) - 3;
        let words = stream.words_of::<8>(first);
        for (n, index) in (first..).take(8).enumerate() {
            assert_eq!(words.map(|words| words[n]), stream.words(index));
        }
    }

    #[test]
    fn every_part_of_the_coordinate_matters() {
        let base = Stream::new(1, Purpose::Order, 2).words(3);
        assert_ne!(base, Stream::new(2, Purpose::Order, 2).words(3));
        assert_ne!(base, Stream::new(1 << 32 | 1, Purpose::Order, 2).words(3));
        assert_ne!(base, Stream::new(1, Purpose::Dropout, 2).words(3));
        assert_ne!(base, Stream::new(1, Purpose::Order, 3).words(3));
        assert_ne!(base, Stream::new(1, Purpose::Order, 2).words(4));
        assert_ne!(base, Stream::new(1, Purpose::Order, 2).words(1 << 32 | 3));
    }

    #[test]
    fn below_covers_its_range_evenly() {
        let stream = Stream::new(7, Purpose::Augmentation, 0);
        let mut counts = [0_u32; 9];
        for index in 0..90_000 {
            counts[stream.below(index, 9) as usize] += 1;
        }
        // Mean 10,000, standard deviation 94: five of them on either side.
        assert!(
            counts.iter().all(|c| (9_530..=10_470).contains(c)),
            "{counts:?}"
        );
        assert_eq!(stream.below(0, 0), 0);
        assert_eq!(stream.below(0, 1), 0);
    }

    #[test]
    fn unit_is_from_zero_to_one() {
        assert_eq!(unit(0), 0.0);
        assert!(unit(u32::MAX) < 1.0);
        assert_eq!(unit(1 << 31), 0.5);
    }
}
