//! Labelled images as bytes, and digests.

use run::predictions::IMAGE_BYTES;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

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

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn file_sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hexadecimal(&hasher.finalize())),
            length => hasher.update(&buffer[..length]),
        }
    }
}

/// The bytes of a digest, in hexadecimal.
pub(crate) fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `hashlib.sha256(b"abc").hexdigest()`
    #[test]
    fn digests_are_printed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "abc").unwrap();
        assert_eq!(
            file_sha256(file.path()).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
