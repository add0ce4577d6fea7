//! The command that classifies images.

use crate::weights::{Loaded, WeightArgs, load};
use anyhow::{Context, ensure};
use datasets::DatasetSource;
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

/// Predicts, and prints the most probable classes of each picture. A picture that cannot be classified does not prevent
/// the others from being.
pub(crate) fn run(args: &PredictArgs) -> anyhow::Result<Exit> {
    let loaded = load(
        &args.weights,
        &DatasetSource::Known(datasets::cifar10::INFO),
    )?;
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
    let picture = datasets::read_picture(path, memory)
        .with_context(|| format!("cannot classify `{}`", path.display()))?;
    let images = datasets::picture(&picture, &loaded.normalisation())?;
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
