//! Child processes.

use anyhow::{Context, ensure};
use std::env;
use std::process::Command;

/// Cargo: the one that runs this program.
pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a program, called `name` in errors, which must succeed.
pub(crate) fn run(name: &str, command: &mut Command) -> anyhow::Result<()> {
    let status = command.status();
    let status = status.with_context(|| format!("cannot run `{name}`"))?;
    ensure!(status.success(), "`{name}` failed ({status})");
    Ok(())
}
