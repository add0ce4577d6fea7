//! What clusters have: MPI, and the scheduler Slurm.

use super::{check, check_cargo, packages};
use crate::process::cargo;
use anyhow::Context;
use run::cli;
use std::env;
use std::path::Path;

/// Debian's packages: Open MPI, what its Rust bindings are generated with, and Slurm with its authentication.
const PACKAGES: [&str; 5] = [
    "openmpi-bin",
    "libopenmpi-dev",
    "libclang-dev",
    "slurm-wlm",
    "munge",
];

/// Installs the packages where CI=true. Says whether they are there.
pub(super) fn install() -> bool {
    if env::var_os("CI").is_some_and(|ci| ci == "true")
        && let Err(error) = packages::install(&PACKAGES)
    {
        cli::note(&format!("--- {error:#}"));
    }
    let found = packages::are_installed(&PACKAGES);
    if !found {
        cli::note(&format!(
            "--- skipped: MPI and Slurm, which need Debian's packages {}",
            PACKAGES.join(" ")
        ));
    }
    found
}

/// Lints and tests the feature `mpi`.
pub(super) fn checks() -> anyhow::Result<()> {
    let lints = "clippy --package trainer --features mpi --all-targets -- -D warnings";
    check_cargo(lints)?;
    // The same packages as in other checks, so that the trainer alone is built again.
    check_cargo("build --workspace --bins --features trainer/mpi")?;
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let program = folder.path().join("trainer");
    let built = env::current_exe().context("cannot find this program")?;
    let built = built.parent().unwrap_or(Path::new(".")).join("trainer");
    std::fs::copy(&built, &program)
        .with_context(|| format!("cannot copy `{}`", built.display()))?;
    let mut tests = cargo();
    tests
        .args([
            "test",
            "--workspace",
            "--test",
            "mpi",
            "--",
            "--include-ignored",
        ])
        .env("MPI_TRAINER", &program);
    check(
        "cargo test --workspace --test mpi -- --include-ignored",
        &mut tests,
    )
}
