//! The folder that a run leaves behind, held by one process at a time.

use anyhow::{Context, anyhow};
use run::cli::UsageError;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

pub(crate) use report::RECORD;

/// The log. Who writes to the folder holds a lock on it, which ends with the process.
const LOG: &str = "log.txt";

/// A run's folder that this process may write to.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    /// Holds the lock.
    log: File,
}

impl RunFolder {
    /// A new folder in `run_dir`: of the given name, or of the default name with the first number
    /// that is free.
    pub(crate) fn create(
        run_dir: &Path,
        name: Option<&str>,
        default_name: &str,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(run_dir)
            .with_context(|| format!("cannot make the folder of runs `{}`", run_dir.display()))?;
        match name {
            Some(name) => Self::create_named(&run_dir.join(name))?.ok_or_else(|| {
                let path = run_dir.join(name);
                if is_locked(&path) {
                    return in_use(&path);
                }
                UsageError(format!(
                    "the run `{0}` exists; give another --name, or continue it with --resume {0}",
                    path.display()
                ))
                .into()
            }),
            None => {
                for number in 1_u32.. {
                    let suffix = if number == 1 {
                        String::new()
                    } else {
                        format!("-{number}")
                    };
                    let path = run_dir.join(format!("{default_name}{suffix}"));
                    if let Some(folder) = Self::create_named(&path)? {
                        return Ok(folder);
                    }
                }
                Err(anyhow!(
                    "there are too many runs in `{}`",
                    run_dir.display()
                ))
            }
        }
    }

    /// A new folder at `path`; `None` where something is there already. What a process left that was
    /// killed before it had written its record is as good as nothing.
    fn create_named(path: &Path) -> anyhow::Result<Option<Self>> {
        match fs::create_dir(path) {
            Ok(()) => Self::lock(path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if holds_nothing(path) && !is_locked(path) {
                    Self::lock(path).map(Some)
                } else {
                    Ok(None)
                }
            }
            Err(error) => Err(error)
                .with_context(|| format!("cannot make the run folder `{}`", path.display())),
        }
    }

    /// The folder of a run that is there: `run` itself, or its name in `run_dir`.
    pub(crate) fn find(run_dir: &Path, run: &Path) -> anyhow::Result<PathBuf> {
        let candidates = [run.to_owned(), run_dir.join(run)];
        let found = candidates
            .into_iter()
            .find(|path| path.join(RECORD).is_file());
        found.ok_or_else(|| {
            UsageError(format!(
                "--resume {}: there is no run (a folder with a {RECORD}) there, nor in `{}`",
                run.display(),
                run_dir.display()
            ))
            .into()
        })
    }

    /// Takes the lock of the folder at `path`, and removes what a killed process left unfinished.
    pub(crate) fn lock(path: &Path) -> anyhow::Result<Self> {
        let log = path.join(LOG);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write the log `{}`", log.display()))?;
        match log.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(path)),
            Err(TryLockError::Error(error)) => {
                return Err(error)
                    .with_context(|| format!("cannot lock the run folder `{}`", path.display()));
            }
        }
        atomic_file::remove_unfinished(path)
            .with_context(|| format!("cannot clear unfinished files in `{}`", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            log,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The log, for writing at its end.
    pub(crate) fn log(&self) -> io::Result<File> {
        self.log.try_clone()
    }

    /// Writes one of its files.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.path.join(name);
        atomic_file::write(&path, bytes)
            .with_context(|| format!("cannot write `{}`", path.display()))
    }
}

/// Whether a folder holds no more than a log and unfinished files.
fn holds_nothing(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| {
        entries.all(|entry| {
            entry.is_ok_and(|entry| {
                let name = entry.file_name();
                name == LOG || atomic_file::is_unfinished(&name)
            })
        })
    })
}

fn is_locked(path: &Path) -> bool {
    File::open(path.join(LOG))
        .is_ok_and(|log| matches!(log.try_lock(), Err(TryLockError::WouldBlock)))
}

fn in_use(path: &Path) -> anyhow::Error {
    anyhow!(
        "another process is writing to the run folder `{}`; wait until it is done, or stop it",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_names_are_numbered() {
        let runs = tempfile::tempdir().unwrap();
        let names: Vec<_> = (0..3)
            .map(|_| {
                let folder = RunFolder::create(runs.path(), None, "a").unwrap();
                folder.write(RECORD, b"").unwrap();
                folder.path().file_name().unwrap().to_owned()
            })
            .collect();
        assert_eq!(names, ["a", "a-2", "a-3"]);
    }

    #[test]
    fn a_folder_has_one_writer() {
        let runs = tempfile::tempdir().unwrap();
        let first = RunFolder::create(runs.path(), Some("a"), "").unwrap();
        for second in [
            RunFolder::create(runs.path(), Some("a"), "").unwrap_err(),
            RunFolder::lock(first.path()).unwrap_err(),
        ] {
            assert!(
                second.to_string().starts_with("another process is writing"),
                "{second}"
            );
        }
        drop(first);
        // Killed before it had written anything: the name is still free.
        let again = RunFolder::create(runs.path(), Some("a"), "").unwrap();
        again.write(RECORD, b"").unwrap();
        drop(again);
        let error = RunFolder::create(runs.path(), Some("a"), "").unwrap_err();
        assert!(
            error.is::<UsageError>() && error.to_string().contains("exists"),
            "{error}"
        );
        RunFolder::lock(&runs.path().join("a")).unwrap();
    }

    #[test]
    fn a_run_is_found_by_path_or_name() {
        let runs = tempfile::tempdir().unwrap();
        let folder = runs.path().join("a");
        fs::create_dir(&folder).unwrap();
        assert!(
            RunFolder::find(runs.path(), Path::new("a"))
                .unwrap_err()
                .is::<UsageError>()
        );
        fs::write(folder.join(RECORD), "").unwrap();
        assert_eq!(
            RunFolder::find(runs.path(), Path::new("a")).unwrap(),
            folder
        );
        assert_eq!(
            RunFolder::find(Path::new("elsewhere"), &folder).unwrap(),
            folder
        );
    }
}
