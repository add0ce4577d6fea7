//! The command that classifies images.

use crate::picture;
use crate::weights::{Loaded, WeightArgs, load};
use anyhow::{Context, ensure};
use image::DynamicImage;
use image::imageops::FilterType;
use ops::Tape;
use run::NativePath;
use run::cli::{self, Exit};
use run::predictions::softmax;
use std::num::NonZeroUsize;
use std::path::Path;

/// Arguments of `predict`.
#[derive(Debug, clap::Args)]
pub(crate) struct PredictArgs {
    #[command(flatten)]
    pub(crate) weights: WeightArgs,

    /// The number of classes to print for each image.
    #[arg(long, value_name = "N", default_value = "3")]
    pub(crate) top: NonZeroUsize,

    /// PNG or JPEG files of any size: the largest square in the centre, resized to 32 x 32.
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<NativePath>,
}

/// Height and width of the networks' images.
const SIDE: u32 = 32;

/// Predicts, and prints the most probable classes of each picture. A picture that cannot be classified does not prevent
/// the others from being.
pub(crate) fn run(args: &PredictArgs) -> anyhow::Result<Exit> {
    let loaded = load(&args.weights, datasets::cifar10::INFO)?;
    // Measured once: pictures are read one after the other, and each frees its memory.
    let memory = ops::available_memory().unwrap_or(u64::MAX);
    let mut exit = Exit::Success;
    for path in &args.images {
        match predict(path, &loaded, memory, args.top.get()) {
            Ok(classes) => {
                let name = cli::one_line(&path.display().to_string());
                cli::line(&format!("{name}: {classes}"));
            }
            Err(error) => {
                cli::error(&cli::one_line(&cli::message(error.as_ref())));
                exit = Exit::Failure;
            }
        }
    }
    Ok(exit)
}

/// The `top` most probable classes of a picture, which is read with at most `memory` bytes.
fn predict(path: &Path, loaded: &Loaded, memory: u64, top: usize) -> anyhow::Result<String> {
    let picture = picture::read(path, memory)
        .with_context(|| format!("cannot classify `{}`", path.display()))?;
    let images = datasets::picture(&square(&picture), &loaded.normalisation())?;
    let mut tape = Tape::no_grad(loaded.arithmetic);
    let logits = loaded
        .network
        .forward(&mut tape, &images.to_device(&loaded.device)?, None)?;
    let logits = logits.flatten_all()?.to_vec1::<f32>()?;
    ensure!(
        logits.iter().all(|logit| logit.is_finite()),
        "cannot classify `{}`: the outputs of the network are infinite or NaN; its weights are too large, or --std is too small",
        path.display()
    );
    let probabilities = softmax(&logits);
    let mut classes: Vec<_> = loaded
        .inputs
        .class_names
        .iter()
        .zip(probabilities)
        .collect();
    classes.sort_by(|a, b| b.1.total_cmp(&a.1));
    let classes = classes.iter().take(top);
    let classes = classes.map(|(name, probability)| format!("{name} {:.1} %", 100.0 * probability));
    Ok(classes.collect::<Vec<_>>().join(", "))
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

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, RgbImage};

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
}
