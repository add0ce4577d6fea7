//! The images that a command works on.

use anyhow::Context;
use datasets::{Dataset, Split};
use run::EvaluationSplit;
use run::cli::UsageError;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::path::Path;

/// Training and test images of the synthetic set, unless limits say otherwise.
const SYNTHETIC: (usize, usize) = (10_000, 2_000);

/// A million images of the synthetic set take 3 GB.
const MOST_SYNTHETIC: usize = 1_000_000;

/// What `--dataset` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    /// The official files in the data folder.
    Cifar10,
    /// Drawn by the program.
    Synthetic,
}

/// Which part of a data set is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// The first training images only.
    pub(crate) train: Option<NonZeroUsize>,
    /// The first test images only.
    pub(crate) test: Option<NonZeroUsize>,
    /// Training images to be held out, and evaluated on; with the seed that chooses them.
    pub(crate) validation: Option<(NonZeroUsize, u64)>,
    /// Training images that are trained on, and evaluated on.
    pub(crate) overfit: Option<NonZeroUsize>,
}

/// A data set with the limits applied.
pub(crate) struct Data {
    pub(crate) train: Split,
    /// The images that are evaluated on.
    pub(crate) test: Split,
    /// Which these are.
    pub(crate) evaluated: EvaluationSplit,
    pub(crate) class_names: [&'static str; 10],
    /// SHA-256 of the set, limits not counted (those of the synthetic set do count: they are its size).
    pub(crate) digest: String,
}

impl Data {
    pub(crate) fn load(source: Source, data_dir: &Path, limits: Limits) -> anyhow::Result<Self> {
        let count = |limit: Option<NonZeroUsize>, all| limit.map_or(all, NonZeroUsize::get);
        let dataset = match source {
            Source::Cifar10 => Dataset::cifar10(data_dir).with_context(|| {
                format!(
                    "no usable CIFAR-10 in `{}`; fetch it with `cargo xtask fetch-data{}`, or use --dataset synthetic",
                    data_dir.join(datasets::layout::FOLDER).display(),
                    if data_dir == Path::new("data") {
                        String::new()
                    } else {
                        format!(" --data-dir {}", data_dir.display())
                    }
                )
            })?,
            Source::Synthetic => {
                let (train, test) = (count(limits.train, SYNTHETIC.0), count(limits.test, SYNTHETIC.1));
                for (flag, images) in [("--limit-train", train), ("--limit-test", test)] {
                    if images > MOST_SYNTHETIC {
                        return Err(UsageError(format!(
                            "{flag} {images}: the synthetic set has at most {MOST_SYNTHETIC} images"
                        ))
                        .into());
                    }
                }
                Dataset::synthetic(train, test)?
            }
        };
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
        if let Some(images) = limits.overfit {
            train = limited("--overfit-batches", train, Some(images))?;
            test = train.clone();
            evaluated = EvaluationSplit::Validation;
        }
        Ok(Self {
            train,
            test,
            evaluated,
            class_names: dataset.class_names(),
            digest: dataset.digest()?,
        })
    }
}
