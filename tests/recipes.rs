//! The settings of recipes, and searches for good ones.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in helpers of the tests.

use assert_cmd::Command;
use end_to_end::{program, refused, short_run, xtask};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Every setting that the reference recipe switches off.
const EVERYTHING: [&str; 34] = [
    "--epochs",
    "3",
    "--lr-scheduler",
    "one-cycle",
    "--lr-warmup-epochs",
    "0.5",
    "--lr-warmup-start-factor",
    "0.1",
    "--weight-init",
    "kaiming",
    "--nesterov",
    "true",
    "--weight-decay-on",
    "weights",
    "--clip-grad-norm",
    "1",
    "--label-smoothing",
    "0.1",
    "--model-ema-decay",
    "0.75",
    "--dropout-warmup-epochs",
    "2",
    "--padding-mode",
    "reflect",
    "--flip",
    "alternating",
    "--cutout",
    "8",
    "--validation",
    "2",
    "--limit-train",
    "14",
    "--checkpoint-minutes",
    "10",
];

/// Weights, momentum buffers and EMA by file and tensor.
fn state(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(run).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with(".safetensors") || name.starts_with("predictions") {
            continue;
        }
        let bytes = fs::read(&file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        for (tensor, view) in tensors.tensors() {
            all.insert(format!("{name} {tensor}"), view.data().to_vec());
        }
    }
    all
}

/// The lines of a run's metrics without times.
fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut epoch: serde_json::Value = serde_json::from_str(line).unwrap();
        let keys = epoch.as_object_mut().unwrap();
        keys.remove("seconds").unwrap();
        keys.remove("images_per_second").unwrap();
        epoch
    });
    lines.collect()
}

fn printed(command: &mut Command) -> String {
    let output = command.assert().success().get_output().stdout.clone();
    String::from_utf8(output).unwrap()
}

/// [`short_run`] with flags of its own; `--limit-train` may be given again.
fn run(runs: &Path, name: &str, flags: &[&str]) -> Command {
    let mut command = program("trainer");
    command.args(["--model", "small-alexnet", "--dataset", "synthetic"]);
    command.args(["--limit-test", "10", "--batch-size", "6"]);
    command.arg("--run-dir").arg(runs).args(["--name", name]);
    command.args(flags);
    command
}

#[test]
fn a_run_with_every_setting_is_the_same_after_interruptions() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path();
    run(runs, "whole", &EVERYTHING)
        .args(["--threads", "1"])
        .assert()
        .success();
    let whole = metrics(&runs.join("whole"));
    assert_eq!(whole.len(), 3);
    // The keys of metrics on held-out images do not have `test`.
    for key in [
        "validation_loss",
        "validation_accuracy",
        "model_ema_validation_loss",
        "model_ema_validation_accuracy",
    ] {
        assert!(whole[0].get(key).is_some(), "{key} is not in {}", whole[0]);
    }
    assert!(!whole[0].to_string().contains("test_"), "{}", whole[0]);
    assert!(whole[1].get("tta_validation_accuracy").is_none());
    assert!(whole[2].get("tta_validation_accuracy").is_some());
    // The warm-up starts at a tenth of the reference recipe's 0.01, and the learning rate falls after it.
    let lrs: Vec<f64> = whole
        .iter()
        .map(|epoch| epoch["learning_rate"].as_f64().unwrap())
        .collect();
    assert!(
        lrs[0] == 0.001 && lrs[1] < 0.01 && lrs[1] > lrs[2],
        "{lrs:?}"
    );

    // Stopped before the first step and after each epoch, it writes a checkpoint and exits with 0.
    run(runs, "parts", &EVERYTHING)
        .args(["--threads", "3", "--max-time", "0s"])
        .assert()
        .success();
    let parts = runs.join("parts");
    for stop in ["1", "1", "2", "3"] {
        let mut resume = program("trainer");
        resume.arg("--resume").arg(&parts);
        resume.args(["--stop-after", stop]).assert().success();
    }
    assert_eq!(metrics(&parts), whole);
    let (found, expected) = (state(&parts), state(&runs.join("whole")));
    assert!(expected.keys().any(|name| name.starts_with("ema-3-0")));
    assert!(found == expected, "the weights differ");

    // The learning rates of three epochs are not those of four.
    let mut longer = program("trainer");
    longer.arg("--resume").arg(&parts).args(["--epochs", "4"]);
    refused(
        &mut longer,
        2,
        &["--epochs 4", "depends on its number of epochs, which is 3"],
    );

    // The first epoch alone has the same weights, since its learning rates remain those of three epochs.
    let said = printed(xtask("verify").arg(&parts).args(["--epochs", "1"]));
    assert!(said.contains("the same: the weights"), "{said}");

    // A checkpoint without its EMA cannot be resumed.
    for entry in fs::read_dir(&parts).unwrap() {
        let file = entry.unwrap().path();
        if file
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("ema-")
        {
            fs::remove_file(file).unwrap();
        }
    }
    let mut resume = program("trainer");
    refused(
        resume.arg("--resume").arg(&parts),
        1,
        &["ema-3-0.safetensors"],
    );
}

