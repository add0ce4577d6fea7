//! The trainer built with the feature `cuda`, on an emulated GPU: what it says where something is wrong with the GPU,
//! and that a run that was stopped goes on to the same bits. `cargo xtask ci` builds both and says where
//! they are; elsewhere these tests say that they were skipped.

#![allow(clippy::unwrap_used, clippy::panic)]

use assert_cmd::Command;
use end_to_end::{SHORT, refused};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The trainer and the folder of the emulated GPU's libraries.
fn built() -> Option<(PathBuf, PathBuf)> {
    let path = |name| env::var_os(name).map(PathBuf::from);
    let found = path("CUDA_TRAINER").zip(path("CUDA_EMULATOR"));
    if found.is_none() {
        #[allow(clippy::print_stdout)] // What a test did not do is said.
        {
            println!("skipped: CUDA_TRAINER and CUDA_EMULATOR are not set");
        }
    }
    found
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
fn what_is_missing_is_named() {
    let Some((program, emulator)) = built() else {
        return;
    };
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
fn versions_that_do_not_go_together_are_named() {
    let Some((program, emulator)) = built() else {
        return;
    };
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
    let mut command = with("CUDA_EMULATOR_CAPABILITY", "75");
    refused(
        command.args(["--precision", "bf16"]),
        2,
        &["--precision bf16", "7.5", "8.0"],
    );
    assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 0);
}

#[test]
fn auto_falls_back_and_says_why() {
    let Some((program, emulator)) = built() else {
        return;
    };
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
fn auto_takes_the_gpu_and_says_so() {
    let Some((program, emulator)) = built() else {
        return;
    };
    let runs = tempfile::tempdir().unwrap();
    let mut command = trainer(&program, &emulator);
    command.args(SHORT).args(["--epochs", "1", "--name", "a"]);
    let output = command.arg("--run-dir").arg(runs.path()).assert().success();
    let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(
        message.contains("on cuda (emulated GPU) in bf16"),
        "{message}"
    );
    let record = fs::read_to_string(runs.path().join("a/run.toml")).unwrap();
    let record: toml::Table = record.parse().unwrap();
    assert_eq!(record["made_by"]["device"].as_str(), Some("cuda"));
    assert_eq!(record["made_by"]["gpu"].as_str(), Some("emulated GPU"));
    assert_eq!(record["made_by"]["precision"].as_str(), Some("bf16"));
}

#[test]
fn a_batch_that_does_not_fit_is_told_what_would() {
    let Some((program, emulator)) = built() else {
        return;
    };
    let runs = tempfile::tempdir().unwrap();
    let train = |batch_size: &str| {
        let mut command = trainer(&program, &emulator);
        command
            .env("CUDA_EMULATOR_MEMORY", "125000000")
            .args(["--model", "lenet", "--dataset", "synthetic"])
            .args(["--device", "cuda", "--epochs", "1"])
            .args(["--limit-train", "900", "--limit-test", "10"])
            .args(["--batch-size", batch_size, "--run-dir"])
            .arg(runs.path());
        command
    };
    let message = refused(&mut train("900"), 1, &["a step of 900 images"]);
    // Before the first step: nothing is left behind.
    assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 0);
    let (_, fits) = message.trim().split_once("use --batch-size ").unwrap();
    assert!(fits.parse::<usize>().unwrap() >= 200, "{message}");
    train(fits).assert().success();
    let mut command = run(&program, &emulator, runs.path(), "small");
    command.env("CUDA_EMULATOR_MEMORY", "60000000");
    let output = command.assert().code(1);
    let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(message.contains("weights and the images"), "{message}");
}

#[test]
fn weights_move_between_the_gpu_and_the_processor() {
    let Some((program, emulator)) = built() else {
        return;
    };
    let runs = tempfile::tempdir().unwrap();
    let mut command = run(&program, &emulator, runs.path(), "a");
    command.args(["--precision", "f32"]).assert().success();
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
            .args(["--device", device, "--precision", "f32", "--checkpoint"])
            .arg(runs.path().join("a/last.safetensors"));
        let output = command.assert().success();
        serde_json::from_slice(&output.get_output().stdout).unwrap()
    };
    let (gpu, cpu) = (evaluate("cuda"), evaluate("cpu"));
    let loss = |result: &serde_json::Value| result["loss"].as_f64().unwrap();
    assert!((loss(&gpu) - loss(&cpu)).abs() < 1e-4, "{gpu} {cpu}");
    assert_eq!(gpu["confusion"], cpu["confusion"]);
    // A run of the GPU goes on on the processor.
    let mut command = trainer(&program, &emulator);
    command
        .args(["--device", "cpu", "--epochs", "3", "--resume"])
        .arg(runs.path().join("a"));
    command.assert().success();
    let metrics = fs::read_to_string(runs.path().join("a/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 3);
}

#[test]
fn a_run_that_diverges_says_at_which_step() {
    let Some((program, emulator)) = built() else {
        return;
    };
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
fn the_best_weights_are_those_of_the_best_epoch() {
    let Some((program, emulator)) = built() else {
        return;
    };
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

/// The value of a key in what made a run.
fn made_by(run: &Path, key: &str) -> Option<toml::Value> {
    let record = fs::read_to_string(run.join("run.toml")).unwrap();
    let record: toml::Table = record.parse().unwrap();
    record["made_by"].get(key).cloned()
}

#[test]
fn a_run_keeps_its_precision() {
    let Some((program, emulator)) = built() else {
        return;
    };
    let runs = tempfile::tempdir().unwrap();
    let start = |name: &str, flags: &[&str]| {
        let mut command = trainer(&program, &emulator);
        command
            .args(["--model", "lenet", "--dataset", "synthetic"])
            .args(["--limit-train", "4", "--limit-test", "4"])
            .args(["--batch-size", "2", "--epochs", "1", "--name", name])
            .args(flags)
            .arg("--run-dir")
            .arg(runs.path());
        command
    };
    let resume = |name: &str, flags: &[&str]| {
        let mut command = trainer(&program, &emulator);
        command.arg("--resume").arg(runs.path().join(name));
        command.args(["--epochs", "2"]).args(flags);
        command
    };
    let precision = |name: &str| {
        let value = made_by(&runs.path().join(name), "precision");
        value.unwrap().as_str().unwrap().to_owned()
    };
    // The defaults: of this GPU, of one without tensor cores for bf16, and of the processor.
    start("bf16", &[]).assert().success();
    let mut old = start("old", &[]);
    old.env("CUDA_EMULATOR_CAPABILITY", "75").assert().success();
    start("cpu", &["--device", "cpu"]).assert().success();
    assert_eq!(
        ["bf16", "old", "cpu"].map(precision),
        ["bf16", "f32", "f32"]
    );
    start("tf32", &["--precision", "tf32"]).assert().success();

    let without = |mut command: Command| {
        command.env("CUDA_EMULATOR_CAPABILITY", "75");
        command
    };
    for (command, parts) in [
        (
            resume("tf32", &["--device", "cpu"]),
            [
                "the run computes in tf32",
                "the CPU computes in f32 or bf16",
            ],
        ),
        (
            without(resume("bf16", &[])),
            [
                "the run computes in bf16",
                "compute capability 7.5, and bf16 takes 8.0",
            ],
        ),
        (
            without(resume("tf32", &[])),
            [
                "the run computes in tf32",
                "compute capability 7.5, and tf32 takes 8.0",
            ],
        ),
        (
            resume("bf16", &["--precision", "f32"]),
            ["has precision = \"bf16\", not \"f32\"", "omit --precision"],
        ),
    ] {
        let mut command = command;
        refused(&mut command, 2, &parts);
    }
    // Elsewhere, where another precision is the default.
    for (name, flags) in [
        ("bf16", &["--device", "cpu", "--precision", "bf16"][..]),
        ("old", &[]),
        ("cpu", &["--device", "cuda"]),
    ] {
        let before = precision(name);
        resume(name, flags).assert().success();
        assert_eq!(precision(name), before);
    }
    // A CPU needs no batch size of evaluations, but a GPU may continue the run.
    let batch = |name: &str| made_by(&runs.path().join(name), "evaluation_batch");
    assert_eq!(batch("bf16"), Some(toml::Value::Integer(4)));
    start("cpu-2", &["--device", "cpu"]).assert().success();
    assert_eq!(batch("cpu-2"), None);
    // A repetition, as `verify` makes it.
    let mut again = trainer(&program, &emulator);
    let record = runs.path().join("tf32/run.toml");
    again
        .arg("--config")
        .arg(record)
        .args(["--name", "again", "--run-dir"]);
    again.arg(runs.path()).assert().success();
    assert_eq!(precision("again"), "tf32");
}

#[test]
fn evaluations_take_batches_that_fit_and_keep_them() {
    let Some((program, emulator)) = built() else {
        return;
    };
    let runs = tempfile::tempdir().unwrap();
    let folder = runs.path().join("a");
    let with = |memory: &str| {
        let mut command = trainer(&program, &emulator);
        command.env("CUDA_EMULATOR_MEMORY", memory);
        command
    };
    let mut start = with("104000000");
    start
        .args([
            "--model",
            "lenet",
            "--dataset",
            "synthetic",
            "--device",
            "cuda",
        ])
        .args([
            "--limit-train",
            "4",
            "--limit-test",
            "256",
            "--batch-size",
            "2",
        ])
        .args(["--epochs", "1", "--name", "a", "--run-dir"])
        .arg(runs.path());
    start.assert().success();
    let batch = || {
        made_by(&folder, "evaluation_batch")
            .unwrap()
            .as_integer()
            .unwrap()
    };
    let chosen = batch();
    assert!(chosen == 128 || chosen == 64, "{chosen}");
    let resume = |memory: &str| {
        let mut command = with(memory);
        command.args(["--epochs", "2", "--resume"]).arg(&folder);
        command
    };
    let kept = format!("in batches of {chosen} images, which the run keeps");
    refused(&mut resume("102700000"), 1, &[&kept]);
    resume("1000000000").assert().success();
    assert_eq!(batch(), chosen);
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_run() {
    let Some((program, emulator)) = built() else {
        return;
    };
    let runs = tempfile::tempdir().unwrap();
    run(&program, &emulator, runs.path(), "a")
        .assert()
        .success();
    let folder = runs.path().join("a");
    let files = || {
        let read = |name| fs::read(folder.join(name)).unwrap();
        [
            "last.safetensors",
            "momentum-2-0.safetensors",
            "best.safetensors",
        ]
        .map(read)
    };
    let before = files();
    // A limit on the size of files stands in for a full disk.
    let script = format!(
        "trap '' XFSZ; ulimit -f 20000; exec '{}' --resume '{}' --epochs 4 --checkpoint-minutes 0",
        program.display(),
        folder.display()
    );
    let mut limited = trainer(Path::new("sh"), &emulator);
    let output = limited.args(["-c", &script]).assert().code(1);
    let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(
        message.contains("error: cannot write `")
            && message.contains("what was saved before is unchanged"),
        "{message}"
    );
    assert!(files() == before);
    let mut resume = trainer(&program, &emulator);
    resume.args(["--epochs", "3", "--resume"]).arg(&folder);
    resume.assert().success();
}
