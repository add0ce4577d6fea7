//! Other systems, on Linux on x86-64: programs for 64-bit ARM Linux run under QEMU, those for Windows under Wine, and
//! those for macOS are compiled only.

use super::log_file::{logged, logged_check};
use super::packages;
use super::relay::{self, System};
use crate::cuda::target;
use crate::files::create_folder;
use crate::process;
use crate::trainer::{self, Trainer};
use anyhow::{Context, ensure};
use run::cli::{self, Exit};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

const ARM: &str = "aarch64-unknown-linux-gnu";
const WINDOWS: &str = "x86_64-pc-windows-gnu";
const MACOS: &str = "aarch64-apple-darwin";

/// Debian's compiler. It has the standard library for ARM, and its source for the others.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Debian's packages: that compiler, QEMU and Wine, the last two with a C compiler.
const RUST_PACKAGES: &str = "rustc-web rust-web-src libstd-rust-web-dev libstd-rust-web-dev:arm64";
const ARM_PACKAGES: &str =
    "gcc-aarch64-linux-gnu libc6-dev-arm64-cross libc6:arm64 qemu-user-static";
const WINDOWS_PACKAGES: &str = "gcc-mingw-w64-x86-64-posix wine wine64";

/// `dlltool`, which Rust 1.96 needs to compile its standard library for Windows. The C compiler brings it along.
const WINDOWS_TOOLS: &str = "binutils-mingw-w64-x86-64";

/// What starts programs for ARM, and for Windows.
const QEMU: &str = "qemu-aarch64-static -L /";
const WINE: &str = "wine";

/// The crates that are tested on ARM: products and layers, which every `cargo xtask ci` tests, and the others.
const LAYERS: &str = "--package kernels --package ops --package models";
const OTHERS: &str = "--package rng --package atomic_file --package datasets --package run \
    --package engine --package report --package trainer";

/// Under QEMU a program cannot start another one, unless the kernel knows QEMU (binfmt_misc). So the tests that start
/// themselves again are left out, and those of whole networks, which take an hour.
const LEFT_OUT: &str = "-- --skip on_all_instruction_sets --skip that_is_killed --skip networks:: --skip layers::layers_of";

const CHECK: &str = "check --package trainer --package xtask";

/// The checks that take minutes, with their output in files. They are skipped where something is missing and cannot be
/// installed.
pub(super) fn quick() -> anyhow::Result<()> {
    if let Err(error) = install(&[ARM_PACKAGES, WINDOWS_TOOLS]) {
        cli::note(&format!("--- skipped: ARM, Windows and macOS: {error:#}"));
        return Ok(());
    }
    let folder = folder()?;
    let test = format!("test --tests {LAYERS} {LEFT_OUT}");
    let mut arm = cargo(&folder, &test, &[ARM]);
    logged_check(&folder, "ARM, products and layers", &mut arm)?;
    let mut programs = cargo(&folder, CHECK, &[WINDOWS, MACOS]);
    programs.envs(["CC", "AR"].map(|tool| (format!("{tool}_x86_64_pc_windows_gnu"), "true")));
    logged_check(&folder, "Windows and macOS, compiled", &mut programs)
}

/// `cargo xtask ci --platforms`. Goes on after a failure.
pub(super) fn run() -> anyhow::Result<Exit> {
    install(&[ARM_PACKAGES, WINDOWS_PACKAGES])?;
    let folder = folder()?;
    let mut exit = Exit::Success;
    let mut report = |name: &str, result: anyhow::Result<()>| match result {
        Ok(()) => cli::line(&format!("{name}: passed")),
        Err(error) => {
            cli::line(&format!("{name}: FAILED: {error:#}"));
            exit = Exit::Failure;
        }
    };

    let windows = "--workspace --bins --tests";
    let arm = format!("--bins --tests {LAYERS} {OTHERS}");
    report("Wine", set_up_wine(&folder));
    for (name, target, arguments) in [
        ("ARM, built", ARM, &*format!("build {arm}")),
        (
            "ARM, tested",
            ARM,
            &format!("test --no-fail-fast {arm} {LEFT_OUT}"),
        ),
        ("Windows, built", WINDOWS, &format!("build {windows}")),
        (
            "Windows, tested",
            WINDOWS,
            &format!("test --no-fail-fast {windows}"),
        ),
        ("macOS, compiled", MACOS, CHECK),
    ] {
        let mut cargo = cargo(&folder, arguments, &[target]);
        report(name, logged(&folder, name, &mut cargo));
    }

    let mut scalar = cargo(
        &folder,
        &format!("test {arm} {LEFT_OUT} digests_are"),
        &[ARM],
    );
    scalar.env("KERNELS_ISA", "scalar");
    let name = "ARM, scalar code";
    report(name, logged(&folder, name, &mut scalar));

    let native = Trainer::new(&trainer::Args::default(), None)?;
    let built = |runner: &str, target: &str, program: &str| {
        let mut words = runner.split(' ');
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).envs(variables(&folder));
        command.arg(folder.join(target).join("debug").join(program));
        command
    };
    let systems = [
        System {
            name: "linux",
            trainer: &|| native.command(),
        },
        System {
            name: "windows",
            trainer: &|| built(WINE, WINDOWS, "trainer.exe"),
        },
        System {
            name: "arm",
            trainer: &|| built(QEMU, ARM, "trainer"),
        },
    ];
    let runs = tempfile::tempdir().context("cannot create a temporary folder")?;
    relay::run(&systems, runs.path(), report);
    Ok(exit)
}

