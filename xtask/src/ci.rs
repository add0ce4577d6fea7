//! The checks that every change must pass.

use crate::printer;
use anyhow::{Context, bail};
use std::env;
use std::process::Command;

/// Each check: the arguments of cargo, and what rustdoc is told.
const CHECKS: [(&[&str], &str); 4] = [
    (&["fmt", "--all", "--check"], ""),
    (
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
        "",
    ),
    (&["test", "--workspace"], ""),
    (
        &[
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ],
        "-D warnings",
    ),
];

/// Runs the checks, one after the other, and stops at the first that fails.
pub(crate) fn run() -> anyhow::Result<()> {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    for (arguments, rustdoc_flags) in CHECKS {
        let name = format!("cargo {}", arguments.join(" "));
        printer::note(&format!("--- {name}"));
        let mut command = Command::new(&cargo);
        command.args(arguments);
        if !rustdoc_flags.is_empty() {
            command.env("RUSTDOCFLAGS", rustdoc_flags);
        }
        let status = command
            .status()
            .with_context(|| format!("cannot run {name}"))?;
        if !status.success() {
            bail!("{name} failed");
        }
    }
    printer::line("all checks passed");
    Ok(())
}
