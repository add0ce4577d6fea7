//! The trainer built with the feature `mpi`, in several processes on this machine. `cargo xtask ci` builds it and says where
//! it is.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic)]

use end_to_end::{program, short_run, wait_until, xtask};
use run::{EpochMetrics, SplitMetrics, file, metrics};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

/// `mpirun` with this many processes of the trainer.
fn mpirun(processes: usize, options: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    command
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env_remove("RUST_BACKTRACE")
        .arg("--oversubscribe")
        .args(options)
        .args(["-n", &processes.to_string()])
        .arg(env::var_os("MPI_TRAINER").unwrap());
    command
}

/// A run with these settings, and epochs of a batch of 8 images and one of 3.
fn run(processes: usize, runs: &Path, name: &str, settings: &[&str]) -> Command {
    let mut command = mpirun(processes, &[]);
    command.args(RUN).args(settings);
    command.args(["--name", name]).arg("--run-dir").arg(runs);
    command
}

const RUN: [&str; 12] = [
    "--model",
    "lenet",
    "--dataset",
    "synthetic",
    "--limit-train",
    "11",
    "--limit-test",
    "300",
    "--batch-size",
    "8",
    "--threads",
    "1",
];

/// What a run computed: its metrics with the digests of the weights, without times.
fn computed(runs: &Path, name: &str) -> Vec<EpochMetrics> {
    let epochs = metrics::read(&runs.join(name).join(file::METRICS)).unwrap();
    let without_times = |epoch: EpochMetrics| EpochMetrics {
        seconds: 0.0,
        images_per_second: 0.0,
        // A run that was stopped early has one more.
        evaluated: SplitMetrics {
            tta_accuracy: None,
            ..epoch.evaluated
        },
        ..epoch
    };
    let epochs: Vec<_> = epochs.into_iter().map(without_times).collect();
    assert!(epochs.iter().all(|epoch| epoch.weights_sha256.is_some()));
    epochs
}

/// Runs a command that must succeed.
fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    output
}

/// Starts a run that takes longer than the test, with a checkpoint after every step.
fn long_run(runs: &Path, name: &str, options: &[&str]) -> Child {
    let mut command = mpirun(2, options);
    command.args(RUN).args(["--checkpoint-minutes", "0"]);
    command.args(["--epochs", "100000", "--name", name]);
    command.arg("--run-dir").arg(runs);
    let streams = command.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = streams.process_group(0).spawn().unwrap();
    let metrics = runs.join(name).join(file::METRICS);
    wait_until("the end of an epoch", || metrics.exists());
    child
}

fn signal(process: u32, signal: &str) {
    let status = Command::new("kill")
        .args([signal, &process.to_string()])
        .status();
    assert!(status.unwrap().success());
}

/// The processes that `mpirun` started.
fn children(mpirun: &Child) -> Vec<u32> {
    let id = mpirun.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let ids = children.split_whitespace().map(str::parse);
    ids.collect::<Result<_, _>>().unwrap()
}

/// Resumes a run for `epochs` epochs, in this many processes.
fn resume(processes: usize, runs: &Path, name: &str, epochs: &str) {
    let mut command = mpirun(processes, &[]);
    command.args(["--resume", name, "--epochs", epochs, "--run-dir"]);
    succeeds(command.arg(runs));
}

#[test]
#[ignore = "needs MPI_TRAINER"]
fn one_two_and_four_processes_have_the_bits_of_one_without_mpi() {
    for precision in ["f32", "bf16"] {
        let settings = &["--epochs", "2", "--precision", precision];
        let folder = tempfile::tempdir().unwrap();
        let runs = folder.path();
        let mut alone = program("trainer");
        alone.args(RUN).args(settings);
        alone.args(["--gradient-shards", "8", "--name", "alone"]);
        alone.arg("--run-dir").arg(runs).assert().success();
        let expected = computed(runs, "alone");
        for processes in [1, 2, 4] {
            let name = format!("in-{processes}");
            let output = succeeds(&mut run(processes, runs, &name, settings));
            // The main process alone prints.
            let lines = String::from_utf8(output.stdout).unwrap();
            assert_eq!(lines.lines().count(), 3, "{lines}");
            assert_eq!(computed(runs, &name), expected, "{processes} processes");
        }
        // On one machine, in one process.
        let mut verify = xtask("verify");
        verify.arg(runs.join("in-4")).assert().success();
    }
}

#[test]
#[ignore = "needs MPI_TRAINER"]
fn a_run_stops_everywhere_and_resumes_in_any_number_of_processes() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path();
    // `mpirun` waits as long before SIGTERM as after it.
    let mut stopped = long_run(runs, "a", &["--mca", "odls_base_sigkill_timeout", "3"]);
    signal(stopped.id(), "-TERM");
    stopped.wait().unwrap();
    let done = metrics::read(&runs.join("a").join(file::METRICS))
        .unwrap()
        .len();
    let log = fs::read_to_string(runs.join("a").join(file::LOG)).unwrap();
    assert!(log.contains("interrupted"), "{log}");
    resume(4, runs, "a", &(done + 1).to_string());
    let mut alone = program("trainer");
    alone.args(["--resume", "a", "--epochs", &(done + 2).to_string()]);
    alone.arg("--run-dir").arg(runs).assert().success();

    let epochs = (done + 2).to_string();
    succeeds(&mut run(2, runs, "b", &["--epochs", &epochs]));
    let (found, expected) = (computed(runs, "a"), computed(runs, "b"));
    assert_eq!(found[..done + 2], expected[..done + 2]);
}

