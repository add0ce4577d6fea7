//! Layouts of a convolution's weight, which is `[out_channels, in_channels, kernel, kernel]` elsewhere.

use super::geometry::Geometry;
use crate::parts::par_parts;
use crate::scratch::Scratch;
use crate::simd::Real;
use rayon::prelude::*;

/// `[kernel, kernel, in_channels, out_channels]`.
pub(crate) fn taps_in_out<T: Real>(g: &Geometry, weight: &[T]) -> Scratch<T> {
    let mut arranged = Scratch::new(g.weights());
    let patch = g.taps() * g.in_channels;
    arranged
        .par_chunks_mut(g.out_channels)
        .enumerate()
        .for_each(|(row, out)| {
            let (tap, channel) = (row / g.in_channels, row % g.in_channels);
            let column = weight[channel * g.taps() + tap..].iter().step_by(patch);
            for (to, from) in out.iter_mut().zip(column) {
                *to = *from;
            }
        });
    arranged
}

/// `[kernel, kernel, out_channels, in_channels]`.
pub(crate) fn taps_out_in<T: Real>(g: &Geometry, weight: &[T]) -> Scratch<T> {
    let mut arranged = Scratch::new(g.weights());
    let patch = g.taps() * g.in_channels;
    arranged
        .par_chunks_mut(g.in_channels)
        .enumerate()
        .for_each(|(row, out)| {
            let (tap, filter) = (row / g.out_channels, row % g.out_channels);
            let weights = weight[filter * patch + tap..].iter().step_by(g.taps());
            for (to, from) in out.iter_mut().zip(weights) {
                *to = *from;
            }
        });
    arranged
}

/// `[out_channels, kernel, kernel, in_channels]`.
pub(crate) fn out_taps_in<T: Real>(g: &Geometry, weight: &[T]) -> Scratch<T> {
    let mut arranged = Scratch::new(g.weights());
    let patch = g.taps() * g.in_channels;
    arranged
        .par_chunks_mut(patch.max(1))
        .zip(weight.par_chunks(patch.max(1)))
        .for_each(|(to, from)| {
            for (channel, from) in from.chunks_exact(g.taps()).enumerate() {
                for (tap, value) in from.iter().enumerate() {
                    to[tap * g.in_channels + channel] = *value;
                }
            }
        });
    arranged
}

/// The weight itself from `[kernel, kernel, in_channels, out_channels]`.
pub(crate) fn from_taps_in_out<T: Real>(g: &Geometry, arranged: &[T]) -> Vec<T> {
    par_parts(
        g.out_channels,
        g.taps() * g.in_channels,
        |filter, weight| {
            let column = arranged[filter..].iter().step_by(g.out_channels);
            for (row, from) in column.enumerate() {
                let (tap, channel) = (row / g.in_channels, row % g.in_channels);
                weight[channel * g.taps() + tap] = *from;
            }
        },
    )
}
