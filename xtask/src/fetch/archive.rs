//! The official archive: its digest, and how it is unpacked.

use anyhow::{Context, bail, ensure};
use datasets::layout::{FILE_BYTES, FOLDER, TEST_FILE, TRAINING_FILES};
use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path};
use std::str::FromStr;
use tar::EntryType;

/// Bytes of the official archive.
pub(crate) const OFFICIAL_BYTES: u64 = 170_052_171;

/// The official archive's digest.
pub(crate) const OFFICIAL: Sha256Digest = Sha256Digest([
    0xc4, 0xa3, 0x8c, 0x50, 0xa1, 0xbc, 0x5f, 0x3a, 0x1c, 0x55, 0x37, 0xf2, 0x15, 0x5a, 0xb9, 0xd6,
    0x8f, 0x9f, 0x25, 0xeb, 0x1e, 0xd8, 0xd9, 0xdd, 0xda, 0x3d, 0xb2, 0x9a, 0x59, 0xbc, 0xa1, 0xdd,
]);

/// The most that any archive of these files can have, however badly it is compressed.
pub(crate) const MOST_BYTES: u64 = 1 << 28;

/// The most that the archive's small files (a list of classes, a page about the set) may have.
const SMALL_FILE: u64 = 1 << 20;

/// The most that is read out of an archive: the six files, small ones, and the tar headers.
const MOST_UNPACKED: u64 = 6 * FILE_BYTES as u64 + (8 << 20);

/// A SHA-256 digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sha256Digest([u8; 32]);

impl Sha256Digest {
    /// The digest of a file.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(Self(hasher.finalize().into())),
                count => hasher.update(&buffer[..count]),
            }
        }
    }
}

impl std::fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Sha256Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "a SHA-256 has 64 hexadecimal digits".to_owned();
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut digest = [0; 32];
        for (place, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(digest))
    }
}

/// Unpacks the files of CIFAR-10 from the gzipped tar archive at `path` into `folder`, which must
/// be empty, and checks them.
///
/// Only files directly in the archive's `cifar-10-batches-bin` are taken; a path that leads
/// elsewhere, a link, and a file that is too large are refused.
pub(crate) fn unpack(path: &Path, folder: &Path) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let bytes = GzDecoder::new(io::BufReader::new(file)).take(MOST_UNPACKED);
    let damaged = || {
        format!(
            "`{}` is no archive of CIFAR-10, or is damaged",
            path.display()
        )
    };
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries().with_context(damaged)? {
        let mut entry = entry.with_context(damaged)?;
        let name = entry.path().with_context(damaged)?.into_owned();
        let shown = name.display().to_string();
        if entry.header().entry_type() == EntryType::Directory {
            continue;
        }
        ensure!(
            entry.header().entry_type() == EntryType::Regular,
            "the archive is refused: `{shown}` in it is no ordinary file"
        );
        let Some(name) = file_name(&name) else {
            bail!("the archive is refused: `{shown}` in it does not belong into {FOLDER}");
        };
        let image_file = TRAINING_FILES.contains(&name) || name == TEST_FILE;
        let most = if image_file {
            FILE_BYTES as u64
        } else {
            SMALL_FILE
        };
        ensure!(
            entry.size() <= most,
            "the archive is refused: `{shown}` in it has {} bytes, at most {most} are expected",
            entry.size()
        );
        let target = folder.join(name);
        let cannot_write = || format!("cannot write `{}`", target.display());
        let mut out = File::create_new(&target).with_context(cannot_write)?;
        io::copy(&mut entry, &mut out).with_context(damaged)?;
        out.sync_all().with_context(cannot_write)?;
    }
    datasets::layout::check(folder).context("the archive is refused")
}

