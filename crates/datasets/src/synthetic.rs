//! Ten classes of 32x32 colour images, drawn by a seeded procedure: something to train on where
//! there is no data.
//!
//! A class is a bright pattern (stripes, dots, a disc ...) on a darker ground. Place, size, phase,
//! both colours and the noise are random, so a single pixel says little about the class: a linear
//! classifier finds little, a convolutional network much.

use crate::layout::IMAGE_BYTES;
use rayon::prelude::*;
use rng::{Purpose, Stream, unit};
use std::f32::consts::TAU;

/// The classes by label. Mirroring an image does not change its class.
pub(crate) const CLASS_NAMES: [&str; 10] = [
    "horizontal stripes",
    "vertical stripes",
    "diagonal stripes",
    "checkerboard",
    "dots",
    "disc",
    "ring",
    "square",
    "triangle",
    "cross",
];

/// The set is the same for every run: the seed of a run changes how it is trained on, not the set.
const SEED: u64 = 10;

/// Words of random numbers an image: one block for its pattern and colours, then one for every
/// four channel values of noise.
const BLOCKS: u64 = 4 + IMAGE_BYTES as u64 / 4;

/// Which part of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Images to train on.
    Training = 0,
    /// Images to test with.
    Test = 1,
}

/// The first `count` images of a part: pixels `[count, 3, 32, 32]` and labels `[count]`. Classes
/// take turns, so every ten images hold each class once.
#[must_use]
pub(crate) fn synthetic(part: Part, count: usize) -> (Vec<u8>, Vec<u8>) {
    let stream = Stream::new(SEED, Purpose::Synthetic, part as u32);
    let mut pixels = vec![0; count * IMAGE_BYTES];
    pixels
        .par_chunks_exact_mut(IMAGE_BYTES)
        .enumerate()
        .for_each(|(number, image)| draw(&stream, number as u64, image));
    let labels = (0..count).map(|number| (number % 10) as u8).collect();
    (pixels, labels)
}

fn draw(stream: &Stream, number: u64, image: &mut [u8]) {
    let first = number * BLOCKS;
    let random = |place: u64| unit(stream.words(first + place / 4)[(place % 4) as usize]);
    let between = |place, low: f32, high: f32| low + (high - low) * random(place);

    let pattern = Pattern {
        class: (number % 10) as usize,
        x: between(0, 9.0, 23.0),
        y: between(1, 9.0, 23.0),
        size: between(2, 5.0, 9.0),
        period: between(3, 5.0, 9.0),
        phase: between(4, 0.0, TAU),
        tilt: between(5, -0.2, 0.2),
        rising: random(6) < 0.5,
    };
    // The pattern is the brighter one, by another amount in every channel.
    let mut inside = [0.0; 3];
    let mut outside = [0.0; 3];
    for channel in 0..3 {
        let place = channel as u64;
        outside[channel] = between(8 + place, 10.0, 110.0);
        inside[channel] = outside[channel] + between(11 + place, 20.0, 140.0);
    }
    let noise = between(15, 5.0, 35.0);

    for (place, value) in image.iter_mut().enumerate() {
        let (channel, y, x) = (place / 1024, place / 32 % 32, place % 32);
        let share = pattern.at(x as f32, y as f32);
        let colour = share * inside[channel] + (1.0 - share) * outside[channel];
        let word = stream.words(first + 4 + place as u64 / 4)[place % 4];
        *value = (colour + (unit(word) - 0.5) * 2.0 * noise).clamp(0.0, 255.0) as u8;
    }
}

struct Pattern {
    class: usize,
    x: f32,
    y: f32,
    /// Half the height of a figure, in pixels.
    size: f32,
    /// Of what repeats, in pixels.
    period: f32,
    phase: f32,
    /// Rotation in radians.
    tilt: f32,
    /// Direction of diagonal stripes.
    rising: bool,
}

impl Pattern {
    /// How much of the inner colour a pixel shows, 0 to 1.
    fn at(&self, x: f32, y: f32) -> f32 {
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
    fn images_do_not_depend_on_how_many_are_drawn() {
        let (few, _) = synthetic(Part::Training, 20);
        let (many, labels) = synthetic(Part::Training, 50);
        assert_eq!(few[..], many[..few.len()]);
        assert!((0..50).all(|i| labels[i] == (i % 10) as u8));
        let (test, _) = synthetic(Part::Test, 20);
        assert_ne!(few, test);
    }

    /// Multinomial logistic regression on the pixels, by a few passes of gradient descent. It guards
    /// the drawing against becoming easy; a fully fitted one finds some points more (README).
    #[test]
    fn a_linear_classifier_finds_little() {
        const N: usize = 4_000;
        let (train, train_labels) = synthetic(Part::Training, N);
        let (test, test_labels) = synthetic(Part::Test, 1_000);
        let scaled = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|b| f32::from(*b) / 128.0 - 1.0)
                .collect::<Vec<_>>()
        };
        let (train, test) = (scaled(&train), scaled(&test));
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
                let hit = if class == usize::from(train_labels[i]) {
                    1.0
                } else {
                    0.0
                };
                let slope = 1e-4 * ((scores[class] - top).exp() / total - hit);
                row.iter_mut().zip(image).for_each(|(w, x)| *w -= slope * x);
            }
        }
        let right = (0..1_000)
            .filter(|i| {
                let scores = logits(&weights, &test[i * IMAGE_BYTES..][..IMAGE_BYTES]);
                let best = (0..10).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
                best == Some(usize::from(test_labels[*i]))
            })
            .count();
        assert!(right < 400, "{right} of 1000");
    }
}
