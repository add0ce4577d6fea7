//! The program `trainer`: built, and run as a child process.

use crate::cuda::cargo_cuda;
use crate::process::cargo;
use anyhow::{Context, bail};
use run::cli::{self, Exit, UsageError};
use run::settings::Source;
use run::{NativePath, Overrides, Settings, folder};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader};
use std::path::{self, Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{env, fs, thread};
use tempfile::TempPath;

/// Where the program is.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Use this program as `trainer` instead of building it.
    #[arg(long = "trainer", value_name = "FILE")]
    program: Option<NativePath>,
}

/// The program, and where it was built the copy that is removed at the end.
#[derive(Clone, Debug)]
pub(crate) struct Trainer {
    program: PathBuf,
    _copy: Option<Arc<TempPath>>,
    /// What was printed of its notes on settings: each is printed once.
    notes: Arc<Mutex<BTreeSet<String>>>,
}

/// A flag with its value as one argument, so that a value which begins with a hyphen is not taken for a flag.
pub(crate) fn flag(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut argument = OsString::from(name);
    argument.push("=");
    argument.push(value);
    argument
}

impl Trainer {
    /// The program that `args` name, or else the workspace's, built for `device`.
    pub(crate) fn new(args: &Args, device: Option<&OsStr>) -> anyhow::Result<Self> {
        if let Some(program) = &args.program {
            if !program.is_file() {
                let error = format!("--trainer {}: no such file", program.display());
                return Err(UsageError(error).into());
            }
            // Absolute, because the name of a program without a folder is looked up in PATH.
            let program = path::absolute(program).context("cannot find the current folder")?;
            return Ok(Self {
                program,
                _copy: None,
                notes: Arc::default(),
            });
        }
        let is_gpu = device.is_some_and(|device| device.to_string_lossy().starts_with("cuda"));
        let mut command = if is_gpu {
            cargo_cuda("build --features cuda")
        } else {
            let mut command = cargo();
            command.arg("build");
            command
        };
        let output = command
            .args(["--package", "trainer"])
            .args(["--message-format", "json-render-diagnostics"])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        if !output.status.success() {
            bail!("the program `trainer` does not build");
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        let program = messages.lines().rev().find_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(PathBuf::from(message.get("executable")?.as_str()?))
        });
        let program = program.context("cargo does not report where the program `trainer` is")?;
        let copy = copy(&program).context("cannot copy the program `trainer`")?;
        Ok(Self {
            program: copy.to_path_buf(),
            _copy: Some(Arc::new(copy)),
            notes: Arc::default(),
        })
    }

    /// Where the program is.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The program, with empty standard input.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.stdin(Stdio::null()).env_remove("RUST_BACKTRACE");
        command
    }

    /// The settings to which arguments resolve.
    ///
    /// # Errors
    /// When the trainer refuses the arguments, with its message.
    pub(crate) fn settings(&self, arguments: &[OsString]) -> anyhow::Result<Settings> {
        let output = output(self.command().args(arguments).arg("--dry-run"), |note| {
            let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
            if notes.insert(note.to_owned()) {
                cli::note(note);
            }
        })?;
        let settings: Overrides = toml::from_str(&output)
            .context("cannot read the settings that the program `trainer` prints")?;
        Ok(Settings::resolve(&[(Source::CommandLine, settings)])?)
    }
}

/// How often a child process is checked.
const INTERVAL: Duration = Duration::from_millis(100);

