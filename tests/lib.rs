//! Running the built programs as a person would.

// All of it runs inside tests, where a panic is how a failure is said.
#![allow(clippy::unwrap_used, clippy::panic)]

use assert_cmd::Command;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::Once;

/// One of the workspace's programs, `trainer` or `xtask`, ready to be given arguments. It is built
/// when it is not.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(path(name));
    command.env_remove("RUST_BACKTRACE");
    command
}

/// Where a program of the workspace is, built.
pub fn path(name: &str) -> PathBuf {
    static BUILD: Once = Once::new();
    // target/PROFILE/deps/this-test
    let folder = env::current_exe().unwrap();
    let folder = folder.ancestors().nth(2).unwrap().to_owned();
    BUILD.call_once(|| {
        // The same selection of packages as `cargo test --workspace`, so that nothing is built twice.
        let mut cargo = std::process::Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--workspace", "--bins", "--tests"]);
        cargo.arg("--target-dir").arg(folder.parent().unwrap());
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        let status = cargo.current_dir(root()).status().unwrap();
        assert!(status.success(), "the programs do not build");
    });
    folder.join(format!("{name}{}", env::consts::EXE_SUFFIX))
}

/// The workspace's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Training on a few images of the synthetic set: `small-alexnet`, two steps an epoch.
pub fn short_run(runs: &Path, name: &str) -> Command {
    let mut command = program("trainer");
    command
        .args(SHORT)
        .arg("--run-dir")
        .arg(runs)
        .args(["--name", name]);
    command
}

/// The arguments of [`short_run`].
pub const SHORT: [&str; 10] = [
    "--model",
    "small-alexnet",
    "--dataset",
    "synthetic",
    "--limit-train",
    "12",
    "--limit-test",
    "10",
    "--batch-size",
    "6",
];

/// Runs a command that must fail with `code`, in one sentence on standard error that holds every one
/// of `parts`. Gives the sentence.
pub fn refused(command: &mut Command, code: i32, parts: &[&str]) -> String {
    let output = command.assert().code(code).get_output().clone();
    let message = String::from_utf8(output.stderr).unwrap();
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(
        !message.contains("panicked") && !message.contains("backtrace"),
        "{message}"
    );
    assert!(message.trim_start().starts_with("error: "), "{message}");
    message
}
