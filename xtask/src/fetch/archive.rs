//! Archives of data sets: their digests, and unpacking them.

use super::source::Source;
use super::space;
use anyhow::{Context, anyhow, bail, ensure};
use datasets::cifar::Archive;
use flate2::read::MultiGzDecoder;
use run::cli;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Component, Path};
use tar::EntryType;

/// A small file that is kept, beside that with the names of the classes.
const README: &str = "readme.html";

/// Maximum size in bytes of a small file.
const MAX_SMALL_FILE: u64 = 1 << 20;

/// Maximum number of bytes on disk of the unpacked files, with some for the small ones.
pub(crate) fn unpacked_bytes(archive: &Archive) -> u64 {
    image_bytes(archive) + (1 << 16)
}

fn image_bytes(archive: &Archive) -> u64 {
    let files = archive.files.iter();
    files.map(|file| archive.max_bytes(file)).sum()
}

/// Maximum number of bytes of an archive of a data set, whether or not it is compressed: the image files, the small files
/// and the tar headers.
pub(crate) fn max_bytes(source: &Source) -> u64 {
    let archives = source.archives().iter();
    let images = archives.map(|archive| image_bytes(archive)).max();
    images.unwrap_or(0) + (8 << 20)
}

/// Checks a SHA-256 from the command line. Returns it in lower case.
pub(crate) fn parse_sha256(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a SHA-256 has 64 hexadecimal digits".to_owned())
    }
}

/// The version of a data set that the tar archive at `path` has, by its first file.
///
/// # Errors
/// As for [`unpack`], up to there.
pub(crate) fn version(path: &Path, source: &Source) -> anyhow::Result<&'static Archive> {
    read(path, source, None)
}

/// Unpacks the files of a version of a data set from the tar archive at `path`, which may be compressed with gzip, into the
/// empty folder `folder`. What macOS adds to archives, and files that are not of the data set, are skipped.
///
/// # Errors
/// When the archive is damaged, when it has anything else than files directly in the folder of one version (another path,
/// a link), when a file is too large, or when the files cannot be written.
pub(crate) fn unpack(
    path: &Path,
    source: &Source,
    folder: &Path,
) -> anyhow::Result<&'static Archive> {
    read(path, source, Some(folder))
}

/// Reads the archive at `path`: to its first file, or to its end, and unpacks it into `folder`.
fn read(path: &Path, source: &Source, folder: Option<&Path>) -> anyhow::Result<&'static Archive> {
    let dataset = source.dataset.display_name;
    let shown = path.display();
    let cannot_read = || format!("cannot read `{shown}`");
    let file = File::open(path).with_context(cannot_read)?;
    let mut bytes = BufReader::new(file);
    let start = bytes.fill_buf().with_context(cannot_read)?;
    // Browsers may remove the compression, and leave the name.
    let is_gzip = is_gzip(start);
    let other = describe_other(start);
    let not_an_archive = || match &other {
        Some(description) => format!("`{shown}` is not an archive of {dataset}: it {description}"),
        None => format!("`{shown}` is damaged, or not an archive of {dataset}"),
    };
    let unreadable = |error: io::Error| match (error.raw_os_error(), &other) {
        (Some(_), _) => anyhow::Error::new(error).context(cannot_read()),
        (None, Some(_)) => anyhow!(not_an_archive()),
        (None, None) => anyhow!(
            "{}: {}",
            not_an_archive(),
            cli::one_line(&error.to_string())
        ),
    };
    let bytes: Box<dyn Read> = match is_gzip {
        // Programs that compress in parallel write several members.
        true => Box::new(MultiGzDecoder::new(bytes)),
        false => Box::new(bytes),
    };
    let mut archive = tar::Archive::new(bytes.take(max_bytes(source)));
    let mut version: Option<&Archive> = None;
    let mut is_empty = true;
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let name = entry.path().map_err(unreadable)?.into_owned();
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::Directory | EntryType::XGlobalHeader) || is_mac_metadata(&name)
        {
            continue;
        }
        let shown = cli::one_line(&name.display().to_string());
        ensure!(
            kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse(),
            "the archive is refused: `{shown}` is not a regular file"
        );
        let (of, name) = match folder_and_file(&name) {
            Some((of, name)) if version.is_none_or(|version| version.folder == of) => (of, name),
            _ => bail!(
                "the archive is refused: {}",
                misplaced(&name, source, version)
            ),
        };
        let Some(archive) = source.archive(of) else {
            bail!(
                "the archive is refused: {}",
                misplaced(Path::new(of), source, None)
            );
        };
        version = Some(archive);
        let Some(folder) = folder else {
            return Ok(archive);
        };
        let image_file = archive.files.iter().find(|file| file.name == name);
        let max = if let Some(file) = image_file {
            archive.max_bytes(file)
        } else if [README, archive.names].contains(&name) {
            MAX_SMALL_FILE
        } else {
            continue;
        };
        let size = entry.size();
        ensure!(
            size <= max,
            "the archive is refused: `{shown}` has {size} bytes, more than {max}"
        );
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(unreadable)?;
        if content.len() as u64 != size {
            return Err(unreadable(io::ErrorKind::UnexpectedEof.into()));
        }
        let target = folder.join(name);
        let needed = unpacked_bytes(archive);
        write(&target, &content).map_err(space::cannot_write(&target, needed))?;
        is_empty = false;
    }
    match version {
        Some(version) if !is_empty => Ok(version),
        _ => match other {
            Some(_) => bail!(not_an_archive()),
            None => bail!("`{shown}` is empty, or not an archive of {dataset}"),
        },
    }
}

