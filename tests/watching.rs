//! What shows how a run is going: its page, and the curves that `--tensorboard` writes.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use end_to_end::{kill_times, path, program, root};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Steps and values by tag.
type Curves = BTreeMap<String, Vec<(u64, f64)>>;

/// The file with events in a run's folder. Those of the processes before are empty.
fn event_file(run: &Path) -> PathBuf {
    let entries = fs::read_dir(run).unwrap().map(|entry| entry.unwrap());
    let is_event_file =
        |name: &str| name.starts_with("events.out.tfevents.") && name.ends_with(".trainer");
    let files = entries.filter(|entry| is_event_file(entry.file_name().to_str().unwrap()));
    let mut files: Vec<_> = files.map(|entry| entry.path()).collect();
    files.sort();
    let last = files.pop().unwrap();
    assert!(files.iter().all(|file| fs::read(file).unwrap().is_empty()));
    last
}

/// CRC-32C, bit by bit: RFC 3720, with the mask of TensorFlow's `crc32c.h`.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
        }
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            break;
        }
    }
    value
}

/// The fields of a message in protocol buffers: numbers and contents.
fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let content = match key & 7 {
            0 => varint(&mut message).to_le_bytes().to_vec(),
            1 => take(&mut message, 8).to_vec(),
            2 => {
                let length = varint(&mut message) as usize;
                take(&mut message, length).to_vec()
            }
            5 => take(&mut message, 4).to_vec(),
            kind => panic!("a field of type {kind}"),
        };
        fields.push((key >> 3, content));
    }
    fields
}

fn field(message: &[u8], number: u64) -> Option<Vec<u8>> {
    let mut fields = fields(message).into_iter();
    fields.find_map(|(found, content)| (found == number).then_some(content))
}

fn number(content: Option<Vec<u8>>) -> u64 {
    content.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
}

/// The messages of a file, in which every record is whole.
fn messages(file: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(file).unwrap();
    let mut rest = bytes.as_slice();
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let mut checked = |count| {
            let data = take(&mut rest, count);
            let crc = take(&mut rest, 4);
            assert_eq!(crc, masked_crc(data).to_le_bytes());
            data.to_vec()
        };
        let length = u64::from_le_bytes(checked(8).try_into().unwrap());
        messages.push(checked(length as usize));
    }
    messages
}

/// The curves of a run. Each has a point at a step once.
fn curves(run: &Path) -> Curves {
    let messages = messages(&event_file(run));
    let version = field(&messages[0], 3).unwrap();
    assert_eq!(version, b"brain.Event:2");
    // `SessionLog.START` at step 0.
    assert_eq!(field(&messages[1], 7), Some(vec![8, 1]));
    assert_eq!(number(field(&messages[1], 2)), 0);
    let mut curves = Curves::new();
    let mut time = 0.0;
    for message in &messages[2..] {
        let wall_time = f64::from_le_bytes(field(message, 1).unwrap().try_into().unwrap());
        assert!(wall_time > 1.7e9 && wall_time >= time, "{wall_time}");
        time = wall_time;
        let step = number(field(message, 2));
        for (_, value) in fields(&field(message, 5).unwrap()) {
            let tag = String::from_utf8(field(&value, 1).unwrap()).unwrap();
            let scalar = f32::from_le_bytes(field(&value, 2).unwrap().try_into().unwrap());
            let curve = curves.entry(tag).or_default();
            assert!(curve.last().is_none_or(|last: &(u64, f64)| last.0 < step));
            curve.push((step, f64::from(scalar)));
        }
    }
    curves
}

/// Epochs of 70 steps.
const RUN: [&str; 12] = [
    "--model",
    "lenet",
    "--dataset",
    "synthetic",
    "--limit-train",
    "560",
    "--limit-test",
    "20",
    "--batch-size",
    "8",
    "--model-ema-decay",
    "0.5",
];

fn run(runs: &Path, name: &str, arguments: &[&str]) -> PathBuf {
    let mut command = program("trainer");
    command.args(RUN).args(["--epochs", "3", "--name", name]);
    command.args(arguments).arg("--run-dir").arg(runs);
    command.assert().success();
    runs.join(name)
}

