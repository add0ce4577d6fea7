//! Images in: the table of data sets, CIFAR-10's binary files checked and read, a synthetic data set generated from a
//! seed, augmentation, and batches in a seeded order.
//!
//! Without the feature `tensors` there are only the table and the check of files, for programs that do without candle.

pub mod cifar;
pub mod cifar10;
pub mod cifar100;
mod error;
mod info;
mod python_file;
mod records;
mod synthetic;
mod table;

#[cfg(feature = "tensors")]
mod augmentation;
#[cfg(feature = "tensors")]
mod batches;
#[cfg(feature = "tensors")]
mod dataset;

#[cfg(feature = "tensors")]
pub use augmentation::{Augmentation, CutoutSquare, Normalisation, Transform};
#[cfg(feature = "tensors")]
pub use batches::{Batch, Batches, DataLoader, Sample, picture};
pub use cifar::{Archive, ImageFile};
#[cfg(feature = "tensors")]
pub use dataset::{Dataset, Split};
pub use error::Error;
pub use info::{Channels, DatasetInfo, Images};
pub use python_file::PythonFileError;
pub use records::Records;
pub use table::UnknownDataset;
