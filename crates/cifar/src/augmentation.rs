//! From the bytes of an image to the numbers that the network sees.

use crate::layout::IMAGE_BYTES;
use random::{Purpose, Stream};
use serde::{Deserialize, Serialize};

/// Height and width of an image.
const SIDE: usize = 32;

/// Zeros that a random crop sees beyond every edge.
const PADDING: u64 = 4;

/// What is done to training images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Augmentation {
    /// Nothing.
    None,
    /// Zero-pad by 4, crop 32x32 anywhere, flip left and right in half of the cases.
    Standard,
}

/// Where a crop is taken from, and whether it is mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Row of the original that the crop's first row shows; rows outside are black.
    pub top: i8,
    /// Column of the original that the crop's first column shows; columns outside are black.
    pub left: i8,
    /// Whether left and right are exchanged.
    pub flipped: bool,
}

impl View {
    const WHOLE: Self = Self {
        top: 0,
        left: 0,
        flipped: false,
    };
}

impl Augmentation {
    /// How image `index` of the training set is seen in an epoch.
    pub(crate) fn view(self, seed: u64, epoch: u32, index: u64) -> View {
        match self {
            Self::None => View::WHOLE,
            Self::Standard => {
                let [top, left, flip, _] =
                    Stream::new(seed, Purpose::Augmentation, epoch).words(index);
                let places = 2 * PADDING + 1;
                let offset = |word| ((u64::from(word) * places) >> 32) as i8 - PADDING as i8;
                View {
                    top: offset(top),
                    left: offset(left),
                    flipped: flip >> 31 == 1,
                }
            }
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

    /// The number for each channel and value.
    #[must_use]
    pub fn numbers(&self) -> &[[f32; 256]; 3] {
        &self.table
    }

    /// Writes an image, as `view` shows it, to `out`; both are `[3, 32, 32]`.
    pub(crate) fn write(&self, image: &[u8], view: View, out: &mut [f32]) {
        debug_assert!(image.len() == IMAGE_BYTES && out.len() == IMAGE_BYTES);
        let planes = image.chunks_exact(SIDE * SIDE);
        for ((plane, table), out) in planes
            .zip(&self.table)
            .zip(out.chunks_exact_mut(SIDE * SIDE))
        {
            for (y, line) in out.chunks_exact_mut(SIDE).enumerate() {
                let row = y as isize + isize::from(view.top);
                let Some(row) = usize::try_from(row).ok().filter(|row| *row < SIDE) else {
                    line.fill(table[0]);
                    continue;
                };
                let row = &plane[row * SIDE..][..SIDE];
                for (x, value) in line.iter_mut().enumerate() {
                    let x = if view.flipped { SIDE - 1 - x } else { x };
                    let byte = usize::try_from(x as isize + isize::from(view.left))
                        .ok()
                        .and_then(|column| row.get(column))
                        .copied()
                        .unwrap_or(0);
                    *value = table[usize::from(byte)];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: fn() -> Normalisation = || Normalisation::new([0.0; 3], [1.0 / 255.0; 3]);

    fn picture() -> Vec<u8> {
        (0..IMAGE_BYTES).map(|i| (1 + i % 255) as u8).collect()
    }

    /// Pads, crops and flips step by step, as torchvision describes the transforms.
    fn reference(image: &[u8], top: isize, left: isize, flipped: bool) -> Vec<f32> {
        let mut padded = vec![0_u8; 3 * 40 * 40];
        for (i, value) in image.iter().enumerate() {
            let (channel, row, column) = (i / 1024, i / 32 % 32, i % 32);
            padded[channel * 1600 + (row + 4) * 40 + column + 4] = *value;
        }
        let mut out = Vec::new();
        for i in 0..IMAGE_BYTES {
            let (channel, row, column) = (i / 1024, i / 32 % 32, i % 32);
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
            for flipped in [false, true] {
                let view = View { top, left, flipped };
                PLAIN().write(&image, view, &mut out);
                let expected = reference(&image, top.into(), left.into(), flipped);
                assert!(
                    out.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-3),
                    "{view:?}"
                );
            }
        }
    }

    #[test]
    fn values_are_normalised_by_channel() {
        let normalisation = Normalisation::new([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let mut out = vec![0.0; IMAGE_BYTES];
        normalisation.write(&[128; IMAGE_BYTES], View::WHOLE, &mut out);
        // (torch.tensor([128]) / 255 - mean) / std
        for (channel, expected) in [0.074_065_59, 0.205_182_07, 0.426_492_4].iter().enumerate() {
            assert!(
                (out[channel * 1024] - expected).abs() < 1e-6,
                "{}",
                out[channel * 1024]
            );
        }
    }

    #[test]
    fn every_crop_and_flip_comes_up() {
        let mut counts = [[[0_u32; 2]; 9]; 9];
        for index in 0..16_200 {
            let view = Augmentation::Standard.view(3, 1, index);
            counts[(view.top + 4) as usize][(view.left + 4) as usize][usize::from(view.flipped)] +=
                1;
        }
        // Mean 100, standard deviation 10.
        let counts: Vec<_> = counts.into_iter().flatten().flatten().collect();
        assert!(
            counts.iter().all(|count| (50..=150).contains(count)),
            "{counts:?}"
        );
        assert_eq!(Augmentation::None.view(3, 1, 9), View::WHOLE);
    }
}
