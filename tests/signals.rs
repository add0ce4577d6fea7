//! Signals: a run stops with a checkpoint, and a search with its curve.

#![cfg(target_os = "linux")] // `env --default-signal`
#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use end_to_end::{SHORT, path, program, refused, short_run, wait_until};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// A program with the default action of these signals, which the test may have been started to ignore.
fn with_signals(name: &str) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP,INT,TERM").arg(path(name));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Training that takes longer than the test, with many checkpoints.
fn long_run(command: &mut Command, runs: &Path) -> Child {
    command
        .args(SHORT)
        .args(["--epochs", "1000", "--name", "a"]);
    command
        .args(["--checkpoint-minutes", "0", "--run-dir"])
        .arg(runs);
    command.spawn().unwrap()
}

/// Sends a signal.
fn kill(child: &Child, signal: &str) {
    let signal = format!("-{signal}");
    let status = Command::new("kill")
        .args([&signal, &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
}

/// Waits until a run has made its first checkpoint.
fn wait_for_checkpoint(run: &Path) {
    wait_until("a checkpoint", || run.join("last.safetensors").exists());
}

/// The finished epochs of a run.
fn epochs(run: &Path) -> usize {
    fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// The exit code and the messages of a program that ends.
fn ended(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn signals_that_were_ignored_at_the_start_stay_ignored() {
    for signal in ["HUP", "INT"] {
        let runs = tempfile::tempdir().unwrap();
        // As `nohup`, and as a shell with its jobs in the background.
        let mut command = Command::new("env");
        command
            .arg("--default-signal=TERM")
            .arg(format!("--ignore-signal={signal}"));
        command
            .arg(path("trainer"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = long_run(&mut command, runs.path());
        let run = runs.path().join("a");
        wait_for_checkpoint(&run);
        kill(&child, signal);
        let before = epochs(&run);
        wait_until("an epoch", || epochs(&run) > before + 1);
        kill(&child, "TERM");
        let (code, message) = ended(child);
        assert_eq!(code, Some(130), "{message}");
        assert!(message.contains("resume with"), "{message}");
    }
}

#[test]
fn signals_of_the_system_are_one_request_in_any_order() {
    let runs = tempfile::tempdir().unwrap();
    let child = long_run(&mut with_signals("trainer"), runs.path());
    wait_for_checkpoint(&runs.path().join("a"));
    // A person's first Ctrl-C among them gives nothing up either.
    for signal in ["TERM", "HUP", "TERM", "INT", "HUP"] {
        kill(&child, signal);
    }
    let (code, message) = ended(child);
    assert_eq!(code, Some(130), "{message}");
    assert_eq!(
        message.matches("stopping after this step\n").count(),
        1,
        "{message}"
    );
    assert!(message.contains("resume with"), "{message}");
}

#[test]
fn a_stopped_search_for_a_learning_rate_writes_its_curve() {
    let out = tempfile::tempdir().unwrap();
    let mut command = with_signals("trainer");
    command.args(["lr-find", "--model", "lenet", "--dataset", "synthetic"]);
    command.args([
        "--limit-train",
        "100",
        "--batch-size",
        "10",
        "--steps",
        "100000",
    ]);
    // The loss does not explode meanwhile.
    command
        .args(["--min-lr", "1e-9", "--max-lr", "1e-8", "--out"])
        .arg(out.path());
    let child = command.spawn().unwrap();
    // Long enough for some steps also where other tests run.
    thread::sleep(Duration::from_secs(5));
    kill(&child, "INT");
    let (code, message) = ended(child);
    assert_eq!(code, Some(130), "{message}");
    for name in ["lr-find.svg", "lr-find.png", "lr-find.json"] {
        assert!(out.path().join(name).exists(), "{name}");
    }
}

#[test]
fn a_terminated_comparison_stops_its_runs_with_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("c");
    let mut command = with_signals("xtask");
    command.arg("compare").arg("--trainer").arg(path("trainer"));
    command.args([
        "--models",
        "small-alexnet",
        "--seeds",
        "0",
        "--dataset",
        "synthetic",
    ]);
    command.args([
        "--limit-train",
        "12",
        "--limit-test",
        "10",
        "--batch-size",
        "6",
    ]);
    command
        .args(["--epochs", "1000", "--checkpoint-minutes", "0", "--out"])
        .arg(&out);
    let child = command.spawn().unwrap();
    let run = out.join("small-alexnet-synthetic-reference-seed0");
    wait_for_checkpoint(&run);
    for signal in ["TERM", "HUP", "TERM"] {
        kill(&child, signal);
    }
    let (code, message) = ended(child);
    assert_eq!(code, Some(130), "{message}");
    // The run is free, and goes on from its checkpoint.
    let done = epochs(&run).max(1).to_string();
    let mut resume = program("trainer");
    resume.arg("--resume").arg(&run);
    resume.args(["--stop-after", &done]).assert().success();
}

#[test]
fn terminated_verifications_and_dry_runs_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = short_run(folder.path(), "a");
    run.args(["--epochs", "1", "--stop-after", "1"])
        .assert()
        .success();
    let temporary = folder.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let record = folder.path().join("a/run.toml");
    let text = fs::read_to_string(&record).unwrap();
    // More images than are trained on before the signal.
    let longer = text.replace("limit_train = 12\n", "limit_train = 40000\n");
    assert_ne!(longer, text);
    fs::write(&record, longer).unwrap();
    for (subcommand, arguments) in [
        ("verify", vec![folder.path().join("a")]),
        (
            "compare",
            vec!["--dry-run".into(), "--batch-size".into(), "2000".into()],
        ),
    ] {
        let mut command = with_signals("xtask");
        command
            .arg(subcommand)
            .arg("--trainer")
            .arg(path("trainer"));
        command.args(arguments).env("TMPDIR", &temporary);
        let child = command.spawn().unwrap();
        let has_run = || {
            let folders = fs::read_dir(&temporary).unwrap();
            folders.flatten().any(|folder| {
                ["repeated", "pace"]
                    .iter()
                    .any(|run| folder.path().join(run).exists())
            })
        };
        wait_until("a run", has_run);
        kill(&child, "TERM");
        let (code, message) = ended(child);
        assert_eq!(code, Some(130), "{message}");
        assert!(!message.contains("resume with"), "{message}");
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "{message}");
    }
}

#[test]
fn ctrl_c_stops_with_a_checkpoint() {
    let runs = tempfile::tempdir().unwrap();
    let child = long_run(&mut with_signals("trainer"), runs.path());
    let run = runs.path().join("a");
    wait_for_checkpoint(&run);

    // Meanwhile nobody else may write there.
    let resume = || {
        let mut command = program("trainer");
        command.arg("--resume").arg(&run);
        command
    };
    let process = format!("another process ({}) is writing to the run", child.id());
    refused(&mut resume(), 1, &[&process]);
    refused(&mut short_run(runs.path(), "a"), 1, &[&process]);

    kill(&child, "INT");
    let (code, message) = ended(child);
    assert_eq!(code, Some(130), "{message}");
    assert!(
        message.contains(&format!("--resume {}", run.display())),
        "{message}"
    );

    // One epoch more than are done, which is the end.
    let done = epochs(&run);
    resume()
        .args(["--epochs", &(done + 1).to_string()])
        .assert()
        .success();
    assert_eq!(epochs(&run), done + 1);
}

#[test]
fn a_second_ctrl_c_stops_at_once() {
    let runs = tempfile::tempdir().unwrap();
    let mut command = with_signals("trainer");
    // One step of seconds, so that both signals come inside it.
    command.args(["--model", "small-alexnet", "--dataset", "synthetic"]);
    command.args(["--limit-train", "200", "--batch-size", "200", "--name", "a"]);
    command.arg("--run-dir").arg(runs.path());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("training and"));
    kill(&child, "INT");
    assert!(
        lines
            .next()
            .unwrap()
            .unwrap()
            .contains("press Ctrl-C again")
    );
    kill(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(lines.next().is_none());
    assert!(!runs.path().join("a/last.safetensors").exists());
}
