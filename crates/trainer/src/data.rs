//! The images that a command works on.

use crate::memory;
use anyhow::Context;
use datasets::cifar10::RECORD_BYTES;
use datasets::{DatasetInfo, Images, Split};
use run::EvaluationSplit;
use run::cli::{self, UsageError};
use std::num::NonZeroUsize;
use std::path::Path;

/// The part of a data set to load.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// No training images: the command evaluates only.
    pub(crate) test_only: bool,
    /// The first training images only.
    pub(crate) train: Option<NonZeroUsize>,
    /// The first test images only.
    pub(crate) test: Option<NonZeroUsize>,
    /// Training images to be held out, and evaluated on; with the seed that chooses them.
    pub(crate) validation: Option<(NonZeroUsize, u64)>,
    /// Batches of training images that are trained on, and evaluated on; with their size.
    pub(crate) overfit: Option<(NonZeroUsize, NonZeroUsize)>,
}

/// A data set with the limits applied.
pub(crate) struct Data {
    pub(crate) train: Split,
    /// The images that are evaluated on.
    pub(crate) test: Split,
    /// The kind of `test`.
    pub(crate) evaluated: EvaluationSplit,
    pub(crate) class_names: Vec<String>,
    /// SHA-256 of the data set before limits. The limits of the synthetic set are its size, so they count.
    pub(crate) digest: String,
}

impl Data {
    pub(crate) fn load(info: DatasetInfo, data_dir: &Path, limits: Limits) -> anyhow::Result<Self> {
        let count = |limit: Option<NonZeroUsize>, all| limit.map_or(all, NonZeroUsize::get);
        let images = Images {
            training: match limits.test_only {
                true => 0,
                false => count(limits.train, info.images.training),
            },
            test: count(limits.test, info.images.test),
        };
        if let Some(most) = info.max_generated {
            let mut counts = [
                ("--limit-train", images.training),
                ("--limit-test", images.test),
            ]
            .into_iter();
            if let Some((flag, count)) = counts.find(|(_, count)| *count > most) {
                let name = info.display_name;
                let message = format!("{flag} {count}: {name} has at most {most} images");
                return Err(UsageError(message).into());
            }
        }
        // A set that is generated has the images that are wanted; files are read whole.
        let read = match info.max_generated {
            None if !limits.test_only => info.images,
            None => Images {
                training: 0,
                ..info.images
            },
            Some(_) => images,
        };
        let bytes = (read.training + read.test) * RECORD_BYTES;
        memory::require(bytes as u64, "to load the images")?;
        let dataset = info
            .load(data_dir, images)
            .with_context(|| (info.remedy)(data_dir))?;
        let limited = |flag, split: Split, limit| {
            let wanted = count(limit, split.len());
            if wanted > split.len() {
                let message = format!("{flag} {wanted}: there are only {} images", split.len());
                return Err(anyhow::Error::from(UsageError(message)));
            }
            Ok(split.first(wanted)?)
        };
        let mut train = limited("--limit-train", dataset.training(), limits.train)?;
        let mut test = limited("--limit-test", dataset.test(), limits.test)?;
        let mut evaluated = EvaluationSplit::Test;
        if let Some((images, seed)) = limits.validation {
            (train, test) = train
                .hold_out(images.get(), seed)
                .map_err(|error| UsageError(format!("--validation {images}: {error}")))?;
            evaluated = EvaluationSplit::Validation;
        }
        if let Some((batches, batch_size)) = limits.overfit {
            let (images, all) = (batches.saturating_mul(batch_size).get(), train.len());
            if images > all {
                return Err(UsageError(format!(
                    "--overfit-batches {batches}: there are only {all} images, and a batch has {batch_size}"
                ))
                .into());
            }
            train = train.first(images)?;
            test = train.clone();
            evaluated = EvaluationSplit::Validation;
        }
        for note in dataset.notes() {
            cli::note(&format!("note: {note}"));
        }
        if let Some(warning) = dataset.warning() {
            cli::note(&format!("warning: {warning}"));
        }
        Ok(Self {
            train,
            test,
            evaluated,
            class_names: dataset.class_names().to_vec(),
            digest: dataset.digest()?,
        })
    }
}
