//! Layouts of a convolution's weight, which is `[out_channels, in_channels, kernel, kernel]` elsewhere.

use super::geometry::Geometry;
use crate::parts::par_parts;
use crate::scratch::Scratch;
use crate::simd::Real;
use rayon::prelude::*;

/// `[kernel, kernel, in_channels, out_channels]`.
pub(crate) fn taps_in_out<T: Real>(g: &Geometry, weight: &[T]) -> Scratch<T> {
    let (inputs, taps) = (g.in_channels, g.taps());
    arranged(g, weight, g.out_channels, |row| {
        (row % inputs * taps + row / inputs, taps * inputs)
    })
}

/// `[kernel, kernel, out_channels, in_channels]`.
pub(crate) fn taps_out_in<T: Real>(g: &Geometry, weight: &[T]) -> Scratch<T> {
    let (outputs, taps) = (g.out_channels, g.taps());
    arranged(g, weight, g.in_channels, |row| {
        (row % outputs * taps * g.in_channels + row / outputs, taps)
    })
}

/// `[out_channels, kernel, kernel, in_channels]`.
pub(crate) fn out_taps_in<T: Real>(g: &Geometry, weight: &[T]) -> Scratch<T> {
    let taps = g.taps();
    arranged(g, weight, g.in_channels, |row| {
        (row / taps * taps * g.in_channels + row % taps, taps)
    })
}

/// A matrix of `columns` columns, from the index of each row's first element in `weight` and the step to the next.
fn arranged<T: Real>(
    g: &Geometry,
    weight: &[T],
    columns: usize,
    elements: impl Fn(usize) -> (usize, usize) + Sync,
) -> Scratch<T> {
    let mut arranged = Scratch::new(g.weights());
    let rows = arranged.par_chunks_mut(columns.max(1)).enumerate();
    rows.for_each(|(row, to)| {
        let (first, step) = elements(row);
        for (to, from) in to.iter_mut().zip(weight[first..].iter().step_by(step)) {
            *to = *from;
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