#[test]
fn ema_and_test_time_augmentation_are_evaluated_as_in_training() {
    let folder = tempfile::tempdir().unwrap();
    short_run(folder.path(), "a")
        .args(["--epochs", "1", "--model-ema-decay", "0.5"])
        .assert()
        .success();
    let run = folder.path().join("a");
    let last = &metrics(&run)[0];
    let eval = |file: &str, flags: &[&str]| -> serde_json::Value {
        let mut command = program("trainer");
        command.args([
            "eval",
            "--dataset",
            "synthetic",
            "--limit-test",
            "10",
            "--json",
        ]);
        command.arg("--checkpoint").arg(run.join(file)).args(flags);
        serde_json::from_str(&printed(&mut command)).unwrap()
    };
    let ema = eval("ema-1-0.safetensors", &[]);
    assert_eq!(ema["loss"], last["model_ema_test_loss"]);
    assert_eq!(ema["accuracy"], last["model_ema_test_accuracy"]);
    assert_ne!(ema["loss"], last["test_loss"]);
    let tta = eval("last.safetensors", &["--tta"]);
    assert_eq!(tta["accuracy"], last["tta_test_accuracy"]);
    assert_ne!(tta["loss"], last["test_loss"]);
}

#[test]
fn a_run_that_learns_nothing_stops_early() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = short_run(folder.path(), "a");
    command.args(["--epochs", "9", "--lr", "0", "--early-stopping", "2"]);
    let said = printed(&mut command);
    assert!(
        said.contains("stopped early: no lower test loss in 2 epochs"),
        "{said}"
    );
    let epochs = metrics(&folder.path().join("a"));
    // The first epoch has the lowest loss, and two more may improve it.
    assert_eq!(epochs.len(), 3);
    assert_eq!(epochs[2]["stopped_early"], true);
    assert!(epochs[1].get("stopped_early").is_none());
    // The run is finished: it does not resume.
    let mut again = program("trainer");
    again.arg("--resume").arg(folder.path().join("a"));
    printed(&mut again);
    assert_eq!(metrics(&folder.path().join("a")).len(), 3);
    let report = run::Run::read(&folder.path().join("a")).unwrap();
    assert!(report.finished() && report.predictions.is_some());
}

#[test]
fn a_few_batches_are_memorised() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program("trainer");
    command.args([
        "--model",
        "small-alexnet",
        "--dataset",
        "synthetic",
        "--batch-size",
        "4",
    ]);
    command.args([
        "--overfit-batches",
        "3",
        "--epochs",
        "12",
        "--augment",
        "none",
        "--dropout",
        "0",
    ]);
    command.args([
        "--weight-init",
        "kaiming",
        "--lr-scheduler",
        "constant",
        "--lr",
        "0.005",
    ]);
    command.args(["--momentum", "0.5", "--name", "a", "--run-dir"]);
    command.arg(folder.path()).assert().success();
    let epochs = metrics(&folder.path().join("a"));
    assert_eq!(epochs[11]["validation_accuracy"], 1.0, "{}", epochs[11]);
    let record = fs::read_to_string(folder.path().join("a/run.toml")).unwrap();
    assert!(record.contains("train_images = 12\n"), "{record}");
    let mut too_many = run(
        folder.path(),
        "b",
        &["--limit-train", "10", "--overfit-batches", "2"],
    );
    refused(&mut too_many, 2, &["--overfit-batches 2", "only 10"]);
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (flags, parts) in [
        (
            &["--limit-train", "20", "--validation", "20"][..],
            &["--validation 20", "hold out"][..],
        ),
        (
            &["--validation", "5", "--overfit-batches", "1"],
            &["--validation", "--overfit-batches"],
        ),
        (&["--cutout", "33"], &["--cutout", "0 to 32"]),
        (
            &["--lr-scheduler", "linear"],
            &["--lr-scheduler", "one-cycle"],
        ),
        (&["--max-time", "soon"], &["--max-time", "90s"]),
    ] {
        refused(&mut run(folder.path(), "a", flags), 2, parts);
    }
    assert!(!folder.path().join("a").exists());
}

