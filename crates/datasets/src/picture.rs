//! Pictures from PNG and JPEG files, as people see them: upright, and on white where they are transparent.

use image::codecs::png::PngDecoder;
use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, Limits, RgbImage};
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::result;
use zune_core::bytestream::ZCursor;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

/// Height and width of images in a data set.
const SIDE: u32 = run::predictions::SIDE as u32;

/// Bytes of a mebibyte.
const MIB: u64 = 1 << 20;

/// The most bytes that what is not pixels may take.
const MAX_METADATA: u64 = 64 << 20;

/// The most bytes of pixels that are decoded: more than a phone's 200 megapixels have.
const MAX_BYTES: u64 = 1 << 30;

/// Why a file cannot be used as a picture.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// The file has too many bytes.
    #[error("it is larger than {} MiB; make it smaller", MAX_BYTES / MIB)]
    LongFile,
    /// It is something else, as the text says.
    #[error("it is not a PNG or JPEG picture; it {0}")]
    Other(String),
    /// It is neither PNG nor JPEG.
    #[error("it is not a PNG or JPEG picture")]
    Unknown,
    /// It ends too early.
    #[error("it is incomplete: the file ends before the picture does; download or copy it again")]
    Truncated,
    /// Its pixels need too much memory.
    #[error("it has {0} x {1} pixels, which are too many; make it smaller")]
    TooLarge(u32, u32),
    /// Its pixels need more memory than is free, in bytes.
    #[error(
        "it has {width} x {height} pixels, which take about {} MiB of memory, and {} MiB are free; make it smaller, or free some",
        needed.div_ceil(MIB),
        free / MIB
    )]
    NoMemory {
        /// Pixels in a row.
        width: u32,
        /// Pixels in a column.
        height: u32,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The decoder cannot decode it; with the decoder's reason.
    #[error(
        "it is damaged, or of an unsupported kind ({0}); save it again as a PNG or JPEG picture"
    )]
    Undecodable(String),
}

type Result<T> = result::Result<T, PictureError>;

/// Reads a picture, with at most `memory` bytes besides those of the file.
pub(crate) fn read(path: &Path, memory: u64) -> Result<DynamicImage> {
    let file = File::open(path).map_err(PictureError::Read)?;
    let length = file.metadata().map_err(PictureError::Read)?.len();
    if length > MAX_BYTES {
        return Err(PictureError::LongFile);
    }
    // A pipe or a device has no length.
    let mut bytes = Vec::with_capacity(length as usize);
    let mut start = file.take(MAX_BYTES + 1);
    start.read_to_end(&mut bytes).map_err(PictureError::Read)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(PictureError::LongFile);
    }
    decode(&bytes, memory)
}

/// Reads a picture as an image of a data set: its square in the middle, 32 by 32 pixels, as `[3, 32, 32]` bytes. It takes at
/// most `memory` bytes besides those of the file.
///
/// # Errors
/// When it is no PNG or JPEG picture, is damaged, or is too large.
pub fn read_picture(path: &Path, memory: u64) -> Result<Vec<u8>> {
    Ok(square(&read(path, memory)?))
}

fn decode(bytes: &[u8], memory: u64) -> Result<DynamicImage> {
    let (mut picture, exif) = match image::guess_format(bytes) {
        Ok(ImageFormat::Png) => png(bytes, memory)?,
        Ok(ImageFormat::Jpeg) => jpeg(bytes, memory)?,
        Ok(other) => {
            let name = format!("{other:?}").to_uppercase();
            return Err(PictureError::Other(format!("is a {name} picture")));
        }
        // The container of HEIC, in which phones store photos.
        Err(_) if bytes.get(4..8) == Some(b"ftyp") => {
            return Err(PictureError::Other(
                "is a HEIF picture or a video".to_owned(),
            ));
        }
        Err(_) => {
            return Err(match run::describe_format(bytes) {
                Some(description) => PictureError::Other(description),
                None => PictureError::Unknown,
            });
        }
    };
    // Some programs write the prefix of a JPEG segment into PNG chunks as well.
    let exif = exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif);
    if let Some(orientation) = Orientation::from_exif_chunk(exif) {
        picture.apply_orientation(orientation);
    }
    Ok(if picture.color().has_alpha() {
        on_white(&picture)
    } else {
        picture
    })
}

