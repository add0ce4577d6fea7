//! Debian's packages that checks need.

use anyhow::ensure;
use std::process::Command;

/// Installs Debian's packages, if they are missing and this is root. A package with `:arm64` is one for that architecture.
///
/// # Errors
/// When they are missing and cannot be installed; it names them.
pub(super) fn install(packages: &[&str]) -> anyhow::Result<()> {
    let succeeds = |program: &str, arguments: &[&str], packages: &[&str]| {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive");
        command.output().is_ok_and(|output| output.status.success())
    };
    let is_foreign = |package: &&str| package.ends_with(":arm64");
    let installed = are_installed(packages)
        || (!packages.iter().any(is_foreign)
            || succeeds("dpkg", &["--add-architecture", "arm64"], &[]))
            && succeeds("apt-get", &["update"], &[])
            && succeeds(
                "apt-get",
                &["install", "-y", "--no-install-recommends"],
                packages,
            );
    ensure!(
        installed,
        "this needs Debian's packages {}, which `apt-get` installs for root",
        packages.join(" ")
    );
    Ok(())
}

/// Whether these packages of Debian are installed.
pub(super) fn are_installed(packages: &[&str]) -> bool {
    let mut command = Command::new("dpkg");
    let output = command.arg("-s").args(packages).output();
    output.is_ok_and(|output| output.status.success())
}
