//! The same weights, bit for bit, on every instruction set.

#![allow(clippy::unwrap_used)] // Also in what the tests share.

use end_to_end::{program, xtask};
use kernels::InstructionSet;
use serde_json::Value;
use std::fs;
use std::io::{Write, stderr};
use std::path::Path;

/// Recipes, precisions, and the SHA-256 of the weights after each of two epochs. They change only with a deliberate change
/// of the arithmetic.
const EXPECTED: [(&str, &str, [&str; 2]); 3] = [
    (
        "reference",
        "f32",
        [
            "f26be338f1ce848f0cfd3ae29e74aedd5a795d3fdbcb8c15719d83367cf7199b",
            "3221c762701ca308a44f50af405272f7fe056dc9e6f2aa9a3085e073d0edaaa2",
        ],
    ),
    (
        "best",
        "f32",
        [
            "65f23928226c390f37b0487f9974ab840996dfbe1decee3b91ef42c7b350bc7f",
            "7dd91316becc5cfd86b5e47a71ceec199b4ba504c9847bb234ec469785c377c5",
        ],
    ),
    (
        "reference",
        "bf16",
        [
            "3197474d83506fa07ea5b78b3aacbd6aefd0a264e6f655c662e024e7044ea250",
            "d601702415c00cfe84b0a9f5f66720cca279270e6eb970136f08426ab468d0b7",
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
        for (recipe, precision, expected) in EXPECTED {
            let name = format!("{set_name}-{recipe}-{precision}");
            program("trainer")
                .env("KERNELS_ISA", set_name)
                .args(["--model", "lenet", "--dataset", "synthetic"])
                .args(["--limit-train", "60", "--limit-test", "20"])
                .args(["--batch-size", "25", "--epochs", "2"])
                .args(["--recipe", recipe, "--precision", precision])
                .args(["--no-progress", "--name", &name])
                .arg("--run-dir")
                .arg(runs.path())
                .assert()
                .success();
            let found = digests(&runs.path().join(name));
            assert_eq!(found, expected, "{recipe} in {precision} on {set_name}");
        }
    }
}

/// The SHA-256 of a run's weights after each epoch.
fn digests(run: &Path) -> Vec<String> {
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let epochs = metrics.lines().map(|line| {
        let epoch: Value = serde_json::from_str(line).unwrap();
        epoch["weights_sha256"].as_str().unwrap().to_owned()
    });
    epochs.collect()
}

/// Trains LeNet for two epochs of three steps in bf16.
fn train_in_bf16(runs: &Path, name: &str, more: &[&str]) {
    program("trainer")
        .args(["--model", "lenet", "--dataset", "synthetic"])
        .args(["--limit-train", "60", "--limit-test", "20"])
        .args(["--batch-size", "25", "--epochs", "2"])
        .args(["--precision", "bf16", "--no-progress", "--name", name])
        .arg("--run-dir")
        .arg(runs)
        .args(more)
        .assert()
        .success();
}

#[test]
fn a_run_in_bf16_is_stopped_resumed_used_and_verified() {
    let runs = tempfile::tempdir().unwrap();
    let runs = runs.path();
    train_in_bf16(runs, "whole", &["--threads", "3"]);
    // Stopped after its first step.
    train_in_bf16(runs, "parts", &["--threads", "1", "--max-time", "1ms"]);
    let parts = runs.join("parts");
    assert!(!parts.join("metrics.jsonl").exists() || digests(&parts).is_empty());
    let mut resume = program("trainer");
    resume.args(["--no-progress", "--threads", "2", "--resume"]);
    resume.arg(&parts).assert().success();
    assert_eq!(digests(&parts), digests(&runs.join("whole")));
    let checkpoint = parts.join("last.safetensors");

    let record = fs::read_to_string(parts.join("run.toml")).unwrap();
    let record: toml::Table = record.parse().unwrap();
    assert_eq!(record["made_by"]["precision"].as_str(), Some("bf16"));
    xtask("verify").arg(&parts).assert().success();
    xtask("verify")
        .arg(&parts)
        .env("KERNELS_ISA", "scalar")
        .assert()
        .success();

    // The last epoch's loss is that of the same weights in the same precision, and nearly that in f32.
    let metrics = fs::read_to_string(parts.join("metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    let recorded = last["test_loss"].as_f64().unwrap();
    for (precision, tolerance) in [("bf16", 1e-6), ("f32", 1e-2)] {
        let output = program("trainer")
            .args(["eval", "--dataset", "synthetic", "--limit-test", "20"])
            .args(["--precision", precision, "--json", "--checkpoint"])
            .arg(&checkpoint)
            .assert()
            .success()
            .get_output()
            .clone();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let loss = found["loss"].as_f64().unwrap();
        assert!(
            (loss - recorded).abs() < tolerance,
            "{precision}: {loss}, {recorded}"
        );
    }

    let picture = runs.join("grey.png");
    image::RgbImage::from_pixel(32, 32, image::Rgb([128; 3]))
        .save(&picture)
        .unwrap();
    let output = program("trainer")
        .args(["predict", "--precision", "bf16", "--checkpoint"])
        .arg(&checkpoint)
        .arg(&picture)
        .assert()
        .success();
    let said = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    assert!(said.contains("grey.png: "), "{said}");

    let out = runs.join("comparison");
    xtask("compare")
        .args(["--models", "lenet", "--seeds", "0,1", "--precision", "bf16"])
        .args(["--dataset", "synthetic", "--limit-train", "60"])
        .args(["--limit-test", "20", "--batch-size", "25", "--epochs", "2"])
        .arg("--out")
        .arg(&out)
        .assert()
        .success();
    let report = fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("bf16"), "{report}");
    // The runs of a comparison are those of the trainer.
    assert_eq!(
        digests(&out.join("lenet-synthetic-reference-seed0")),
        digests(&runs.join("whole"))
    );
}