/// The name of a file that lies directly in `cifar-10-batches-bin`.
fn file_name(path: &Path) -> Option<&str> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    let parts: Vec<_> = parts.collect();
    match parts.as_slice() {
        [Component::Normal(folder), Component::Normal(name)] if *folder == FOLDER => name.to_str(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use std::fs;

    /// An archive of the given entries: path, type, content.
    fn archive(entries: &[(&str, EntryType, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut builder =
            tar::Builder::new(GzEncoder::new(file.reopen().unwrap(), Compression::fast()));
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            // Written into the header's bytes: the library refuses to make hostile paths.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            if *kind == EntryType::Symlink {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap();
        file
    }

    /// Unpacks it into a folder inside another: the error, and the files in both.
    fn unpacked(entries: &[(&str, EntryType, &[u8])]) -> (String, usize) {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("folder");
        fs::create_dir(&folder).unwrap();
        let result = unpack(archive(entries).path(), &folder);
        let message = result.map_or_else(|error| format!("{error:#}"), |()| "fine".to_owned());
        let outside = fs::read_dir(&outside).unwrap().count() - 1;
        (
            message.replace(&folder.display().to_string(), "DIR"),
            outside,
        )
    }

    #[test]
    fn a_whole_set_is_taken() {
        let bytes = vec![0; FILE_BYTES];
        let names: Vec<_> = TRAINING_FILES
            .iter()
            .chain([&TEST_FILE])
            .map(|name| format!("{FOLDER}/{name}"))
            .collect();
        let mut entries: Vec<_> = names
            .iter()
            .map(|name| (name.as_str(), EntryType::Regular, bytes.as_slice()))
            .collect();
        entries.push(("cifar-10-batches-bin/", EntryType::Directory, &[]));
        entries.push((
            "./cifar-10-batches-bin/readme.html",
            EntryType::Regular,
            b"about",
        ));
        assert_eq!(unpacked(&entries), ("fine".to_owned(), 0));
        entries.remove(3);
        let (message, _) = unpacked(&entries);
        assert_eq!(
            message,
            "the archive is refused: the file `DIR/data_batch_4.bin` is missing"
        );
    }

    #[test]
    fn nothing_leaves_the_folder() {
        for path in [
            "../evil",
            "/tmp/evil",
            "cifar-10-batches-bin/../../evil",
            "cifar-10-batches-bin/deeper/evil",
            "evil",
        ] {
            let (message, outside) = unpacked(&[(path, EntryType::Regular, b"evil")]);
            assert!(
                message.starts_with("the archive is refused"),
                "{path}: {message}"
            );
            assert_eq!(outside, 0, "{path}");
        }
        for kind in [EntryType::Symlink, EntryType::Link, EntryType::Fifo] {
            let (message, outside) =
                unpacked(&[("cifar-10-batches-bin/test_batch.bin", kind, b"")]);
            assert!(message.contains("is no ordinary file"), "{message}");
            assert_eq!(outside, 0);
        }
    }

    #[test]
    fn no_more_is_unpacked_than_expected() {
        let large = vec![0; FILE_BYTES + 1];
        let (message, _) = unpacked(&[(
            "cifar-10-batches-bin/test_batch.bin",
            EntryType::Regular,
            &large,
        )]);
        assert!(
            message.contains("has 30730001 bytes, at most 30730000 are expected"),
            "{message}"
        );
        let (message, _) = unpacked(&[(
            "cifar-10-batches-bin/readme.html",
            EntryType::Regular,
            &large,
        )]);
        assert!(
            message.contains("at most 1048576 are expected"),
            "{message}"
        );
    }

    #[test]
    fn digests_are_read_and_written() {
        let text = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd";
        assert_eq!(text.parse(), Ok(OFFICIAL));
        assert_eq!(OFFICIAL.to_string(), text);
        assert!(text[1..].parse::<Sha256Digest>().is_err());
        assert!("é".repeat(32).parse::<Sha256Digest>().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000), gzip: bool) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("archive");
            let mut file = File::create(&path).unwrap();
            if gzip {
                let mut encoder = GzEncoder::new(file, Compression::fast());
                io::Write::write_all(&mut encoder, &bytes).unwrap();
                encoder.finish().unwrap();
            } else {
                io::Write::write_all(&mut file, &bytes).unwrap();
            }
            let out = folder.path().join("out");
            fs::create_dir(&out).unwrap();
            prop_assert!(unpack(&path, &out).is_err());
        }
    }
}
