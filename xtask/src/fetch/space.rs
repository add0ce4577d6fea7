//! Free space on disk.

use anyhow::{anyhow, bail};
use std::io;
use std::path::Path;

/// Checks that there is space for `needed` bytes at `path`, where the system tells.
pub(crate) fn check(path: &Path, needed: u64) -> anyhow::Result<()> {
    match atomic_file::free_space(path) {
        Some(free) if free < needed => bail!(
            "cannot write `{}`: no space left: {} MB are needed, and {} MB are free; free some, or choose another \
             folder with --data-dir",
            path.display(),
            megabytes(needed),
            free / 1_000_000
        ),
        _ => Ok(()),
    }
}

/// Whether two folders seem to be on the same file system: it has the same size and about the same free space.
pub(crate) fn is_shared(one: &Path, other: &Path) -> bool {
    let space = |folder| {
        let stats = fs4::statvfs(folder).ok()?;
        Some((stats.total_space(), stats.available_space()))
    };
    match (space(one), space(other)) {
        (Some(one), Some(other)) => are_alike(one, other),
        (one, other) => one == other,
    }
}

/// Whether total and free bytes may be those of one file system, whose free space other programs change meanwhile.
fn are_alike((total, free): (u64, u64), other: (u64, u64)) -> bool {
    total == other.0 && free.abs_diff(other.1) <= total / 100
}

/// The error of a write to `path`, for which `needed` bytes are needed in all.
pub(crate) fn cannot_write(path: &Path, needed: u64) -> impl FnOnce(io::Error) -> anyhow::Error {
    move |error| {
        let cannot_write = format!("cannot write `{}`", path.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => anyhow!(
                "{cannot_write}: no space left: {} MB are needed ({error})",
                megabytes(needed)
            ),
            _ => anyhow::Error::new(error).context(cannot_write),
        }
    }
}

fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        check(path, 1).unwrap();
        let error = check(path, u64::MAX).unwrap_err();
        let start = format!("cannot write `{}`: no space left: ", path.display());
        assert!(error.to_string().starts_with(&start), "{error}");
        let full = cannot_write(path, 1_500_000)(io::ErrorKind::StorageFull.into());
        let start = start + "2 MB are needed";
        assert!(full.to_string().starts_with(&start), "{full}");
        assert!(is_shared(path, path));
        assert!(are_alike((1000, 500), (1000, 505)));
        assert!(!are_alike((1000, 500), (1000, 520)));
        assert!(!are_alike((1000, 500), (1001, 500)));
    }
}
