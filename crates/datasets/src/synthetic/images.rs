//! The images of the synthetic data set.

use super::INFO;
use crate::dataset::Dataset;
use crate::error::Error;
use crate::records::Records;
use rayon::prelude::*;
use rng::{Purpose, Stream, unit};
use run::predictions::IMAGE_BYTES;
use std::f32::consts::TAU;

/// The seed of the images. It is fixed: a run's seed does not change the data set.
const SEED: u64 = 10;

/// Blocks of four random words per image: four for pattern and colours, then one for the noise of every four channel
/// values.
const BLOCKS: u64 = 4 + IMAGE_BYTES as u64 / 4;

/// A split of the data set, which is the index of its random stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Training = 0,
    Test = 1,
}

impl Dataset {
    /// The synthetic data set with `training` training and `test` test images. An image does not depend on the number
    /// of images.
    ///
    /// # Errors
    /// When the tensors cannot be created.
    pub fn synthetic(training: usize, test: usize) -> Result<Self, Error> {
        Self::new(
            generate(Part::Training, training),
            generate(Part::Test, test),
            INFO.class_names.iter().copied(),
        )
    }
}

/// The first `count` images of a split. Labels cycle through the classes.
fn generate(part: Part, count: usize) -> Records {
    let stream = Stream::new(SEED, Purpose::Synthetic, part as u32);
    let mut pixels = vec![0; count * IMAGE_BYTES];
    pixels
        .par_chunks_exact_mut(IMAGE_BYTES)
        .enumerate()
        .for_each(|(index, image)| draw(&stream, index as u64, image));
    let labels = (0..count as u32).map(|index| index % 10).collect();
    Records { labels, pixels }
}

/// Draws the image with this index: `[3, 32, 32]`.
fn draw(stream: &Stream, index: u64, image: &mut [u8]) {
    let first = index * BLOCKS;
    let random = |word: u64| unit(stream.words(first + word / 4)[(word % 4) as usize]);
    let between = |word, low: f32, high: f32| low + (high - low) * random(word);

    let pattern = Pattern {
        class: (index % 10) as usize,
        x: between(0, 9.0, 23.0),
        y: between(1, 9.0, 23.0),
        size: between(2, 5.0, 9.0),
        period: between(3, 5.0, 9.0),
        phase: between(4, 0.0, TAU),
        tilt: between(5, -0.2, 0.2),
        rising: random(6) < 0.5,
    };
    // The pattern is brighter than the background, by a different amount in every channel.
    let mut inside = [0.0; 3];
    let mut outside = [0.0; 3];
    for channel in 0..3 {
        let word = channel as u64;
        outside[channel] = between(8 + word, 10.0, 110.0);
        inside[channel] = outside[channel] + between(11 + word, 20.0, 140.0);
    }
    let noise = between(15, 5.0, 35.0);

    for (index, value) in image.iter_mut().enumerate() {
        let (channel, y, x) = (index / 1024, index / 32 % 32, index % 32);
        let opacity = pattern.opacity(x as f32, y as f32);
        let colour = opacity * inside[channel] + (1.0 - opacity) * outside[channel];
        let word = stream.words(first + 4 + index as u64 / 4)[index % 4];
        *value = (colour + (unit(word) - 0.5) * 2.0 * noise).clamp(0.0, 255.0) as u8;
    }
}

struct Pattern {
    class: usize,
    x: f32,
    y: f32,
    /// Half the height of a shape, in pixels.
    size: f32,
    /// Period of stripes, checks and dots, in pixels.
    period: f32,
    phase: f32,
    /// Rotation in radians.
    tilt: f32,
    /// Direction of diagonal stripes.
    rising: bool,
}

impl Pattern {
    /// The opacity of the pattern at a pixel, 0 to 1.
    fn opacity(&self, x: f32, y: f32) -> f32 {
        let (dx, dy) = (x - self.x, y - self.y);
        let (sin, cos) = libm::sincosf(self.tilt);
        let (u, v) = (dx * cos - dy * sin, dx * sin + dy * cos);
        let wave = |along: f32| libm::sinf(along * TAU / self.period + self.phase);
        let soft = |distance: f32| (0.5 - distance).clamp(0.0, 1.0);
        let stripes = |along: f32| 0.5 + 0.5 * (2.0 * wave(along)).clamp(-1.0, 1.0);
        match self.class {
            0 => stripes(v),
            1 => stripes(u),
            2 if self.rising => stripes((u + v) * 0.707),
            2 => stripes((u - v) * 0.707),
            3 => 0.5 + 0.5 * (6.0 * wave(u) * wave(v)).clamp(-1.0, 1.0),
            4 => (3.0 * (wave(u) + wave(v) - 0.9)).clamp(0.0, 1.0),
            5 => soft(libm::hypotf(u, v) - self.size),
            6 => soft((libm::hypotf(u, v) - self.size).abs() - 1.5),
            7 => soft(u.abs().max(v.abs()) - self.size),
            8 => soft((v - self.size).max(u.abs() - 0.5 * (v + self.size))),
            _ => soft(
                u.abs()
                    .min(v.abs())
                    .max(u.abs().max(v.abs()) - self.size - 2.0)
                    - 1.5,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_do_not_depend_on_their_number() {
        let few = generate(Part::Training, 20).pixels;
        let many = generate(Part::Training, 50);
        assert_eq!(few[..], many.pixels[..few.len()]);
        assert!((0..50).all(|i| many.labels[i] == (i % 10) as u32));
        let test = generate(Part::Test, 20).pixels;
        assert_ne!(few, test);
    }

    /// Multinomial logistic regression on the pixels, by a few epochs of gradient descent. It keeps the data set from
    /// becoming easy; after full convergence the accuracy is a few points higher.
    #[test]
    fn a_linear_classifier_performs_poorly() {
        const N: usize = 4_000;
        let (train, test) = (generate(Part::Training, N), generate(Part::Test, 1_000));
        let (train_labels, test_labels) = (train.labels, test.labels);
        let scaled = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|b| f32::from(*b) / 128.0 - 1.0)
                .collect::<Vec<_>>()
        };
        let (train, test) = (scaled(&train.pixels), scaled(&test.pixels));
        let mut weights = vec![0.0_f32; 10 * IMAGE_BYTES];
        let logits = |weights: &[f32], image: &[f32]| -> Vec<f32> {
            weights
                .par_chunks_exact(IMAGE_BYTES)
                .map(|row| row.iter().zip(image).map(|(w, x)| w * x).sum())
                .collect()
        };
        for step in 0..5 * N {
            let i = step % N;
            let image = &train[i * IMAGE_BYTES..][..IMAGE_BYTES];
            let scores = logits(&weights, image);
            let top = scores.iter().copied().fold(f32::MIN, f32::max);
            let total: f32 = scores.iter().map(|s| (s - top).exp()).sum();
            for (class, row) in weights.chunks_exact_mut(IMAGE_BYTES).enumerate() {
                let hit = if class == train_labels[i] as usize {
                    1.0
                } else {
                    0.0
                };
                let slope = 1e-4 * ((scores[class] - top).exp() / total - hit);
                row.iter_mut().zip(image).for_each(|(w, x)| *w -= slope * x);
            }
        }
        let correct = (0..1_000)
            .filter(|i| {
                let scores = logits(&weights, &test[i * IMAGE_BYTES..][..IMAGE_BYTES]);
                let best = (0..10).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
                best == Some(test_labels[*i] as usize)
            })
            .count();
        assert!(correct < 400, "{correct} of 1000");
    }
}
