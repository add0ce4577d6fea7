//! `cargo xtask bench`, whose program is run here as it is built.

#![allow(clippy::unwrap_used, clippy::panic)]

use end_to_end::{path, program, refused};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn everything_is_measured_and_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("figures.json");
    let output = program("bench")
        .args(["--models", "small-alexnet", "--batch-sizes", "2"])
        .args(["--threads", "1,2", "--engines", "winograd,direct,bf16"])
        .args(["--rounds", "1", "--seconds", "0.01"])
        .args(["--against-pytorch", "no-such-python", "--out"])
        .arg(&out)
        .assert()
        .success()
        .get_output()
        .clone();
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(
        notes.contains("cannot run `no-such-python`")
            && notes.contains("measuring this program alone"),
        "{notes}"
    );
    let tables = String::from_utf8(output.stdout).unwrap();
    for part in [
        "| network | pass | batch | threads | engine |",
        "| small-alexnet | train | 2 | 1 | winograd |",
        "| small-alexnet | eval | 2 | 2 | direct |",
        "| small-alexnet | train | 2 | 2 | bf16 |",
        "itself, 1 threads",
        "| conv_layer2.0 | backward |",
        "GFLOP/s in matrix products",
    ] {
        assert!(tables.contains(part), "`{part}` is not in: {tables}");
    }

    let figures: Value = serde_json::from_slice(&fs::read(&out).unwrap()).unwrap();
    assert_eq!(figures["pytorch"], Value::Null);
    let positive = |value: &Value| value.as_f64().is_some_and(|value| value > 0.0);
    let rows = figures["throughput"].as_array().unwrap();
    // Two passes, two numbers of threads, three engines.
    assert_eq!(rows.len(), 12);
    for row in rows {
        assert!(positive(&row["images_per_second"][0]), "{row}");
        let waits = row["waiting_share"].as_f64();
        assert_eq!(waits.is_some(), row["pass"] == "train", "{row}");
        assert!(waits.is_none_or(|share| (0.0..1.0).contains(&share)));
    }
    // Each engine has its layers.
    let layers = figures["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 3);
    for layer in layers[0]["layers"].as_array().unwrap() {
        assert!(positive(&layer["milliseconds"]), "{layer}");
    }
    assert!(positive(&figures["machines"][1]["gemm_gflops"]));
    assert!(positive(&figures["machines"][1]["bf16_gflops"]));
}

#[test]
fn a_killed_benchmark_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Command::new(path("bench"))
        .args(["--models", "small-alexnet", "--threads", "1", "--out"])
        .arg(folder.path().join("figures.json"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut note = String::new();
    let mut notes = BufReader::new(bench.stderr.take().unwrap());
    notes.read_line(&mut note).unwrap();
    assert!(note.contains("the machine"), "{note}");
    bench.kill().unwrap();
    bench.wait().unwrap();
    let files = fs::read_dir(folder.path()).unwrap();
    assert_eq!(files.count(), 0);
}

#[test]
fn what_cannot_be_measured_or_written_is_said_at_once() {
    for (arguments, part) in [
        (["--seconds", "0"], "--seconds"),
        (["--models", "resnet"], "resnet"),
        (["--batch-sizes", "0"], "--batch-sizes"),
        (["--engines", "turbo"], "turbo"),
        (["--engines", "tf32"], "--engines tf32"),
    ] {
        refused(program("bench").args(arguments), 2, &[part]);
    }
    refused(
        program("bench").args(["--out", "missing-folder/bench.json"]),
        1,
        &["cannot write", "missing-folder"],
    );
    refused(
        program("bench").args(["accuracy", "--data-dir", "missing-folder"]),
        1,
        &["missing-folder"],
    );
}