/// What is wrong with a file of the archive that is not directly in the folder of the version.
fn misplaced(path: &Path, source: &Source, version: Option<&Archive>) -> String {
    let folders = path
        .components()
        .map(|part| part.as_os_str().to_string_lossy());
    let other = folders
        .into_iter()
        .find_map(|folder| source.describe_other(&folder));
    let shown = cli::one_line(&path.display().to_string());
    match (other, version) {
        (Some(other), None) => other,
        (_, Some(version)) => format!("`{shown}` is not directly in {}", version.folder),
        (None, None) => {
            let names = source.names_of(|archive| archive.folder);
            format!("`{shown}` is not directly in {names}")
        }
    }
}

fn is_gzip(start: &[u8]) -> bool {
    start.starts_with(b"\x1f\x8b")
}

/// The format of a file that begins with `start`, where it is known and is not gzip.
pub(crate) fn describe_other(start: &[u8]) -> Option<String> {
    match is_gzip(start) {
        true => None,
        false => run::describe_format(start),
    }
}

/// Writes a file and flushes it to disk.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    atomic_file::sync(&file)
}

/// Whether a file has what a Mac knows about another one, or about a folder.
fn is_mac_metadata(path: &Path) -> bool {
    path.components().any(|part| {
        let name = part.as_os_str();
        name.as_encoded_bytes().starts_with(b"._") || name == "__MACOSX" || name == ".DS_Store"
    })
}

