//! Labelled images as bytes.

/// The number of classes.
pub(crate) const CLASSES: usize = 10;

/// Bytes per image: `[3, 32, 32]`.
pub(crate) const IMAGE_BYTES: usize = 3 * 32 * 32;

/// Labels and pixels of some images.
pub struct Records {
    /// A label for each image, below [`CLASSES`].
    pub labels: Vec<u8>,
    /// Images of [`IMAGE_BYTES`] bytes.
    pub pixels: Vec<u8>,
}
