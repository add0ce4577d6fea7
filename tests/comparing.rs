//! `cargo xtask compare`, `reproduce` and `verify`, and the reports. If there is a browser, it opens the page.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // Also in helpers of the tests.

use assert_cmd::Command;
use end_to_end::{kill_times, path, program, refused, xtask};
use std::collections::BTreeMap;
use std::env::consts::OS;
use std::fs;
use std::path::Path;
use std::process::{self, Stdio};
use std::thread;
use std::time::Instant;

/// The flags that these comparisons share: SmallAlexNet, two seeds, a few images.
const FEW: [&str; 12] = [
    "--models",
    "small-alexnet",
    "--seeds",
    "0,1",
    "--dataset",
    "synthetic",
    "--limit-train",
    "12",
    "--epochs",
    "2",
    "--device",
    "cpu",
];
const FEW_FLAGS: [&str; 5] = ["--", "--limit-test", "20", "--batch-size", "6"];

#[test]
fn comparisons_in_one_folder_take_turns() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let start = || {
        let mut command = process::Command::new(path("xtask"));
        command.args(["compare", "--trainer"]).arg(path("trainer"));
        command.args([
            "--models",
            "lenet",
            "--seeds",
            "0,1,2",
            "--dataset",
            "synthetic",
        ]);
        command.args([
            "--limit-train",
            "600",
            "--epochs",
            "1",
            "--device",
            "cpu",
            "--out",
        ]);
        command.arg(&out).args(FEW_FLAGS);
        command.stderr(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().unwrap()
    };
    let started = [start(), start()];
    let outputs = started.map(|child| child.wait_with_output().unwrap());
    let said = outputs
        .each_ref()
        .map(|output| String::from_utf8_lossy(&output.stderr));
    assert!(
        outputs.iter().all(|output| output.status.success()),
        "{said:?}"
    );
    let trained = said
        .iter()
        .filter(|said| said.contains("epoch 1/1"))
        .count();
    assert_eq!(trained, 1, "{said:?}");
    let waited = |said: &str| said.contains("another compare is running");
    assert!(said.iter().any(|said| waited(said)), "{said:?}");
}

#[test]
fn runs_of_other_settings_are_named_and_finished_ones_are_not_denied() {
    let folder = tempfile::tempdir().unwrap();
    let compare = |more: &[&str]| {
        let mut command = compare_lenet(folder.path());
        command
            .args(["--seeds", "0", "--batch-size", "6"])
            .args(more);
        command
    };
    let sprint = ["--recipe", "sprint", "--lr-warmup-epochs", "1"];
    let epochs = |epochs| [&sprint[..], &["--epochs", epochs]].concat();
    printed(&mut compare(&epochs("1")));
    // Its learning rates depend on the number of epochs.
    let parts = ["epochs = 1, not epochs = 2", "give another --out"];
    refused(&mut compare(&epochs("2")), 2, &parts);
    let parts = ["no run is finished of", "lenet-synthetic-reference-seed0"];
    refused(&mut compare(&["--report-only"]), 1, &parts);
}

