//! What is known of a data set without its images.

use crate::cifar::{self, Archive};
use crate::cifar10;
#[cfg(feature = "tensors")]
use crate::dataset::Dataset;
use crate::error::Error;
use run::cli::quoted;
use std::path::{Path, PathBuf};

/// What is known of a data set without its images. It is looked up by name with [`str::parse`].
#[derive(Clone, Copy, Debug)]
pub struct DatasetInfo {
    /// The name on the command line and in files.
    pub name: &'static str,
    /// The name in reports.
    pub display_name: &'static str,
    /// The classes by label.
    pub class_names: &'static [&'static str],
    /// How many images there are without a limit.
    pub images: Images,
    /// Mean and standard deviation of the channels, for normalisation. Without them, those of the recipe apply.
    pub channels: Option<Channels>,
    /// For a generated data set, the largest number of training or test images: a limit decides how many are
    /// generated. `None` for a data set that is read from files.
    pub max_generated: Option<usize>,
    /// The versions of the files, of which the first complete one is read. None for a data set that is generated.
    pub archives: &'static [&'static Archive],
    /// Reads the images in a data folder, or generates them.
    #[cfg(feature = "tensors")]
    pub(crate) load: fn(&Self, &Path, Images) -> Result<Dataset, Error>,
}

/// Mean and standard deviation of each channel of images, on a scale of 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Channels {
    /// The means.
    pub mean: [f64; 3],
    /// The standard deviations.
    pub std: [f64; 3],
}

/// How many images a data set has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Images {
    /// Training images.
    pub training: usize,
    /// Test images.
    pub test: usize,
}

impl DatasetInfo {
    /// Reads the images in `data_dir`: all of them, or the test images alone where `images` has no training images. Where
    /// the data set is generated, generates `images`.
    ///
    /// # Errors
    /// When files are missing or damaged.
    #[cfg(feature = "tensors")]
    pub fn load(&self, data_dir: &Path, images: Images) -> Result<Dataset, Error> {
        (self.load)(self, data_dir, images)
    }

    /// Checks that `data_dir` has a version of the files.
    ///
    /// # Errors
    /// When there is none, or something is in the way.
    pub fn check(&self, data_dir: &Path) -> Result<(), Error> {
        match self.archives {
            [] => Ok(()),
            _ => self.find(data_dir).map(drop),
        }
    }

    /// The version of the files in `data_dir` that is read, and its folder.
    ///
    /// # Errors
    /// When there is none, or something is in the way.
    pub fn find(&self, data_dir: &Path) -> Result<(&'static Archive, PathBuf), Error> {
        let (archive, folder, _) = cifar::choose(self.archives, data_dir, self.images)?;
        Ok((archive, folder))
    }

    /// For a data folder without usable files: how to get them.
    #[must_use]
    pub fn remedy(&self, data_dir: &Path) -> String {
        let name = self.display_name;
        let is_inner = |archive: &&Archive| data_dir.ends_with(archive.folder);
        let is_inner = self.archives.iter().any(is_inner);
        match self.archives {
            [] => format!("{name} cannot be generated"),
            _ if is_inner && let Some(parent) = data_dir.parent() => format!(
                "no usable {name} in `{}`; give the folder that contains it: --data-dir {}",
                data_dir.display(),
                quoted(if parent == Path::new("") {
                    Path::new(".")
                } else {
                    parent
                })
            ),
            _ => format!(
                "no usable {name} in `{}`; fetch it with `{}` (--from-file ARCHIVE unpacks a file that you have), name another \
                 folder with --data-dir, or use other images: --dataset DIR or --dataset synthetic",
                data_dir.display(),
                self.fetch_command(data_dir)
            ),
        }
    }

    /// The command that fetches the files into this data folder.
    pub(crate) fn fetch_command(&self, data_dir: &Path) -> String {
        // The default.
        let dataset = match *self == cifar10::INFO {
            true => String::new(),
            false => format!(" --dataset {}", self.name),
        };
        let data_dir = match data_dir == Path::new("data") {
            true => String::new(),
            false => format!(" --data-dir {}", quoted(data_dir)),
        };
        format!("cargo xtask fetch-data{dataset}{data_dir}")
    }
}

impl PartialEq for DatasetInfo {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