#[test]
fn a_fast_dev_run_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    let mut command = program("trainer");
    command.args([
        "--model",
        "small-alexnet",
        "--dataset",
        "synthetic",
        "--batch-size",
        "4",
    ]);
    command.arg("--run-dir").arg(&runs).arg("--fast-dev-run");
    let said = printed(&mut command);
    assert!(
        said.contains("epoch 1/1") && said.contains("everything works"),
        "{said}"
    );
    assert!(!said.contains("curves in"), "{said}");
    command.arg("--stop-with-stdin");
    let stopped = command.assert().code(130);
    let said = String::from_utf8_lossy(&stopped.get_output().stderr);
    assert!(said.contains("; nothing was kept"), "{said}");
    // What the real run would be refused for.
    for (flags, part) in [
        (["--validation", "60000"], "--validation 60000"),
        (["--limit-train", "3"], "batch"),
    ] {
        let mut refused_run = program("trainer");
        refused_run.args(["--model", "lenet", "--dataset", "synthetic"]);
        refused_run
            .args(["--batch-size", "4", "--fast-dev-run"])
            .args(flags);
        let message = refused(&mut refused_run, 2, &[part]);
        let mut real_run = program("trainer");
        real_run.args(["--model", "lenet", "--dataset", "synthetic"]);
        real_run
            .args(["--batch-size", "4", "--run-dir"])
            .arg(&runs)
            .args(flags);
        assert_eq!(refused(&mut real_run, 2, &[part]), message);
    }
    assert!(!runs.exists());
}

#[test]
fn a_dry_run_prints_the_recipe() {
    for recipe in ["reference", "best", "sprint"] {
        let mut command = program("trainer");
        command.args(["--model", "alexnet", "--recipe", recipe, "--dry-run"]);
        let settings: toml::Table = printed(&mut command).parse().unwrap();
        assert_eq!(settings["recipe"].as_str(), Some(recipe));
    }
}

#[test]
fn settings_that_an_older_record_lacks_have_the_defaults_and_not_those_of_the_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    let nesterov = |text: &str| {
        fs::write(
            &file,
            format!("model = \"lenet\"\nrecipe = \"best\"\n{text}"),
        )
        .unwrap();
        let mut command = program("trainer");
        command.arg("--config").arg(&file).arg("--dry-run");
        let settings: toml::Table = printed(&mut command).parse().unwrap();
        settings["nesterov"].as_bool()
    };
    assert_eq!(nesterov("[made_by]\nrecord_version = 1\n"), Some(false));
    assert_eq!(nesterov(""), Some(true));
}

