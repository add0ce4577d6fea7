//! Errors of training, evaluation and checkpoints.

use models::Architecture;
use run::cli::count;
use std::io;
use std::path::{Path, PathBuf};

/// An error of the engine. Messages begin in lower case and name the file concerned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The loss or the weights became infinite or NaN.
    #[error(
        "training diverged in epoch {epoch}, after {}: the {what} is infinite or NaN; use a lower learning rate",
        count(*steps, "step")
    )]
    Diverged {
        /// What is not finite.
        what: &'static str,
        /// The epoch, from 1.
        epoch: u32,
        /// Steps of the epoch done before.
        steps: usize,
    },
    /// The loss of the first step is infinite or NaN, before a learning rate had an effect.
    #[error(
        "the loss of the first step is infinite or NaN: the initial weights or the normalised inputs are too large; check the weights, --mean and --std"
    )]
    NotFiniteAtStart,
    /// A training set smaller than a batch.
    #[error(
        "the batch size {batch_size} is larger than the training set of {images} images; \
         use --batch-size {images} or smaller"
    )]
    BatchTooLarge {
        /// Images a batch.
        batch_size: usize,
        /// Images of the training set.
        images: usize,
    },
    /// A GPU has too little memory for a training step.
    #[error(
        "the GPU has too little memory for a step of {batch_size} images; {}",
        match (fits, is_resumed) {
            (_, true) => "free some of it, or resume the run on a GPU with more".to_owned(),
            (0, false) => "not even one image fits beside the weights".to_owned(),
            (fits, false) => format!("{fits} fit: use --batch-size {fits}"),
        }
    )]
    OutOfMemory {
        /// Images a batch.
        batch_size: usize,
        /// How many images fit.
        fits: usize,
        /// Whether the run keeps its batch size.
        is_resumed: bool,
    },
    /// A GPU has too little memory for an evaluation.
    #[error(
        "the GPU has too little free memory for an evaluation in batches of {} images, {}",
        tried.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        match is_kept {
            true => "which the run keeps; free some of it, or resume the run on a GPU with more",
            false => "all of which were tried; free some of it (nvidia-smi lists the programs that use it), or use \
                      --device cpu",
        }
    )]
    EvaluationOutOfMemory {
        /// The numbers of images per batch that were tried.
        tried: Vec<usize>,
        /// Whether the run keeps the first.
        is_kept: bool,
    },
    /// A file of weights cannot be read.
    #[error("cannot read `{}`: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason given by the operating system.
        reason: io::Error,
    },
    /// A file cannot be written; its previous content is unchanged.
    #[error("cannot write `{}`: {reason}; what was saved before is unchanged", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason given by the operating system.
        reason: io::Error,
    },
    /// A file of weights cannot be used.
    #[error("`{}` {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: Unusable,
    },
    /// The settings of the run cannot be written as TOML.
    #[error(transparent)]
    Settings(#[from] run::Error),
    /// The observer of the events failed.
    #[error(transparent)]
    Observer(Box<dyn std::error::Error + Send + Sync>),
    /// Another process of the run cannot be reached.
    #[error("cannot exchange data with another process: {0}")]
    Exchange(io::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// What is not finite: the mean loss of a batch, or that of the evaluated images. All processes of a group know it.
pub(crate) const LOSS: &str = "loss";
pub(crate) const TEST_LOSS: &str = "test loss";

/// Why a file of weights cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It is neither a safetensors file nor one of `torch.save`, or is truncated; with the reason given by the parser.
    #[error("is neither a complete safetensors file nor one of torch.save: {0}")]
    NotWeights(String),
    /// It is not a file of `torch.save`, or has no state dict that can be read; with what is wrong.
    #[error("has no weights of PyTorch that can be read: {0}")]
    NotPyTorch(String),
    /// A later version of this program wrote it: the format of the file, and the latest one that can be read.
    #[error(
        "has format version {0}; this program reads versions up to {1}: use a later version of the program"
    )]
    LaterVersion(u32, u32),
    /// It names another network than the expected one.
    #[error("contains weights of {0}, not of {1}")]
    OtherModel(String, Architecture),
    /// Neither the caller nor the file names a network that is known; with the name in the file.
    #[error(
        "{}: name the network with --model",
        match .0 {
            Some(name) => format!("is of `{name}`, which is not a network of this program"),
            None => "does not say which network it belongs to".to_owned(),
        }
    )]
    UnknownModel(Option<String>),
    /// It is for another number of classes than the data: theirs, and the data's.
    #[error("is for {0} classes, but the data have {1}")]
    Classes(usize, usize),
    /// The tensors are not those of the network.
    #[error("does not fit the network: {0}")]
    Misfit(String),
    /// A tensor has this infinite value or NaN.
    #[error("is damaged: the tensor `{0}` has the value {1}")]
    NotFinite(String, f64),
    /// Its tensors are not those that were written.
    #[error(
        "is damaged: its tensors do not have the SHA-256 in its metadata; use a copy of the file, or another checkpoint"
    )]
    WrongDigest,
    /// It has momentum buffers where weights are expected.
    #[error("contains momentum buffers, not weights; use last.safetensors of the same run")]
    MomentumBuffers,
    /// It is not the file of momentum buffers or of the EMA that was written with `last.safetensors`.
    #[error(
        "is not the file that was written with last.safetensors; use a copy of that file, or start a new run"
    )]
    OtherCheckpoint,
    /// Training cannot be resumed from it.
    #[error("cannot be resumed from: {0}")]
    NotResumable(String),
}

impl Unusable {
    /// The error that the file at `path` cannot be used.
    pub(crate) fn at(self, path: &Path) -> Error {
        Error::Unusable {
            path: path.to_owned(),
            reason: self,
        }
    }
}

impl Error {
    /// `what` is not finite after `steps` of an epoch, the first epoch being 0.
    pub(crate) fn diverged(what: &'static str, epoch: u32, steps: usize) -> Self {
        Self::Diverged {
            what,
            epoch: epoch + 1,
            steps,
        }
    }

    /// Whether every process of a group has this error at the same step. The others are of one process alone, such as that
    /// of the checkpoint which has weights that are not finite.
    #[must_use]
    pub fn is_everywhere(&self) -> bool {
        match self {
            Self::NotFiniteAtStart => true,
            Self::Diverged { what, .. } => [LOSS, TEST_LOSS].contains(what),
            _ => false,
        }
    }
}