fn resume(run: &Path, arguments: &[&str]) {
    let mut command = program("trainer");
    command.args(arguments).arg("--resume").arg(run);
    command.assert().success();
}

/// Curves without those of time. The means of an interval in which a run was interrupted differ from those of the
/// whole interval.
fn comparable(mut curves: Curves) -> Curves {
    curves.retain(|tag, _| !tag.ends_with("seconds") && !tag.ends_with("per_second"));
    for mean in ["step/train_loss", "step/train_accuracy"] {
        for (_, value) in curves.get_mut(mean).unwrap() {
            *value = 0.0;
        }
    }
    curves
}

#[test]
fn the_curves_have_the_metrics_of_epochs_and_steps() {
    let runs = tempfile::tempdir().unwrap();
    let run = run(
        runs.path(),
        "a",
        &["--tensorboard", "--clip-grad-norm", "1"],
    );
    let curves = curves(&run);
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    for (line, epoch) in metrics.lines().zip(1..) {
        let metrics: BTreeMap<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        for (key, value) in metrics {
            let Some(value) = value.as_f64() else {
                continue;
            };
            let point = (70 * epoch, f64::from(value as f32));
            assert!(curves[&format!("epoch/{key}")].contains(&point), "{key}");
        }
    }
    for key in [
        "test_loss",
        "model_ema_test_accuracy",
        "train_accuracy",
        "seconds",
    ] {
        assert_eq!(curves[&format!("epoch/{key}")].len(), 3, "{key}");
    }
    assert_eq!(curves["epoch/tta_test_accuracy"].len(), 1);
    for key in [
        "train_loss",
        "train_accuracy",
        "learning_rate",
        "images_per_second",
        "grad_norm",
    ] {
        let curve = &curves[&format!("step/{key}")];
        let steps = curve.iter().map(|(step, _)| *step);
        assert!(
            steps.eq([32, 64, 70, 102, 134, 140, 172, 204, 210]),
            "{key}"
        );
        assert!(curve.iter().all(|(_, value)| *value >= 0.0), "{key}");
    }
    // The loss of an epoch is the mean over its intervals.
    let losses = &curves["step/train_loss"];
    let mean = (32.0 * losses[0].1 + 32.0 * losses[1].1 + 6.0 * losses[2].1) / 70.0;
    assert!(
        (mean - curves["epoch/train_loss"][0].1).abs() < 1e-5,
        "{mean}"
    );
}

#[test]
fn a_resumed_run_continues_the_curves() {
    let runs = tempfile::tempdir().unwrap();
    let whole = comparable(curves(&run(runs.path(), "whole", &["--tensorboard"])));
    let stopped = run(
        runs.path(),
        "stopped",
        &["--tensorboard", "--stop-after", "1"],
    );
    let checkpoint = [
        "last.safetensors",
        "momentum-1-0.safetensors",
        "ema-1-0.safetensors",
    ];
    let checkpoint = checkpoint.map(|name| (name, fs::read(stopped.join(name)).unwrap()));
    resume(&stopped, &["--stop-after", "2"]);
    resume(&stopped, &["--tensorboard"]);
    assert_eq!(comparable(curves(&stopped)), whole);
    // Killed before the second checkpoint, while it wrote an event.
    for (name, bytes) in checkpoint {
        fs::write(stopped.join(name), bytes).unwrap();
    }
    let file = event_file(&stopped);
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
    resume(&stopped, &[]);
    assert_eq!(comparable(curves(&stopped)), whole);
    // Begun without the option: the curves of the epochs are complete.
    let late = run(runs.path(), "late", &["--stop-after", "1"]);
    resume(&late, &["--tensorboard"]);
    let late = comparable(curves(&late));
    assert_eq!(late["epoch/test_loss"], whole["epoch/test_loss"]);
    let steps = late["step/grad_norm"].iter().map(|(step, _)| *step);
    assert!(steps.eq([102, 134, 140, 172, 204, 210]));
}

