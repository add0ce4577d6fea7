//! What is known of a data set without its images.

#[cfg(feature = "tensors")]
use crate::dataset::Dataset;
#[cfg(feature = "tensors")]
use crate::error::Error;
use std::path::Path;

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
    /// For a data folder without usable files: where they should be, and how to get them.
    pub remedy: fn(&Path) -> String,
    /// Reads the images in a data folder, or generates them.
    #[cfg(feature = "tensors")]
    pub(crate) load: fn(&Path, Images) -> Result<Dataset, Error>,
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
        (self.load)(data_dir, images)
    }
}

impl PartialEq for DatasetInfo {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