#[test]
fn flags_without_effect_are_named() {
    let dry_run = |flags: &[&str]| {
        let mut command = program("trainer");
        command.args(["--model", "lenet", "--dry-run"]).args(flags);
        let output = command.assert().success().get_output().clone();
        String::from_utf8(output.stderr).unwrap()
    };
    for (flags, note) in [
        (
            &["--lr-final-factor", "0.5"][..],
            "--lr-final-factor has no effect with --lr-scheduler plateau",
        ),
        (
            &["--patience", "1", "--lr-scheduler", "cosine"],
            "--patience has no effect with --lr-scheduler cosine",
        ),
        (
            &["--cutout", "8", "--augment", "none"],
            "--cutout has no effect with --augment none",
        ),
        (
            &["--nesterov", "true", "--momentum", "0"],
            "--nesterov has no effect with --momentum 0",
        ),
        (
            &["--lr-warmup-start-factor", "0.5"],
            "--lr-warmup-start-factor has no effect with --lr-warmup-epochs 0",
        ),
        (
            &["--dropout", "0.1"],
            "--dropout has no effect with --model lenet",
        ),
        (
            &["--skip-unreadable"],
            "--skip-unreadable has no effect with --dataset cifar10",
        ),
        (
            &["--limit-test", "9", "--validation", "20"],
            "--limit-test has no effect with --validation",
        ),
        (
            &["--limit-test", "9", "--overfit-batches", "1"],
            "--limit-test has no effect with --overfit-batches",
        ),
    ] {
        assert_eq!(dry_run(flags).trim_end(), format!("note: {note}"));
    }
    // What a recipe sets is not named, nor a flag that asks for nothing.
    let flags = ["--cutout", "0", "--augment", "none"];
    assert_eq!(dry_run(&flags), "");
    let flags = ["--nesterov", "false", "--momentum", "0"];
    assert_eq!(dry_run(&flags), "");
    let flags = ["--recipe", "best", "--patience", "2", "--cutout", "4"];
    let said = dry_run(&flags);
    assert!(
        said.contains("--patience") && !said.contains("--cutout"),
        "{said}"
    );
    assert_eq!(dry_run(&["--patience", "2", "--cutout", "4"]), "");
    let flags = ["--model", "small-alexnet", "--dropout", "0.1"];
    let mut command = program("trainer");
    command.arg("--dry-run").args(flags);
    assert_eq!(command.assert().success().get_output().stderr, b"");
}

#[test]
fn flags_for_gpus_are_named_on_a_cpu() {
    for (flag, note) in [
        (&[][..], None),
        (&["--cudnn-benchmark"], Some("--cudnn-benchmark")),
        (&["--cuda-graphs", "false"], Some("--cuda-graphs false")),
    ] {
        let mut command = program("trainer");
        command.args(["--model", "lenet", "--dataset", "synthetic"]);
        command.args(["--limit-train", "8", "--limit-test", "8"]);
        command.args(["--batch-size", "4", "--fast-dev-run"]);
        command.args(["--device", "cpu"]).args(flag);
        let output = command.assert().success().get_output().clone();
        let said = String::from_utf8(output.stderr).unwrap();
        let notes: Vec<_> = said
            .lines()
            .filter(|line| line.contains("on a CPU"))
            .collect();
        let expected = note.map(|flag| format!("note: {flag} has no effect on a CPU"));
        assert_eq!(notes, Vec::from_iter(expected), "{said}");
    }
}

#[test]
fn a_recipe_that_a_file_leaves_without_effect_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    let trainer = |recipe: &str| {
        let mut command = program("trainer");
        command.args(["--model", "lenet", "--dry-run", "--recipe", recipe]);
        command
    };
    let all = printed(&mut trainer("reference"));
    let with_file = |recipe: &str| {
        let mut command = trainer(recipe);
        command.arg("--config").arg(&file);
        command
    };
    fs::write(&file, &all).unwrap();
    refused(
        &mut with_file("sprint"),
        2,
        &["--recipe sprint would have no effect", "settings.toml"],
    );
    assert_eq!(printed(&mut with_file("reference")), all);
    // Here the recipes differ in other settings than that of the file.
    fs::write(&file, "recipe = \"best\"\nlr = 0.5\n").unwrap();
    let said = printed(&mut with_file("sprint"));
    assert!(
        said.contains("epochs = 8") && said.contains("lr = 0.5"),
        "{said}"
    );
}

