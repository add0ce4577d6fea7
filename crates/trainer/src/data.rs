//! The images that a command works on.

use crate::memory;
use crate::progress;
use anyhow::Context;
use datasets::cifar10::RECORD_BYTES;
use datasets::{
    Dataset, DatasetInfo, DatasetSource, Error, ImageFolder, ImageFolderError, Images, LoadOptions,
    LoadStage, Split,
};
use run::EvaluationSplit;
use run::cli::{self, UsageError};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// How a folder of pictures is read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pictures<'a> {
    pub(crate) skip_unreadable: bool,
    pub(crate) show_bar: bool,
    /// Becomes true when reading should stop.
    pub(crate) stop: Option<&'a AtomicBool>,
}

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
    /// Batches of training images that are trained on, and evaluated on.
    pub(crate) overfit: Option<NonZeroUsize>,
    /// Images per step of training, which the training set must have.
    pub(crate) batch_size: Option<NonZeroUsize>,
}

impl Limits {
    /// Checks that a data set has the images that are asked for.
    ///
    /// # Errors
    /// A usage error, or one that becomes one.
    fn check(self, images: Images) -> anyhow::Result<()> {
        let limited = |flag: &str, limit: Option<NonZeroUsize>, all| {
            let wanted = count(limit, all);
            match wanted > all {
                true => Err(too_few(flag, wanted, all)),
                false => Ok(wanted),
            }
        };
        let all = limited("--limit-train", self.train, images.training)?;
        limited("--limit-test", self.test, images.test)?;
        let Some(batch_size) = self.batch_size else {
            return Ok(());
        };
        let held_out = self.validation.map_or(0, |(images, _)| images.get());
        if held_out > 0 && held_out >= all {
            return Err(UsageError(format!(
                "--validation {held_out}: cannot hold out as many of {all} images: at least one of each class must be left \
                 to train on"
            ))
            .into());
        }
        let (images, batch_size) = (all - held_out, batch_size.get());
        if batch_size > images {
            return Err(engine::Error::BatchTooLarge { batch_size, images }.into());
        }
        match self.overfit {
            Some(batches) if batches.get().saturating_mul(batch_size) > all => {
                let UsageError(error) = too_few("--overfit-batches", batches.get(), all);
                Err(UsageError(format!("{error}, and a batch has {batch_size}")).into())
            }
            _ => Ok(()),
        }
    }
}

/// The error of a flag that asks for more images than there are.
fn too_few(flag: &str, wanted: usize, all: usize) -> UsageError {
    UsageError(format!("{flag} {wanted}: there are only {all} images"))
}

/// A data set with the limits applied.
pub(crate) struct Data {
    pub(crate) train: Split,
    /// The same, with those that are held out: their mean does not depend on the seed that chooses these.
    pub(crate) all_training: Split,
    /// The images that are evaluated on.
    pub(crate) test: Split,
    /// The kind of `test`.
    pub(crate) evaluated: EvaluationSplit,
    pub(crate) class_names: Vec<String>,
    /// SHA-256 of the data set before limits. The limits of the synthetic set are its size, so they count.
    pub(crate) digest: String,
    /// Pictures of a folder that were left out.
    pub(crate) skipped: usize,
    /// The seed that chose the test images of a folder that has none.
    pub(crate) test_split_seed: Option<u64>,
}

/// Whether loading the images was stopped, as a person asked.
pub(crate) fn is_stopped(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(Error::ImageFolder(ImageFolderError::Stopped))
    )
}

impl Data {
    pub(crate) fn load(
        source: &DatasetSource,
        data_dir: &Path,
        limits: Limits,
        pictures: Pictures<'_>,
    ) -> anyhow::Result<Self> {
        let dataset = match source {
            DatasetSource::Known(info) => Self::load_known(info, data_dir, limits)?,
            DatasetSource::Folder(path) => load_folder(path, data_dir, limits, pictures)?,
        };
        Self::limited(&dataset, limits)
    }

