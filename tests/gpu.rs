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

/// The arguments of a short run of the smallest network, which takes a second on the emulated GPU.
fn short() -> Vec<&'static str> {
    [&["--model", "lenet"], &SHORT[2..]].concat()
}

/// A short run on the GPU.
fn run(program: &Path, emulator: &Path, runs: &Path, name: &str) -> Command {
    let mut command = trainer(program, emulator);
    command
        .args(short())
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
    command.args(short()).args(["--device", "cuda:2"]);
    refused(&mut command, 2, &["--device cuda:2", "the machine has 1"]);
    assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 0);
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn gradient_shards_are_refused() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    let mut command = run(&program, &emulator, runs.path(), "a");
    command.args(["--gradient-shards", "2"]);
    refused(&mut command, 2, &["--gradient-shards 2", "--device cpu"]);
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
    command.args(short()).args(["--epochs", "1", "--run-dir"]);
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
    command.args(short()).args(["--epochs", "1", "--name", "a"]);
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
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn a_batch_that_does_not_fit_is_told_what_would() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    let train = |model: &str, batch_size: &str| {
        let mut command = trainer(&program, &emulator);
        command
            .env("CUDA_EMULATOR_MEMORY", "125000000")
            .args(["--model", model, "--dataset", "synthetic"])
            .args(["--device", "cuda", "--epochs", "1", "--log-level", "error"])
            .args(["--limit-train", "900", "--limit-test", "10"])
            .args(["--batch-size", batch_size, "--run-dir"])
            .arg(runs.path());
        command
    };
    let message = refused(&mut train("lenet", "900"), 1, &["a step of 900 images"]);
    // Before the first step: nothing is left behind.
    assert_eq!(fs::read_dir(runs.path()).unwrap().count(), 0);
    let (_, fits) = message.trim().split_once("use --batch-size ").unwrap();
    assert!(fits.parse::<usize>().unwrap() >= 200, "{message}");
    train("lenet", fits).assert().success();
    let mut command = train("small-alexnet", "1");
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

