//! What the programs print: results arrive or are an error, commands can be pasted, each reason is given once.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use end_to_end::{program, refused, short_run};
use std::fs;
use std::process::Output;

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// `/dev/full` is a disk without space.
#[cfg(target_os = "linux")]
#[test]
fn results_that_cannot_be_written_are_errors() {
    use end_to_end::path;
    use std::process::{Command, Stdio};
    let runs = tempfile::tempdir().unwrap();
    short_run(runs.path(), "a")
        .args(["--epochs", "1"])
        .assert()
        .success();
    let weights = runs.path().join("a").join("last.safetensors");
    let weights = weights.to_str().unwrap();
    let picture = runs.path().join("picture.png");
    image::RgbImage::new(32, 32).save(&picture).unwrap();
    let eval = [
        "eval",
        "--dataset",
        "synthetic",
        "--limit-test",
        "10",
        "--checkpoint",
        weights,
    ];
    let json = [&eval[..], &["--json"]].concat();
    let predict = [
        "predict",
        "--checkpoint",
        weights,
        picture.to_str().unwrap(),
    ];
    for (name, arguments) in [
        ("trainer", &eval[..]),
        ("trainer", &json),
        ("trainer", &predict),
        ("trainer", &["summary", "--model", "lenet"]),
        ("trainer", &["--model", "lenet", "--dry-run"]),
        ("trainer", &["completions", "bash"]),
        ("trainer", &["--help"]),
        ("xtask", &["--help"]),
    ] {
        let run = |stdout: Stdio| {
            let mut command = Command::new(path(name));
            command
                .args(arguments)
                .stdout(stdout)
                .stderr(Stdio::piped());
            command.spawn().unwrap().wait_with_output().unwrap()
        };
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let output = run(full.into());
        assert_eq!(output.status.code(), Some(1), "{name} {arguments:?}");
        let message = stderr(&output);
        assert!(
            message.ends_with("(os error 28)\n") && message.contains("standard output"),
            "{message}"
        );
        // A reader that closed the pipe.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = run(writer.into());
        assert_eq!(output.status.code(), Some(0), "{name} {arguments:?}");
        assert_eq!(stderr(&output), "");
    }
}

#[cfg(unix)]
#[test]
fn the_command_to_continue_can_be_pasted() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("it's my $HOME");
    let output = short_run(&runs, "a")
        .args(["--epochs", "2", "--stop-after", "1"])
        .output()
        .unwrap();
    let message = stderr(&output);
    let (_, pasted) = message.split_once("cargo run -p trainer -- ").unwrap();
    let script = format!("{:?} {pasted}", end_to_end::path("trainer"));
    let mut shell = assert_cmd::Command::new("sh");
    let output = shell
        .arg("-c")
        .arg(script)
        .assert()
        .success()
        .get_output()
        .clone();
    assert!(stderr(&output).contains("resumed after 1 of 2 epochs"));
}

#[test]
fn each_reason_is_given_once() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none");
    let weights = missing.join("weights.safetensors");
    let mut eval = program("trainer");
    eval.arg("eval").arg("--checkpoint").arg(&weights);
    let mut train = short_run(folder.path(), "a");
    train.arg("--trace").arg(missing.join("trace.json"));
    let mut config = short_run(folder.path(), "a");
    config.arg("--config").arg(missing.join("settings.toml"));
    for mut command in [eval, train, config] {
        let message = stderr(&command.output().unwrap());
        assert_eq!(message.matches("os error").count(), 1, "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(!message.contains(".unfinished"), "{message}");
    }
    let mut diverging = short_run(folder.path(), "b");
    diverging.args(["--epochs", "1", "--lr", "1e20"]);
    let message = stderr(&diverging.output().unwrap());
    assert_eq!(message.matches("training diverged").count(), 1, "{message}");
}

#[test]
fn messages_have_no_backtrace() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = short_run(folder.path(), "a");
    command
        .args(["--validation", "6"])
        .env("RUST_BACKTRACE", "1");
    let message = refused(&mut command, 2, &["--validation 6"]);
    let lines = message.lines().filter(|line| !line.starts_with("note: "));
    assert_eq!(lines.count(), 1, "{message}");
}

#[test]
fn control_characters_of_files_do_not_reach_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("settings.toml");
    fs::write(&settings, "colour = 1 # \u{1b}[2J\u{9b}\n").unwrap();
    let mut command = short_run(folder.path(), "a");
    command.arg("--config").arg(&settings);
    let message = refused(&mut command, 2, &["\\u001b[2J"]);
    assert!(!message.contains(['\u{1b}', '\u{9b}']), "{message:?}");
}