/// Decodes a PNG picture, and returns its EXIF data, which may be empty.
fn png(bytes: &[u8], memory: u64) -> Result<(DynamicImage, Vec<u8>)> {
    // To the end of the file, where there may be EXIF data: `image` reads no further than the pixels.
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info()?;
    reader.finish()?;
    let exif = reader.info().exif_metadata.as_deref().map(<[u8]>::to_vec);
    // Colour profiles are inflated.
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_METADATA);
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits)?;
    let (width, height) = decoder.dimensions();
    // Turning and cropping each copy the pixels. With transparency there are RGBA and RGB copies: 4 + 3 bytes a pixel.
    let pixel_bytes = decoder.total_bytes();
    let copies = match decoder.color_type().has_alpha() {
        true => 7 * u64::from(width) * u64::from(height),
        false => pixel_bytes,
    };
    check_size(
        [width, height],
        pixel_bytes,
        copies.max(pixel_bytes),
        memory,
    )?;
    Ok((
        DynamicImage::from_decoder(decoder)?,
        exif.unwrap_or_default(),
    ))
}

impl From<png::DecodingError> for PictureError {
    fn from(error: png::DecodingError) -> Self {
        match error {
            png::DecodingError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Self::Truncated
            }
            error => Self::Undecodable(error.to_string()),
        }
    }
}

impl From<ImageError> for PictureError {
    fn from(error: ImageError) -> Self {
        Self::Undecodable(error.to_string())
    }
}

/// Decodes a JPEG picture, and returns its EXIF data, which may be empty. `image` decodes damaged ones without an error.
fn jpeg(bytes: &[u8], memory: u64) -> Result<(DynamicImage, Vec<u8>)> {
    let end = end_of_image(bytes).ok_or(PictureError::Truncated)?;
    // Data that end before the last pixel must be an error. At the end marker the decoder would fill the rest with grey, so
    // bits that are no valid code come before it.
    let bytes = [&bytes[..end], &[0xFF, 0].repeat(16), &bytes[end..]].concat();
    let lenient = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&bytes), lenient);
    decoder.decode_headers()?;
    let exif = decoder.exif().cloned().unwrap_or_default();
    let (width, height) = decoder.dimensions().unwrap_or_default();
    // A JPEG file has 16 bits for each.
    let (width, height) = (width as u32, height as u32);
    // Progressive pictures are decoded to coefficients of 16 bits first.
    let pixel_bytes = 3 * u64::from(width) * u64::from(height);
    let more = 2 * pixel_bytes + bytes.len() as u64;
    check_size([width, height], pixel_bytes, more, memory)?;
    // Cameras add to headers what the standard does not allow; the pixels must be sound.
    decoder.set_options(lenient.set_strict_mode(true));
    let picture = RgbImage::from_raw(width, height, decoder.decode()?);
    let other_size = || PictureError::Undecodable("the number of its pixels is wrong".to_owned());
    Ok((picture.ok_or_else(other_size)?.into(), exif))
}

impl From<DecodeErrors> for PictureError {
    fn from(error: DecodeErrors) -> Self {
        Self::Undecodable(error.to_string().trim_matches('"').to_owned())
    }
}

