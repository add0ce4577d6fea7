//! Labelled images as bytes, and their digests.

/// Bytes per image: `[3, 32, 32]`.
pub(crate) const IMAGE_BYTES: usize = 3 * 32 * 32;

/// Labels and pixels of some images.
pub struct Records {
    /// The label of each image: the index of its class.
    pub labels: Vec<u32>,
    /// Images of 3,072 bytes, `[3, 32, 32]`.
    pub pixels: Vec<u8>,
}

impl Records {
    /// No images, with memory for `images` of them.
    pub(crate) fn with_capacity(images: usize) -> Self {
        Self {
            labels: Vec::with_capacity(images),
            pixels: Vec::with_capacity(images * IMAGE_BYTES),
        }
    }
}

/// The bytes of a digest, in hexadecimal.
pub(crate) fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
