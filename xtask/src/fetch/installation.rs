//! The folder of the data set: what is in it, and new files for it.

use super::archive;
use super::source::Source;
use crate::files::RemovedIfEmpty;
use anyhow::{Context, anyhow, bail, ensure};
use datasets::cifar::Archive;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The file with the checksums of files that are not the official ones, in the format of the programs `sha256sum` and
/// `md5sum`.
fn checksum_file(archive: &Archive) -> String {
    archive.checksum_name().replace('-', "") + "SUMS"
}

/// How the name of the folder begins in which files are unpacked.
const UNPACKING: &str = ".unpacking-";

/// The names of the files of a version and their checksums.
pub(crate) type Checksums = Vec<(&'static str, String)>;

/// The first of these that is not the official file.
pub(crate) fn first_unofficial<'a>(
    archive: &Archive,
    checksums: &'a Checksums,
) -> Option<&'a (&'static str, String)> {
    checksums
        .iter()
        .find(|(name, checksum)| !archive.is_official(name, checksum))
}

/// Checks that the files in `folder` are the official ones, or were unpacked from the archive with this SHA-256. Returns
/// whether they are the official ones.
///
/// # Errors
/// The error names the first file that is not.
pub(crate) fn verify(
    archive: &Archive,
    folder: &Path,
    archive_sha256: &str,
) -> anyhow::Result<bool> {
    let checksums = archive.checksums(folder)?;
    let Some(mut wrong) = first_unofficial(archive, &checksums) else {
        return Ok(true);
    };
    let kept = kept_checksums(archive, folder);
    let mut kept = kept.lines();
    // Checksums in a file can be anybody's: they do not make files the official ones.
    if archive_sha256 != archive.sha256 && kept.next() == Some(&first_line(archive_sha256)) {
        let kept: Vec<_> = kept.collect();
        let mut files = checksums.iter();
        match files.find(|(name, checksum)| !kept.contains(&line(name, checksum).as_str())) {
            None => return Ok(false),
            Some(changed) => wrong = changed,
        }
    }
    let (name, checksum) = wrong;
    bail!(
        "`{}` is not the official file of this name: it has {} {checksum}",
        folder.join(name).display(),
        archive.checksum_name()
    )
}

/// The file with the checksums, if there is one.
fn kept_checksums(archive: &Archive, folder: &Path) -> String {
    let mut text = String::new();
    // Without a readable file, the official checksums decide.
    let _ = File::open(folder.join(checksum_file(archive)))
        .and_then(|file| file.take(4096).read_to_string(&mut text));
    text
}

fn first_line(archive_sha256: &str) -> String {
    format!("# Files of the archive with SHA-256 {archive_sha256}")
}

fn line(name: &str, checksum: &str) -> String {
    format!("{checksum}  {name}")
}

/// New files, which are unpacked inside the folder of the data set and then moved into place one by one. So the folder
/// may be a link, or a mount point.
pub(crate) struct Installation {
    archive: &'static Archive,
    // Dropped before its folder.
    unpacked: TempDir,
    folder: PathBuf,
    _new: Option<RemovedIfEmpty>,
}

impl Installation {
    /// Makes the folder of a version of the data set, and one to unpack in. Whatever is in the way is found now, before a
    /// download.
    pub(crate) fn prepare(data_dir: &Path, archive: &'static Archive) -> anyhow::Result<Self> {
        let folder = data_dir.join(archive.folder);
        let cannot_write = || format!("cannot write to `{}`", folder.display());
        let new = match fs::create_dir(&folder) {
            Ok(()) => Some(RemovedIfEmpty(folder.clone())),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
            Err(error) => return Err(error).with_context(cannot_write),
        };
        for file in archive.files {
            let file = folder.join(file.name);
            ensure!(
                !file.is_dir(),
                "cannot write `{}`: it is a folder; remove it",
                file.display()
            );
        }
        // What a killed process left.
        for entry in fs::read_dir(&folder).with_context(cannot_write)? {
            let entry = entry.with_context(cannot_write)?;
            if entry.file_name().to_string_lossy().starts_with(UNPACKING) {
                fs::remove_dir_all(entry.path()).with_context(cannot_write)?;
            }
        }
        let unpacked = tempfile::Builder::new()
            .prefix(UNPACKING)
            .tempdir_in(&folder)
            .with_context(cannot_write)?;
        Ok(Self {
            archive,
            unpacked,
            folder,
            _new: new,
        })
    }