#[test]
#[ignore = "needs MPI_TRAINER"]
fn a_signal_to_one_process_stops_all() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path();
    let mut run = long_run(runs, "a", &[]);
    signal(children(&run)[1], "-TERM");
    assert_eq!(run.wait().unwrap().code(), Some(130));
    let log = fs::read_to_string(runs.join("a").join(file::LOG)).unwrap();
    assert!(log.contains("interrupted"), "{log}");
}

#[test]
#[ignore = "needs MPI_TRAINER"]
fn a_killed_process_ends_the_others_and_leaves_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path();
    for (rank, name) in ["main", "other"].into_iter().enumerate() {
        let mut run = long_run(runs, name, &[]);
        let processes = children(&run);
        assert_eq!(processes.len(), 2);
        signal(processes[rank], "-KILL");
        let killed = Instant::now();
        let status = run.wait().unwrap();
        assert!(!status.success());
        assert!(
            killed.elapsed() < Duration::from_secs(20),
            "{:?}",
            killed.elapsed()
        );
        let left = |process: &u32| Path::new(&format!("/proc/{process}")).exists();
        wait_until("the end of all processes", || !processes.iter().any(left));
        let done = metrics::read(&runs.join(name).join(file::METRICS))
            .unwrap()
            .len();
        resume(2, runs, name, &(done + 1).to_string());
    }
}

#[test]
#[ignore = "needs MPI_TRAINER"]
fn processes_that_differ_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path();
    let folders = ["0", "1"].map(|seed| runs.join(seed));
    for (seed, folder) in ["0", "1"].into_iter().zip(&folders) {
        let mut made = program("trainer");
        made.args(RUN)
            .args(["--epochs", "1", "--seed", seed, "--name", seed]);
        made.arg("--run-dir").arg(runs).assert().success();
        fs::copy(folder.join("last.safetensors"), folder.join("init")).unwrap();
    }
    // Each process in a folder of its own, and with flags of its own.
    let refused = |flags: [&[&str]; 2], code: i32, part: &str| {
        let mut command = Command::new("timeout");
        let mpirun = mpirun(1, &["--wdir", folders[0].to_str().unwrap()]);
        command.arg("120").arg(mpirun.get_program());
        command.args(mpirun.get_args()).args(RUN).args(flags[0]);
        command.args([":", "-n", "1", "--wdir"]).arg(&folders[1]);
        command.arg(env::var_os("MPI_TRAINER").unwrap());
        command.args(RUN).args(flags[1]);
        for (name, value) in mpirun.get_envs() {
            value.map(|value| command.env(name, value));
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(part), "`{part}` is not in: {text}");
    };
    let init: &[&str] = &["--epochs", "1", "--name", "a", "--init", "init"];
    let other_weights = "process 1 has other weights than process 0";
    refused([init, init], 1, other_weights);
    let train: &[&str] = &["--epochs", "1"];
    let other_lr = "process 1 has another value of lr than process 0";
    refused([train, &["--epochs", "1", "--lr", "0.1"]], 1, other_lr);
    let other_command = "process 1 has another command than process 0";
    refused([train, &["--epochs", "1", "--dry-run"]], 1, other_command);
    // Before it is connected to process 0, which waits for it.
    let unknown_flag = "process 1 failed:\nerror: unexpected argument '--nothing'";
    refused([train, &["--nothing"]], 2, unknown_flag);
    assert!(!folders[0].join("runs").exists());
}

/// Settings with which the first update makes weights infinite, and a checkpoint is due after it.
const INFINITE: [&str; 6] = [
    "--lr",
    "1e30",
    "--weight-decay",
    "1e30",
    "--checkpoint-minutes",
    "0",
];

#[test]
#[ignore = "needs MPI_TRAINER"]
fn what_cannot_run_in_several_processes_is_refused_once() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path();
    let eval = ["eval", "--checkpoint", "nothing.safetensors"];
    let mut commands = [
        (run(3, runs, "a", &[]), 2, "3 processes were started"),
        (
            run(4, runs, "a", &["--gradient-shards", "2"]),
            2,
            "4 processes were started, and the run has 2 gradient shards",
        ),
        (
            run(2, runs, "a", &["--gradient-shards", "6"]),
            2,
            "6 is out of range",
        ),
        (
            run(2, runs, "a", &["--config", "nowhere.toml"]),
            2,
            "nowhere.toml",
        ),
        (run(2, runs, "a", &["--lr", "1e30"]), 1, "training diverged"),
        (
            run(1, runs, "b", &["--lr", "1e30"]),
            1,
            "the loss is infinite",
        ),
        // Found by the process that writes the checkpoint alone.
        (
            run(2, runs, "c", &INFINITE),
            1,
            "the value of a weight or momentum buffer is infinite",
        ),
        (mpirun(2, &[]), 2, "this command runs in one process"),
    ];
    commands[7].0.args(eval);
    for (command, code, part) in &mut commands {
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{text}");
        assert_eq!(text.matches("error: ").count(), 1, "{text}");
        assert!(text.contains(*part), "`{part}` is not in: {text}");
    }
    // The default build says how to get the other one.
    let mut without = short_run(runs, "d");
    without.env("OMPI_COMM_WORLD_RANK", "0");
    without.env("OMPI_COMM_WORLD_SIZE", "2");
    end_to_end::refused(&mut without, 2, &["built without MPI", "--features mpi"]);
    assert!(!runs.join("d").exists());
}
