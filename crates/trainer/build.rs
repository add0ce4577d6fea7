//! Tells the programs of this package and of `bench` from which commit they were built.

use std::path::Path;
use std::process::Command;

fn main() {
    let git = Path::new("../../.git");
    // The log of HEAD grows with every commit and checkout.
    for file in ["HEAD", "logs/HEAD"] {
        let file = git.join(file);
        if file.exists() {
            println!("cargo::rerun-if-changed={}", file.display());
        }
    }
    // This path is valid in the folders of both packages. A missing file would cause a build every time.
    println!("cargo::rerun-if-changed=../trainer/build.rs");
    let commit = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok());
    let commit = commit.as_deref().map_or("unknown", str::trim);
    println!("cargo::rustc-env=BUILT_FROM={commit}");
}