/// Where a JPEG file has its marker "end of image", which a truncated one lacks. Those of thumbnails are inside of
/// segments, and files may have other data after it.
fn end_of_image(bytes: &[u8]) -> Option<usize> {
    const END_OF_IMAGE: u8 = 0xD9;
    let mut rest = bytes;
    loop {
        // A marker is 0xFF and its code. In compressed data, a 0 follows 0xFF; between segments, 0xFF may be repeated.
        let is_marker = |pair: &[u8]| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xFF);
        let start = rest.windows(2).position(is_marker)?;
        let code = rest[start + 1];
        rest = &rest[start + 2..];
        match code {
            END_OF_IMAGE => return Some(bytes.len() - rest.len() - 2),
            // Those without a segment.
            0x01 | 0xD0..=0xD8 => {}
            _ => {
                let length = rest.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
                rest = rest.get(length?.into()..)?;
            }
        }
    }
}

/// The picture's largest square in the middle, 32 by 32 pixels, as `[3, 32, 32]` bytes.
fn square(picture: &DynamicImage) -> Vec<u8> {
    let side = picture.width().min(picture.height());
    let (left, top) = ((picture.width() - side) / 2, (picture.height() - side) / 2);
    let square = picture.crop_imm(left, top, side, side);
    // CIFAR's own size is taken as it is: resampling would change its pixels.
    let square = if side == SIDE {
        square
    } else {
        square.resize_exact(SIDE, SIDE, FilterType::Triangle)
    };
    let square = square.to_rgb8();
    (0..3)
        .flat_map(|channel| square.pixels().map(move |pixel| pixel.0[channel]))
        .collect()
}

/// Checks the size of a picture: its pixels take `bytes`, decoding takes `more` beside them, and `memory` is free.
fn check_size([width, height]: [u32; 2], bytes: u64, more: u64, memory: u64) -> Result<()> {
    let needed = bytes.saturating_add(more);
    if bytes > MAX_BYTES {
        Err(PictureError::TooLarge(width, height))
    } else if needed > memory {
        Err(PictureError::NoMemory {
            width,
            height,
            needed,
            free: memory,
        })
    } else {
        Ok(())
    }
}