#[test]
fn resumed_runs_have_the_flags_and_all_cores_and_a_stopped_one_is_not_reported() {
    let folder = tempfile::tempdir().unwrap();
    let compare = |more: &[&str]| {
        let mut command = compare_lenet(folder.path());
        command.args(["--epochs", "2", "--lr-final-factor", "0.5"]);
        command.args(more);
        command
    };
    // The settings after `--` are of the run, and are not given again where it is resumed.
    let flags = ["--", "--batch-size", "6", "--limit-test", "10"];
    let jobs = ["--seeds", "0", "--jobs", "64"];
    let stopped = [&jobs[..], &flags, &["--stop-after", "1"]].concat();
    let output = compare(&stopped).assert().code(130).get_output().clone();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("was stopped after 1 of 2 epochs") && said.contains("without --stop-after"),
        "{said}"
    );
    let two_seeds = [&["--seeds", "0,1"][..], &flags, &["--tensorboard"]].concat();
    let (_, said) = printed(&mut compare(&two_seeds));
    let notes = said.matches("note: --lr-final-factor has no effect");
    assert_eq!(notes.count(), 1, "{said}");
    let run = folder.path().join("lenet-synthetic-reference-seed0");
    let files = fs::read_dir(&run).unwrap();
    let mut names = files.map(|file| file.unwrap().file_name());
    assert!(names.any(|name| name.to_string_lossy().starts_with("events.out.tfevents")));
    let record = fs::read_to_string(run.join("run.toml")).unwrap();
    let record: toml::Table = record.parse().unwrap();
    let threads = |session: usize| record["made_by"]["sessions"][session]["threads"].as_integer();
    let cores = thread::available_parallelism().unwrap().get();
    let expected = [(cores / 64).max(1), cores].map(|threads| i64::try_from(threads).ok());
    assert_eq!([threads(0), threads(1)], expected);
}

#[test]
fn a_run_that_stopped_early_is_finished_when_its_checkpoint_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let compare = |more: &[&str]| {
        let mut command = compare_lenet(folder.path());
        command.args(["--lr", "0", "--early-stopping", "1", "--epochs", "9"]);
        command.args(["--seeds", "0"]);
        command.args(["--", "--batch-size", "6", "--limit-test", "10"]);
        command.args(more);
        command
    };
    let run = folder.path().join("lenet-synthetic-reference-seed0");
    let files = ["last.safetensors", "momentum-1-0.safetensors"].map(|name| run.join(name));
    compare(&["--stop-after", "1"]).assert().code(130);
    let after_one_epoch = files.each_ref().map(|file| fs::read(file).unwrap());
    printed(&mut compare(&[]));
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 2);
    // As after a kill before the last checkpoint was written.
    for (file, bytes) in files.iter().zip(after_one_epoch) {
        fs::write(file, bytes).unwrap();
    }
    let (_, progress) = printed(&mut compare(&[]));
    assert!(progress.contains("is resumed after epoch 1"), "{progress}");
    let (_, progress) = printed(&mut compare(&[]));
    assert!(
        progress.contains("1 of 1 runs are finished already"),
        "{progress}"
    );
}

#[test]
fn a_run_that_was_interrupted_within_an_epoch_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program("trainer");
    command.args(["--model", "lenet", "--dataset", "synthetic"]);
    command.args(["--limit-train", "12", "--limit-test", "10"]);
    command.args(["--batch-size", "6", "--epochs", "9", "--stop-after", "2"]);
    command
        .args(["--name", "a", "--run-dir"])
        .arg(folder.path());
    command.assert().success();
    // As if it had been interrupted in the evaluation after its second epoch.
    let run = folder.path().join("a");
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let first = metrics.lines().next().unwrap().to_owned() + "\n";
    fs::write(run.join("metrics.jsonl"), first).unwrap();
    let last = run.join("last.safetensors");
    let mut checkpoint = fs::read(&last).unwrap();
    let (now, before) = (r#"\"epoch\":2,\"step\":0"#, r#"\"epoch\":1,\"step\":2"#);
    let mut windows = checkpoint.windows(now.len());
    let place = windows.position(|bytes| bytes == now.as_bytes());
    let place = place.unwrap();
    checkpoint[place..place + now.len()].copy_from_slice(before.as_bytes());
    fs::write(&last, checkpoint).unwrap();
    let (said, _) = printed(xtask("verify").arg(&run));
    assert!(said.starts_with("the same:"), "{said}");
}