/// The target folder of cargo for other systems.
fn folder() -> anyhow::Result<PathBuf> {
    let folder = target().join("platforms");
    create_folder(&folder)?;
    Ok(folder.canonicalize()?)
}

/// Cargo with `arguments`, the first of which is its command, for these targets.
fn cargo(folder: &Path, arguments: &str, targets: &[&str]) -> Command {
    let (subcommand, arguments) = arguments.split_once(' ').unwrap_or((arguments, ""));
    let mut cargo = process::cargo();
    cargo.arg(subcommand).arg("--target-dir").arg(folder);
    cargo.args(targets.iter().flat_map(|target| ["--target", target]));
    if !has_libraries("rustc", targets) {
        // The second one also where it is not needed, because build scripts depend on it.
        cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        if !has_libraries(DEBIAN_RUSTC, targets) {
            cargo.arg("-Zbuild-std=std,panic_unwind");
        }
    }
    cargo.args(arguments.split(' ')).envs(variables(folder));
    cargo
}

/// Whether a compiler has the standard library for the targets.
fn has_libraries(compiler: &str, targets: &[&str]) -> bool {
    targets.iter().all(|target| {
        let mut rustc = Command::new(compiler);
        let output = rustc
            .args(["--print", "target-libdir", "--target", target])
            .output();
        output.is_ok_and(|output| {
            Path::new(String::from_utf8_lossy(&output.stdout).trim_end()).is_dir()
        })
    })
}

/// Environment variables of cargo and Wine.
fn variables(folder: &Path) -> Vec<(&'static str, OsString)> {
    vec![
        (
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
            "aarch64-linux-gnu-gcc".into(),
        ),
        ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", QEMU.into()),
        ("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER", WINE.into()),
        // There is no C compiler for macOS. What is not linked does not need the C code.
        ("CC_aarch64_apple_darwin", "true".into()),
        ("AR_aarch64_apple_darwin", "true".into()),
        // Programs of a tenth of the size, and a faster build.
        ("CARGO_PROFILE_DEV_DEBUG", "false".into()),
        ("CARGO_INCREMENTAL", "0".into()),
        // Under Wine the end-to-end tests cannot run cargo.
        ("PROGRAMS_ARE_BUILT", "1".into()),
        ("WINEDEBUG", "-all".into()),
        ("WINEPREFIX", folder.join("wine").into()),
    ]
}

/// Creates the files that Wine needs, among them a library that Wine 8 lacks and Rust's standard library needs.
fn set_up_wine(folder: &Path) -> anyhow::Result<()> {
    let library = folder.join("wine/drive_c/windows/system32/bcryptprimitives.dll");
    let mut wine = Command::new(WINE);
    wine.args(["wineboot", "--init"]).envs(variables(folder));
    logged(folder, "wineboot", &mut wine)?;
    if !library.exists() {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/wine/bcryptprimitives.c");
        let mut compiler = Command::new("x86_64-w64-mingw32-gcc");
        compiler
            .arg("-shared")
            .arg(source)
            .arg("-o")
            .arg(library)
            .arg("-ladvapi32");
        process::run("x86_64-w64-mingw32-gcc", &mut compiler)?;
    }
    Ok(())
}

/// Installs those of Debian's packages that are missing: these, and the compiler where rustup's lacks a target.
fn install(packages: &[&str]) -> anyhow::Result<()> {
    let here = cfg!(all(target_os = "linux", target_arch = "x86_64"));
    ensure!(here, "they are checked on Linux on x86-64 only");
    let rust = (!has_libraries("rustc", &[ARM, WINDOWS, MACOS])).then_some(RUST_PACKAGES);
    let packages: Vec<&str> = packages
        .iter()
        .chain(rust.iter())
        .flat_map(|list| list.split(' '))
        .collect();
    packages::install(&packages)
}