/// The folder of a file and its name; `None` for a path that is not a file directly in a folder.
fn folder_and_file(path: &Path) -> Option<(&str, &str)> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    let parts: Vec<_> = parts.collect();
    match parts.as_slice() {
        [Component::Normal(folder), Component::Normal(name)] => {
            Some((folder.to_str()?, name.to_str()?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datasets::cifar10::{BINARY, FILE_BYTES, FOLDER, TEST_FILE, TRAINING_FILES};
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use std::fs;

    /// An archive of these entries: path, type, content.
    fn archive(entries: &[(&str, EntryType, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut builder =
            tar::Builder::new(GzEncoder::new(file.reopen().unwrap(), Compression::fast()));
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            // Written into the header's bytes, because the library refuses hostile paths.
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

    /// Unpacks an archive of these entries into a folder inside another one. Returns the error, and the number of files
    /// outside the inner folder.
    fn unpacked(entries: &[(&str, EntryType, &[u8])]) -> (String, usize) {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("folder");
        fs::create_dir(&folder).unwrap();
        let result = unpack(archive(entries).path(), Source::cifar10(), &folder)
            .and_then(|version| version.checksums(&folder).context("the archive is refused"));
        let message = result.map_or_else(|error| format!("{error:#}"), |_| "fine".to_owned());
        let outside = fs::read_dir(&outside).unwrap().count() - 1;
        (
            message
                .replace(&folder.display().to_string(), "DIR")
                .replace('\\', "/"),
            outside,
        )
    }

    #[test]
    fn a_complete_archive_is_unpacked() {
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
    fn what_a_mac_and_git_add_is_skipped() {
        let junk: &[(&str, EntryType)] = &[
            ("pax_global_header", EntryType::XGlobalHeader),
            ("./._cifar-10-batches-bin", EntryType::Regular),
            ("cifar-10-batches-bin/._test_batch.bin", EntryType::Regular),
            ("cifar-10-batches-bin/.DS_Store", EntryType::Regular),
            ("__MACOSX/cifar-10-batches-bin/._x", EntryType::Regular),
        ];
        let pax: &[u8] = b"19 comment=a value\n";
        let mut entries: Vec<_> = junk
            .iter()
            .map(|(path, kind)| (*path, *kind, pax))
            .collect();
        entries.push((
            "cifar-10-batches-bin/readme.html",
            EntryType::Regular,
            b"about",
        ));
        // Names that mean something to this program.
        for path in [
            "cifar-10-batches-bin/SHA256SUMS",
            "cifar-10-batches-bin/.unpacking-x",
        ] {
            entries.push((path, EntryType::Regular, b"other"));
        }
        let folder = tempfile::tempdir().unwrap();
        unpack(archive(&entries).path(), Source::cifar10(), folder.path()).unwrap();
        let names = fs::read_dir(&folder).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["readme.html"]);
    }

    #[test]
    fn other_data_sets_are_named() {
        for (folder, named) in [
            (
                "cifar-10-batches-mat",
                "the MATLAB version of CIFAR-10; cifar-10-binary.tar.gz or",
            ),
            (
                "cifar-100-binary",
                "it is CIFAR-100; give --dataset cifar100",
            ),
            (
                "cifar-100-python",
                "it is CIFAR-100; give --dataset cifar100",
            ),
            (
                "mnist",
                "is not directly in cifar-10-batches-bin or cifar-10-batches-py",
            ),
        ] {
            let path = format!("{folder}/data_batch_1");
            let (message, _) = unpacked(&[(&path, EntryType::Regular, b"")]);
            assert!(message.contains(named), "{message}");
        }
        // Files of two versions.
        let (message, outside) = unpacked(&[
            ("cifar-10-batches-bin/readme.html", EntryType::Regular, b""),
            ("cifar-10-batches-py/data_batch_1", EntryType::Regular, b""),
        ]);
        assert!(
            message.contains("is not directly in cifar-10-batches-bin"),
            "{message}"
        );
        assert_eq!(outside, 0);
    }

    #[test]
    fn an_archive_may_lack_compression_and_is_not_cut() {
        let name = "cifar-10-batches-bin/readme.html";
        let compressed = archive(&[(name, EntryType::Regular, &[1; 3000])]);
        let mut plain = Vec::new();
        let mut decoder = MultiGzDecoder::new(compressed.as_file());
        decoder.read_to_end(&mut plain).unwrap();
        let path = compressed.path().with_extension("tar");
        // Two members, as `pigz --independent` and `cat` make them.
        let members = [&plain[..700], &plain[700..]].map(|part| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(part).unwrap();
            encoder.finish().unwrap()
        });
        fs::write(&path, members.concat()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        unpack(&path, Source::cifar10(), folder.path()).unwrap();
        for length in [0, 1, 511, 512, 513, 512 + 2999, plain.len()] {
            fs::write(&path, &plain[..length]).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let result = unpack(&path, Source::cifar10(), folder.path());
            assert_eq!(
                result.is_ok(),
                length == plain.len(),
                "{length}: {result:?}"
            );
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn other_files_are_described() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive");
        for (bytes, expected) in [
            (&b""[..], "it is empty"),
            (b"<!DOCTYPE html><html>", "it is an HTML page"),
            (b"PK\x03\x04", "it is a zip archive"),
            (b"BZh91AY&SY", "it is a bzip2 archive"),
            (b"\xfd7zXZ\0", "it is an xz archive"),
            (b"\x28\xb5\x2f\xfd", "it is a Zstandard archive"),
        ] {
            fs::write(&path, bytes).unwrap();
            let error = unpack(&path, Source::cifar10(), folder.path()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error:#}");
        }
    }

    #[test]
    fn nothing_is_written_outside_the_folder() {
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
            assert!(message.contains("is not a regular file"), "{message}");
            assert_eq!(outside, 0);
        }
    }

    #[test]
    fn files_that_are_too_large_are_refused() {
        let large = vec![0; FILE_BYTES + 1];
        let (message, _) = unpacked(&[(
            "cifar-10-batches-bin/test_batch.bin",
            EntryType::Regular,
            &large,
        )]);
        assert!(
            message.contains("has 30730001 bytes, more than 30730000"),
            "{message}"
        );
        let (message, _) = unpacked(&[(
            "cifar-10-batches-bin/readme.html",
            EntryType::Regular,
            &large,
        )]);
        assert!(message.contains("more than 1048576"), "{message}");
    }

    #[test]
    fn digests_are_parsed() {
        let upper = BINARY.sha256.to_ascii_uppercase();
        assert_eq!(parse_sha256(&upper).as_deref(), Ok(BINARY.sha256));
        assert!(parse_sha256(&upper[1..]).is_err());
        assert!(parse_sha256(&"é".repeat(32)).is_err());
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
            prop_assert!(unpack(&path, Source::cifar10(), &out).is_err());
        }
    }
}
