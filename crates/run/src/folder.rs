//! The folder of a run. One process at a time writes to it.

use crate::error::Error;
use crate::file;
use std::fs::{self, DirEntry, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

/// The folder of a run, locked by this process. The lock ends with the process.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    log: File,
    /// `None` on a file system without locks.
    lock: Option<File>,
}

impl RunFolder {
    /// A new folder in `run_dir` with this name, or with the default name, numbered from the second on.
    ///
    /// # Errors
    /// When the name is taken, or the folder cannot be made.
    pub fn create(run_dir: &Path, name: Option<&str>, default_name: &str) -> Result<Self, Error> {
        fs::create_dir_all(run_dir).map_err(Error::file("create the folder", run_dir))?;
        if let Some(name) = name {
            let path = run_dir.join(name);
            return Self::create_named(&path)?.ok_or_else(|| taken(&path));
        }
        let mut name = default_name.to_owned();
        for number in 2_u64.. {
            match Self::create_named(&run_dir.join(&name)) {
                Ok(Some(folder)) => return Ok(folder),
                // Also where another process was faster.
                Ok(None) | Err(Error::InUse { .. }) => {}
                Err(error) => return Err(error),
            }
            name = format!("{default_name}-{number}");
        }
        Err(Error::Exists(run_dir.join(name)))
    }

    /// A new folder at `path`; `None` where something exists. A folder without a record counts as new: its process
    /// was killed before it had written one.
    fn create_named(path: &Path) -> Result<Option<Self>, Error> {
        match fs::create_dir(path) {
            Ok(()) => Self::lock(path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                is_free(path).then(|| Self::lock(path)).transpose()
            }
            Err(error) => Err(Error::file("create the folder", path)(error)),
        }
    }

    /// Locks the folder of a run, if its file system has locks, and removes files that a killed process left unfinished.
    ///
    /// # Errors
    /// When another process has locked it, or the folder cannot be written to.
    pub fn lock(path: &Path) -> Result<Self, Error> {
        let open = |name, options: &mut OpenOptions| {
            let path = path.join(name);
            let file = options.create(true).open(&path);
            file.map_err(Error::file("write", &path))
        };
        // Not only to append: Windows does not lock such a file.
        let mut lock = open(file::LOCK, OpenOptions::new().read(true).write(true))?;
        let locked = match lock.try_lock() {
            Ok(()) => true,
            Err(TryLockError::Error(error)) if atomic_file::is_unsupported(&error) => false,
            Err(TryLockError::WouldBlock) => return Err(in_use(path)),
            Err(TryLockError::Error(error)) => {
                return Err(Error::file("lock", &path.join(file::LOCK))(error));
            }
        };
        // Read by a process that is refused.
        lock.set_len(0)
            .and_then(|()| write!(lock, "{}", process::id()))
            .map_err(Error::file("write", &path.join(file::LOCK)))?;
        let log = open(file::LOG, OpenOptions::new().append(true))?;
        atomic_file::remove_unfinished(path)
            .map_err(Error::file("remove unfinished files in", path))?;
        Ok(Self {
            path: path.to_owned(),
            log,
            lock: locked.then_some(lock),
        })
    }

    /// Whether other processes are kept out. On a file system without locks they are not.
    #[must_use]
    pub fn has_lock(&self) -> bool {
        self.lock.is_some()
    }

    /// The path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The log, to append to.
    ///
    /// # Errors
    /// When the operating system has no further file handle.
    pub fn log(&self) -> io::Result<File> {
        self.log.try_clone()
    }

    /// Writes a file in the folder, atomically.
    ///
    /// # Errors
    /// When it cannot be written; the old file is then unchanged.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path.join(name);
        atomic_file::write(&path, bytes).map_err(Error::file("write", &path))
    }
}

/// The folder of an existing run: `run` itself, or the one of that name in `run_dir`.
///
/// # Errors
/// When neither has a record.
pub fn find(run_dir: &Path, run: &Path) -> Result<PathBuf, Error> {
    let candidates = [run.to_owned(), run_dir.join(run)];
    let mut candidates = candidates.into_iter();
    candidates
        .find(|path| path.join(file::RECORD).is_file())
        .ok_or_else(|| Error::NotFound {
            run: run.to_owned(),
            run_dir: run_dir.to_owned(),
        })
}

/// The name of a run, which is that of its folder.
#[must_use]
pub fn name(run: &Path) -> String {
    let absolute = fs::canonicalize(run).unwrap_or_else(|_| run.to_owned());
    let name = absolute.file_name().unwrap_or(run.as_os_str());
    name.to_string_lossy().into_owned()
}

