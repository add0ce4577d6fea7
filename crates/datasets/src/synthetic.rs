//! The synthetic data set: ten classes of 32x32 colour images, generated from a fixed seed, for training without a
//! download.
//!
//! A class is a bright pattern (stripes, dots, a disc ...) on a darker background. Position, size, phase, both colours
//! and the noise are random, so single pixels say little about the class: a linear classifier performs poorly, a
//! convolutional network well.

#[cfg(feature = "tensors")]
mod images;

use crate::info::{DatasetInfo, Images};

/// What is known of the synthetic set without its images.
pub const INFO: DatasetInfo = DatasetInfo {
    name: "synthetic",
    display_name: "the synthetic set",
    // A horizontal flip does not change the class.
    class_names: &[
        "horizontal stripes",
        "vertical stripes",
        "diagonal stripes",
        "checkerboard",
        "dots",
        "disc",
        "ring",
        "square",
        "triangle",
        "cross",
    ],
    images: Images {
        training: 10_000,
        test: 2_000,
    },
    channels: None,
    // They take 3 GB.
    max_generated: Some(1_000_000),
    archives: &[],
    #[cfg(feature = "tensors")]
    load: |_, _, images| crate::Dataset::synthetic(images.training, images.test),
};