/// The picture on a white background.
fn on_white(picture: &DynamicImage) -> DynamicImage {
    let pixels = picture.to_rgba8();
    let mut opaque = RgbImage::new(pixels.width(), pixels.height());
    for (to, from) in opaque.pixels_mut().zip(pixels.pixels()) {
        let [colour @ .., alpha] = from.0.map(u32::from);
        to.0 = colour.map(|value| ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8);
    }
    opaque.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::jpeg::JpegEncoder;
    use image::codecs::png::PngEncoder;
    use image::{ExtendedColorType, ImageEncoder, Rgb, Rgba, RgbaImage};
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<DynamicImage> {
        super::decode(bytes, u64::MAX)
    }

    /// EXIF data with an orientation: a TIFF header, and a directory of one entry.
    fn exif(orientation: u8) -> Vec<u8> {
        let mut bytes =
            b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0".to_vec();
        bytes[19] = orientation;
        bytes
    }

    /// Four quarters of different colours, wider than high.
    fn quarters() -> RgbImage {
        RgbImage::from_fn(48, 32, |x, y| match (x < 24, y < 16) {
            (true, true) => Rgb([250, 0, 0]),
            (false, true) => Rgb([0, 250, 0]),
            (true, false) => Rgb([0, 0, 250]),
            (false, false) => Rgb([250, 250, 0]),
        })
    }

    fn encode(mut encoder: impl ImageEncoder, picture: &RgbImage, exif: Option<Vec<u8>>) {
        if let Some(exif) = exif {
            encoder.set_exif_metadata(exif).unwrap();
        }
        let (width, height) = picture.dimensions();
        encoder
            .write_image(picture, width, height, ExtendedColorType::Rgb8)
            .unwrap();
    }

    fn jpeg_file(picture: &RgbImage, exif: Option<Vec<u8>>) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(
            JpegEncoder::new_with_quality(&mut bytes, 100),
            picture,
            exif,
        );
        bytes
    }

    fn png_file(picture: &RgbImage, exif: Option<Vec<u8>>) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(PngEncoder::new(&mut bytes), picture, exif);
        bytes
    }

    /// A PNG file whose EXIF data follow the pixels.
    fn png_file_with_late_exif(picture: &RgbImage, exif: Vec<u8>) -> Vec<u8> {
        let early = png_file(picture, Some(exif));
        let start = early.windows(4).position(|name| name == b"eXIf").unwrap() - 4;
        let length = 12
            + early[start..]
                .first_chunk()
                .map(|b| u32::from_be_bytes(*b))
                .unwrap();
        let end = start + length as usize;
        let iend = early.len() - 12;
        [
            &early[..start],
            &early[end..iend],
            &early[start..end],
            &early[iend..],
        ]
        .concat()
    }

    /// The colours in the middle of the quarters, row by row.
    fn colours(picture: &DynamicImage) -> [char; 4] {
        let pixels = picture.to_rgb8();
        let (width, height) = pixels.dimensions();
        [(1, 1), (3, 1), (1, 3), (3, 3)].map(|(x, y)| {
            match pixels
                .get_pixel(x * width / 4, y * height / 4)
                .0
                .map(|value| value > 128)
            {
                [true, false, false] => 'r',
                [false, true, false] => 'g',
                [false, false, true] => 'b',
                [true, true, false] => 'y',
                other => panic!("{other:?}"),
            }
        })
    }

    #[test]
    fn pictures_are_upright() {
        // What `PIL.ImageOps.exif_transpose` gives.
        for (orientation, expected) in [
            (1, "rgby"),
            (2, "gryb"),
            (3, "ybgr"),
            (4, "byrg"),
            (5, "rbgy"),
            (6, "bryg"),
            (7, "ygbr"),
            (8, "gyrb"),
            (0, "rgby"),
            (9, "rgby"),
        ] {
            let exif = exif(orientation);
            let prefixed = [b"Exif\0\0", &exif[..]].concat();
            for file in [
                jpeg_file(&quarters(), Some(exif.clone())),
                png_file(&quarters(), Some(exif.clone())),
                png_file(&quarters(), Some(prefixed)),
                png_file_with_late_exif(&quarters(), exif),
            ] {
                let picture = decode(&file).unwrap();
                let found: String = colours(&picture).iter().collect();
                assert_eq!(found, expected, "orientation {orientation}");
                assert_eq!(
                    picture.width() < picture.height(),
                    (5..=8).contains(&orientation)
                );
            }
        }
    }

    #[test]
    fn transparent_pictures_are_on_white() {
        for hidden in [[0, 0, 0], [0, 255, 0]] {
            let [red, green, blue] = hidden;
            let picture = RgbaImage::from_fn(3, 1, |x, _| match x {
                0 => Rgba([red, green, blue, 0]),
                1 => Rgba([200, 100, 0, 255]),
                _ => Rgba([0, 100, 200, 51]),
            });
            let mut png = Cursor::new(Vec::new());
            picture.write_to(&mut png, ImageFormat::Png).unwrap();
            let DynamicImage::ImageRgb8(found) = decode(png.get_ref()).unwrap() else {
                panic!("the picture is transparent");
            };
            assert_eq!(found.as_raw(), &[255, 255, 255, 200, 100, 0, 204, 224, 244]);
        }
    }

    #[test]
    fn truncated_pictures_are_refused_wherever_they_are_cut() {
        let noise = RgbImage::from_fn(40, 30, |x, y| {
            Rgb([(x * y * 37) as u8, (x * 91 + y * 57) as u8, y as u8])
        });
        let thumbnail = [exif(6), jpeg_file(&quarters(), None)].concat();
        for whole in [
            jpeg_file(&noise, None),
            jpeg_file(&noise, Some(thumbnail)),
            png_file(&noise, None),
            png_file_with_late_exif(&noise, exif(6)),
        ] {
            decode(&whole).unwrap();
            // What follows the end is not part of the picture.
            decode(&[&whole[..], b"more"].concat()).unwrap();
            for length in 0..whole.len() {
                assert!(
                    decode(&whole[..length]).is_err(),
                    "{length} of {}",
                    whole.len()
                );
            }
        }
    }

    #[test]
    fn damaged_pictures_are_refused() {
        let noise = RgbImage::from_fn(80, 60, |x, y| {
            Rgb([(x * y * 37) as u8, (x * 91 + y * 57) as u8, y as u8])
        });
        let mut png = png_file(&noise, None);
        let middle = png.len() / 2;
        png[middle] ^= 1;
        assert!(matches!(decode(&png), Err(PictureError::Undecodable(_))));
        // Bits that are no code of the picture.
        let mut jpeg = jpeg_file(&noise, None);
        let middle = jpeg.len() / 2;
        for pair in jpeg[middle..middle + 100].as_chunks_mut().0 {
            *pair = [0xFF, 0];
        }
        assert!(matches!(decode(&jpeg), Err(PictureError::Undecodable(_))));
        // Data that end too early, with the end of the file.
        let jpeg = jpeg_file(&noise, None);
        for missing in [3, 10, 100, 1000, 3000] {
            let cut = [&jpeg[..jpeg.len() - 2 - missing], &[0xFF, 0xD9]].concat();
            assert!(
                matches!(decode(&cut), Err(PictureError::Undecodable(_))),
                "{missing}"
            );
        }
    }

    #[test]
    fn other_files_are_named() {
        for (bytes, expected) in [
            (&b""[..], "it is empty"),
            (b"RIFF\x24\0\0\0WEBPVP8 ", "it is a WEBP picture"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "it is a HEIF picture"),
            (b"<html>", "it is an HTML page"),
            (b"\x01\x02", "not a PNG or JPEG"),
        ] {
            let message = decode(bytes).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn pictures_that_need_too_much_memory_are_refused() {
        let mut jpeg = jpeg_file(&quarters(), None);
        let frame = jpeg
            .windows(2)
            .position(|marker| marker == [0xFF, 0xC0])
            .unwrap();
        jpeg[frame + 5..frame + 9].fill(0xFF);
        assert!(matches!(
            decode(&jpeg),
            Err(PictureError::TooLarge(65535, 65535))
        ));
        let bytes = 48 * 32 * 3;
        for file in [jpeg_file(&quarters(), None), png_file(&quarters(), None)] {
            super::decode(&file, 5 * bytes).unwrap();
            let error = super::decode(&file, bytes).unwrap_err().to_string();
            assert!(error.contains("it has 48 x 32 pixels"), "{error}");
        }
    }

    #[test]
    fn the_middle_square_is_used() {
        // Green in the middle, red on both sides.
        let picture = RgbImage::from_fn(128, 64, |x, _| {
            if (32..96).contains(&x) {
                Rgb([0, 255, 0])
            } else {
                Rgb([255, 0, 0])
            }
        });
        let bytes = square(&picture.into());
        assert_eq!(bytes.len(), 3 * 1024);
        assert!(bytes[..1024].iter().all(|red| *red == 0));
        assert!(bytes[1024..2048].iter().all(|green| *green == 255));
    }

    #[test]
    fn pictures_of_cifars_size_keep_every_pixel() {
        let picture = RgbImage::from_fn(32, 32, |x, y| Rgb([x as u8, y as u8, 7]));
        let bytes = square(&picture.into());
        assert!((0..1024).all(|i| bytes[i] == (i % 32) as u8 && bytes[1024 + i] == (i / 32) as u8));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            place in 0_usize..100_000,
            kind in 0..3,
        ) {
            let _ = decode(&bytes);
            let mut file = match kind {
                0 => jpeg_file(&quarters(), Some(exif(6))),
                1 => png_file(&quarters(), Some(exif(6))),
                _ => png_file_with_late_exif(&quarters(), exif(6)),
            };
            let place = place % file.len();
            let end = file.len().min(place + bytes.len().min(4));
            file[place..end].copy_from_slice(&bytes[..end - place]);
            let _ = decode(&file);
        }
    }
}
