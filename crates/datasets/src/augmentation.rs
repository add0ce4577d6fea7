//! Augmentation and normalisation: from the bytes of an image to the input of the network.

use rng::{Purpose, Stream};
use run::Settings;
use run::predictions::{IMAGE_BYTES, SIDE};
use run::settings::{Augment, Flip, PaddingMode};

/// Pixels of padding on each side before a random crop.
const PADDING: u64 = 4;

/// The augmentation of training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Augmentation {
    /// Nothing.
    None,
    /// Pad by 4, crop 32x32 at random, flip horizontally, cutout.
    Standard {
        /// The padding.
        padding_mode: PaddingMode,
        /// When images are flipped.
        flip: Flip,
        /// Side of a square around a random pixel of the crop, whose normalised values become 0, the mean colour
        /// (T. DeVries and G. W. Taylor, "Improved regularization of convolutional neural networks with cutout",
        /// 2017); 0 for none.
        cutout: u8,
    },
}

/// The rectangle that cutout sets to 0, in pixels of the crop. It may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutoutSquare {
    /// First row.
    pub top: u8,
    /// First column.
    pub left: u8,
    /// Row after the last.
    pub bottom: u8,
    /// Column after the last.
    pub right: u8,
}

impl CutoutSquare {
    const NONE: Self = Self {
        top: 0,
        left: 0,
        bottom: 0,
        right: 0,
    };

    /// The square of this side around a pixel, clipped to the image.
    fn around(row: u8, column: u8, side: u8) -> Self {
        // Not above 31 + 128.
        let from = |centre: u8| centre.saturating_sub(side / 2);
        let to = |centre: u8| (centre + (side - side / 2)).min(SIDE as u8);
        Self {
            top: from(row),
            left: from(column),
            bottom: to(row),
            right: to(column),
        }
    }
}

/// The transform of one sample: crop, flip and cutout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transform {
    /// Row of the image at which the crop starts; negative in the padding.
    pub top: i8,
    /// Column of the image at which the crop starts; negative in the padding.
    pub left: i8,
    /// Whether the crop is flipped horizontally.
    pub flipped: bool,
    /// The padding.
    pub padding_mode: PaddingMode,
    /// Where the normalised values become 0.
    pub cutout: CutoutSquare,
}

impl Transform {
    /// The image without augmentation.
    pub const IDENTITY: Self = Self {
        top: 0,
        left: 0,
        flipped: false,
        padding_mode: PaddingMode::Constant,
        cutout: CutoutSquare::NONE,
    };

    /// The image, flipped horizontally.
    pub const FLIP: Self = Self {
        flipped: true,
        ..Self::IDENTITY
    };
}

impl Augmentation {
    /// As in the original network: black padding, random flips.
    pub const STANDARD: Self = Self::Standard {
        padding_mode: PaddingMode::Constant,
        flip: Flip::Random,
        cutout: 0,
    };

    /// The transform of image `index` of the training set in an epoch.
    pub(crate) fn transform(self, seed: u64, epoch: u32, index: u64) -> Transform {
        let Self::Standard {
            padding_mode,
            flip,
            cutout,
        } = self
        else {
            return Transform::IDENTITY;
        };
        let words = |epoch| Stream::new(seed, Purpose::Augmentation, epoch).words(index);
        let [top, left, side, centre] = words(epoch);
        let offsets = 2 * PADDING + 1;
        let offset = |word| ((u64::from(word) * offsets) >> 32) as i8 - PADDING as i8;
        // The five topmost bits, and the five below, are a row and a column.
        let square = match cutout {
            0 => CutoutSquare::NONE,
            _ => CutoutSquare::around((centre >> 27) as u8, (centre >> 22 & 31) as u8, cutout),
        };
        Transform {
            top: offset(top),
            left: offset(left),
            flipped: match flip {
                Flip::Random => side >> 31 == 1,
                // Two epochs in a row show every image in both orientations (K. Jordan, "94% on CIFAR-10 in 3.29 seconds
                // on a single GPU", 2024, section 3.6).
                Flip::Alternating => (words(0)[2] >> 31) ^ (epoch & 1) == 1,
            },
            padding_mode,
            cutout: square,
        }
    }
}

impl From<&Settings> for Augmentation {
    fn from(settings: &Settings) -> Self {
        match settings.augment {
            Augment::None => Self::None,
            Augment::Standard => Self::Standard {
                padding_mode: settings.padding_mode,
                flip: settings.flip,
                cutout: settings.cutout.get(),
            },
        }
    }
}

/// Turns channel values into `(value / 255 - mean) / standard_deviation`.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalisation {
    table: [[f32; 256]; 3],
}

