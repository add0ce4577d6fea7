//! Runs the built programs as a user would.

// All of it runs inside tests, which panic to fail.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use assert_cmd::Command;
use rng::{Purpose, Stream};
use std::env;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// One of the workspace's programs, `trainer` or `xtask`. The first call builds them.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(path(name));
    command.env_remove("RUST_BACKTRACE");
    command
}

/// `cargo xtask COMMAND` with the built trainer.
pub fn xtask(command: &str) -> Command {
    let mut xtask = program("xtask");
    xtask.arg(command).arg("--trainer").arg(path("trainer"));
    xtask
}

/// The path of a program of the workspace. The first call builds them, unless the environment variable
/// `PROGRAMS_ARE_BUILT` is set.
pub fn path(name: &str) -> PathBuf {
    static BUILD: Once = Once::new();
    let folder = programs();
    BUILD.call_once(|| {
        if env::var_os(PROGRAMS_ARE_BUILT).is_none() {
            let status = build(&folder).arg("--quiet").status().unwrap();
            assert!(status.success(), "the programs do not build");
        }
    });
    folder.join(format!("{name}{}", env::consts::EXE_SUFFIX))
}

const PROGRAMS_ARE_BUILT: &str = "PROGRAMS_ARE_BUILT";

/// The folder of the built programs, which is that of this test's profile.
fn programs() -> PathBuf {
    // target/PROFILE/deps/this-test
    let test = env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().to_owned()
}

/// The command that builds the programs into `folder`.
fn build(folder: &Path) -> std::process::Command {
    // The same selection of packages as `cargo test --workspace`, so that nothing is built twice.
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.args(["build", "--workspace", "--bins", "--tests"]);
    // Build scripts that read these variables, such as that of `ring`, would run again, and what depends on them would be
    // built again.
    remove_variables_of_cargo(&mut cargo);
    cargo.arg("--target-dir").arg(folder.parent().unwrap());
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    cargo.current_dir(root());
    cargo
}

/// Removes what cargo sets for the program that it runs.
fn remove_variables_of_cargo(command: &mut std::process::Command) {
    for (name, _) in env::vars_os() {
        let name_bytes = name.as_encoded_bytes();
        if name_bytes == b"CARGO_MANIFEST_DIR" || name_bytes.starts_with(b"CARGO_PKG_") {
            command.env_remove(name);
        }
    }
}

/// The workspace's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Training on a few images of the synthetic data set: `small-alexnet`, two steps per epoch.
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

/// Runs a command that must fail with exit code `code` and a message on standard error that contains all `parts`. Returns
/// the message.
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
    // After notes and warnings.
    let mut lines = message.trim_start().lines();
    let error = lines.find(|line| !line.starts_with("note: ") && !line.starts_with("warning: "));
    assert!(
        error.is_some_and(|line| line.starts_with("error: ")),
        "{message}"
    );
    message
}

/// Random times up to `longest`, after which a test kills a process. Prints their seed, which the environment variable
/// `KILL_SEED` sets.
pub fn kill_times(longest: Duration) -> impl Iterator<Item = Duration> {
    let seed = env::var("KILL_SEED").map_or_else(
        |_| UNIX_EPOCH.elapsed().unwrap().as_secs(),
        |seed| seed.parse().unwrap(),
    );
    eprintln!("KILL_SEED={seed}");
    let stream = Stream::new(seed, Purpose::Search, 0);
    (0..).map(move |index| Duration::from_nanos(stream.below(index, longest.as_nanos() as u64)))
}

/// Waits until `is_done`, for two minutes at most.
pub fn wait_until(what: &str, is_done: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_done() {
        let waited = started.elapsed();
        assert!(waited < Duration::from_secs(120), "{what} did not come");
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_are_built_are_not_built_again() {
        if env::var_os(PROGRAMS_ARE_BUILT).is_some() {
            return;
        }
        path("trainer");
        // As from a shell, where cargo has set no variables.
        let mut again = build(&programs());
        remove_variables_of_cargo(&mut again);
        let output = again.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        assert!(!stderr.contains("Compiling"), "{stderr}");
    }
}
