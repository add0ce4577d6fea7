//! The same weights, bit for bit, on every instruction set.

#![allow(clippy::unwrap_used)] // Also in what the tests share.

use end_to_end::program;
use kernels::InstructionSet;
use serde_json::Value;
use std::fs;
use std::io::{Write, stderr};

/// Recipes, and the SHA-256 of the weights after each of two epochs. They change only with a deliberate change of
/// the arithmetic.
const EXPECTED: [(&str, [&str; 2]); 2] = [
    (
        "reference",
        [
            "f26be338f1ce848f0cfd3ae29e74aedd5a795d3fdbcb8c15719d83367cf7199b",
            "3221c762701ca308a44f50af405272f7fe056dc9e6f2aa9a3085e073d0edaaa2",
        ],
    ),
    (
        "best",
        [
            "65f23928226c390f37b0487f9974ab840996dfbe1decee3b91ef42c7b350bc7f",
            "7dd91316becc5cfd86b5e47a71ceec199b4ba504c9847bb234ec469785c377c5",
        ],
    ),
];

/// Trains LeNet on 60 images, in three steps per epoch, of which the last has a smaller batch. The recipe `best` covers
/// Kaiming initialisation, cosine annealing, warm-up, label smoothing, gradient clipping, EMA and cutout.
#[test]
fn training_gives_the_same_bits_on_every_instruction_set() {
    let runs = tempfile::tempdir().unwrap();
    for set in InstructionSet::ALL {
        let set_name = set.name();
        if !set.is_available() {
            // Written directly, since the test harness captures what is printed.
            let _ = writeln!(stderr(), "skipped: this machine has no {set_name}");
            continue;
        }
        for (recipe, expected) in EXPECTED {
            let name = format!("{set_name}-{recipe}");
            program("trainer")
                .env("KERNELS_ISA", set_name)
                .args(["--model", "lenet", "--dataset", "synthetic"])
                .args(["--limit-train", "60", "--limit-test", "20"])
                .args(["--batch-size", "25", "--epochs", "2"])
                .args(["--recipe", recipe, "--no-progress", "--name", &name])
                .arg("--run-dir")
                .arg(runs.path())
                .assert()
                .success();
            let metrics = fs::read_to_string(runs.path().join(name).join("metrics.jsonl"));
            let found: Vec<_> = metrics
                .unwrap()
                .lines()
                .map(|line| {
                    let epoch: Value = serde_json::from_str(line).unwrap();
                    epoch["weights_sha256"].as_str().unwrap().to_owned()
                })
                .collect();
            assert_eq!(found, expected, "{recipe} on {set_name}");
        }
    }
}
