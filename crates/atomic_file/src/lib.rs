//! Files that are complete or absent: written beside their destination, flushed to disk and renamed.
//!
//! On Windows a virus scanner, a search index or a sync client may have a file open for a moment; meanwhile it cannot be
//! replaced or removed. What this crate renames, removes and appends to is tried again until the file is free, for at
//! most [`PATIENCE`].

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// How long a file that another program has open is waited for.
pub const PATIENCE: Duration = Duration::from_millis(2500);

/// How the names of unfinished files begin.
const UNFINISHED: &str = ".unfinished-";

/// A file that appears at its path when it is kept. Dropped before, it is removed.
#[derive(Debug)]
pub struct Unfinished {
    file: NamedTempFile,
    path: PathBuf,
}

impl Unfinished {
    /// Creates a temporary file beside `path`.
    ///
    /// # Errors
    /// When `path` is a folder, or is in one that is missing or read-only.
    pub fn create(path: &Path) -> io::Result<Self> {
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED);
        // Opened here: as any new file, and without the temporary name in errors.
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        Ok(Self {
            file: builder.make_in(folder(path), |path| options.open(path))?,
            path: path.to_owned(),
        })
    }

    /// Appends to the file.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.as_file_mut().write_all(bytes)
    }

    /// Another handle of the file, which may be written before and after it is kept.
    ///
    /// # Errors
    /// When the process has too many open files.
    pub fn handle(&self) -> io::Result<File> {
        self.file.as_file().try_clone()
    }

    /// Replaces the file at the path, and returns the new one, which may be written further.
    ///
    /// # Errors
    /// When the disk is full; the temporary file is then removed.
    pub fn keep(self) -> io::Result<File> {
        sync(self.file.as_file())?;
        let mut unfinished = Some(self.file);
        let file = until_free(|| {
            let file = unfinished.take().ok_or(io::ErrorKind::NotFound)?;
            file.persist(&self.path).map_err(|error| {
                unfinished = Some(error.file);
                error.error
            })
        })?;
        sync_folder(folder(&self.path))?;
        Ok(file)
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Replaces the file at `path`. Whatever happens meanwhile, it has either its old content or all of `bytes`.
///
/// # Errors
/// When the folder is missing or read-only, or the disk is full; the old file is then unchanged.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut unfinished = Unfinished::create(path)?;
    unfinished.write_all(bytes)?;
    unfinished.keep()?;
    Ok(())
}

/// Appends `bytes` to the file at `path`, which is created if it is missing. A reader, a crash or a full disk may see a
/// part of them, so a reader of lines ignores a last line without an end.
///
/// # Errors
/// When the folder is missing or read-only, or the disk is full.
pub fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let open = || File::options().create(true).append(true).open(path);
    let mut file = until_free(open)?;
    file.write_all(bytes)?;
    sync(&file)
}

/// Removes the unfinished files of a killed process from `folder`. Only for the one process that writes there.
///
/// # Errors
/// When the folder cannot be read.
pub fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if is_unfinished(&entry.file_name()) {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file, as [`fs::remove_file`].
///
/// # Errors
/// When it is missing, or may not be removed.
pub fn remove_file(path: &Path) -> io::Result<()> {
    until_free(|| fs::remove_file(path))
}

/// Renames a file or folder, as [`fs::rename`].
///
/// # Errors
/// When it is missing, or may not be renamed.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    until_free(|| fs::rename(from, to))
}

/// Does `action` again while it fails because another program has the file open.
fn until_free<T>(mut action: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let started = Instant::now();
    loop {
        match action() {
            Err(error) if is_in_use(&error) && started.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Whether an error may mean that another program has the file open. Windows also reports it as a denied permission, and
/// other systems let an open file be replaced and removed.
fn is_in_use(error: &io::Error) -> bool {
    const ACCESS_DENIED: i32 = 5;
    const SHARING_VIOLATION: i32 = 32;
    const LOCK_VIOLATION: i32 = 33;
    const USER_MAPPED_FILE: i32 = 1224;
    cfg!(windows)
        && matches!(
            error.raw_os_error(),
            Some(ACCESS_DENIED | SHARING_VIOLATION | LOCK_VIOLATION | USER_MAPPED_FILE)
        )
}

/// Whether this is the name of an [`Unfinished`] file.
#[must_use]
pub fn is_unfinished(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with(UNFINISHED)
}

/// Flushes a file to disk, where the file system can.
///
/// # Errors
/// When the disk is full or fails.
pub fn sync(file: &File) -> io::Result<()> {
    file.sync_all()
        .or_else(|error| match is_unsupported(&error) {
            true => Ok(()),
            false => Err(error),
        })
}

/// Flushes renames in `folder` to disk, where the system can and it may be read.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(windows) {
        return Ok(());
    }
    match File::open(folder) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        folder => sync(&folder?),
    }
}

/// Bytes that are free where the file or folder `path` is; `None` where the file system does not tell. Some network and
/// user-space file systems answer with zeros.
#[must_use]
pub fn free_space(path: &Path) -> Option<u64> {
    let space = fs4::statvfs(path).ok()?;
    (space.total_space() > 0).then(|| space.available_space())
}

/// Whether an error means that the file system does not have a function, such as locks or flushing, as opposed to a
/// function that failed.
#[must_use]
pub fn is_unsupported(error: &io::Error) -> bool {
    #[cfg(unix)]
    let codes = [
        libc::ENOSYS,
        libc::ENOTSUP,
        libc::EOPNOTSUPP,
        libc::EINVAL,
        libc::ENOTTY,
        libc::ENOLCK,
    ];
    // ERROR_INVALID_FUNCTION, ERROR_NOT_SUPPORTED
    #[cfg(not(unix))]
    let codes = [1, 50];
    error.kind() == io::ErrorKind::Unsupported
        || error
            .raw_os_error()
            .is_some_and(|code| codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_of_a_killed_process_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".unfinished-abc"), "half").unwrap();
        fs::write(folder.path().join("whole"), "").unwrap();
        remove_unfinished(folder.path()).unwrap();
        let names: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["whole"]);
    }

    /// What a virus scanner does.
    #[cfg(windows)]
    #[test]
    fn a_file_that_another_program_has_open_is_waited_for() {
        use std::os::windows::fs::OpenOptionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let hold = |time| {
            write(&path, b"one").unwrap();
            let mut options = fs::OpenOptions::new();
            let held = options.read(true).share_mode(0).open(&path).unwrap();
            thread::spawn(move || {
                thread::sleep(time);
                drop(held);
            })
        };
        let holder = hold(Duration::from_millis(500));
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        holder.join().unwrap();
        let holder = hold(Duration::from_millis(500));
        remove_file(&path).unwrap();
        holder.join().unwrap();
        let holder = hold(2 * PATIENCE);
        assert!(write(&path, b"two").is_err());
        holder.join().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(&folder.path().join("missing/file"), b"").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!error.to_string().contains(UNFINISHED), "{error}");
    }
}