#[test]
fn one_command_reproduces_everything() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("reproduce");
    let mut command = xtask("reproduce");
    command.args(["--quick", "--seeds", "3", "--device", "cpu", "--out"]);
    let first = command.arg(&out).assert().success();
    let said = |output: &std::process::Output| {
        [&output.stdout, &output.stderr]
            .map(|text| String::from_utf8_lossy(text).into_owned())
            .concat()
    };
    assert_eq!(said(first.get_output()).matches("epoch 4/4").count(), 2);
    let report = fs::read_to_string(out.join("report.md")).unwrap();
    for part in [
        "# AlexNet and SmallAlexNet on the synthetic set",
        "2 runs of 4 epochs each",
    ] {
        assert!(report.contains(part), "{report}");
    }
    let again = command.assert().success();
    assert!(
        !said(again.get_output()).contains("epoch 1/"),
        "a finished run was trained again"
    );
}

/// A comparison of runs of LeNet on a few images.
fn compare_lenet(out: &Path) -> Command {
    let mut command = xtask("compare");
    command.args(["--models", "lenet", "--dataset", "synthetic"]);
    command.args(["--limit-train", "12", "--out"]).arg(out);
    command
}

fn compare(out: &Path, more: &[&str]) -> Command {
    let mut command = xtask("compare");
    command
        .args(FEW)
        .arg("--out")
        .arg(out)
        .args(more)
        .args(FEW_FLAGS);
    command
}

