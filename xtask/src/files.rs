//! Files and folders, with errors that name them.

use anyhow::Context;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Creates a folder and those that contain it, where they are missing.
pub(crate) fn create_folder(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path)
        .with_context(|| format!("cannot create the folder `{}`", path.display()))
}

/// Writes a file, completely or not at all.
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    atomic_file::write(path, text.as_bytes())
        .with_context(|| format!("cannot write `{}`", path.display()))
}

/// Opens a file to read and write, which is created if it is missing.
pub(crate) fn open(path: &Path) -> anyhow::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options
        .open(path)
        .with_context(|| format!("cannot write `{}`", path.display()))
}

/// A folder that is removed when this is dropped, if it is empty.
pub(crate) struct RemovedIfEmpty(pub(crate) PathBuf);

impl RemovedIfEmpty {
    /// The folder at `path` and those that contain it, as far as they do not exist; the innermost one is first.
    pub(crate) fn missing(path: &Path) -> Vec<Self> {
        let folders = path.ancestors();
        let missing =
            folders.take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        missing.map(|folder| Self(folder.to_owned())).collect()
    }
}

impl Drop for RemovedIfEmpty {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
