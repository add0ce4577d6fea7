//! What can go wrong while training, evaluating, or with a checkpoint.

use models::Architecture;
use std::io;
use std::path::PathBuf;

/// An error of the engine. Messages begin in lower case and name the file they are about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The loss or the weights became infinite or not a number.
    #[error(
        "the {what} is no longer finite in epoch {epoch} after {steps} of its steps: training diverged; \
         use a lower learning rate"
    )]
    Diverged {
        /// What is not finite.
        what: &'static str,
        /// The epoch, from 1.
        epoch: u32,
        /// Steps done in it.
        steps: usize,
    },
    /// A training set smaller than a batch.
    #[error("the batch size {batch_size} is larger than the training set of {images} images")]
    BatchTooLarge {
        /// Images a batch.
        batch_size: usize,
        /// Images of the training set.
        images: usize,
    },
    /// A GPU's memory does not hold what a training step needs.
    #[error(
        "the GPU's memory does not hold a step of {batch_size} images; {}",
        match fits {
            0 => "not even one image fits beside the weights".to_owned(),
            fits => format!("about {fits} would fit: use --batch-size {fits}"),
        }
    )]
    OutOfMemory {
        /// Images a batch.
        batch_size: usize,
        /// About how many images would fit.
        fits: usize,
    },
    /// A file of weights cannot be read from the disk.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file cannot be written; what was there before is still there.
    #[error("cannot write `{}`: {source}; what was saved before is unchanged", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is no safetensors file, or is cut short.
    #[error("`{}` is not a complete safetensors file: {reason}", path.display())]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        reason: String,
    },
    /// A checkpoint was written by a later version of this program.
    #[error(
        "`{}` has checkpoint format {found}, but this version reads up to {}; use a newer version",
        path.display(), crate::checkpoint::FORMAT_VERSION
    )]
    FutureVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// A checkpoint is of the other network.
    #[error("`{}` holds weights of {found}, not of {expected}", path.display())]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// The network it says it is.
        found: String,
        /// The network wanted.
        expected: Architecture,
    },
    /// Neither the file nor the caller says which network the weights belong to.
    #[error("`{}` does not say which network it belongs to: name it with --model", path.display())]
    UnknownModel {
        /// The file.
        path: PathBuf,
    },
    /// The tensors are not those of the network.
    #[error("`{}` does not fit the network: {reason}", path.display())]
    Misfit {
        /// The file.
        path: PathBuf,
        /// Which tensor, and how.
        reason: String,
    },
    /// A tensor holds an infinite number or none at all.
    #[error("`{}` is damaged: the tensor `{tensor}` holds {value}", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The number found.
        value: f64,
    },
    /// A checkpoint lacks what is needed to go on training, or contradicts itself.
    #[error("`{}` cannot be resumed from: {reason}", path.display())]
    NotResumable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Whoever observes the events could not do its part.
    #[error(transparent)]
    Observer(Box<dyn std::error::Error + Send + Sync>),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