/// Waits until no other process writes to the folder of a run, for at most `patience`. `waiting` is called once if there
/// is something to wait for.
///
/// # Errors
/// When the other process still writes after that time.
pub fn wait_until_unlocked(
    run: &Path,
    patience: Duration,
    waiting: impl FnOnce(),
) -> Result<(), Error> {
    if is_locked(run) {
        waiting();
    }
    let started = Instant::now();
    while is_locked(run) {
        if started.elapsed() > patience {
            return Err(in_use(run));
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Checks that the folder `path` is free for a new run. Another process may still take it before [`RunFolder::create`].
///
/// # Errors
/// As for [`RunFolder::create`], where the name is taken.
pub fn check_free(path: &Path) -> Result<(), Error> {
    match !path.exists() || is_free(path) {
        true => Ok(()),
        false => Err(taken(path)),
    }
}

/// Whether a folder that exists is free for a new run.
fn is_free(path: &Path) -> bool {
    is_unused(path) && !is_locked(path)
}

/// The error for a name that is taken.
fn taken(path: &Path) -> Error {
    match is_locked(path) {
        true => in_use(path),
        false => Error::Exists(path.to_owned()),
    }
}

/// Whether a folder has no more than a lock, a log and unfinished files.
fn is_unused(path: &Path) -> bool {
    let is_expected = |entry: io::Result<DirEntry>| {
        let name = entry.map(|entry| entry.file_name());
        name.is_ok_and(|name| {
            name == file::LOCK || name == file::LOG || atomic_file::is_unfinished(&name)
        })
    };
    fs::read_dir(path).is_ok_and(|mut entries| entries.all(is_expected))
}

/// The error for a folder to which another process writes.
fn in_use(path: &Path) -> Error {
    // Windows lets no other process read a locked file.
    let process = fs::read_to_string(path.join(file::LOCK));
    Error::InUse {
        run: path.to_owned(),
        process: process.ok().and_then(|text| text.parse().ok()),
    }
}

/// Whether another process writes to the folder.
fn is_locked(path: &Path) -> bool {
    File::open(path.join(file::LOCK))
        .is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn default_names_are_numbered() {
        let runs = tempfile::tempdir().unwrap();
        let names: Vec<_> = (0..3)
            .map(|_| {
                let folder = RunFolder::create(runs.path(), None, "a").unwrap();
                folder.write(file::RECORD, b"").unwrap();
                folder.path().file_name().unwrap().to_owned()
            })
            .collect();
        assert_eq!(names, ["a", "a-2", "a-3"]);
    }

    #[test]
    fn runs_that_start_at_once_have_different_folders() {
        let runs = tempfile::tempdir().unwrap();
        let start = || RunFolder::create(runs.path(), None, "a").unwrap();
        let folders: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            let folders = threads.into_iter().map(|thread| thread.join().unwrap());
            folders.collect()
        });
        let paths: BTreeSet<_> = folders.iter().map(RunFolder::path).collect();
        assert_eq!(paths.len(), folders.len(), "{paths:?}");
    }

    #[test]
    fn a_folder_has_one_writer() {
        let runs = tempfile::tempdir().unwrap();
        let path = runs.path().join("a");
        let first = RunFolder::create(runs.path(), Some("a"), "").unwrap();
        for second in [
            RunFolder::create(runs.path(), Some("a"), "").unwrap_err(),
            RunFolder::lock(&path).unwrap_err(),
            wait_until_unlocked(&path, Duration::ZERO, || ()).unwrap_err(),
            check_free(&path).unwrap_err(),
        ] {
            assert!(
                matches!(&second, Error::InUse { run, process } if *run == path
                    && (cfg!(windows) || *process == Some(process::id()))),
                "{second}"
            );
        }
        drop(first);
        wait_until_unlocked(&path, Duration::ZERO, || panic!("nothing to wait for")).unwrap();
        // Killed before it had written a record: the name is still free.
        check_free(&path).unwrap();
        let again = RunFolder::create(runs.path(), Some("a"), "").unwrap();
        again.write(file::RECORD, b"").unwrap();
        drop(again);
        let error = RunFolder::create(runs.path(), Some("a"), "").unwrap_err();
        assert!(
            error.is_usage_error() && matches!(error, Error::Exists(_)),
            "{error}"
        );
        RunFolder::lock(&path).unwrap();
    }

    #[test]
    fn a_run_is_found_by_path_or_name() {
        let runs = tempfile::tempdir().unwrap();
        let folder = runs.path().join("a");
        fs::create_dir(&folder).unwrap();
        let error = find(runs.path(), Path::new("a")).unwrap_err();
        assert!(error.is_usage_error(), "{error}");
        fs::write(folder.join(file::RECORD), "").unwrap();
        assert_eq!(find(runs.path(), Path::new("a")).unwrap(), folder);
        assert_eq!(find(Path::new("elsewhere"), &folder).unwrap(), folder);
    }
}
