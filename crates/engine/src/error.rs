//! Errors of training, evaluation and checkpoints.

use crate::progress::Position;
use models::Architecture;
use std::io;
use std::path::PathBuf;

/// An error of the engine. Messages begin in lower case and name the file concerned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The loss or the weights became infinite or NaN.
    #[error(
        "the {what} is no longer finite in epoch {epoch} after {steps} of its steps: training diverged; \
         use a lower learning rate"
    )]
    Diverged {
        /// What is not finite.
        what: &'static str,
        /// The epoch, from 1.
        epoch: u32,
        /// Steps of the epoch done before.
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
    /// A GPU has too little memory for a training step.
    #[error(
        "the GPU has too little memory for a step of {batch_size} images; {}",
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
    /// A file of weights cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason given by the operating system.
        source: io::Error,
    },
    /// A file cannot be written; its previous content is unchanged.
    #[error("cannot write `{}`: {source}; what was saved before is unchanged", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason given by the operating system.
        source: io::Error,
    },
    /// A file is not a safetensors file, or is truncated.
    #[error("`{}` is not a complete safetensors file: {reason}", path.display())]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// The reason given by the parser.
        reason: String,
    },
    /// A checkpoint was written by a later version of this program.
    #[error(
        "`{}` has checkpoint format {found}, but this version reads up to {}; use a newer version",
        path.display(), supported
    )]
    FutureVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The latest version that can be read.
        supported: u32,
    },
    /// A checkpoint is of another network.
    #[error("`{}` contains weights of {found}, not of {expected}", path.display())]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// The network named in the file.
        found: String,
        /// The expected network.
        expected: Architecture,
    },
    /// Neither the file nor the caller names the network of the weights.
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
    /// A tensor has an infinite value or a NaN.
    #[error("`{}` is damaged: the tensor `{tensor}` has the value {value}", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The value found.
        value: f64,
    },
    /// Training cannot be resumed from a checkpoint.
    #[error("`{}` cannot be resumed from: {reason}", path.display())]
    NotResumable {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The observer of the events failed.
    #[error(transparent)]
    Observer(Box<dyn std::error::Error + Send + Sync>),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// `what` is not finite at `position`.
    pub(crate) fn diverged(what: &'static str, position: &Position) -> Self {
        Self::Diverged {
            what,
            epoch: position.epoch + 1,
            steps: position.step,
        }
    }
}