fn printed(command: &mut Command) -> (String, String) {
    let output = command.assert().success().get_output().clone();
    (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// Both reports without their blocks of times, and the curves.
fn reports(out: &Path) -> [String; 3] {
    let [markdown, html] = ["report.md", "report.html"].map(|name| {
        let text = fs::read_to_string(out.join(name)).unwrap();
        let (before, rest) = text.split_once(report::TIMES_BEGIN).unwrap();
        let (times, after) = rest.split_once(report::TIMES_END).unwrap();
        assert!(times.contains("Written on"), "{times}");
        format!("{before}{after}")
    });
    assert!(markdown.contains("](report.svg)"), "{markdown}");
    let curves = fs::read_to_string(out.join("report.svg")).unwrap();
    [markdown, html, curves]
}

#[test]
fn missing_runs_are_trained_and_all_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let (plan, _) = printed(&mut compare(&first, &["--dry-run"]));
    assert!(
        plan.contains("small-alexnet-synthetic-reference-seed1: to be trained, 2 epochs, about"),
        "{plan}"
    );
    assert!(plan.contains("in all about"), "{plan}");
    assert!(!first.exists());
    refused(&mut compare(&first, &["--report-only"]), 1, &[]);

    let (said, progress) = printed(&mut compare(&first, &[]));
    assert!(said.contains("report.html"), "{said}");
    assert!(
        progress.contains("seed0  epoch 2/2") && progress.contains("left for all"),
        "{progress}"
    );
    for part in [
        "the post: SmallAlexNet",
        "83.16 %",
        "31 min",
        "GTX 1070 Ti",
        "12,417,098",
        "95 % confidence interval",
        "Accuracy per class",
        "The most confident mistakes",
        "conv_layer3.4",
        "SHA-256 of the data",
    ] {
        for name in ["report.md", "report.html"] {
            let text = fs::read_to_string(first.join(name)).unwrap();
            assert!(
                text.replace('\u{a0}', " ").contains(part),
                "{part} is not in {name}"
            );
        }
    }

    // Nothing is trained twice.
    let weights = first.join("small-alexnet-synthetic-reference-seed1/last.safetensors");
    let modified = fs::metadata(&weights).unwrap().modified().unwrap();
    let (_, progress) = printed(&mut compare(&first, &[]));
    assert!(
        progress.contains("2 of 2 runs are finished already") && !progress.contains("epoch"),
        "{progress}"
    );
    assert_eq!(
        modified,
        fs::metadata(&weights).unwrap().modified().unwrap()
    );
    let (plan, _) = printed(&mut compare(&first, &["--dry-run"]));
    assert!(plan.contains("seed1: finished"), "{plan}");

    // In another folder the report is the same.
    printed(&mut compare(&second, &[]));
    assert_eq!(reports(&first), reports(&second));
    let before = fs::read_to_string(second.join("report.md")).unwrap();
    fs::remove_file(second.join("report.md")).unwrap();
    printed(&mut compare(&second, &["--report-only"]));
    assert_eq!(
        before.len(),
        fs::read_to_string(second.join("report.md")).unwrap().len()
    );

    // Other settings are refused.
    let mut other = xtask("compare");
    other.args(FEW).arg("--out").arg(&first).args([
        "--",
        "--limit-test",
        "20",
        "--batch-size",
        "4",
    ]);
    refused(
        &mut other,
        2,
        &["batch_size = 6", "batch_size = 4", "--out"],
    );

    // The accuracy is that of the predictions.
    let run = run::Run::read(&first.join("small-alexnet-synthetic-reference-seed1")).unwrap();
    let confusion = run.predictions.as_ref().unwrap().confusion();
    let correct: u64 = (0..10).map(|class| confusion[11 * class]).sum();
    let all: u64 = confusion.iter().sum();
    assert_eq!(correct as f64 / all as f64, run.last().evaluated.accuracy);

    verified(&first.join("small-alexnet-synthetic-reference-seed1"));
    opened(&first.join("report.html"));
}

/// `verify` on a run, and on the same run with a changed digest.
fn verified(run: &Path) {
    let (said, _) = printed(xtask("verify").arg(run));
    assert!(
        said.contains("the same: the weights after each of 2 epochs are equal, bit for bit"),
        "{said}"
    );
    let (said, notes) = printed(
        xtask("verify")
            .arg(run)
            .args(["--epochs", "1", "--threads", "1"]),
    );
    assert!(
        said.contains("the weights after epoch 1 are equal"),
        "{said}"
    );
    // The repetition is not kept.
    assert!(!notes.contains("resume with"), "{notes}");
    refused(
        xtask("verify").arg(run).args(["--epochs", "3"]),
        2,
        &["has 2 epochs"],
    );

    let metrics = run.join("metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    let mut lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    lines[1]["weights_sha256"] = "0".repeat(64).into();
    let changed: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(&metrics, changed).unwrap();
    let record = run.join("run.toml");
    let recorded = fs::read_to_string(&record).unwrap();
    let elsewhere = recorded.replace(&format!("os = \"{OS}\""), "os = \"plan9\"");
    fs::write(&record, elsewhere).unwrap();
    let output = xtask("verify")
        .arg(run)
        .assert()
        .code(1)
        .get_output()
        .clone();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("not the same: from epoch 2 on")
            && said.contains("0 of 12417098 weights differ"),
        "{said}"
    );
    // What was not the same around it comes first.
    let conditions = format!("the conditions differ: operating system plan9, now {OS}\n");
    assert!(said.contains(&conditions), "{said}");
    fs::write(&metrics, text).unwrap();
    fs::write(&record, recorded).unwrap();
}

/// The page refers to nothing outside it. In a browser it prints nothing to the console and requests nothing.
fn opened(page: &Path) {
    let text = fs::read_to_string(page).unwrap();
    for outside in [
        "http:", "https:", "//", "<script", "@import", "url(", "<iframe",
    ] {
        let position = text.find(outside);
        // base64 may contain two slashes.
        let position = position.filter(|position| {
            !text[..*position].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '+')
        });
        assert!(
            position.is_none(),
            "`{outside}` is in the page: {}",
            &text[position.unwrap()..][..80]
        );
    }
    let browsers = ["chromium", "chromium-browser", "google-chrome"];
    let there = |name: &&&str| {
        process::Command::new(name)
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let Some(browser) = browsers.iter().find(there) else {
        eprintln!("skipped: no browser to open the page in");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let open = |page: &Path, log: &Path| {
        let mut command = process::Command::new(browser);
        command.args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
        ]);
        command.args([
            "--disable-component-update",
            "--no-first-run",
            "--enable-logging=stderr",
            "--v=0",
            "--dump-dom",
        ]);
        command.arg(format!(
            "--user-data-dir={}",
            folder.path().join("profile").display()
        ));
        command
            .arg(format!("--log-net-log={}", log.display()))
            .arg(format!("file://{}", page.display()));
        let output = command.output().unwrap();
        let document = String::from_utf8_lossy(&output.stdout).into_owned();
        let console = String::from_utf8_lossy(&output.stderr)
            .lines()
            .filter(|line| line.contains("CONSOLE"))
            .count();
        let log: String = fs::read_to_string(log).unwrap_or_default();
        // The browser contacts its own services; only a page asks for this host.
        (document, console, log.matches("nowhere.invalid").count())
    };
    let (document, console, _) = open(page, &folder.path().join("page.json"));
    assert!(
        document.contains("Settings and versions") && document.contains("</html>"),
        "{document}"
    );
    assert_eq!(console, 0);
    // The check finds a page that does both.
    let bad = folder.path().join("bad.html");
    fs::write(&bad, "<html><body><img src='http://nowhere.invalid/a.png'><script>console.error('bad')</script></body></html>").unwrap();
    let (_, console, requests) = open(&bad, &folder.path().join("bad.json"));
    assert!(console > 0 && requests > 0, "{console} {requests}");
    let log = fs::read_to_string(folder.path().join("page.json")).unwrap_or_default();
    assert!(
        log.contains("constants"),
        "the browser kept no log of the network"
    );
    let urls: Vec<_> = log
        .split("\"url\":\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    // Files, images inside the page, and files that the browser needs, such as dictionaries.
    let expected = [
        "file:",
        "data:",
        "chrome:",
        "chrome-extension:",
        "devtools:",
    ];
    let of_the_browser = ["google", "gvt1.com", "gstatic.com"];
    let foreign: Vec<_> = urls
        .iter()
        .filter(|url| {
            !expected.iter().any(|scheme| url.starts_with(scheme))
                && !of_the_browser.iter().any(|host| url.contains(host))
        })
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}

#[test]
fn the_report_is_the_same_after_kills_at_any_time() {
    let folder = tempfile::tempdir().unwrap();
    let [uninterrupted, killed] = ["uninterrupted", "killed"].map(|name| folder.path().join(name));
    let started = Instant::now();
    printed(&mut compare(&uninterrupted, &["--jobs", "2"]));
    let duration = started.elapsed();
    let start = || {
        let mut command = process::Command::new(path("xtask"));
        command
            .arg("compare")
            .arg("--trainer")
            .arg(path("trainer"))
            .args(FEW)
            .arg("--out")
            .arg(&killed)
            .args(["--jobs", "2"])
            .args(FEW_FLAGS);
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut kills = 0;
    for time in kill_times(duration / 2).take(8) {
        let mut child = start();
        thread::sleep(time);
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
    }
    assert!(kills > 0);
    printed(&mut compare(&killed, &["--jobs", "2"]));
    assert_eq!(
        reports(&uninterrupted),
        reports(&killed),
        "after {kills} kills"
    );
}

#[test]
fn a_failed_run_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let arguments = [
        "--models",
        "small-alexnet",
        "--dataset",
        "synthetic",
        "--limit-train",
        "12",
        "--device",
        "cpu",
    ];
    let run = |seeds: &str, epochs: &str| {
        let mut command = xtask("compare");
        command
            .args(arguments)
            .args(["--seeds", seeds, "--epochs", epochs])
            .arg("--out")
            .arg(&out)
            .args(FEW_FLAGS);
        command
    };
    run("0", "1").assert().success();
    // Its checkpoint is damaged, and two epochs are asked for.
    let checkpoint = out.join("small-alexnet-synthetic-reference-seed0/last.safetensors");
    fs::write(&checkpoint, "damaged").unwrap();
    let output = run("0,1", "2").assert().code(1).get_output().clone();
    let said = String::from_utf8(output.stderr).unwrap();
    for part in [
        "small-alexnet-synthetic-reference-seed0 failed",
        "last.safetensors",
        "the end of",
        "epoch finished",
        "seed1  epoch 2/2",
        "not in the report",
    ] {
        assert!(said.contains(part), "`{part}` is not in {said}");
    }
    let report = fs::read_to_string(out.join("report.md")).unwrap();
    assert!(
        report.contains("small-alexnet-synthetic-reference-seed1") && !report.contains("seed0"),
        "{report}"
    );
}

#[test]
fn runs_that_cannot_be_compared_are_refused() {
    let runs = tempfile::tempdir().unwrap();
    let runs = runs.path();
    for (name, more) in [
        ("a", ["--seed", "0"]),
        ("b", ["--seed", "0"]),
        ("c", ["--seed", "1"]),
        ("d", ["--limit-train", "18"]),
    ] {
        let mut arguments: BTreeMap<&str, &str> = [
            ("--model", "small-alexnet"),
            ("--dataset", "synthetic"),
            ("--limit-train", "12"),
            ("--limit-test", "10"),
            ("--batch-size", "6"),
        ]
        .into();
        arguments.insert(more[0], more[1]);
        let mut command = program("trainer");
        command
            .args(arguments.iter().flat_map(|(flag, value)| [*flag, *value]))
            .args(["--epochs", "1", "--name", name, "--run-dir"]);
        command.arg(runs).assert().success();
    }
    let out = runs.join("report");
    let report = |names: &[&str]| {
        let mut command = program("trainer");
        command
            .arg("report")
            .arg("--run-dir")
            .arg(runs)
            .arg("--out")
            .arg(&out)
            .args(names);
        command
    };
    refused(&mut report(&["a", "b"]), 1, &["`a`", "`b`", "same seed 0"]);
    refused(&mut report(&["a", "a"]), 1, &["same seed 0"]);
    refused(
        &mut report(&["a", "d"]),
        1,
        &["cannot be compared", "12 training", "18 training"],
    );
    refused(&mut report(&["a", "none"]), 2, &["none", "run.toml"]);
    refused(&mut report(&[]), 2, &["RUN"]);
    fs::create_dir(runs.join("empty")).unwrap();
    refused(&mut report(&["empty"]), 2, &["there is no run"]);
    let record = fs::read_to_string(runs.join("a/run.toml")).unwrap();
    fs::write(runs.join("empty/run.toml"), &record).unwrap();
    refused(
        &mut report(&["empty"]),
        1,
        &["no finished epoch", "--resume"],
    );
    let later = record.replace("record_version = 1", "record_version = 2");
    assert_ne!(later, record);
    fs::write(runs.join("b/run.toml"), later).unwrap();
    refused(&mut report(&["b"]), 1, &["version 2", "up to 1"]);
    refused(
        program("trainer").arg("--resume").arg(runs.join("b")),
        2,
        &["version 2"],
    );
    fs::write(runs.join("b/run.toml"), "model = ").unwrap();
    refused(&mut report(&["b"]), 1, &["run.toml", "line 1"]);
    let metrics = runs.join("c/metrics.jsonl");
    fs::write(&metrics, "{}\n").unwrap();
    refused(&mut report(&["c"]), 1, &["metrics.jsonl", "line 1"]);
    assert!(!out.exists());
    report(&["a"]).assert().success();
    assert!(out.join("report.html").exists());

    for (flag, value) in [
        ("--seeds", "0,0"),
        ("--models", "alexnet,alexnet"),
        ("--recipe", "reference,reference"),
    ] {
        refused(xtask("compare").args([flag, value]), 2, &[flag, "twice"]);
    }
    refused(
        xtask("compare").args(["--models", "resnet"]),
        2,
        &["resnet"],
    );
    refused(
        xtask("compare").args(["--recipe", "none"]),
        2,
        &["none", "reference"],
    );
    refused(
        xtask("verify").arg(runs.join("nothing")),
        2,
        &["there is no run"],
    );
    let mut missing = program("xtask");
    refused(
        missing.args(["compare", "--trainer", "missing-program"]),
        2,
        &["missing-program"],
    );
}
