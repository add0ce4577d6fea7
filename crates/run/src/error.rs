//! What can be wrong with the settings or the folder of a run.

use crate::cli::{quoted, resume_command};
use crate::file;
use std::io;
use std::path::{Path, PathBuf};

/// What can be wrong with settings, with the folder of a run, or with a file in it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read, written or locked.
    #[error("cannot {action} `{}`: {reason}", path.display())]
    File {
        /// What was tried, such as `read`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        reason: io::Error,
    },
    /// A file has other content than this program writes.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A later version of the program wrote the file.
    #[error(
        "`{}` has format version {found}; this program reads versions up to {known}: use a later version of the program",
        path.display()
    )]
    LaterVersion {
        /// The file.
        path: PathBuf,
        /// The version of its format.
        found: u64,
        /// The latest version that this program reads.
        known: u32,
    },
    /// A settings file or record is not TOML, or has an unknown key or a value out of range.
    #[error("`{}` is invalid{place}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, where it is known.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A setting without a default is missing.
    #[error("the setting `{key}` is missing: give {}", flag(key))]
    Missing {
        /// The setting.
        key: &'static str,
    },
    /// A setting that cannot change when a run is resumed.
    #[error(
        "the run `{}` has {key} = {recorded}, not {wanted}; omit {} to resume it, or start a new run",
        run.display(),
        flag(key)
    )]
    ChangedOnResume {
        /// The run's folder.
        run: PathBuf,
        /// The setting.
        key: &'static str,
        /// The run's value, as TOML.
        recorded: String,
        /// The other value, as TOML.
        wanted: String,
    },
    /// The learning rate depends on a number of epochs that is to change.
    #[error(
        "--epochs {wanted}: the learning-rate scheduler of the run `{}` depends on its number of epochs, which is {recorded}; start a new run for another one",
        run.display()
    )]
    EpochsOfScheduler {
        /// The run's folder.
        run: PathBuf,
        /// The run's epochs.
        recorded: u32,
        /// The epochs that are asked for.
        wanted: u32,
    },
    /// The settings cannot be written as TOML.
    #[error("cannot write the settings")]
    Write(#[from] toml::ser::Error),
    /// The folder has no record.
    #[error(
        "`{}` is not a run: it has no {}; give the folder of a run, such as runs/alexnet-reference-seed0",
        .0.display(),
        file::RECORD
    )]
    NoRecord(PathBuf),
    /// No epoch is finished.
    #[error(
        "the run `{}` has no finished epoch; unless it is being trained, resume it with: {}",
        .0.display(),
        resume_command(.0)
    )]
    NoEpochs(PathBuf),
    /// No run has this name.
    #[error(
        "there is no run `{}`: neither that folder nor one of that name in `{}` has a {}",
        run.display(),
        run_dir.display(),
        file::RECORD
    )]
    NotFound {
        /// The folder, or its name.
        run: PathBuf,
        /// The folder of all runs.
        run_dir: PathBuf,
    },
    /// A new run has the name of one that exists.
    #[error(
        "the run `{}` exists; give another --name, or resume it with --resume {}",
        .0.display(),
        quoted(.0)
    )]
    Exists(PathBuf),
    /// Another process writes to the folder.
    #[error(
        "another process{} is writing to the run `{}`; wait until it ends, or stop it",
        process.map_or_else(String::new, |process| format!(" ({process})")),
        run.display()
    )]
    InUse {
        /// The run's folder.
        run: PathBuf,
        /// The other process, where the system tells.
        process: Option<u32>,
    },
}

impl Error {
    /// Whether the name of a run is wrong, as opposed to what is in its folder.
    #[must_use]
    pub fn is_usage_error(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Exists(_))
    }

    /// Gives the error of the operating system its context.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |reason| Self::File {
            action,
            path,
            reason,
        }
    }

    /// Gives an error of [`std::fs::read_to_string`] its context.
    pub(crate) fn text(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let file = Self::file(action, path);
        move |reason| match reason.kind() {
            kind @ io::ErrorKind::InvalidData => {
                file(io::Error::new(kind, "it is not a text in UTF-8"))
            }
            _ => file(reason),
        }
    }

    /// Fails if a file has a later format than `known`, the latest that this program reads.
    pub(crate) fn check_version(path: &Path, found: u64, known: u32) -> Result<(), Self> {
        if found > known.into() {
            let path = path.to_owned();
            return Err(Self::LaterVersion { path, found, known });
        }
        Ok(())
    }

    /// Names the file in which something is wrong.
    pub(crate) fn damaged<R: ToString>(path: &Path) -> impl Fn(R) -> Self {
        let path = path.to_owned();
        move |reason| Self::Damaged {
            path: path.clone(),
            reason: reason.to_string().trim().replace('\n', "; "),
        }
    }
}

/// The flag of a setting, such as `--batch-size`.
pub(crate) fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}
