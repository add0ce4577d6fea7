//! Labelled images as bytes.

/// The number of classes.
pub(crate) const CLASSES: usize = 10;

/// Bytes per image: `[3, 32, 32]`.
pub(crate) const IMAGE_BYTES: usize = 3 * 32 * 32;

/// Labels and pixels of some images.
pub struct Records {
    /// A label for each image: 0 to 9.
    pub labels: Vec<u8>,
    /// Images of 3,072 bytes, `[3, 32, 32]`.
    pub pixels: Vec<u8>,
}