#[test]
fn a_killed_run_has_the_curves_of_one_that_was_not() {
    let runs = tempfile::tempdir().unwrap();
    path("trainer"); // Built before the clock starts.
    let started = Instant::now();
    let whole = run(
        runs.path(),
        "whole",
        &["--tensorboard", "--checkpoint-minutes", "0"],
    );
    let duration = started.elapsed();
    let killed = runs.path().join("killed");
    let start = || -> Child {
        let mut command = Command::new(path("trainer"));
        if killed.join("run.toml").exists() {
            command.arg("--tensorboard").arg("--resume").arg(&killed);
        } else {
            command.args(RUN).args(["--epochs", "3", "--tensorboard"]);
            command.args(["--checkpoint-minutes", "0", "--name", "killed"]);
            command.arg("--run-dir").arg(runs.path());
        }
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let mut child = start();
    let mut kills = 0;
    // On a slow disk a run may need longer than this for a step, so the last process is not killed.
    for time in kill_times(duration / 4).take(6) {
        thread::sleep(duration / 8 + time);
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        child = start();
    }
    assert!(kills > 0);
    assert!(child.wait().unwrap().success());
    assert_eq!(
        comparable(curves(&killed)),
        comparable(curves(&whole)),
        "after {kills} kills"
    );
}

/// `TENSORBOARD_PYTHON` is a Python that has the package `tensorboard`.
#[test]
#[ignore = "needs TENSORBOARD_PYTHON"]
fn tensorboard_reads_the_curves() {
    let python = std::env::var_os("TENSORBOARD_PYTHON").unwrap();
    let runs = tempfile::tempdir().unwrap();
    let run = run(runs.path(), "a", &["--tensorboard", "--stop-after", "1"]);
    for arguments in [
        &["--tensorboard", "--stop-after", "2"][..],
        &["--tensorboard"],
    ] {
        resume(&run, arguments);
        let mut reader = assert_cmd::Command::new(&python);
        let reader = reader.arg(root().join("tests/read_events.py")).arg(&run);
        let output = reader.assert().success().get_output().stdout.clone();
        let found: Curves = serde_json::from_slice(&output).unwrap();
        assert_eq!(found, curves(&run));
    }
}

/// The text of a run's page, and whether a browser loads it again.
fn page(run: &Path) -> (String, bool) {
    let page = fs::read_to_string(run.join("run.html")).unwrap();
    assert!(
        page.ends_with("</html>") && !page.contains("<script"),
        "{page}"
    );
    let is_refreshed = page.contains("http-equiv=\"refresh\"");
    (page, is_refreshed)
}

#[test]
fn the_page_shows_whether_a_run_is_running() {
    let runs = tempfile::tempdir().unwrap();
    let run = runs.path().join("a");
    let metrics = || fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let mut command = Command::new(path("trainer"));
    command
        .args(RUN)
        .args(["--epochs", "1000000", "--name", "a"]);
    command.arg("--run-dir").arg(runs.path());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    while metrics().lines().count() < 2 {
        assert!(child.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let (going, is_refreshed) = page(&run);
    assert!(
        is_refreshed && going.contains("of 1000000</strong>"),
        "{going}"
    );

    // Killed, resumed and stopped, with what the run has now.
    let after = (metrics().lines().count() + 1).to_string();
    resume(&run, &["--stop-after", &after]);
    let (stopped, is_refreshed) = page(&run);
    let command = run::cli::resume_command(&run).replace('"', "&quot;");
    for part in [
        "Interrupted</strong>",
        &command,
        "predicted: ",
        "data:image/png",
    ] {
        assert!(stopped.contains(part), "{part} is not in {stopped}");
    }
    assert!(!is_refreshed && stopped.contains(&format!("<th scope=\"row\">{after}</th>")));

    let epochs = (metrics().lines().count() + 1).to_string();
    // The second time there is nothing left to do.
    for _ in 0..2 {
        resume(&run, &["--epochs", &epochs]);
        let (finished, is_refreshed) = page(&run);
        assert!(
            !is_refreshed && finished.contains("Finished</strong> after"),
            "{finished}"
        );
        assert!(finished.contains("data:image/png"), "{finished}");
    }

    // A page that cannot be written.
    fs::remove_file(run.join("run.html")).unwrap();
    fs::create_dir(run.join("run.html")).unwrap();
    let mut resume = program("trainer");
    let output = resume.arg("--resume").arg(&run).assert().code(1);
    let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    let last = message.lines().last().unwrap();
    assert!(
        last.starts_with("error: cannot write `") && last.contains("run.html`"),
        "{message}"
    );
}
