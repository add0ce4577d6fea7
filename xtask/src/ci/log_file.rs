//! Checks whose output goes to files, because others print at the same time.

use crate::process;
use anyhow::Context;
use run::cli;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

/// Lines of a file that are printed where a check fails.
const LAST_LINES: usize = 60;

/// As [`logged`], and prints when the check starts and that it passed.
pub(super) fn logged_check(folder: &Path, name: &str, command: &mut Command) -> anyhow::Result<()> {
    cli::note(&format!("--- {name}: started"));
    logged(folder, name, command)?;
    cli::note(&format!("--- {name}: passed"));
    Ok(())
}

/// Runs a command, which must succeed, with its output in a file in `folder`.
pub(super) fn logged(folder: &Path, name: &str, command: &mut Command) -> anyhow::Result<()> {
    let log = folder.join(format!("{}.log", name.replace(", ", "-").replace(' ', "-")));
    let file = File::create(&log).with_context(|| format!("cannot write `{}`", log.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let program = command.get_program().to_string_lossy().into_owned();
    process::run(&program, command).with_context(|| {
        let text = fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        format!("`{}` ends with\n{last}\n", log.display())
    })
}