    /// The folder of the data set.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Unpacks an archive of this version, and checks the sizes and labels of its files.
    pub(crate) fn unpack(&self, archive: &Path, source: &Source) -> anyhow::Result<Checksums> {
        let folder = self.unpacked.path();
        archive::unpack(archive, source, folder)?;
        self.archive.checksums(folder).map_err(|error| {
            // The files as they are named in the archive.
            let unpacked = folder.join("").display().to_string();
            let error = error.to_string().replace(&unpacked, "");
            anyhow!("the archive `{}` is refused: {error}", archive.display())
        })
    }

    /// Moves the files into place. Keeps the checksums of those that are not official, for [`verify`].
    pub(crate) fn finish(self, checksums: &Checksums, archive_sha256: &str) -> anyhow::Result<()> {
        let cannot_write = || format!("cannot write to `{}`", self.folder.display());
        let kept = self.folder.join(checksum_file(self.archive));
        if first_unofficial(self.archive, checksums).is_some() {
            let lines = checksums
                .iter()
                .map(|(name, checksum)| line(name, checksum));
            let lines: Vec<_> = [first_line(archive_sha256)]
                .into_iter()
                .chain(lines)
                .collect();
            atomic_file::write(&kept, (lines.join("\n") + "\n").as_bytes())
                .with_context(cannot_write)?;
        } else if kept.exists() {
            atomic_file::remove_file(&kept).with_context(cannot_write)?;
        }
        for entry in fs::read_dir(self.unpacked.path()).with_context(cannot_write)? {
            let entry = entry.with_context(cannot_write)?;
            let target = self.folder.join(entry.file_name());
            atomic_file::rename(&entry.path(), &target).with_context(cannot_write)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datasets::cifar10::{BINARY, FILE_BYTES, FOLDER, TEST_FILE, TRAINING_FILES};
    use proptest::prelude::*;

    #[test]
    fn digests_of_other_archives_are_kept() {
        let data = tempfile::tempdir().unwrap();
        let installation = Installation::prepare(data.path(), &BINARY).unwrap();
        for (number, name) in (0..).zip(TRAINING_FILES.iter().chain([&TEST_FILE])) {
            fs::write(
                installation.unpacked.path().join(name),
                vec![number; FILE_BYTES],
            )
            .unwrap();
        }
        let folder = installation.folder().to_owned();
        let digests = BINARY.checksums(installation.unpacked.path()).unwrap();
        installation.finish(&digests, "of an archive").unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 7);
        verify(&BINARY, &folder, "of an archive").unwrap();
        let named = |archive, file| {
            let error = verify(&BINARY, &folder, archive).unwrap_err().to_string();
            assert!(error.contains(file), "{error}");
        };
        named("of another archive", "data_batch_1.bin");
        fs::copy(folder.join(TRAINING_FILES[0]), folder.join(TEST_FILE)).unwrap();
        named("of an archive", "test_batch.bin");
        fs::remove_file(folder.join("SHA256SUMS")).unwrap();
        named("of an archive", "data_batch_1.bin");
        // The official archive is known by the program's own digests alone.
        let digests = BINARY.checksums(&folder).unwrap();
        let lines: Vec<_> = digests.iter().map(|(name, hex)| line(name, hex)).collect();
        let kept = first_line(BINARY.sha256) + "\n" + &lines.join("\n") + "\n";
        fs::write(folder.join("SHA256SUMS"), kept).unwrap();
        named(BINARY.sha256, "data_batch_1.bin");
    }

    #[test]
    fn what_is_in_the_way_is_found_first() {
        let data = tempfile::tempdir().unwrap();
        drop(Installation::prepare(data.path(), &BINARY).unwrap());
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
        let file = data.path().join(FOLDER).join(TEST_FILE);
        fs::create_dir_all(file).unwrap();
        fs::create_dir(data.path().join(FOLDER).join(".unpacking-killed")).unwrap();
        let error = Installation::prepare(data.path(), &BINARY).err().unwrap();
        assert!(error.to_string().contains("it is a folder"), "{error}");
        fs::remove_dir(data.path().join(FOLDER).join(TEST_FILE)).unwrap();
        drop(Installation::prepare(data.path(), &BINARY).unwrap());
        assert_eq!(fs::read_dir(data.path().join(FOLDER)).unwrap().count(), 0);
    }

    proptest! {
        #[test]
        fn any_kept_digests_are_read(bytes in prop::collection::vec(any::<u8>(), 0..10_000)) {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("SHA256SUMS"), &bytes).unwrap();
            // All or nothing, of the part that can be digests.
            let expected = str::from_utf8(&bytes[..bytes.len().min(4096)]).unwrap_or_default();
            prop_assert_eq!(kept_checksums(&BINARY, folder.path()), expected);
        }
    }
}
