//! Runs from the beginning to the end, interrupted ones among them.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use end_to_end::{SHORT, kill_times, path, program, refused, short_run, xtask};
use models::Architecture;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};
use std::env::consts::{ARCH, OS};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
#[cfg(windows)]
use std::time::Duration;
use std::time::Instant;

/// The numbers that a run ended with: weights and momentum.
fn state(run: &Path) -> Vec<Vec<u8>> {
    let last = fs::read(run.join("last.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&last).unwrap();
    let momentum = &header.metadata().as_ref().unwrap()["momentum"];
    [last, fs::read(run.join(momentum)).unwrap()]
        .iter()
        .flat_map(|bytes| {
            let tensors = SafeTensors::deserialize(bytes).unwrap();
            let names: BTreeSet<_> = tensors.names().into_iter().map(str::to_owned).collect();
            names
                .iter()
                .map(|name| tensors.tensor(name).unwrap().data().to_vec())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The record of a run.
fn record(run: &Path) -> toml::Table {
    let text = fs::read_to_string(run.join("run.toml")).unwrap();
    text.parse().unwrap()
}

/// What is known of every epoch, but for the time it took. The table of metrics must have the same.
fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert!(table(run).eq(text.lines().map(str::to_owned)), "{text}");
    let lines = text.lines().map(|line| {
        let mut epoch: serde_json::Value = serde_json::from_str(line).unwrap();
        let epoch_object = epoch.as_object_mut().unwrap();
        for key in ["seconds", "images_per_second"] {
            assert!(epoch_object.remove(key).unwrap().as_f64().unwrap() > 0.0);
        }
        epoch
    });
    lines.collect()
}

/// The rows of the table of metrics, as lines of JSON.
fn table(run: &Path) -> impl Iterator<Item = String> {
    let text = fs::read_to_string(run.join("metrics.csv")).unwrap();
    let rows = text.lines().map(|row| row.split(',').map(str::to_owned));
    let mut rows: Vec<Vec<_>> = rows.map(Iterator::collect).collect();
    let columns = rows.remove(0);
    rows.into_iter().map(move |row| {
        assert_eq!(row.len(), columns.len());
        let cells = columns
            .iter()
            .zip(&row)
            .filter(|(_, cell)| !cell.is_empty());
        let values = cells.map(|(key, cell)| match key.as_str() {
            "weights_sha256" => format!("\"{key}\":\"{cell}\""),
            _ => format!("\"{key}\":{cell}"),
        });
        format!("{{{}}}", values.collect::<Vec<_>>().join(","))
    })
}

#[test]
fn a_run_leaves_everything_behind() {
    let runs = tempfile::tempdir().unwrap();
    let output = short_run(runs.path(), "a")
        .args(["--epochs", "2"])
        .assert()
        .success()
        .get_output()
        .clone();
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(
        lines.contains("epoch 1/2  train loss") && lines.contains("epoch 2/2"),
        "{lines}"
    );
    assert!(lines.contains("curves.svg"), "{lines}");

    let run = runs.path().join("a");
    let names: BTreeSet<_> = fs::read_dir(&run)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    let expected = [
        "best.safetensors",
        "curves.png",
        "curves.svg",
        "last.safetensors",
        "layers.json",
        "lock",
        "log.txt",
        "metrics.csv",
        "metrics.jsonl",
        "momentum-2-0.safetensors",
        "predictions.safetensors",
        "run.html",
        "run.toml",
        "summary.txt",
    ];
    assert!(names.iter().eq(expected), "{names:?}");
    assert_eq!(metrics(&run).len(), 2);
    assert!(
        fs::read_to_string(run.join("summary.txt"))
            .unwrap()
            .contains("SmallAlexNet-20")
    );
    assert!(
        fs::read_to_string(run.join("log.txt"))
            .unwrap()
            .contains("epoch finished")
    );
    let record = record(&run);
    for key in ["version", "commit", "device", "precision", "data_sha256"] {
        assert!(record["made_by"].get(key).is_some(), "{key}");
    }

    // The record, fed back, makes the same run.
    let mut again = program("trainer");
    again
        .arg("--config")
        .arg(run.join("run.toml"))
        .arg("--run-dir")
        .arg(runs.path())
        .args(["--name", "b"]);
    again.assert().success();
    let other = runs.path().join("b");
    assert_eq!(state(&run), state(&other));
    assert_eq!(metrics(&run), metrics(&other));

    // Evaluating the last weights gives the last epoch's figures.
    let eval = |checkpoint: &str| -> serde_json::Value {
        let mut command = program("trainer");
        command.args([
            "eval",
            "--dataset",
            "synthetic",
            "--limit-test",
            "10",
            "--json",
            "--checkpoint",
        ]);
        let output = command
            .arg(run.join(checkpoint))
            .assert()
            .success()
            .get_output()
            .stdout
            .clone();
        serde_json::from_slice(&output).unwrap()
    };
    let evaluated = eval("last.safetensors");
    assert_eq!(evaluated["loss"], metrics(&run)[1]["test_loss"]);
    assert_eq!(evaluated["accuracy"], metrics(&run)[1]["test_accuracy"]);
    let best = metrics(&run)
        .iter()
        .map(|epoch| epoch["test_accuracy"].as_f64().unwrap())
        .fold(0.0, f64::max);
    assert_eq!(eval("best.safetensors")["accuracy"].as_f64().unwrap(), best);

    // On classes that the weights do not know, an accuracy would mean nothing.
    if let Some(data) = cifar10() {
        let mut command = program("trainer");
        command
            .args(["eval", "--limit-test", "10", "--data-dir"])
            .arg(data);
        refused(
            command
                .arg("--checkpoint")
                .arg(run.join("best.safetensors")),
            2,
            &["other classes"],
        );
    }
}

/// The folder that holds the real data, where there is one.
fn cifar10() -> Option<std::path::PathBuf> {
    let folder =
        std::env::var_os("CIFAR10_DIR").map_or_else(|| end_to_end::root().join("data"), Into::into);
    let found = folder.join(datasets::cifar10::FOLDER).is_dir();
    if !found {
        let message = format!("skipped: no CIFAR-10 in `{}`\n", folder.display());
        let _ = std::io::Write::write_all(&mut std::io::stderr(), message.as_bytes());
    }
    found.then_some(folder)
}

#[test]
fn the_real_data_are_trained_on() {
    let Some(data) = cifar10() else { return };
    let runs = tempfile::tempdir().unwrap();
    let mut command = program("trainer");
    command.args([
        "--model",
        "small-alexnet",
        "--limit-train",
        "20",
        "--limit-test",
        "20",
        "--batch-size",
        "10",
    ]);
    command
        .args(["--epochs", "1", "--name", "a", "--data-dir"])
        .arg(data)
        .arg("--run-dir")
        .arg(runs.path());
    command.assert().success();
    assert_eq!(metrics(&runs.path().join("a")).len(), 1);
}

#[test]
fn checkpoints_have_pytorchs_names_and_shapes_and_nothing_else() {
    let runs = tempfile::tempdir().unwrap();
    short_run(runs.path(), "a")
        .args(["--epochs", "1"])
        .assert()
        .success();
    // [(name, list(p.shape)) for name, p in SmallAlexNet().state_dict().items()]
    let expected: [(&str, &[usize]); 16] = [
        ("conv_layer1.0.weight", &[64, 3, 7, 7]),
        ("conv_layer1.0.bias", &[64]),
        ("conv_layer2.0.weight", &[192, 64, 5, 5]),
        ("conv_layer2.0.bias", &[192]),
        ("conv_layer3.0.weight", &[256, 192, 3, 3]),
        ("conv_layer3.0.bias", &[256]),
        ("conv_layer3.2.weight", &[256, 256, 3, 3]),
        ("conv_layer3.2.bias", &[256]),
        ("conv_layer3.4.weight", &[128, 256, 3, 3]),
        ("conv_layer3.4.bias", &[128]),
        ("fc_layer1.1.weight", &[2048, 3200]),
        ("fc_layer1.1.bias", &[2048]),
        ("fc_layer1.4.weight", &[2048, 2048]),
        ("fc_layer1.4.bias", &[2048]),
        ("fc_layer1.6.weight", &[10, 2048]),
        ("fc_layer1.6.bias", &[10]),
    ];
    for file in ["best.safetensors", "last.safetensors"] {
        let bytes = fs::read(runs.path().join("a").join(file)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.len(), expected.len(), "{file}");
        for (name, shape) in expected {
            let tensor = tensors.tensor(name).unwrap();
            assert_eq!(
                (tensor.dtype(), tensor.shape()),
                (safetensors::Dtype::F32, shape),
                "{file} {name}"
            );
        }
    }
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let runs = tempfile::tempdir().unwrap();
    let run = |threads: &str| {
        short_run(runs.path(), threads)
            .args(["--epochs", "1", "--threads", threads])
            .assert()
            .success();
        (
            state(&runs.path().join(threads)),
            metrics(&runs.path().join(threads)),
        )
    };
    let one = run("1");
    for threads in ["2", "3", "7"] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

#[test]
fn one_batch_of_the_whole_set_is_full_batch_training() {
    let runs = tempfile::tempdir().unwrap();
    let plain = [
        "--augment",
        "none",
        "--dropout",
        "0",
        "--limit-train",
        "8",
        "--batch-size",
        "8",
        "--epochs",
        "2",
    ];
    let run = |name: &str, seed: &str, init: Option<&Path>| {
        let mut command = program("trainer");
        command
            .args([
                "--model",
                "small-alexnet",
                "--dataset",
                "synthetic",
                "--limit-test",
                "8",
            ])
            .args(plain);
        command
            .arg("--run-dir")
            .arg(runs.path())
            .args(["--name", name, "--seed", seed]);
        if let Some(init) = init {
            command.arg("--init").arg(init);
        }
        command.assert().success();
        runs.path().join(name)
    };
    let first = run("first", "0", None);
    // With the weights given, nothing is left for the seed to decide.
    let weights = first.join("best.safetensors");
    assert_eq!(
        state(&run("second", "1", Some(&weights))),
        state(&run("third", "2", Some(&weights)))
    );
}

/// A short run of LeNet.
fn lenet(runs: &Path, name: &str) -> assert_cmd::Command {
    let mut command = program("trainer");
    command.args(["--model", "lenet", "--recipe", "best", "--epochs", "1"]);
    command.args(&SHORT[2..]).arg("--run-dir").arg(runs);
    command.args(["--name", name]);
    command
}

#[test]
fn a_network_is_fine_tuned_for_other_classes() {
    let runs = tempfile::tempdir().unwrap();
    let bytes = |path: &Path| fs::read(path).unwrap();
    lenet(runs.path(), "a").assert().success();
    // Without the metadata, and with a last layer for seven classes.
    let a = bytes(&runs.path().join("a/last.safetensors"));
    let a = SafeTensors::deserialize(&a).unwrap();
    let zeros = vec![0; 4 * 7 * 84];
    let seven = a.iter().map(|(name, view)| {
        let shape = match view.shape() {
            [10, inputs] => vec![7, *inputs],
            [10] => vec![7],
            _ => return (name.to_owned(), view),
        };
        let zeros = &zeros[..4 * shape.iter().product::<usize>()];
        let view = TensorView::new(Dtype::F32, shape, zeros);
        (name.to_owned(), view.unwrap())
    });
    let init = runs.path().join("seven.safetensors");
    fs::write(&init, safetensors::serialize(seven, None).unwrap()).unwrap();
    let mut tune = lenet(runs.path(), "b");
    tune.args(["--freeze-features", "--seed", "3", "--init"]);
    let output = tune.arg(&init).assert().success().get_output().clone();
    let message = String::from_utf8(output.stderr).unwrap();
    let expected =
        "seven.safetensors` is for 7 classes, and the data have 10: all layers but the last";
    assert!(message.contains(expected), "{message}");
    let b = bytes(&runs.path().join("b/last.safetensors"));
    let b = SafeTensors::deserialize(&b).unwrap();
    for (name, tensor) in b.iter() {
        let same = a.tensor(name).unwrap().data() == tensor.data();
        assert_eq!(same, name.starts_with("conv"), "{name}");
    }
    let record = record(&runs.path().join("b"));
    assert_eq!(record["freeze_features"].as_bool(), Some(true));
    let summary = fs::read_to_string(runs.path().join("b/summary.txt")).unwrap();
    assert!(summary.contains("Non-trainable params: 2,872"), "{summary}");
    let mut resume = program("trainer");
    resume.arg("--resume").arg(runs.path().join("b"));
    resume.args(["--freeze-features", "false"]);
    refused(
        &mut resume,
        2,
        &["has freeze_features = true, not false", "start a new run"],
    );
    // Nothing but random features is trained.
    let output = lenet(runs.path(), "c").arg("--freeze-features").assert();
    let message = String::from_utf8(output.success().get_output().stderr.clone()).unwrap();
    assert!(message.contains("keep random weights"), "{message}");
}

#[test]
fn weights_of_pytorch_are_evaluated() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../crates/engine/tests/fixtures/lightning.ckpt"
    );
    let eval = || {
        let mut eval = program("trainer");
        eval.args(["eval", "--dataset", "synthetic", "--limit-test", "10"]);
        eval.args(["--checkpoint", file]);
        eval
    };
    refused(&mut eval(), 2, &["does not say which network", "--model"]);
    let output = eval().args(["--model", "lenet"]).assert().success();
    let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(message.contains("begin with `model.`"), "{message}");
}

#[test]
fn dropout_in_the_first_epoch_only() {
    let runs = tempfile::tempdir().unwrap();
    let run = |name: &str, dropout: &[&str]| {
        short_run(runs.path(), name)
            .args(["--epochs", "2"])
            .args(dropout)
            .assert()
            .success();
        metrics(&runs.path().join(name))
    };
    let all = run("all", &["--dropout-epochs", "all"]);
    let first = run("first", &["--dropout-epochs", "1"]);
    let none = run("none", &["--dropout-epochs", "0"]);
    assert_eq!(all[0], first[0]);
    assert_ne!(all[1], first[1]);
    assert_ne!(none[0], first[0]);
    assert_eq!(none, run("zero", &["--dropout", "0"]));
}

/// A run of eight steps that writes a checkpoint after every step.
fn start(runs: &Path, name: &str) -> Child {
    let mut command = Command::new(path("trainer"));
    command
        .args(SHORT)
        .args(["--epochs", "4", "--checkpoint-minutes", "0", "--name", name]);
    command
        .arg("--run-dir")
        .arg(runs)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn a_killed_run_ends_as_one_that_was_not() {
    let runs = tempfile::tempdir().unwrap();
    path("trainer"); // Built before the clock starts.
    let started = Instant::now();
    assert!(start(runs.path(), "whole").wait().unwrap().success());
    let duration = started.elapsed();
    let (whole, killed) = (runs.path().join("whole"), runs.path().join("killed"));
    let mut child = start(runs.path(), "killed");
    let mut kills = 0;
    // On a slow disk a run may need longer than this for a step, so the last process is not killed.
    for time in kill_times(duration / 4).take(10) {
        thread::sleep(duration / 5 + time);
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        if !killed.join("run.toml").exists() {
            child = start(runs.path(), "killed");
            continue;
        }
        let mut command = Command::new(path("trainer"));
        command
            .arg("--resume")
            .arg(&killed)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        child = command.spawn().unwrap();
    }
    assert!(kills > 0);
    assert!(child.wait().unwrap().success());
    assert!(state(&whole) == state(&killed), "after {kills} kills");
    assert_eq!(metrics(&whole), metrics(&killed));
    let leftovers = fs::read_dir(&killed).unwrap().filter(|e| {
        let name = e.as_ref().unwrap().file_name().into_string().unwrap();
        name.starts_with('.')
            || (name.starts_with("momentum") && name != "momentum-4-0.safetensors")
    });
    assert_eq!(leftovers.count(), 0);
    assert!(
        fs::read(whole.join("best.safetensors")).unwrap()
            == fs::read(killed.join("best.safetensors")).unwrap()
    );
}

/// A virus scanner opens the checkpoint for moments in which it cannot be replaced.
#[cfg(windows)]
#[test]
fn a_scanner_does_not_end_a_run() {
    use std::os::windows::fs::OpenOptionsExt;
    const FILE_SHARE_READ: u32 = 1;
    let runs = tempfile::tempdir().unwrap();
    let checkpoint = runs.path().join("a/last.safetensors");
    let mut run = start(runs.path(), "a");
    let mut scans = 0;
    while run.try_wait().unwrap().is_none() {
        let mut options = fs::File::options();
        let file = options
            .read(true)
            .share_mode(FILE_SHARE_READ)
            .open(&checkpoint);
        thread::sleep(Duration::from_millis(60));
        scans += u32::from(file.is_ok());
        drop(file);
        thread::sleep(Duration::from_millis(20));
    }
    assert!(run.wait().unwrap().success());
    assert!(scans > 5, "{scans}");
}

#[test]
fn a_longer_run_goes_on_from_a_shorter_one() {
    let runs = tempfile::tempdir().unwrap();
    short_run(runs.path(), "long")
        .args(["--epochs", "2"])
        .assert()
        .success();
    short_run(runs.path(), "short")
        .args(["--epochs", "1"])
        .assert()
        .success();
    let resume = |epochs: &str| {
        let mut command = program("trainer");
        command
            .args(["--resume", "short", "--epochs", epochs, "--threads", "1"])
            .arg("--run-dir")
            .arg(runs.path());
        command.assert().success().get_output().stdout.clone()
    };
    resume("2");
    assert!(state(&runs.path().join("long")) == state(&runs.path().join("short")));
    // A run that is done has nothing left to do, and says so.
    let before = fs::read(runs.path().join("short/last.safetensors")).unwrap();
    let output = String::from_utf8(resume("2")).unwrap();
    assert!(output.contains("done"), "{output}");
    assert!(before == fs::read(runs.path().join("short/last.safetensors")).unwrap());
    // Each process that trained is recorded, with what it trained and ran on.
    let record = record(&runs.path().join("short"));
    let sessions = record["made_by"]["sessions"].as_array().unwrap();
    let covered = sessions.iter().map(|session| {
        let keys = ["from_epoch", "from_step", "to_epoch", "to_step"];
        keys.map(|key| session[key].as_integer().unwrap())
    });
    assert!(covered.eq([[0, 0, 1, 0], [1, 0, 2, 0]]), "{sessions:?}");
    let texts = [("os", OS), ("arch", ARCH), ("device", "cpu")];
    for session in sessions {
        for (key, expected) in texts {
            assert_eq!(session[key].as_str(), Some(expected), "{key}");
        }
        for key in ["instruction_set", "processor", "version", "commit"] {
            assert!(
                session[key].as_str().is_some_and(|text| !text.is_empty()),
                "{key}"
            );
        }
    }
    assert_eq!(sessions[1]["threads"].as_integer(), Some(1));
    let out = runs.path().join("report");
    let mut report = program("trainer");
    report
        .arg("report")
        .arg(runs.path().join("short"))
        .arg("--out")
        .arg(&out);
    report.assert().success();
    let text = fs::read_to_string(out.join("report.md")).unwrap();
    let sentence = "was trained in 2 recorded sessions: to the end of epoch 1 on";
    assert!(text.contains(sentence), "{text}");
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let runs = tempfile::tempdir().unwrap();
    short_run(runs.path(), "a")
        .args(["--epochs", "1"])
        .assert()
        .success();
    let run = runs.path().join("a");
    let before = state(&run);
    // A limit on the size of files stands in for the disk: writing fails in the same place.
    let script = format!(
        "trap '' XFSZ; ulimit -f 20000; exec '{}' --resume '{}' --epochs 2",
        path("trainer").display(),
        run.display()
    );
    let mut limited = assert_cmd::Command::new("sh");
    limited.args(["-c", &script]);
    let output = limited.assert().code(1).get_output().stderr.clone();
    let message = String::from_utf8(output).unwrap();
    assert!(
        message.contains("cannot write") && message.contains("what was saved before is unchanged"),
        "{message}"
    );
    assert!(state(&run) == before);
    let unfinished = fs::read_dir(&run).unwrap().filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with('.')
    });
    assert_eq!(unfinished.count(), 0);
    let mut resume = program("trainer");
    resume
        .arg("--resume")
        .arg(&run)
        .args(["--epochs", "2"])
        .assert()
        .success();
}

#[test]
fn dry_run_prints_what_config_takes_back() {
    let folder = tempfile::tempdir().unwrap();
    let dry = |arguments: &[&str]| {
        let mut command = program("trainer");
        command
            .current_dir(&folder)
            .args(arguments)
            .arg("--dry-run");
        String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
    };
    let printed = dry(&[
        "--model",
        "alexnet",
        "--lr",
        "0.02",
        "--limit-train",
        "100",
        "--seed",
        "5",
    ]);
    assert!(
        printed.contains("lr = 0.02") && printed.contains("patience = 5"),
        "{printed}"
    );
    fs::write(folder.path().join("settings.toml"), &printed).unwrap();
    assert_eq!(dry(&["--config", "settings.toml"]), printed);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn summary_and_completions_are_printed() {
    let output = |arguments: &[&str]| {
        let output = program("trainer")
            .args(arguments)
            .assert()
            .success()
            .get_output()
            .stdout
            .clone();
        String::from_utf8(output).unwrap()
    };
    for architecture in Architecture::ALL {
        assert_eq!(
            output(&["summary", "--model", architecture.name]),
            models::summary(*architecture, false)
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(output(&["completions", shell]).contains("trainer"));
    }
}

#[test]
fn both_ways_to_convolve_train_alike_and_leave_a_trace() {
    let runs = tempfile::tempdir().unwrap();
    let mut losses = Vec::new();
    for conv in ["winograd", "direct"] {
        let trace = runs.path().join(format!("{conv}.json"));
        short_run(runs.path(), conv)
            .args(["--epochs", "1", "--conv", conv, "--trace"])
            .arg(&trace)
            .assert()
            .success();
        let run = runs.path().join(conv);
        let record = fs::read_to_string(run.join("run.toml")).unwrap();
        assert!(record.contains(&format!("conv = \"{conv}\"")), "{record}");
        losses.push(metrics(&run)[0]["train_loss"].as_f64().unwrap());

        let events: Vec<serde_json::Value> =
            serde_json::from_slice(&fs::read(&trace).unwrap()).unwrap();
        let count = |name: &str, layer: Option<&str>| {
            let named = |event: &&serde_json::Value| {
                event["name"] == name
                    && event["ph"] == "B"
                    && layer.is_none_or(|layer| event["args"]["layer"].to_string().contains(layer))
            };
            events.iter().filter(named).count()
        };
        for (name, least) in [("step", 2), ("data", 2), ("batch", 2), ("update", 2)] {
            assert!(count(name, None) >= least, "{name}");
        }
        assert!(count("checkpoint", None) > 0 && count("evaluation", None) == 2);
        // Two steps, and an evaluation of the images and one of their mirror images.
        assert_eq!(count("forward", Some("conv_layer2.0")), 4);
        assert_eq!(count("backward", Some("conv_layer2.0")), 2);
    }
    assert_ne!(
        state(&runs.path().join("winograd")),
        state(&runs.path().join("direct"))
    );
    assert!((losses[0] - losses[1]).abs() < 1e-4, "{losses:?}");
    let nowhere = runs.path().join("nowhere/trace.json");
    let mut command = short_run(runs.path(), "c");
    refused(
        command.arg("--trace").arg(&nowhere),
        1,
        &["cannot write the trace", "nowhere"],
    );
    assert!(!runs.path().join("c").exists());
    // Nor is a trace left where something else is wrong.
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.json");
    let mut command = program("trainer");
    command.args(["--model", "alexnet", "--data-dir"]);
    command.arg(folder.path()).arg("--trace").arg(&trace);
    refused(&mut command, 1, &["cifar-10-batches-bin"]);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    refused(
        short_run(runs.path(), "c").args(["--conv", "quick"]),
        2,
        &["quick", "winograd", "direct"],
    );
}

/// Training of LeNet in the working directory `folder`, which takes a moment.
fn tiny_run(folder: &Path, epochs: u32) -> assert_cmd::Command {
    let mut command = program("trainer");
    command.current_dir(folder);
    command.args(["--model", "lenet", "--dataset", "synthetic"]);
    command.args(["--limit-train", "20", "--limit-test", "10"]);
    command.args(["--batch-size", "10", "--epochs", &epochs.to_string()]);
    command
}

#[test]
fn paths_are_printed_as_the_system_writes_them_and_recorded_with_slashes() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = tiny_run(folder.path(), 1);
    run.args(["--run-dir", "r/x", "--name", "a", "--data-dir", "d/e"]);
    let output = run.assert().success().get_output().clone();
    let output = [output.stdout, output.stderr].concat();
    let output = String::from_utf8(output).unwrap();
    let run = Path::new("r").join("x").join("a");
    for path in [&run, &run.join("curves.svg")] {
        let path = path.display().to_string();
        assert!(output.contains(&path), "{path} is not in: {output}");
    }
    let recorded = record(&folder.path().join(&run));
    assert_eq!(recorded["data_dir"].as_str(), Some("d/e"));
}

#[test]
fn output_is_ascii_and_without_colours() {
    let folder = tempfile::tempdir().unwrap();
    let run = || tiny_run(folder.path(), 1);
    let mut commands = [
        run(),
        program("trainer"),
        program("trainer"),
        xtask("compare"),
    ];
    commands[1].args(["summary", "--model", "alexnet"]);
    commands[2].arg("--help");
    commands[3].arg("--help");
    for command in &mut commands {
        let output = command.assert().success().get_output().clone();
        for text in [output.stdout, output.stderr] {
            // No colours either, where the output is not a terminal.
            let legible = text.is_ascii() && !text.contains(&0x1b);
            assert!(legible, "{}", String::from_utf8_lossy(&text));
        }
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_reported_before_training() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let mut run = tiny_run(folder.path(), 1);
    let message = refused(
        run.args(["--run-dir", "file"]),
        1,
        &["cannot create the folder `file`"],
    );
    assert!(!message.contains("epoch"), "{message}");
}

#[test]
fn epochs_that_a_resumed_run_cannot_have_are_refused_and_nothing_changes() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = tiny_run(folder.path(), 2);
    run.args(["--run-dir", "r", "--name", "a"]);
    run.assert().success();
    let mut stopped = tiny_run(folder.path(), 9);
    stopped.args(["--run-dir", "r", "--name", "b"]);
    stopped.args(["--lr", "0", "--early-stopping", "1"]);
    stopped.assert().success();
    let mut part = tiny_run(folder.path(), 3);
    part.args(["--run-dir", "r", "--name", "c", "--stop-after", "2"]);
    part.assert().success();
    for (run, epochs, part) in [
        ("r/a", "1", "has trained for 2 epochs"),
        (
            "r/c",
            "2",
            "lacks the evaluation that follows the last epoch",
        ),
        ("r/b", "40", "early stopping ended the run"),
    ] {
        let files = || {
            let files = fs::read_dir(folder.path().join(run)).unwrap();
            // The lock has the process id of the latest process.
            let files = files.map(|file| file.unwrap().path());
            let files = files.filter(|path| !path.ends_with("lock"));
            let contents = files.map(|path| (path.clone(), fs::read(path).unwrap()));
            contents.collect::<BTreeMap<_, _>>()
        };
        let before = files();
        let mut resume = program("trainer");
        resume.current_dir(folder.path());
        resume.args(["--resume", run, "--epochs", epochs]);
        refused(&mut resume, 2, &[part]);
        assert!(files() == before, "{run}");
    }
}

#[test]
fn a_run_that_is_made_longer_within_its_warm_up_is_a_longer_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, epochs| {
        let mut run = tiny_run(folder.path(), epochs);
        run.args(["--run-dir", "r", "--name", name, "--lr-warmup-epochs", "5"]);
        run.assert().success();
    };
    run("long", 4);
    run("short", 2);
    let mut longer = program("trainer");
    longer.current_dir(folder.path());
    longer.args(["--resume", "r/short", "--epochs", "4"]);
    longer.assert().success();
    let [long, short] = ["r/long", "r/short"].map(|run| state(&folder.path().join(run)));
    assert!(long == short);
}

#[test]
fn a_run_keeps_its_precision_when_it_is_resumed_or_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = tiny_run(folder.path(), 1);
    run.args(["--run-dir", "r", "--name", "a"]);
    run.assert().success();
    let command = |arguments: &[&str]| {
        let mut command = program("trainer");
        command.current_dir(folder.path()).args(arguments);
        command
    };
    let resume =
        |precision| command(&["--resume", "r/a", "--epochs", "2", "--precision", precision]);
    // The default, which nobody asked for.
    refused(
        &mut resume("bf16"),
        2,
        &["precision = \"f32\", not \"bf16\""],
    );
    resume("f32").assert().success();
    // A record of a GPU with another default.
    let path = folder.path().join("r/a/run.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("evaluation_batch"), "{text}");
    let changed = text.replace("precision = \"f32\"", "precision = \"tf32\"");
    fs::write(&path, changed).unwrap();
    let refusal = [
        "the run computes in tf32",
        "the CPU computes in f32 or bf16",
    ];
    refused(&mut command(&["--resume", "r/a"]), 2, &refusal);
    let repeat = ["--config", "r/a/run.toml", "--run-dir", "r", "--name", "b"];
    refused(&mut command(&repeat), 2, &refusal);
    refused(xtask("verify").arg(path.parent().unwrap()), 2, &refusal);
    let other = [&repeat[..], &["--precision", "bf16"]].concat();
    command(&other).assert().success();
    let record = record(&folder.path().join("r/b"));
    assert_eq!(record["made_by"]["precision"].as_str(), Some("bf16"));
}

#[test]
fn threads_are_a_setting_of_a_run_only_where_they_were_given() {
    let folder = tempfile::tempdir().unwrap();
    for (name, flags) in [("a", &[] as &[&str]), ("b", &["--threads", "1"])] {
        let mut run = tiny_run(folder.path(), 1);
        run.args(["--run-dir", "r", "--name", name]).args(flags);
        run.assert().success();
        let recorded = record(&folder.path().join("r").join(name));
        assert_eq!(recorded.contains_key("threads"), !flags.is_empty());
    }
    // Earlier versions, which recorded no sessions, recorded the cores of the machine as well.
    let path = folder.path().join("r/a/run.toml");
    let text = fs::read_to_string(&path).unwrap();
    let (text, _) = text.split_once("[[made_by.sessions]]").unwrap();
    fs::write(&path, format!("threads = 1025\n{text}")).unwrap();
    let mut resume = program("trainer");
    resume.current_dir(folder.path());
    resume
        .args(["--resume", "r/a", "--epochs", "2"])
        .assert()
        .success();
}

#[test]
fn metrics_grow_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = tiny_run(folder.path(), 3);
    run.args(["--run-dir", "r", "--name", "a", "--stop-after", "1"]);
    run.assert().success();
    let path = folder.path().join("r/a/metrics.jsonl");
    // A part of a line, which a crash left.
    let mut text = fs::read_to_string(&path).unwrap();
    text += "{\"epoch\":2,\"train_lo";
    fs::write(&path, &text).unwrap();
    let mut resume = program("trainer");
    resume.current_dir(folder.path()).args(["--resume", "r/a"]);
    resume.assert().success();
    assert_eq!(metrics(&folder.path().join("r/a")).len(), 3);
}

/// Training under a limit on the address space, which stands for the memory of a machine.
#[cfg(target_os = "linux")]
#[test]
fn a_batch_that_does_not_fit_into_the_memory_is_refused_with_one_that_does() {
    let folder = tempfile::tempdir().unwrap();
    let within = |kibibytes: u32| {
        let mut shell = assert_cmd::Command::new("sh");
        let script = format!("ulimit -v {kibibytes}; exec \"$@\"");
        shell.args(["-c", &script, "sh"]).arg(path("trainer"));
        shell
    };
    let limited = |batch_size: usize| {
        let size = batch_size.to_string();
        let mut shell = within(800_000);
        shell.args(["--model", "small-alexnet"]);
        shell.args(["--dataset", "synthetic", "--limit-test", "10"]);
        shell.args(["--limit-train", &size, "--batch-size", &size]);
        shell
            .args(["--threads", "1", "--epochs", "1", "--run-dir"])
            .arg(folder.path());
        shell
    };
    let message = refused(
        &mut limited(1000),
        2,
        &["training with batches of 1000 images takes"],
    );
    let (_, fits) = message.trim().rsplit_once(' ').unwrap();
    let fits: usize = fits.parse().unwrap();
    assert!(fits > 100, "{message}");
    limited(fits).assert().success();

    // What is read needs memory as well.
    let mut eval = within(200_000);
    eval.args([
        "eval",
        "--threads",
        "1",
        "--dataset",
        "synthetic",
        "--checkpoint",
    ]);
    eval.arg(
        folder
            .path()
            .join("small-alexnet-synthetic-reference-seed0/last.safetensors"),
    );
    refused(&mut eval, 1, &["to read `", "MiB of memory are needed"]);
    let mut images = within(200_000);
    images.args([
        "--model",
        "lenet",
        "--dataset",
        "synthetic",
        "--limit-train",
        "50000",
    ]);
    images
        .args(["--threads", "1", "--run-dir"])
        .arg(folder.path());
    refused(
        &mut images,
        1,
        &["to load the images", "MiB of memory are needed"],
    );
}
