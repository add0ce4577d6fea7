//! Images as PNG; in a page, in base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, ImageResult, Rgb, RgbImage};
use run::predictions::Filters;
use std::io::Cursor;

/// An image of `[3, 32, 32]` bytes.
pub(crate) fn image(planes: &[u8]) -> Option<String> {
    let side = 32;
    encode(&RgbImage::from_fn(side, side, |x, y| {
        let pixel = (y * side + x) as usize;
        Rgb([0, 1, 2].map(|channel| planes.get(channel * 1024 + pixel).copied().unwrap_or(0)))
    }))
}

/// The filters in rows, each scaled to the full range of brightness, and the width of the image in pixels.
pub(crate) fn filters(filters: &Filters) -> Option<(String, u32)> {
    let side = filters.side;
    let elements = 3 * side * side;
    if elements == 0 || filters.weights.len() < elements {
        return None;
    }
    let all: Vec<_> = filters.weights.chunks_exact(elements).collect();
    let columns = if all.len() > 64 { 16 } else { 8 }.min(all.len());
    let rows = all.len().div_ceil(columns);
    let cell = side + 1;
    let picture = RgbImage::from_fn(
        (columns * cell + 1) as u32,
        (rows * cell + 1) as u32,
        |x, y| {
            let (x, y) = (x as usize, y as usize);
            let index = y / cell * columns + x / cell;
            let (column, row) = (x % cell, y % cell);
            let Some(weights) = all.get(index).filter(|_| column > 0 && row > 0) else {
                return Rgb([128; 3]);
            };
            let low = weights.iter().copied().fold(f32::INFINITY, f32::min);
            let high = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            Rgb([0, 1, 2].map(|channel| {
                let weight = weights[(channel * side + row - 1) * side + column - 1];
                (255.0 * (weight - low) / (high - low).max(f32::MIN_POSITIVE)) as u8
            }))
        },
    );
    Some((encode(&picture)?, picture.width()))
}

/// A PNG file.
pub(crate) fn png(picture: &RgbImage) -> ImageResult<Vec<u8>> {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, ImageFormat::Png)?;
    Ok(file.into_inner())
}

fn encode(picture: &RgbImage) -> Option<String> {
    let file = STANDARD.encode(png(picture).ok()?);
    Some(format!("data:image/png;base64,{file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(uri: &str) -> RgbImage {
        let bytes = STANDARD
            .decode(uri.strip_prefix("data:image/png;base64,").unwrap())
            .unwrap();
        image::load_from_memory(&bytes).unwrap().to_rgb8()
    }

    #[test]
    fn channels_become_pixels() {
        let planes: Vec<u8> = (0..3 * 1024)
            .map(|place| (place / 1024 * 100 + place % 7) as u8)
            .collect();
        let picture = decoded(&image(&planes).unwrap());
        assert_eq!(picture.get_pixel(3, 0).0, [3, 105, 200]);
        assert_eq!(picture.get_pixel(0, 1).0, [4, 106, 201]);
    }

    #[test]
    fn every_filter_has_the_full_range_of_brightness() {
        let weights = (0..9 * 12).map(|place| (place % 12) as f32 - 3.0).collect();
        let (uri, width) = filters(&Filters { side: 2, weights }).unwrap();
        let picture = decoded(&uri);
        assert_eq!((width, picture.dimensions()), (25, (25, 7)));
        assert_eq!(picture.get_pixel(0, 0).0, [128; 3]);
        // Channels first: red has the lowest weights.
        assert_eq!(picture.get_pixel(1, 1).0, [0, 92, 185]);
        assert_eq!(picture.get_pixel(2, 2).0, [69, 162, 255]);
        assert_eq!(
            filters(&Filters {
                side: 0,
                weights: Vec::new()
            }),
            None
        );
    }
}
