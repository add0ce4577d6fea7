//! Child processes.

use anyhow::{Context, ensure};
use std::env;
use std::process::Command;

/// Cargo: the one that runs this program. The environment variables in which it describes this package are removed:
/// build scripts that read them, such as that of `ring`, would run again, and what depends on them would be built again.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let name_bytes = name.as_encoded_bytes();
        if name_bytes == b"CARGO_MANIFEST_DIR" || name_bytes.starts_with(b"CARGO_PKG_") {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Runs a program, called `name` in errors, which must succeed.
pub(crate) fn run(name: &str, command: &mut Command) -> anyhow::Result<()> {
    let status = command.status();
    let status = status.with_context(|| format!("cannot run `{name}`"))?;
    ensure!(status.success(), "`{name}` failed ({status})");
    Ok(())
}
