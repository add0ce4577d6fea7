//! What clusters have: MPI, and the scheduler Slurm.

use super::{check, check_cargo, packages};
use crate::process::cargo;
use anyhow::Context;
use run::cli;
use std::env;
use std::path::Path;

/// Debian's packages for MPI: Open MPI, and what its Rust bindings are generated with.
const MPI: [&str; 3] = ["openmpi-bin", "libopenmpi-dev", "libclang-dev"];

/// Those for Slurm, with its authentication.
const SLURM: [&str; 2] = ["slurm-wlm", "munge"];

/// Installs the packages where CI=true and this is root. Says whether those for MPI are there; the tests with Slurm look for
/// it themselves.
pub(super) fn install() -> bool {
    let is_ci = env::var_os("CI").is_some_and(|ci| ci == "true");
    let are_there = |what: &str, packages: &[&str]| {
        if is_ci && let Err(error) = packages::install(packages) {
            cli::note(&format!("--- {what}: {error:#}"));
        }
        let found = packages::are_installed(packages);
        if !found {
            cli::note(&format!(
                "--- skipped: {what}, which needs Debian's packages {}",
                packages.join(" ")
            ));
        }
        found
    };
    are_there("Slurm", &SLURM);
    are_there("MPI", &MPI)
}

/// Lints and tests the feature `mpi`.
pub(super) fn checks() -> anyhow::Result<()> {
    // The same packages as before, so that the trainer alone is checked again.
    let lints = "clippy --workspace --features trainer/mpi --all-targets -- -D warnings";
    check_cargo(lints)?;
    // The same packages and targets as `cargo test --workspace`, so that the trainer alone is built again.
    check_cargo("build --workspace --bins --tests --features trainer/mpi")?;
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
