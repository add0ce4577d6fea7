//! The trainer built with the feature `cuda`, on an emulated GPU: what it says where something is wrong with the GPU, and
//! that runs and weights move between GPU and CPU. `cargo xtask ci` builds both and says where they are.

#![allow(clippy::unwrap_used, clippy::panic)]

use assert_cmd::Command;
use end_to_end::{SHORT, refused};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The trainer and the folder of the emulated GPU's libraries.
fn built() -> (PathBuf, PathBuf) {
    let path = |name| PathBuf::from(env::var_os(name).unwrap());
    (path("CUDA_TRAINER"), path("CUDA_EMULATOR"))
}

/// The trainer with the libraries in `folder`.
fn trainer(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env("LD_LIBRARY_PATH", folder)
        .env_remove("RUST_BACKTRACE");
    command
}

/// A short run on the GPU.
fn run(program: &Path, emulator: &Path, runs: &Path, name: &str) -> Command {
    let mut command = trainer(program, emulator);
    command
        .args(SHORT)
        .args(["--device", "cuda", "--epochs", "2", "--name", name])
        .arg("--run-dir")
        .arg(runs);
    command
}

/// A folder with the emulator's libraries but for one.
fn without(emulator: &Path, library: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(emulator).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy() != format!("lib{library}.so") {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    folder
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn what_is_missing_is_named() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    let nothing = tempfile::tempdir().unwrap();
    let mut command = run(&program, nothing.path(), runs.path(), "a");
    refused(
        &mut command,
        1,
        &["--device cuda", "driver is not installed"],
    );
    let mut command = run(&program, &emulator, runs.path(), "a");
    command.env("CUDA_EMULATOR_DEVICES", "0");
    refused(&mut command, 1, &["--device cuda", "no NVIDIA GPU"]);
    for library in ["cudnn", "cublasLt", "nvrtc", "cublas", "curand"] {
        let folder = without(&emulator, library);
        let mut command = run(&program, folder.path(), runs.path(), "a");
        refused(
            &mut command,
            1,
            &["--device cuda", &format!("lib{library}")],
        );
    }
    let mut command = trainer(&program, &emulator);
    command.args(SHORT).args(["--device", "cuda:2"]);
    refused(&mut command, 2, &["--device cuda:2", "the machine has 1"]);
    assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 0);
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn versions_that_do_not_go_together_are_named() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    let with = |variable: &str, value: &str| {
        let mut command = run(&program, &emulator, runs.path(), "a");
        command.env(variable, value);
        command
    };
    refused(
        &mut with("CUDA_EMULATOR_DRIVER", "12040"),
        1,
        &[
            "the driver knows CUDA 12.4",
            "the libraries are of CUDA 13.0",
            "a newer driver",
        ],
    );
    refused(
        &mut with("CUDA_EMULATOR_CAPABILITY", "61"),
        1,
        &["compute capability is 6.1", "CUDA 12"],
    );
    refused(
        &mut with("CUDA_EMULATOR_CAPABILITY", "121"),
        1,
        &["compute capability is 12.1", "later libraries"],
    );
    refused(
        &mut with("CUDA_EMULATOR_NVRTC", "12"),
        1,
        &["NVRTC is of CUDA 12.0", "for CUDA 13.0", "libcuda.so"],
    );
    let mut command = with("CUDA_EMULATOR_CAPABILITY", "75");
    refused(
        command.args(["--precision", "bf16"]),
        2,
        &["--precision bf16", "7.5", "8.0"],
    );
    assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 0);
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn auto_falls_back_and_says_why() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    let folder = without(&emulator, "cudnn");
    let mut command = trainer(&program, folder.path());
    command.args(SHORT).args(["--epochs", "1", "--run-dir"]);
    let output = command.arg(runs.path()).assert().success();
    let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(message.contains("libcudnn"), "{message}");
    assert!(message.contains("on cpu"), "{message}");
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn auto_takes_the_gpu_and_says_so() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    let mut command = trainer(&program, &emulator);
    command.args(SHORT).args(["--epochs", "1", "--name", "a"]);
    let output = command.arg("--run-dir").arg(runs.path()).assert().success();
    let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(
        message.contains("on cuda (emulated GPU) in tf32"),
        "{message}"
    );
    let record = fs::read_to_string(runs.path().join("a/run.toml")).unwrap();
    let record: toml::Table = record.parse().unwrap();
    assert_eq!(record["made_by"]["device"].as_str(), Some("cuda"));
    assert_eq!(record["made_by"]["gpu"].as_str(), Some("emulated GPU"));
    assert_eq!(record["made_by"]["precision"].as_str(), Some("tf32"));
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn a_batch_that_does_not_fit_is_told_what_would() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    let mut command = trainer(&program, &emulator);
    command
        .env("CUDA_EMULATOR_MEMORY", "350000000")
        .args([
            "--model",
            "small-alexnet",
            "--dataset",
            "synthetic",
            "--device",
            "cuda",
        ])
        .args([
            "--limit-train",
            "900",
            "--limit-test",
            "10",
            "--batch-size",
            "900",
        ])
        .arg("--run-dir")
        .arg(runs.path());
    let output = command.assert().code(1);
    let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(message.contains("--batch-size"), "{message}");
    let mut command = run(&program, &emulator, runs.path(), "small");
    command.env("CUDA_EMULATOR_MEMORY", "60000000");
    let output = command.assert().code(1);
    let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(message.contains("weights and the images"), "{message}");
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn weights_move_between_the_gpu_and_the_processor() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    run(&program, &emulator, runs.path(), "a")
        .assert()
        .success();
    let evaluate = |device: &str| -> serde_json::Value {
        let mut command = trainer(&program, &emulator);
        command
            .args([
                "eval",
                "--dataset",
                "synthetic",
                "--limit-test",
                "10",
                "--json",
            ])
            .args(["--device", device, "--checkpoint"])
            .arg(runs.path().join("a/last.safetensors"));
        let output = command.assert().success();
        serde_json::from_slice(&output.get_output().stdout).unwrap()
    };
    let (gpu, cpu) = (evaluate("cuda"), evaluate("cpu"));
    let loss = |result: &serde_json::Value| result["loss"].as_f64().unwrap();
    assert!((loss(&gpu) - loss(&cpu)).abs() < 1e-4, "{gpu} {cpu}");
    assert_eq!(gpu["confusion"], cpu["confusion"]);
    // A run of the GPU goes on on the processor, which computes in f32.
    let mut command = trainer(&program, &emulator);
    command
        .args(["--device", "cpu", "--epochs", "3", "--resume"])
        .arg(runs.path().join("a"));
    command.assert().success();
    let metrics = fs::read_to_string(runs.path().join("a/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 3);
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn a_run_that_diverges_says_at_which_step() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    let mut command = run(&program, &emulator, runs.path(), "a");
    let output = command.args(["--lr", "1e30"]).assert().code(1);
    let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    // The first step's loss is that of the initial weights.
    assert!(
        message.contains("diverged in epoch 1, after 1 step:"),
        "{message}"
    );
    assert!(!runs.path().join("a/last.safetensors").exists());
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn the_best_weights_are_those_of_the_best_epoch() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    // Epochs are shorter than the pause between checkpoints, so the best weights wait on the GPU while later
    // steps change the network's.
    let mut command = run(&program, &emulator, runs.path(), "a");
    command.args(["--lr", "0.02"]).assert().success();
    let metrics = fs::read_to_string(runs.path().join("a/metrics.jsonl")).unwrap();
    let epochs: Vec<serde_json::Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let number = |epoch: &serde_json::Value, key: &str| epoch[key].as_f64().unwrap();
    let [first, second] = &epochs[..] else {
        panic!("{metrics}");
    };
    assert!(
        number(second, "test_accuracy") <= number(first, "test_accuracy"),
        "the second epoch is the better one, which shows nothing: {metrics}"
    );
    let mut command = trainer(&program, &emulator);
    command
        .args(["eval", "--dataset", "synthetic", "--limit-test", "10"])
        .args(["--json", "--device", "cuda", "--checkpoint"])
        .arg(runs.path().join("a/best.safetensors"));
    let output = command.assert().success();
    let best: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!(number(&best, "loss"), number(first, "test_loss"));
    assert_ne!(number(&best, "loss"), number(second, "test_loss"));
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn direct_convolutions_need_no_engine_of_cudnn() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    // The only engine fails.
    let with = |name, conv| {
        let mut command = run(&program, &emulator, runs.path(), name);
        command.env("CUDA_EMULATOR_ENGINES", "1");
        command.args(["--conv", conv]);
        command
    };
    let output = with("a", "winograd").assert().code(1);
    let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(message.contains("error: cuDNN has no engine"), "{message}");
    with("b", "direct").assert().success();
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn the_log_names_the_libraries_and_a_gpu_without_memory_pools_is_warned_of_once() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    let warnings = |pools| {
        let mut command = run(&program, &emulator, runs.path(), pools);
        command.env("CUDA_EMULATOR_POOLS", pools);
        let output = command.assert().success();
        let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
        message.matches("the GPU has no memory pools").count()
    };
    assert_eq!(warnings("1"), 0);
    assert_eq!(warnings("0"), 1);
    let log = fs::read_to_string(runs.path().join("0/log.txt")).unwrap();
    assert!(log.contains("the GPU has no memory pools"), "{log}");
    let library = emulator.join("libcuda.so").canonicalize().unwrap();
    for part in [
        "driver=13.0 nvrtc=13.0 cudnn=\"9.26.0\" cublaslt=\"13.0.0\"",
        &library.display().to_string(),
    ] {
        assert!(log.contains(part), "`{part}` is not in: {log}");
    }
}
