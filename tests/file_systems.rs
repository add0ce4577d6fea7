//! File systems that lack functions, and disks that fail.

#![cfg(target_os = "linux")] // Preloaded libraries.
#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use end_to_end::{program, refused, short_run};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A library to preload, in which a function of the system fails.
fn failing(folder: &Path, function: &str, code: &str) -> PathBuf {
    let source = folder.join(format!("{function}-{code}.c"));
    let text = format!("#include <errno.h>\nint {function}() {{ errno = {code}; return -1; }}\n");
    fs::write(&source, text).unwrap();
    let library = source.with_extension("so");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source);
    assert!(compiler.status().unwrap().success());
    library
}

#[test]
fn runs_work_without_locks_and_flushing() {
    let folder = tempfile::tempdir().unwrap();
    for (function, code, warnings) in [
        ("flock", "ENOSYS", 1),
        ("flock", "ENOLCK", 1),
        ("flock", "EOPNOTSUPP", 1),
        ("fsync", "EINVAL", 0),
        ("fsync", "ENOSYS", 0),
    ] {
        let name = format!("{function}-{code}");
        let mut run = short_run(folder.path(), &name);
        run.env("LD_PRELOAD", failing(folder.path(), function, code));
        let output = run.args(["--epochs", "1"]).assert().success();
        let messages = String::from_utf8(output.get_output().stderr.clone()).unwrap();
        assert_eq!(
            messages.matches("warning").count(),
            warnings,
            "{name}: {messages}"
        );
        assert_eq!(
            messages.matches("has no locks").count(),
            warnings,
            "{name}: {messages}"
        );
    }
}

#[test]
fn errors_of_a_disk_are_reported_with_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for (function, file) in [("flock", "lock"), ("fsync", "run.toml")] {
        let mut run = short_run(folder.path(), function);
        run.env("LD_PRELOAD", failing(folder.path(), function, "EIO"));
        let path = folder.path().join(function).join(file);
        let file = format!("`{}`", path.display());
        refused(&mut run, 1, &[&file, "Input/output error"]);
        // The name is still free.
        let mut again = short_run(folder.path(), function);
        again.args(["--epochs", "1"]).assert().success();
    }
}

#[test]
fn a_log_that_cannot_be_written_is_a_warning() {
    let runs = tempfile::tempdir().unwrap();
    let mut run = short_run(runs.path(), "a");
    run.args(["--epochs", "1"]).assert().success();
    let log = runs.path().join("a/log.txt");
    fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    let mut resume = program("trainer");
    resume.arg("--resume").arg(runs.path().join("a"));
    let output = resume.args(["--epochs", "2"]).assert().success();
    let messages = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    let warning = "warning: cannot write the log";
    assert_eq!(messages.matches(warning).count(), 1, "{messages}");
}