impl Normalisation {
    /// From the mean and the standard deviation of each channel, both on a scale of 0 to 1.
    #[must_use]
    pub fn new(mean: [f32; 3], standard_deviation: [f32; 3]) -> Self {
        let mut table = [[0.0; 256]; 3];
        for (channel, values) in table.iter_mut().enumerate() {
            for (value, out) in values.iter_mut().enumerate() {
                *out = (value as f32 / 255.0 - mean[channel]) / standard_deviation[channel];
            }
        }
        Self { table }
    }

    /// The normalised value of each byte, by channel.
    #[must_use]
    pub fn table(&self) -> &[[f32; 256]; 3] {
        &self.table
    }

    /// Writes `image` `[3, 32, 32]`, augmented as `transform` says, to `out` `[32, 32, 3]`.
    pub(crate) fn write(&self, image: &[u8], transform: Transform, out: &mut [f32]) {
        debug_assert!(image.len() == IMAGE_BYTES && out.len() == IMAGE_BYTES);
        let columns: [Option<usize>; SIDE] = std::array::from_fn(|x| {
            let x = if transform.flipped { SIDE - 1 - x } else { x };
            original(x, transform.left, transform.padding_mode)
        });
        let outside = std::array::from_fn(|channel| self.table[channel][0]);
        let lines = out.as_chunks_mut::<3>().0.chunks_exact_mut(SIDE);
        for (y, line) in lines.enumerate() {
            let Some(row) = original(y, transform.top, transform.padding_mode) else {
                line.fill(outside);
                continue;
            };
            for (pixel, column) in line.iter_mut().zip(&columns) {
                *pixel = match column {
                    Some(column) => std::array::from_fn(|channel| {
                        let byte = image[(channel * SIDE + row) * SIDE + column];
                        self.table[channel][usize::from(byte)]
                    }),
                    None => outside,
                };
            }
        }
        let CutoutSquare {
            top,
            left,
            bottom,
            right,
        } = transform.cutout;
        for y in usize::from(top)..usize::from(bottom) {
            let columns = usize::from(left) * 3..usize::from(right) * 3;
            out[y * SIDE * 3..][columns].fill(0.0);
        }
    }
}

impl From<&Settings> for Normalisation {
    fn from(settings: &Settings) -> Self {
        Self::new(
            settings.mean.0.map(|value| value.get() as f32),
            settings.std.0.map(|value| value.get() as f32),
        )
    }
}

