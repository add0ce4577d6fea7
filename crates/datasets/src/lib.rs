//! Images in: the table of data sets, CIFAR's files checked and read, folders of pictures, a synthetic data set generated
//! from a seed, augmentation, and batches in a seeded order.
//!
//! Without the feature `tensors` there are only the table and the check of files, for programs that do without candle. The
//! feature `pictures` adds the decoders of PNG and JPEG.

pub mod cifar;
pub mod cifar10;
pub mod cifar100;
mod error;
mod image_folder;
mod info;
mod python_file;
mod records;
mod source;
pub mod synthetic;
mod table;

#[cfg(feature = "tensors")]
mod augmentation;
#[cfg(feature = "tensors")]
mod batches;
#[cfg(feature = "tensors")]
mod dataset;
#[cfg(feature = "pictures")]
mod picture;

#[cfg(feature = "tensors")]
pub use augmentation::{Augmentation, CutoutSquare, Normalisation, Transform};
#[cfg(feature = "tensors")]
pub use batches::{Batch, Batches, DataLoader, Sample, picture};
pub use cifar::{Archive, ImageFile};
#[cfg(feature = "tensors")]
pub use dataset::{Dataset, Split};
pub use error::Error;
pub use image_folder::{ImageFolder, ImageFolderError};
#[cfg(feature = "pictures")]
pub use image_folder::{LoadOptions, LoadProgress, LoadStage};
pub use info::{Channels, DatasetInfo, Images};
#[cfg(feature = "pictures")]
pub use picture::{PictureError, read_picture};
pub use python_file::PythonFileError;
pub use records::{Records, file_sha256};
pub use source::DatasetSource;
pub use table::UnknownDataset;
