//! The table of data sets. A data set is a file of this crate and an entry here.

#[cfg(feature = "tensors")]
use crate::dataset::Dataset;
use crate::{cifar10, synthetic};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The data sets.
const DATASETS: &[DatasetInfo] = &[cifar10::INFO, synthetic::INFO];

/// The number of classes.
pub(crate) const CLASSES: usize = 10;

/// Bytes per image: `[3, 32, 32]`.
pub(crate) const IMAGE_BYTES: usize = 3 * 32 * 32;

/// What is known of a data set without its images. It is looked up by name with [`str::parse`].
#[derive(Clone, Copy)]
pub struct DatasetInfo {
    /// The name on the command line and in files.
    pub name: &'static str,
    /// The name in reports.
    pub display_name: &'static str,
    /// The classes by label.
    pub class_names: &'static [&'static str; CLASSES],
    /// The numbers of images where there is no limit.
    pub images: Images,
    /// For a generated data set, the largest number of training or test images: a limit decides how many are
    /// generated. `None` for a data set that is read from files.
    pub max_generated: Option<usize>,
    /// For a data folder without usable files: where they should be, and how to get them.
    pub remedy: fn(&Path) -> String,
    /// Reads the images in a data folder, or generates them.
    #[cfg(feature = "tensors")]
    pub(crate) load: fn(&Path, Images) -> Result<Dataset, Error>,
}

/// Numbers of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Images {
    /// Training images.
    pub training: usize,
    /// Test images.
    pub test: usize,
}

impl DatasetInfo {
    /// All data sets.
    pub const ALL: &'static [Self] = DATASETS;

    /// Reads all images in `data_dir`; where the data set is generated, generates `images`.
    ///
    /// # Errors
    /// When files are missing or damaged.
    #[cfg(feature = "tensors")]
    pub fn load(&self, data_dir: &Path, images: Images) -> Result<Dataset, Error> {
        (self.load)(data_dir, images)
    }
}

impl PartialEq for DatasetInfo {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for DatasetInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatasetInfo({})", self.name)
    }
}

impl fmt::Display for DatasetInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// There is no data set of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a data set: use {names}", names = names())]
pub struct UnknownDataset(String);

fn names() -> String {
    let names: Vec<_> = DATASETS.iter().map(|info| format!("`{info}`")).collect();
    names.join(" or ")
}

impl FromStr for DatasetInfo {
    type Err = UnknownDataset;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let mut all = DATASETS.iter();
        all.find(|info| info.name == name)
            .copied()
            .ok_or_else(|| UnknownDataset(name.to_owned()))
    }
}

/// Labels and pixels of some images.
pub struct Records {
    /// A label for each image, below [`CLASSES`].
    pub labels: Vec<u8>,
    /// Images of [`IMAGE_BYTES`] bytes.
    pub pixels: Vec<u8>,
}

/// Why a data set cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder does not exist.
    #[error("there is no folder `{}`", .0.display())]
    MissingFolder(PathBuf),
    /// The path is not a folder.
    #[error("`{}` is not a folder", .0.display())]
    NotAFolder(PathBuf),
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
        expected: usize,
    },
    /// A label is out of range.
    #[error("`{}` has the label {label} at image {record}, but labels go from 0 to 9", path.display())]
    Label {
        /// The file.
        path: PathBuf,
        /// The record's index in the file.
        record: usize,
        /// The label found.
        label: u8,
    },
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The tensors cannot be created.
    #[cfg(feature = "tensors")]
    #[error("cannot create the images' tensors: {0}")]
    Tensor(#[from] candle_core::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sets_are_parsed_by_name() {
        for info in DatasetInfo::ALL {
            assert_eq!(info.name.parse(), Ok(*info));
        }
        let error = "mnist".parse::<DatasetInfo>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`mnist` is not a data set: use `cifar10` or `synthetic`"
        );
    }
}
