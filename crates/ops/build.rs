//! Refuses the feature `cuda` on systems that it does not support, and builds with it that would be linked with CUDA.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-env-changed=RUSTC_WRAPPER");
    // Cargo does not compare the wrapper of its settings, which set this variable as well.
    println!("cargo::rerun-if-env-changed=CUDARC_CUDA_VERSION");
    let system = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let wrapper = env::var_os("RUSTC_WRAPPER").unwrap_or_default();
    if system != "linux" {
        println!(
            "cargo::error=the feature `cuda` is for Linux only, not for {system}; build without it to train on the CPU"
        );
    } else if Path::new(&wrapper).file_name() != Some("rustc-wrapper.sh".as_ref()) {
        println!(
            "cargo::error=the feature `cuda` is built by `cargo cuda`, such as `cargo cuda run -p trainer --features cuda`, in \
             the top folder and without RUSTC_WRAPPER"
        );
    }
}
