//! One process of a command at a time in a folder.

use crate::files::{self, RemovedIfEmpty};
use anyhow::Context;
use same_file::Handle;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The lock of a folder. Its file is removed with it; after a killed process it stays, unlocked.
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
    /// The folders that were made for it. They are removed if nothing else was written there.
    _new: Vec<RemovedIfEmpty>,
    /// Whether another process had the lock before, and has done its work since.
    pub(crate) waited: bool,
}

impl Lock {
    /// Creates the folder if it is missing, and locks it for a command; waits while another process has the lock. Where the
    /// file system has no locks, goes on without one. `note` prints a line about either.
    pub(crate) fn wait(folder: &Path, command: &str, note: impl Fn(&str)) -> anyhow::Result<Self> {
        let new = RemovedIfEmpty::missing(folder);
        let path = folder.join(format!(".{command}.lock"));
        let cannot_lock = || format!("cannot lock `{}`", path.display());
        let mut waited = false;
        loop {
            files::create_folder(folder)?;
            let file = match files::open(&path) {
                // The process that had the lock before removed the folder.
                Err(_) if !folder.exists() => continue,
                file => file?,
            };
            let locked = match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    if !waited {
                        note(&format!(
                            "another {command} is running in `{}`; waiting for it",
                            folder.display()
                        ));
                    }
                    waited = true;
                    file.lock()
                }
                Err(TryLockError::Error(error)) => Err(error),
                Ok(()) => Ok(()),
            };
            match locked {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if atomic_file::is_unsupported(&error) => note(&format!(
                    "warning: {} ({error}): do not run a second {command} there at the same time",
                    cannot_lock()
                )),
                Err(error) => return Err(error).with_context(cannot_lock),
            }
            // The process that had the lock before may have removed the file, and a third one may have made a new one.
            let ours = Handle::from_file(file.try_clone().with_context(cannot_lock)?);
            let is_removed = match Handle::from_path(&path) {
                Ok(current) => current != ours.with_context(cannot_lock)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                Err(error) => return Err(error).with_context(cannot_lock),
            };
            if !is_removed {
                return Ok(Self {
                    path,
                    _file: file,
                    _new: new,
                    waited,
                });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A file that stays does no harm.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    #[test]
    fn one_at_a_time_has_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let running = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let lock = Lock::wait(folder.path(), "tune", |_| ()).unwrap();
                        assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0);
                        thread::yield_now();
                        running.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        let new = folder.path().join("a/b");
        drop(Lock::wait(&new, "tune", |_| ()).unwrap());
        assert!(!folder.path().join("a").exists());
    }
}
