//! The decoded pictures of a folder, in a file: all of them as one tensor, which other programs can read too.

use crate::records::hexadecimal;
use run::predictions::IMAGE_BYTES;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The name of the tensor `[pictures, 3, 32, 32]`.
const IMAGES: &str = "images";

/// The most bytes of the header of a file that is read, for each picture and for all.
const HEADER_BYTES: (usize, usize) = (1 << 10, 1 << 16);

/// Decoded pictures.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    /// `[pictures, 3, 32, 32]`; 0 for those that cannot be read.
    pub(super) pixels: Vec<u8>,
    /// The pictures that cannot be read, by index, with the reasons.
    pub(super) unreadable: Vec<(usize, String)>,
}

/// The file in `cache_dir` for the pictures of a folder. There is one for each folder, so that a new one replaces the old one.
pub(super) fn path(cache_dir: &Path, folder: &Path) -> PathBuf {
    let absolute = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let name = absolute.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = name.chars().take(40).map(plain).collect();
    let digest = hexadecimal(&Sha256::digest(absolute.as_os_str().as_encoded_bytes()));
    cache_dir.join(format!("pictures-{name}-{}.safetensors", &digest[..16]))
}

/// Reads the file if it has these pictures, whole and undamaged.
pub(super) fn read(path: &Path, key: &str, pictures: usize) -> Option<Decoded> {
    let pixels = pictures.checked_mul(IMAGE_BYTES)?;
    let most = pixels.checked_add(pictures * HEADER_BYTES.0 + HEADER_BYTES.1)?;
    if fs::metadata(path).ok()?.len() > most as u64 {
        return None;
    }
    let mut bytes = fs::read(path).ok()?;
    let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
    let metadata = header.metadata().as_ref()?;
    if metadata.get("key")? != key {
        return None;
    }
    let unreadable = metadata.get("unreadable")?.lines().map(|line| {
        let (index, reason) = line.split_once(' ')?;
        Some((index.parse().ok()?, reason.to_owned()))
    });
    let unreadable: Vec<(usize, String)> = unreadable.collect::<Option<_>>()?;
    let tensors = SafeTensors::deserialize(&bytes).ok()?;
    let images = tensors.tensor(IMAGES).ok()?;
    let is_whole = images.dtype() == Dtype::U8
        && images.data().len() == pixels
        && unreadable.iter().all(|(index, _)| *index < pictures)
        && metadata.get("sha256")? == &hexadecimal(&Sha256::digest(images.data()));
    if !is_whole {
        return None;
    }
    // The only tensor is at the end. Without a copy of it.
    bytes.drain(..bytes.len() - pixels);
    Some(Decoded {
        pixels: bytes,
        unreadable,
    })
}

/// Writes the file.
pub(super) fn write(path: &Path, key: &str, decoded: &Decoded) -> io::Result<()> {
    let Decoded { pixels, unreadable } = decoded;
    let shape = vec![pixels.len() / IMAGE_BYTES, 3, 32, 32];
    let lines = unreadable.iter().map(|(index, reason)| {
        let reason = reason.replace('\n', " ");
        format!("{index} {reason}\n")
    });
    let metadata = HashMap::from([
        ("key".to_owned(), key.to_owned()),
        ("sha256".to_owned(), hexadecimal(&Sha256::digest(pixels))),
        ("unreadable".to_owned(), lines.collect()),
    ]);
    let images = TensorView::new(Dtype::U8, shape, pixels).map_err(io::Error::other)?;
    let bytes = safetensors::serialize([(IMAGES, images)], Some(metadata));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    atomic_file::write(path, &bytes.map_err(io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded() -> Decoded {
        Decoded {
            pixels: (0..2 * IMAGE_BYTES).map(|i| (i % 251) as u8).collect(),
            unreadable: vec![(1, "it is empty".to_owned())],
        }
    }

    #[test]
    fn pictures_are_kept_until_they_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/a.safetensors");
        assert_eq!(read(&path, "key", 2), None);
        write(&path, "key", &decoded()).unwrap();
        assert_eq!(read(&path, "key", 2), Some(decoded()));
        assert_eq!(read(&path, "other", 2), None);
        assert_eq!(read(&path, "key", 1), None);
        assert_eq!(read(&path, "key", usize::MAX), None);
    }

    #[test]
    fn folders_have_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["my pictures", "others"].map(|name| {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        });
        let file = path(Path::new("data"), &first);
        assert_ne!(file, path(Path::new("data"), &second));
        assert_eq!(file, path(Path::new("data"), &first.join(".")));
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("pictures-my-pictures-"), "{name}");
    }

    proptest! {
        #[test]
        fn damaged_files_are_not_used(at: prop::sample::Index, byte: u8, is_cut: bool) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a");
            write(&path, "key", &decoded()).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            prop_assume!(bytes[at] != byte || is_cut);
            bytes[at] = byte;
            if is_cut {
                bytes.truncate(at);
            }
            fs::write(&path, bytes).unwrap();
            // The reasons alone may change unnoticed.
            prop_assert!(read(&path, "key", 2).is_none_or(|found| found.pixels == decoded().pixels));
        }
    }
}