/// Trains with `command`. When `stopped` becomes true, or this process is killed, the program stops after its step.
/// `update` is called meanwhile, and `line` with each line that the program prints to standard error.
///
/// # Errors
/// When the program cannot be run.
pub(crate) fn train(
    command: &mut Command,
    stopped: impl Fn() -> bool,
    mut update: impl FnMut(),
    mut line: impl FnMut(String) + Send,
) -> anyhow::Result<ExitStatus> {
    let command = command.args(["--no-progress", "--stop-with-stdin"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let child = command.stderr(Stdio::piped()).spawn();
    let mut child = child.context("cannot run the program `trainer`")?;
    let errors = child.stderr.take();
    thread::scope(|scope| {
        // The program stops when the pipe ends.
        let mut input = child.stdin.take();
        scope.spawn(move || {
            let lines = errors.map(|errors| BufReader::new(errors).split(b'\n'));
            for bytes in lines.into_iter().flatten().map_while(Result::ok) {
                line(String::from_utf8_lossy(&bytes).trim_end().to_owned());
            }
        });
        loop {
            let status = child.try_wait();
            if let Some(status) = status.context("cannot wait for the program `trainer`")? {
                return Ok(status);
            }
            thread::sleep(INTERVAL);
            if stopped() {
                drop(input.take());
            }
            update();
        }
    })
}

/// How the program's error begins.
const ERROR: &str = "error: ";

/// The reason why the program failed, from the lines that it printed to standard error.
pub(crate) fn failure(lines: &[String], status: ExitStatus) -> String {
    let mut lines = lines.iter().rev();
    let error = lines.find_map(|line| line.strip_prefix(ERROR));
    error.map_or_else(|| format!("it ended with {status}"), str::to_owned)
}

/// What the program prints to standard output when it is run with `command`. `note` is called with each line that it
/// prints to standard error, before its error if it fails.
///
/// # Errors
/// When the program fails, with its message: a usage error where its exit code says so.
pub(crate) fn output(command: &mut Command, note: impl FnMut(&str)) -> anyhow::Result<String> {
    let output = command
        .output()
        .context("cannot run the program `trainer`")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        said.lines().for_each(note);
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let (notes, error) = split_error(&said);
    notes.lines().for_each(note);
    let message = error.trim().to_owned();
    Err(match Exit::from(output.status) {
        Exit::Usage => UsageError(message).into(),
        _ => anyhow::anyhow!(message),
    })
}

/// The notes before an error that the program printed, and the error. Without one, as after a crash, all is the error.
fn split_error(said: &str) -> (&str, &str) {
    let mut lines = said.split_inclusive('\n').scan(0, |end, line| {
        let start = *end;
        *end += line.len();
        Some((start, line))
    });
    let start = lines.find(|(_, line)| line.starts_with(ERROR));
    start.map_or(("", said), |(start, _)| {
        (&said[..start], &said[start + ERROR.len()..])
    })
}

/// A copy of a program beside it. All runs of a command start from the same program, also where `cargo build` replaces
/// it meanwhile; on Windows it could not, since a program that runs cannot be replaced.
fn copy(program: &Path) -> io::Result<TempPath> {
    let folder = program.parent().unwrap_or(Path::new("."));
    let copy = tempfile::Builder::new()
        .prefix(".trainer-")
        .suffix(env::consts::EXE_SUFFIX)
        .tempfile_in(folder)?
        .into_temp_path();
    fs::copy(program, &copy)?;
    Ok(copy)
}

/// How long another process may take to finish its step and its checkpoint.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until no other process writes to a run's folder. The child of a killed command may do so for a while.
pub(crate) fn wait_for_writer(run: &Path) -> Result<(), run::Error> {
    folder::wait_until_unlocked(run, PATIENCE, || {
        let run = run.display();
        cli::note(&format!(
            "waiting for another process that writes to `{run}`"
        ));
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_from_the_notes_before_it() {
        for (said, expected) in [
            ("error: no\n", ("", "no\n")),
            (
                "note: a\nnote: b\nerror: no\n  try\n",
                ("note: a\nnote: b\n", "no\n  try\n"),
            ),
            ("Segmentation fault\n", ("", "Segmentation fault\n")),
            ("", ("", "")),
        ] {
            assert_eq!(split_error(said), expected);
        }
    }

    #[test]
    fn runs_start_from_a_copy_that_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::copy(env::current_exe().unwrap(), &program).unwrap();
        let copy = copy(&program).unwrap();
        fs::write(&program, "the next build").unwrap();
        let output = Command::new(&copy).arg("--help").output().unwrap();
        assert!(output.status.success());
        drop(copy);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}