/// The row or column of the image at a position of the crop; `None` in black padding.
fn original(position: usize, offset: i8, padding_mode: PaddingMode) -> Option<usize> {
    let last = SIDE as isize - 1;
    let position = match (position as isize + isize::from(offset), padding_mode) {
        (before, PaddingMode::Reflect) if before < 0 => -before,
        (after, PaddingMode::Reflect) if after > last => 2 * last - after,
        (position, _) => position,
    };
    usize::try_from(position)
        .ok()
        .filter(|position| *position < SIDE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: fn() -> Normalisation = || Normalisation::new([0.0; 3], [1.0 / 255.0; 3]);

    fn picture() -> Vec<u8> {
        (0..IMAGE_BYTES).map(|i| (1 + i % 255) as u8).collect()
    }

    /// Pads, crops and flips step by step, as torchvision describes the transforms.
    fn reference(
        image: &[u8],
        top: isize,
        left: isize,
        flipped: bool,
        padding_mode: PaddingMode,
    ) -> Vec<f32> {
        // numpy.pad(numpy.arange(32), 4, mode="reflect")[:5] is 4 3 2 1 0, and [-5:] is 31 30 29 28 27.
        let place = |padded: usize| match (padded, padding_mode) {
            (4..36, _) => Some(padded - 4),
            (_, PaddingMode::Constant) => None,
            (0..4, PaddingMode::Reflect) => Some([4, 3, 2, 1][padded]),
            (_, PaddingMode::Reflect) => Some([30, 29, 28, 27][padded - 36]),
        };
        let mut padded = vec![0_u8; 3 * 40 * 40];
        for (i, value) in padded.iter_mut().enumerate() {
            let (channel, row, column) = (i / 1600, i / 40 % 40, i % 40);
            if let (Some(row), Some(column)) = (place(row), place(column)) {
                *value = image[channel * 1024 + row * 32 + column];
            }
        }
        let mut out = Vec::new();
        for i in 0..IMAGE_BYTES {
            let (row, column, channel) = (i / 96, i / 3 % 32, i % 3);
            let column = if flipped { 31 - column } else { column };
            let (y, x) = (row as isize + top + 4, column as isize + left + 4);
            out.push(f32::from(
                padded[channel * 1600 + y as usize * 40 + x as usize],
            ));
        }
        out
    }

    #[test]
    fn views_are_padded_crops() {
        let image = picture();
        let mut out = vec![0.0; IMAGE_BYTES];
        for (top, left) in [(0, 0), (-4, -4), (4, 4), (-1, 3), (2, -4)] {
            for (flipped, padding_mode) in [
                (false, PaddingMode::Constant),
                (true, PaddingMode::Constant),
                (false, PaddingMode::Reflect),
                (true, PaddingMode::Reflect),
            ] {
                let transform = Transform {
                    top,
                    left,
                    flipped,
                    padding_mode,
                    cutout: CutoutSquare::NONE,
                };
                PLAIN().write(&image, transform, &mut out);
                let expected = reference(&image, top.into(), left.into(), flipped, padding_mode);
                assert!(
                    out.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-3),
                    "{transform:?}"
                );
            }
        }
    }

    /// `y1 = np.clip(y - length // 2, 0, h); y2 = np.clip(y + length // 2, 0, h)` of the authors' code.
    #[test]
    fn cutout_is_centred_on_its_pixel() {
        let square = |row, column, side| {
            let square = CutoutSquare::around(row, column, side);
            [square.top, square.bottom, square.left, square.right]
        };
        assert_eq!(square(10, 20, 8), [6, 14, 16, 24]);
        assert_eq!(square(0, 31, 8), [0, 4, 27, 32]);
        assert_eq!(square(3, 30, 16), [0, 11, 22, 32]);
        let mut out = vec![0.0; IMAGE_BYTES];
        let transform = Transform {
            cutout: CutoutSquare::around(0, 31, 8),
            ..Transform::IDENTITY
        };
        PLAIN().write(&picture(), transform, &mut out);
        let picture = picture();
        for (i, value) in out.iter().enumerate() {
            let (row, column, channel) = (i / 96, i / 3 % 32, i % 3);
            let expected = if row < 4 && column >= 27 {
                0.0
            } else {
                f32::from(picture[channel * 1024 + row * 32 + column])
            };
            assert!((value - expected).abs() < 1e-3, "{row} {column}: {value}");
        }
    }

    #[test]
    fn alternating_flips_show_both_orientations_in_two_epochs() {
        let augmentation = Augmentation::Standard {
            padding_mode: PaddingMode::Reflect,
            flip: Flip::Alternating,
            cutout: 8,
        };
        let mut first = 0;
        for index in 0..10_000 {
            let flipped = |epoch| augmentation.transform(7, epoch, index).flipped;
            assert!(flipped(0) != flipped(1) && flipped(1) != flipped(2));
            first += u32::from(flipped(0));
        }
        // Mean 5,000, standard deviation 50.
        assert!((4_750..5_250).contains(&first), "{first}");
        let mut rows = [0_u32; SIDE];
        for index in 0..32_000 {
            rows[usize::from(
                augmentation
                    .transform(7, 3, index)
                    .cutout
                    .top
                    .saturating_add(4),
            )] += 1;
        }
        // Places 0 to 4 all begin at row 0; the others are 1,000 each, with a standard deviation of 31.
        assert!((4_700..5_300).contains(&rows[4]), "{rows:?}");
        assert!(
            rows[5..].iter().all(|count| (840..1_160).contains(count)),
            "{rows:?}"
        );
    }

    #[test]
    fn values_are_normalised_by_channel() {
        let normalisation = Normalisation::new([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let mut out = vec![0.0; IMAGE_BYTES];
        normalisation.write(&[128; IMAGE_BYTES], Transform::IDENTITY, &mut out);
        // (torch.tensor([128]) / 255 - mean) / std
        for (channel, expected) in [0.074_065_59, 0.205_182_07, 0.426_492_4].iter().enumerate() {
            assert!((out[channel] - expected).abs() < 1e-6, "{}", out[channel]);
        }
    }

    #[test]
    fn every_crop_and_flip_comes_up() {
        let mut counts = [[[0_u32; 2]; 9]; 9];
        for index in 0..16_200 {
            let transform = Augmentation::STANDARD.transform(3, 1, index);
            counts[(transform.top + 4) as usize][(transform.left + 4) as usize]
                [usize::from(transform.flipped)] += 1;
        }
        // Mean 100, standard deviation 10.
        let counts: Vec<_> = counts.into_iter().flatten().flatten().collect();
        assert!(
            counts.iter().all(|count| (50..=150).contains(count)),
            "{counts:?}"
        );
        assert_eq!(Augmentation::None.transform(3, 1, 9), Transform::IDENTITY);
    }
}