    fn load_known(info: &DatasetInfo, data_dir: &Path, limits: Limits) -> anyhow::Result<Dataset> {
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
        // Of files, the bytes and the images for a moment.
        let copies = if info.archives.is_empty() { 1 } else { 2 };
        let bytes = copies * (read.training + read.test) * RECORD_BYTES;
        memory::require(bytes as u64, "to load the images")?;
        info.load(data_dir, images)
            .with_context(|| info.remedy(data_dir))
    }

    /// The images within the limits.
    fn limited(dataset: &Dataset, limits: Limits) -> anyhow::Result<Self> {
        let (train, test) = (dataset.training(), dataset.test());
        limits.check(Images {
            training: train.len(),
            test: test.len(),
        })?;
        let mut train = train.first(count(limits.train, train.len()))?;
        let all_training = train.clone();
        let mut test = test.first(count(limits.test, test.len()))?;
        let mut evaluated = EvaluationSplit::Test;
        if let Some((images, seed)) = limits.validation {
            (train, test) = train
                .hold_out(images.get(), seed)
                .map_err(|error| UsageError(format!("--validation {images}: {error}")))?;
            evaluated = EvaluationSplit::Validation;
        }
        if let (Some(batches), Some(batch_size)) = (limits.overfit, limits.batch_size) {
            train = train.first(batches.saturating_mul(batch_size).get())?;
            test = train.clone();
            evaluated = EvaluationSplit::Validation;
        }
        // Pictures of a folder are in the order of their classes.
        let classes = dataset.class_names().len();
        for (kind, split, all) in [
            ("training", &train, dataset.training()),
            ("test", &test, dataset.test()),
        ] {
            let missing = all.classes()?.saturating_sub(split.classes()?);
            if split.len() >= classes && 2 * missing >= classes {
                cli::note(&format!(
                    "warning: {missing} of {classes} classes have no {kind} images within the limits that are set"
                ));
            }
        }
        for note in dataset.notes() {
            cli::note(&format!("note: {note}"));
        }
        if let Some(warning) = dataset.warning() {
            cli::note(&format!("warning: {warning}"));
        }
        Ok(Self {
            train,
            all_training,
            test,
            evaluated,
            class_names: dataset.class_names().to_vec(),
            digest: dataset.digest()?,
            skipped: dataset.skipped(),
            test_split_seed: dataset.test_split_seed(),
        })
    }
}

fn count(limit: Option<NonZeroUsize>, all: usize) -> usize {
    limit.map_or(all, NonZeroUsize::get)
}

/// Loads a folder of pictures, which are decoded once and kept in `data_dir`.
fn load_folder(
    path: &Path,
    data_dir: &Path,
    limits: Limits,
    pictures: Pictures<'_>,
) -> anyhow::Result<Dataset> {
    let folder = ImageFolder::find(path)?;
    let images = folder.images()?;
    // Before pictures are decoded and kept. If some cannot be read, there are fewer.
    limits.check(images)?;
    // All pictures, and those of the two parts.
    let bytes = 2 * (images.training + images.test) * RECORD_BYTES;
    memory::require(bytes as u64, "to load the images")?;
    let memory = ops::available_memory().unwrap_or(u64::MAX);
    let bar = progress::pictures_bar(pictures.show_bar);
    let dataset = folder.load(LoadOptions {
        cache_dir: data_dir,
        memory: memory.saturating_sub(bytes as u64),
        skip_unreadable: pictures.skip_unreadable,
        progress: &|stage, done, all| {
            bar.set_prefix(match stage {
                LoadStage::Reading => "reading pictures",
                LoadStage::Decoding => "decoding pictures",
            });
            bar.set_length(all as u64);
            bar.set_position(done as u64);
            !pictures
                .stop
                .is_some_and(|stop| stop.load(Ordering::SeqCst))
        },
    });
    bar.finish_and_clear();
    Ok(dataset?)
}

/// The first names of classes, and how many there are.
pub(crate) fn first_names(names: &[String]) -> String {
    match names {
        [first, second, third, .., last] if names.len() > 12 => {
            let count = names.len();
            format!("{count}: {first}, {second}, {third}, ..., {last}")
        }
        names => names.join(", "),
    }
}
