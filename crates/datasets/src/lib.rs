//! Images in: CIFAR-10's official binary layout checked and read, a synthetic set drawn by a seeded
//! procedure, augmentation, and batches in a seeded order.
//!
//! Without the feature `tensors` there is only [`layout`], the check of the files, for programs that
//! must compile in seconds.

#[cfg(feature = "tensors")]
mod from_settings;
pub mod layout;

#[cfg(feature = "tensors")]
mod augmentation;
#[cfg(feature = "tensors")]
mod batches;
#[cfg(feature = "tensors")]
mod dataset;
#[cfg(feature = "tensors")]
mod synthetic;

#[cfg(feature = "tensors")]
pub use augmentation::{Augmentation, Edges, Flip, Hole, Normalisation, View};
#[cfg(feature = "tensors")]
pub use batches::{Batch, Batches, Loader, Seen, picture};
#[cfg(feature = "tensors")]
pub use dataset::{Dataset, Split};
