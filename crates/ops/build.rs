//! Refuses the feature `cuda` on systems that it does not support.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let cuda = env::var_os("CARGO_FEATURE_CUDA").is_some();
    let system = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if cuda && system != "linux" {
        println!(
            "cargo::error=the feature `cuda` is for Linux only, not for {system}; build without it to train on the CPU"
        );
    }
}
