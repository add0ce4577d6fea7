//! `compare --slurm` with a Slurm of its own: munged, slurmctld and slurmd on this machine.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use assert_cmd::Command;
use end_to_end::{program, wait_until, xtask};
use run::{file, metrics};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};
use std::{fs, thread};

/// A scheduler for this machine alone, which ends with this value.
struct Slurm {
    folder: tempfile::TempDir,
}

/// The daemons in the order in which they start.
const DAEMONS: [&str; 3] = ["munged", "slurmctld", "slurmd"];

impl Slurm {
    /// Starts the daemons. `None` where they are missing, or this is not root.
    fn start() -> Option<Self> {
        let finds = |daemon: &&str| {
            let folders = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];
            folders
                .iter()
                .any(|folder| Path::new(folder).join(daemon).exists())
        };
        let is_root = fs::metadata("/proc/self").is_ok_and(|process| {
            use std::os::unix::fs::MetadataExt;
            process.uid() == 0
        });
        if !is_root || !DAEMONS.iter().all(finds) {
            eprintln!("skipped: this needs Debian's packages slurm-wlm and munge, and root");
            return None;
        }
        let slurm = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        slurm.configure();
        let path = |name: &str| slurm.path(name).display().to_string();
        succeeds(process::Command::new("munged").args([
            "--force".to_owned(),
            format!("--key-file={}", path("munge.key")),
            format!("--socket={}", path("munge.socket")),
            format!("--pid-file={}", path("munged.pid")),
            format!("--log-file={}", path("munged.log")),
            format!("--seed-file={}", path("munged.seed")),
        ]));
        for daemon in &DAEMONS[1..] {
            succeeds(process::Command::new(daemon).env("SLURM_CONF", slurm.path("slurm.conf")));
        }
        wait_until("an idle node", || {
            slurm.prints("sinfo", &["--noheader", "--format=%T"]).trim() == "idle"
        });
        Some(slurm)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configure(&self) {
        use std::os::unix::fs::PermissionsExt;
        let key = self.path("munge.key");
        fs::write(&key, [7; 1024]).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        // munged refuses a socket in a folder that others cannot enter.
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o755)).unwrap();
        for folder in ["state", "spool"] {
            fs::create_dir(self.path(folder)).unwrap();
        }
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [control, node] = ports.map(|port| port.local_addr().unwrap().port());
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let host = host.trim().split('.').next().unwrap();
        let folder = self.folder.path().display();
        let configuration = format!(
            "ClusterName=test\n\
             SlurmctldHost={host}(127.0.0.1)\n\
             SlurmctldPort={control}\n\
             SlurmdPort={node}\n\
             AuthInfo=socket={folder}/munge.socket,cred_expire=5\n\
             SlurmUser=root\n\
             StateSaveLocation={folder}/state\n\
             SlurmdSpoolDir={folder}/spool\n\
             SlurmctldPidFile={folder}/slurmctld.pid\n\
             SlurmdPidFile={folder}/slurmd.pid\n\
             SlurmctldLogFile={folder}/slurmctld.log\n\
             SlurmdLogFile={folder}/slurmd.log\n\
             ProctrackType=proctrack/pgid\n\
             TaskPlugin=task/none\n\
             SelectType=select/cons_tres\n\
             SelectTypeParameters=CR_CPU\n\
             SchedulerParameters=batch_sched_delay=0,sched_interval=1\n\
             ReturnToService=2\n\
             MailProg=/bin/true\n\
             NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN\n\
             PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"
        );
        fs::write(self.path("slurm.conf"), configuration).unwrap();
    }

    /// What a program of Slurm prints.
    fn prints(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = process::Command::new(program);
        command
            .args(arguments)
            .env("SLURM_CONF", self.path("slurm.conf"));
        let output = command.output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// The state of a job, such as `PENDING`.
    fn state(&self, job: &str) -> String {
        let job = self.prints("scontrol", &["--oneliner", "show", "job", job]);
        let mut words = job.split_whitespace();
        let state = words.find_map(|word| word.strip_prefix("JobState="));
        state.unwrap_or_default().to_owned()
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        self.prints("scancel", &["--me"]);
        for daemon in DAEMONS.iter().rev() {
            let id = fs::read_to_string(self.path(&format!("{daemon}.pid")));
            if let Ok(id) = id {
                let _ = process::Command::new("kill").arg(id.trim()).status();
                let process = format!("/proc/{}", id.trim());
                let started = Instant::now();
                while Path::new(&process).exists() && started.elapsed() < Duration::from_secs(10) {
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }
}

fn succeeds(command: &mut process::Command) {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
}

const SETTINGS: [&str; 12] = [
    "--recipe",
    "sprint",
    "--dataset",
    "synthetic",
    "--limit-train",
    "4000",
    "--limit-test",
    "100",
    "--batch-size",
    "50",
    "--epochs",
    "30",
];

/// The comparison of LeNet with seeds 0 and 1.
fn compare(slurm: &Slurm, out: &Path) -> Command {
    let mut command = xtask("compare");
    command.env("SLURM_CONF", slurm.path("slurm.conf"));
    command.args(["--slurm", "--models", "lenet", "--seeds", "0,1"]);
    command.args(SETTINGS).arg("--out").arg(out);
    command
}

/// The digests of the weights after each epoch.
fn digests(run: &Path) -> Vec<Option<String>> {
    let epochs = metrics::read(&run.join(file::METRICS)).unwrap();
    epochs
        .into_iter()
        .map(|epoch| epoch.weights_sha256)
        .collect()
}

fn epochs(run: &Path) -> usize {
    metrics::read(&run.join(file::METRICS)).map_or(0, |epochs| epochs.len())
}

/// The number of the array whose jobs were submitted.
fn array(submitted: &str) -> &str {
    let (_, id) = submitted.trim().rsplit_once(' ').unwrap();
    id.split_once('_').unwrap().0
}

/// What a command prints to standard output.
fn printed(command: &mut Command, code: i32) -> String {
    let output = command.assert().code(code).get_output().clone();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn jobs_that_are_requeued_or_fail_for_a_moment_resume_exactly() {
    let Some(slurm) = Slurm::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    // Slurm replaces what follows a percent sign in the name of an output file.
    let out = folder.path().join("my 50 %a runs");
    let submitted = printed(&mut compare(&slurm, &out), 0);
    assert_eq!(
        submitted.matches("submitted as job").count(),
        2,
        "{submitted}"
    );
    let array = array(&submitted);
    let runs = [0, 1].map(|seed| out.join(format!("lenet-synthetic-sprint-seed{seed}")));
    let [first, second] = [0, 1].map(|index| format!("{array}_{index}"));

    // Requeued within an epoch, as a job that is preempted, but held until `compare` has been asked for its state.
    wait_until("epochs", || runs.iter().all(|run| epochs(run) >= 3));
    slurm.prints("scontrol", &["requeuehold", &first]);
    // The folder is not there for a moment.
    let away = folder.path().join("away");
    fs::rename(&runs[1], &away).unwrap();
    wait_until("a failed job", || slurm.state(&second) == "FAILED");
    fs::rename(&away, &runs[1]).unwrap();
    // A requeued job is still running until its run has saved a checkpoint.
    wait_until("a queued job", || slurm.state(&first) == "PENDING");
    assert!(epochs(&runs[0]) < 30 && epochs(&runs[1]) < 30);
    let text = printed(&mut compare(&slurm, &out), 1);
    assert!(text.contains("seed0: queued"), "{text}");
    assert!(
        text.contains("seed1: failed after") && text.contains("cannot"),
        "{text}"
    );

    slurm.prints("scontrol", &["release", &first]);
    slurm.prints("scontrol", &["requeue", &second]);
    // Ahead of its time limit: as `--signal=B:TERM` does, to the job whose number is also that of the array.
    let sessions = || {
        let output = out.join("slurm").join(format!("{second}.log"));
        fs::read_to_string(output)
            .unwrap()
            .matches("resumed after")
            .count()
    };
    wait_until("a resumed run", || sessions() == 1);
    slurm.prints("scancel", &["--batch", "--signal=TERM", &second]);
    wait_until("a run that is resumed again", || sessions() == 2);
    wait_until("all jobs", || {
        [&first, &second]
            .iter()
            .all(|job| slurm.state(job) == "COMPLETED")
    });
    let text = printed(&mut compare(&slurm, &out), 0);
    assert_eq!(text.matches(": done, test accuracy").count(), 2, "{text}");
    assert!(
        out.join("report.html").exists() && text.contains("The report is in"),
        "{text}"
    );

    for (seed, (run, sessions)) in runs.iter().zip([1, 2]).enumerate() {
        let log = fs::read_to_string(run.join(file::LOG)).unwrap();
        assert_eq!(log.matches("resumed").count(), sessions, "{log}");
        let seed = seed.to_string();
        let mut alone = program("trainer");
        alone.args(["--model", "lenet", "--seed", &seed, "--name", &seed]);
        alone
            .args(SETTINGS)
            .arg("--run-dir")
            .arg(folder.path())
            .assert()
            .success();
        assert_eq!(digests(run), digests(&folder.path().join(seed)));
    }

    // A run that is done is trained for more epochs.
    let longer = folder.path().join("longer");
    for epochs in ["1", "2"] {
        let compare = || {
            let mut command = xtask("compare");
            command.env("SLURM_CONF", slurm.path("slurm.conf"));
            command.args(["--slurm", "--models", "lenet", "--seeds", "0"]);
            command.args(["--dataset", "synthetic", "--limit-train", "100"]);
            command.args(["--batch-size", "50", "--epochs", epochs, "--out"]);
            printed(command.arg(&longer), 0)
        };
        let text = compare();
        assert!(text.contains("submitted as job"), "{text}");
        wait_until("the report", || compare().contains("The report is in"));
    }
}

#[test]
fn what_slurm_refuses_leaves_nothing() {
    let Some(slurm) = Slurm::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    let mut refused = compare(&slurm, &out);
    refused.arg("--sbatch-arg=--partition=nowhere");
    end_to_end::refused(&mut refused, 1, &["`sbatch` failed", "invalid partition"]);
    assert!(!out.join("slurm/arrays.toml").exists());
    // The same runs can be submitted afterwards, with options that it takes.
    let mut accepted = compare(&slurm, &out);
    accepted.args(["--sbatch-arg=--hold", "--sbatch-arg=--job-name=a name"]);
    printed(&mut accepted, 0);
    let text = printed(&mut compare(&slurm, &out), 0);
    assert_eq!(text.matches("queued (JobHeldUser)").count(), 2, "{text}");
    // They would train with what they were submitted with.
    let mut changed = compare(&slurm, &out);
    changed.args(["--lr", "0.02"]);
    let differences = ["lr = 0.015, not lr = 0.02", "wait for it"];
    end_to_end::refused(&mut changed, 2, &differences);
    slurm.prints("scancel", &["--me"]);
    let text = printed(&mut compare(&slurm, &out), 1);
    let cancelled = "ended before it started; --resubmit submits it again";
    assert_eq!(text.matches(cancelled).count(), 2, "{text}");
    // A job that is cancelled while its run trains does not come back.
    let running = printed(compare(&slurm, &out).arg("--resubmit"), 0);
    let array = array(&running);
    let first = out.join("lenet-synthetic-sprint-seed0");
    wait_until("an epoch", || epochs(&first) >= 1);
    slurm.prints("scancel", &[array]);
    wait_until("an empty queue", || {
        slurm.prints("squeue", &["--noheader"]).is_empty()
    });
    let text = printed(&mut compare(&slurm, &out), 1);
    assert!(
        text.contains("CANCELLED") && text.contains("--resubmit resumes it"),
        "{text}"
    );
    let mut again = compare(&slurm, &out);
    let text = printed(again.args(["--resubmit", "--sbatch-arg=--hold"]), 0);
    assert_eq!(text.matches("submitted").count(), 2, "{text}");
}

#[test]
fn a_machine_without_slurm_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    let mut command = xtask("compare");
    command
        .env("PATH", folder.path())
        .args(["--slurm", "--models", "lenet"]);
    command.args(SETTINGS).arg("--out").arg(&out);
    end_to_end::refused(&mut command, 1, &["`sbatch` is not there"]);
    assert!(!out.exists());
}