/// What the emulated GPU was called for: kernels, operations of the libraries, allocations, frees, copies and graphs.
fn calls(stderr: &[u8]) -> [usize; 6] {
    let text = String::from_utf8_lossy(stderr);
    let (_, counts) = text.split_once("emulated GPU: ").unwrap();
    let counts = counts.split(|c: char| !c.is_ascii_digit());
    let counts = counts.filter_map(|count| count.parse().ok());
    counts.collect::<Vec<_>>().try_into().unwrap()
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn steps_are_replayed_as_a_graph_with_the_same_bits() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    let train = |name: &str, images: &str, flags: [&str; 2], emulated| {
        let mut command = trainer(&program, &emulator);
        command.env("CUDA_EMULATOR_CALLS", "1");
        command.env("CUDA_EMULATOR_GRAPHS", emulated).args(flags);
        command.args([
            "--model",
            "small-alexnet",
            "--dataset",
            "synthetic",
            "--limit-train",
            images,
        ]);
        command.args([
            "--limit-test",
            "1",
            "--batch-size",
            "1",
            "--device",
            "cuda",
            "--epochs",
            "1",
        ]);
        command.args([
            "--clip-grad-norm",
            "0.1",
            "--model-ema-decay",
            "0.9",
            "--precision",
            "bf16",
        ]);
        command
            .arg("--run-dir")
            .arg(runs.path())
            .args(["--name", name]);
        let output = command.assert().success().get_output().clone();
        let metrics = fs::read_to_string(runs.path().join(name).join("metrics.jsonl")).unwrap();
        let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap();
        (calls(&output.stderr), metrics["weights_sha256"].clone())
    };
    let on = ["--cuda-graphs", "true"];
    let [(few, _), (more, replayed)] =
        [("few", "4"), ("more", "8")].map(|(name, images)| train(name, images, on, "1"));
    // Four more steps: a batch, the values of the step and a graph each.
    let step = few.iter().zip(more).map(|(few, more)| (more - few) / 4);
    assert_eq!(step.collect::<Vec<_>>(), [2, 0, 1, 1, 2, 1]);
    assert_eq!(more[5], 6);
    assert!(replayed.is_string());
    // Without graphs, and where they cannot be captured.
    let off = ["--cuda-graphs", "false"];
    for (name, flags, emulated) in [("off", off, "1"), ("none", on, "0")] {
        let (calls, computed) = train(name, "8", flags, emulated);
        assert_eq!(computed, replayed);
        assert_eq!(calls[5], 0);
    }
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn a_run_keeps_its_engines() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    let engines = |name: &str| made_by(&runs.path().join(name), "cudnn_engines").unwrap();
    let train = |name: &str, flags: &[&str]| {
        let mut command = run(&program, &emulator, runs.path(), name);
        command
            .args(["--precision", "tf32"])
            .args(flags)
            .assert()
            .success()
    };
    train("heuristics", &[]);
    let chosen = engines("heuristics");
    let chosen = chosen.as_table().unwrap();
    // Two convolutions; all passes but the gradient of the images, for batches of training and evaluation.
    assert!(chosen.len() > 6, "{chosen:?}");
    assert!(
        chosen
            .values()
            .all(|engine| engine.as_str() == Some("eng2")),
        "{chosen:?}"
    );
    train("benchmark", &["--cudnn-benchmark"]);
    assert_eq!(engines("benchmark").as_table().unwrap().len(), chosen.len());

    // Others that work are kept, and those that do not are replaced, with a warning.
    let record = runs.path().join("heuristics/run.toml");
    let text = fs::read_to_string(&record).unwrap();
    for (name, engine, kept) in [("plain", "eng3", true), ("failing", "eng0", false)] {
        let other = runs.path().join(format!("{name}.toml"));
        fs::write(&other, text.replace("\"eng2\"", &format!("\"{engine}\""))).unwrap();
        let mut command = trainer(&program, &emulator);
        command
            .arg("--config")
            .arg(&other)
            .arg("--run-dir")
            .arg(runs.path())
            .args(["--name", name]);
        let output = command.assert().success();
        let message = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
        assert_eq!(
            message.contains("that the run recorded do not work here"),
            !kept,
            "{message}"
        );
        let found = engines(name);
        let expected = if kept { engine } else { "eng2" };
        let found = found.as_table().unwrap();
        assert!(
            found
                .values()
                .all(|engine| engine.as_str() == Some(expected)),
            "{found:?}"
        );
    }
}

/// The value of a key in what made a run.
fn made_by(run: &Path, key: &str) -> Option<toml::Value> {
    let record = fs::read_to_string(run.join("run.toml")).unwrap();
    let record: toml::Table = record.parse().unwrap();
    record["made_by"].get(key).cloned()
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn a_run_keeps_its_precision() {
    let (program, emulator) = built();
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
                "compute capability 7.5 (bf16 takes 8.0)",
            ],
        ),
        (
            without(resume("tf32", &[])),
            [
                "the run computes in tf32",
                "compute capability 7.5 (tf32 takes 8.0)",
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
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn evaluations_take_batches_that_fit_and_keep_them() {
    let (program, emulator) = built();
    let runs = tempfile::tempdir().unwrap();
    let folder = runs.path().join("a");
    let with = |memory: &str| {
        let mut command = trainer(&program, &emulator);
        command.env("CUDA_EMULATOR_MEMORY", memory);
        command
    };
    let mut start = with("107000000");
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

    // An evaluation by itself, which takes what fits beside the libraries' workspace.
    let mut evaluate = with("40000000");
    evaluate.args([
        "eval",
        "--device",
        "cuda",
        "--dataset",
        "synthetic",
        "--limit-test",
        "300",
    ]);
    evaluate
        .arg("--checkpoint")
        .arg(folder.join("last.safetensors"));
    evaluate.assert().success();
}

#[test]
#[ignore = "needs CUDA_TRAINER and CUDA_EMULATOR"]
fn a_checkpoint_that_cannot_be_written_ends_the_run() {
    let (program, emulator) = built();
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
        "trap '' XFSZ; ulimit -f 200; exec '{}' --resume '{}' --epochs 4 --checkpoint-minutes 0",
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