#[test]
fn lr_find_suggests_a_learning_rate() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program("trainer");
    command.args([
        "lr-find",
        "--model",
        "small-alexnet",
        "--dataset",
        "synthetic",
    ]);
    command.args(["--limit-train", "40", "--batch-size", "10", "--steps", "40"]);
    command.args([
        "--weight-init",
        "kaiming",
        "--min-lr",
        "1e-6",
        "--max-lr",
        "1",
    ]);
    let said = printed(command.arg("--out").arg(folder.path()));
    let found = fs::read_to_string(folder.path().join("lr-find.json")).unwrap();
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    let steps = found["steps"].as_array().unwrap();
    assert_eq!(steps[0]["learning_rate"], 1e-6);
    assert!(steps.len() > 12, "{steps:?}");
    let suggestion = found["suggestion"].as_f64().unwrap();
    assert!((1e-6..1.0).contains(&suggestion), "{suggestion}");
    assert!(
        said.contains(&format!("suggested learning rate: {suggestion:.2e}")),
        "{said}"
    );
    image::open(folder.path().join("lr-find.png")).unwrap();
    let mut wrong = program("trainer");
    wrong.args([
        "lr-find", "--model", "alexnet", "--min-lr", "1", "--max-lr", "0.1",
    ]);
    refused(&mut wrong, 2, &["--min-lr"]);
    for (flag, value, key) in [
        ("--epochs", "3", "--epochs"),
        ("--lr", "0.1", "--lr"),
        ("--lr-scheduler", "cosine", "--lr-scheduler"),
    ] {
        let mut wrong = program("trainer");
        wrong.args(["lr-find", "--model", "alexnet", flag, value]);
        refused(&mut wrong, 2, &[key, "--max-lr"]);
    }
}

#[test]
fn tune_finds_settings() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tune");
    let tune = |out: &Path, more: &[&str]| {
        let mut command = xtask("tune");
        command.args([
            "--dataset",
            "synthetic",
            "--limit-train",
            "24",
            "--validation",
            "4",
        ]);
        command.args([
            "--search",
            "lr=log:0.001..0.02",
            "--search",
            "flip=random,alternating",
        ]);
        command
            .args(["--trials", "3", "--halving", "2", "--epochs", "2"])
            .args(more);
        command.arg("--out").arg(out);
        command.args(["--", "--limit-test", "10", "--batch-size", "10"]);
        command
    };
    let plan = printed(&mut tune(&out, &["--dry-run"]));
    assert!(
        plan.contains("3 trials of small-alexnet for 1 epoch each; then the best 1/2 for 2 epochs"),
        "{plan}"
    );
    assert!(plan.contains("trial 2: flip = ") && !out.exists(), "{plan}");

    let said = printed(&mut tune(&out, &[]));
    let table = fs::read_to_string(out.join("tune.md")).unwrap();
    assert!(said.contains(&table), "{said}");
    assert_eq!(
        table.lines().filter(|line| line.contains(" % |")).count(),
        3,
        "{table}"
    );
    // Three trials for one epoch, and one of them for two.
    let runs = |epochs: &str| {
        let names = fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_str().unwrap().ends_with(epochs))
            .count()
    };
    assert_eq!((runs("-epochs1"), runs("-epochs2")), (3, 1));

    // Nothing is trained again, and in another folder the table is the same.
    assert!(printed(&mut tune(&out, &[])).contains(&table));
    let other = folder.path().join("other");
    printed(&mut tune(&other, &[]));
    assert_eq!(fs::read_to_string(other.join("tune.md")).unwrap(), table);

    // The command that is printed has all settings, but for the held-out images.
    let (_, command) = said.split_once("cargo run -p trainer -- ").unwrap();
    let mut train = program("trainer");
    train.args(command.split_whitespace()).arg("--dry-run");
    let settings: toml::Table = printed(&mut train).parse().unwrap();
    assert_eq!(settings["dataset"].as_str(), Some("synthetic"));
    assert_eq!(settings["limit_train"].as_integer(), Some(24));
    assert_eq!(settings["batch_size"].as_integer(), Some(10));
    assert!(!settings.contains_key("validation"));
    let best: toml::Table = fs::read_to_string(out.join("best.toml"))
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(settings["lr"], best["lr"]);

    for (search, parts) in [
        ("rate=0.1..0.2", &["`rate`", "lr, "][..]),
        (
            "dropout=0.5..0.1",
            &["dropout=0.5..0.1", "the smaller one first"],
        ),
        ("dropout=0.5..1.5", &["out of range"]),
    ] {
        let mut command = xtask("tune");
        command.args(["--trials", "8", "--search", search, "--out"]);
        refused(command.arg(folder.path().join("bad")), 2, parts);
    }
}
