//! Why a data set cannot be read.

use crate::image_folder::ImageFolderError;
use crate::python_file::PythonFileError;
use crate::table::UnknownDataset;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why a data set cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder does not exist.
    #[error("the folder `{}` does not exist", .0.display())]
    MissingFolder(PathBuf),
    /// The path is not a folder.
    #[error("`{}` is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// There is a link, but not what it leads to.
    #[error("`{}` is a link to `{}`, which does not exist: create that, or remove the link", path.display(), target.display())]
    DanglingLink {
        /// The link.
        path: PathBuf,
        /// Where it leads to.
        target: PathBuf,
    },
    /// A file of the data set does not exist.
    #[error("the file `{}` is missing", .0.display())]
    MissingFile(PathBuf),
    /// A file has the wrong size.
    #[error("`{}` has {found} bytes, but should have {expected}", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The size that it should have.
        expected: u64,
    },
    /// A file is longer than any version of it.
    #[error("`{}` has {found} bytes, but should have at most {most}", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The largest size that it may have.
        most: u64,
    },
    /// A file has the wrong number of images.
    #[error("`{}` has {found} images, but should have {expected}", path.display())]
    ImageCount {
        /// The file.
        path: PathBuf,
        /// The number of its images.
        found: usize,
        /// The number that it should have.
        expected: usize,
    },
    /// A label is out of range.
    #[error("`{}` has the label {label} at image {record}, but labels go from 0 to {last}", path.display())]
    Label {
        /// The file.
        path: PathBuf,
        /// The record's index in the file.
        record: usize,
        /// The label found.
        label: i64,
        /// The largest label.
        last: usize,
    },
    /// A file of CIFAR's Python version is something else, or is damaged.
    #[error("`{}` is not a file of CIFAR's Python version: {reason}", path.display())]
    PythonFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: PythonFileError,
    },
    /// The classes have other names than they should, or another order.
    #[error("in `{}`, the name of class {class} is {found}, but should be {expected}", path.display())]
    ClassName {
        /// The file.
        path: PathBuf,
        /// The label.
        class: usize,
        /// The name found, or that it is missing.
        found: String,
        /// The name that it should have.
        expected: String,
    },
    /// No data set has this name.
    #[error(transparent)]
    UnknownDataset(#[from] UnknownDataset),
    /// A folder is not one of pictures by class.
    #[error(transparent)]
    ImageFolder(#[from] ImageFolderError),
    /// A file cannot be read.
    #[error("cannot read `{}`: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// The tensors cannot be created.
    #[cfg(feature = "tensors")]
    #[error("cannot create the images' tensors")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// The error for a path that is a link to nothing; `None` for other paths.
    #[must_use]
    pub fn dangling_link(path: &Path) -> Option<Self> {
        let target = fs::read_link(path).ok()?;
        (!path.exists()).then(|| Self::DanglingLink {
            path: path.to_owned(),
            target,
        })
    }

    /// Adds the path to an error of the operating system.
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |reason| Self::Read { path, reason }
    }
}
