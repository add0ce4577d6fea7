//! Runs as jobs of the scheduler Slurm: one job array for the runs of an experiment, which the same command looks at again.

use crate::experiments::plan::{Planned, State};
use crate::files::{create_folder, write};
use crate::trainer::{PATIENCE, Trainer, flag};
use anyhow::{Context, anyhow, bail, ensure};
use run::cli::UsageError;
use run::settings::Difference;
use run::{Run, cli, file};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::{self, Path, PathBuf};
use std::process::{Command, Output};
use std::{fmt, fs, io};
use toml::Table;

/// Options of commands that submit their runs to Slurm.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Submit the runs to Slurm, as one job array. The same command shows how far they are, and writes its results when all
    /// are done. The folder must be on a file system that all machines share.
    #[arg(long, conflicts_with_all = ["jobs", "dry_run"])]
    pub(crate) slurm: bool,

    /// An option for `sbatch`, such as `--sbatch-arg=--cpus-per-task=16`. May be repeated.
    #[arg(
        long,
        value_name = "OPTION",
        requires = "slurm",
        allow_hyphen_values = true
    )]
    sbatch_arg: Vec<String>,

    /// Submit failed and cancelled runs again. Those that had begun resume.
    #[arg(long, requires = "slurm")]
    resubmit: bool,
}

/// How far the runs are. Those that neither wait nor failed are done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Whether some are queued or running.
    pub(crate) waiting: bool,
    /// The names of those that failed.
    pub(crate) failed: Vec<String>,
}

/// The folder for what jobs need and print, in that of the experiment.
const FOLDER: &str = "slurm";

/// The file with the arrays that were submitted, in that folder.
const ARRAYS: &str = "arrays.toml";

/// Seconds before the time limit of a job at which its run writes a checkpoint.
const CHECKPOINT_SECONDS: u32 = 120;

/// The arrays that were submitted, in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arrays {
    #[serde(default)]
    array: Vec<Array>,
}

/// An array: its job number, and its runs by their index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Array {
    job: u64,
    runs: Vec<Submitted>,
}

/// A run that was submitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Submitted {
    name: String,
    /// The settings it was submitted with, by key.
    settings: Table,
}

impl Submitted {
    fn new(run: &Planned) -> anyhow::Result<Self> {
        Ok(Self {
            name: run.name.clone(),
            settings: run.settings.to_table()?,
        })
    }

    /// Checks that the job `id` trains this run with the settings that it has now.
    ///
    /// # Errors
    /// A usage error that names the first setting that differs.
    fn check_settings(&self, run: &Planned, id: Id) -> anyhow::Result<()> {
        match run.settings.first_difference(&self.settings)? {
            None => Ok(()),
            Some(Difference { key, first, second }) => Err(UsageError(format!(
                "job {id} trains `{}` with {key} = {first}, not {key} = {second}; wait for it, end it with `scancel {id}` \
                 and add --resubmit, or give another --out",
                self.name
            ))
            .into()),
        }
    }
}

/// A job of an array: the number of the array, and the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    array: u64,
    index: usize,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.array, self.index)
    }
}

impl Arrays {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            text => text.with_context(|| format!("cannot read `{}`", path.display()))?,
        };
        toml::from_str(&text).with_context(|| {
            let path = path.display();
            format!(
                "`{path}` is damaged; once it is removed, all unfinished runs are submitted again"
            )
        })
    }

    /// The last job of a run, and the run as it was submitted.
    fn last_job(&self, run: &str) -> Option<(Id, &Submitted)> {
        self.array.iter().rev().find_map(|array| {
            let index = array.runs.iter().position(|other| other.name == run)?;
            let id = Id {
                array: array.job,
                index,
            };
            Some((id, &array.runs[index]))
        })
    }
}

/// A job that Slurm has not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Job {
    id: Id,
    state: String,
    /// Why it waits.
    reason: String,
}

impl Job {
    /// A line of `squeue` in the format of [`jobs`].
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().map(str::trim);
        let id = Id {
            array: word()?.parse().ok()?,
            index: word()?.parse().ok()?,
        };
        Some(Self {
            id,
            state: word()?.to_owned(),
            reason: word().unwrap_or_default().to_owned(),
        })
    }

    /// Whether it has yet to start. Other jobs have processes: they run, are suspended or are about to end.
    fn is_queued(&self) -> bool {
        let state = self.state.as_str();
        state == "PENDING" || state.starts_with("REQUEUE") || state.ends_with("_HOLD")
    }
}

/// What a program of Slurm printed.
fn output(program: &str, command: &mut Command) -> anyhow::Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            anyhow!("`{program}` is not there: --slurm is for machines that submit jobs to Slurm")
        }
        _ => anyhow!("cannot run `{program}`: {error}"),
    })?;
    let message = String::from_utf8_lossy(&stderr);
    let message = message.trim();
    ensure!(status.success(), "`{program}` failed: {message}");
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// The jobs of these arrays that are queued or running, also those that another user submitted.
fn jobs(arrays: &Arrays) -> anyhow::Result<Vec<Job>> {
    let ids: Vec<_> = arrays
        .array
        .iter()
        .map(|array| array.job.to_string())
        .collect();
    if ids.is_empty() {
        // A machine without Slurm is found before anything is written.
        output("sbatch", Command::new("sbatch").arg("--version"))?;
        return Ok(Vec::new());
    }
    let mut squeue = Command::new("squeue");
    squeue.args(["--noheader", "--array", "--format=%F %K %T %r"]);
    squeue.arg(format!("--jobs={}", ids.join(",")));
    match output("squeue", &mut squeue) {
        // Slurm forgets jobs that have ended. Of several numbers it leaves out those that it does not know.
        Err(error) if error.to_string().contains("Invalid job id") => Ok(Vec::new()),
        lines => Ok(lines?.lines().filter_map(Job::parse).collect()),
    }
}

/// Submits the runs that were not submitted yet, and prints how far all are. `out` is the folder of the experiment.
pub(crate) fn train(
    args: &Args,
    trainer: &Trainer,
    plan: &[Planned],
    out: &Path,
) -> anyhow::Result<Progress> {
    let folder = path::absolute(out.join(FOLDER)).context("cannot find the current folder")?;
    let record = folder.join(ARRAYS);
    let mut arrays = Arrays::read(&record)?;
    // `plan` was read before, so a run that has ended since is looked at again.
    let jobs = jobs(&arrays)?;
    let job_of = |run: &Planned| {
        let (id, _) = arrays.last_job(&run.name)?;
        jobs.iter().find(|job| job.id == id)
    };
    let mut progress = Progress::default();
    let mut new = Vec::new();
    for run in plan {
        let run = run.again()?;
        let text = match (job_of(&run), arrays.last_job(&run.name)) {
            // The process of a finished run may still write its last files.
            (job, _) if is_finished(&run) && job.is_none_or(Job::is_queued) => done(&run)?,
            (Some(job), Some((id, submitted))) => {
                submitted.check_settings(&run, id)?;
                progress.waiting = true;
                waiting(&run, job)
            }
            (None, Some((id, _))) if !args.resubmit && !is_to_be_longer(&run) => {
                progress.failed.push(run.name.clone());
                failed(&run, id, &log(&folder, id))
            }
            (_, _) => {
                new.push(run);
                continue;
            }
        };
        cli::line(&format!("{}: {text}", run.name));
    }
    if new.is_empty() {
        return Ok(progress);
    }
    create_folder(&folder)?;
    let is_active = plan.iter().any(|run| job_of(run).is_some());
    let is_begun = plan.iter().any(|run| run.state != State::Missing);
    let program = keep_program(&folder, trainer, is_active, is_begun)?;
    let runs = new.iter().map(Submitted::new);
    let runs = runs.collect::<anyhow::Result<_>>()?;
    let job = submit(args, &folder, &program, &new)?;
    arrays.array.push(Array { job, runs });
    let recorded = toml::to_string(&arrays).map_err(Into::into);
    if let Err(error) = recorded.and_then(|text| write(&record, &text)) {
        // Otherwise the next call would submit the same runs again.
        output("scancel", Command::new("scancel").arg(job.to_string()))?;
        return Err(error);
    }
    for (index, run) in new.iter().enumerate() {
        let id = Id { array: job, index };
        cli::line(&format!("{}: submitted as job {id}", run.name));
    }
    cli::note("the same command shows how far they are, and writes its results when all are done");
    progress.waiting = true;
    Ok(progress)
}

fn is_finished(run: &Planned) -> bool {
    run.state == State::Finished
}

/// Whether a run has finished with fewer epochs than are now asked for.
fn is_to_be_longer(run: &Planned) -> bool {
    !is_finished(run) && Run::read(&run.folder).is_ok_and(|run| run.finished())
}

fn done(run: &Planned) -> anyhow::Result<String> {
    let evaluated = Run::read(&run.folder)?.last().evaluated;
    let (split, accuracy) = (evaluated.split, 100.0 * evaluated.accuracy);
    Ok(format!("done, {split} accuracy {accuracy:.2} %"))
}

fn waiting(run: &Planned, job: &Job) -> String {
    let (done, epochs, id) = (run.done(), run.epochs(), job.id);
    let state = match job.is_queued() {
        false if job.state == "RUNNING" => "running".to_owned(),
        false => format!("running ({})", job.state.to_lowercase()),
        true if job.reason.is_empty() || job.reason == "None" => "queued".to_owned(),
        true => format!("queued ({})", job.reason),
    };
    format!("{state}, {done} of {epochs} epochs, job {id}")
}

fn failed(run: &Planned, id: Id, log: &Path) -> String {
    let (done, epochs) = (run.done(), run.epochs());
    let remedy = match run.state {
        State::Missing => "--resubmit submits it again, with the settings of this command",
        State::Started(_) | State::Finished => "--resubmit resumes it",
    };
    let Ok(text) = fs::read_to_string(log) else {
        return format!(
            "failed after {done} of {epochs} epochs: job {id} ended before it started; {remedy}"
        );
    };
    let reason = last_error(&text).map_or_else(String::new, |error| format!(": {error}"));
    let log = log.display();
    format!(
        "failed after {done} of {epochs} epochs{reason}; the output of job {id} is in {log}; {remedy}"
    )
}

/// The last error that a program or Slurm printed.
fn last_error(log: &str) -> Option<&str> {
    let mut lines = log.lines().rev().map(str::trim);
    lines.find_map(|line| {
        let ours = line.strip_prefix("error: ");
        // `slurmstepd: error: *** JOB 5 ON node CANCELLED AT ... ***`, or `slurmstepd-node: `, as Slurm is configured.
        ours.or_else(|| {
            let slurms = line.strip_prefix("slurmstepd")?.split_once(": error: ")?.1;
            Some(slurms.trim_matches(['*', ' ']))
        })
    })
}

/// The file to which a job prints.
fn log(folder: &Path, id: Id) -> PathBuf {
    folder.join(format!("{id}.log"))
}

/// The program that jobs run: a copy beside the runs. While jobs are queued or running it stays the same. `is_begun`: some
/// runs were trained before.
fn keep_program(
    folder: &Path,
    trainer: &Trainer,
    is_active: bool,
    is_begun: bool,
) -> anyhow::Result<PathBuf> {
    let program = folder.join("trainer");
    let bytes =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read `{}`", path.display()));
    let new = bytes(trainer.program())?;
    if program.exists() && bytes(&program)? == new {
        return Ok(program);
    }
    if program.exists() && is_active {
        cli::note(&format!(
            "note: jobs are queued or running, so `{}` is kept, which is of another build",
            program.display()
        ));
        return Ok(program);
    }
    if program.exists() && is_begun {
        cli::note(&format!(
            "note: the program has changed since `{}` was copied, which is replaced; runs that are done are of the earlier one",
            program.display()
        ));
    }
    let copy = || -> io::Result<()> {
        let copy = tempfile::Builder::new()
            .prefix(".trainer-")
            .tempfile_in(folder)?;
        fs::copy(trainer.program(), copy.path())?;
        atomic_file::sync(copy.as_file())?;
        copy.persist(&program)?;
        Ok(())
    };
    copy().with_context(|| format!("cannot write `{}`", program.display()))?;
    Ok(program)
}

/// Submits an array job of these runs. Returns its number.
fn submit(args: &Args, folder: &Path, program: &Path, runs: &[Planned]) -> anyhow::Result<u64> {
    let script = folder.join("job.sh");
    write(&script, &job_script(program, runs)?)?;
    // In names of output files, Slurm replaces what follows a percent sign.
    let output_folder = folder.to_str().context("the path of --out is not UTF-8")?;
    let output_folder = output_folder.replace('%', "%%");
    let mut sbatch = Command::new("sbatch");
    // The last of equal options applies: those that are given replace the first ones, and the last ones are needed here.
    sbatch
        .args(["--requeue", "--open-mode=append"])
        .arg(format!("--signal=B:TERM@{CHECKPOINT_SECONDS}"))
        .arg(flag("--job-name", name(folder)))
        .args(&args.sbatch_arg)
        .arg("--parsable")
        .arg(format!("--array=0-{}", runs.len() - 1))
        .arg(format!("--output={output_folder}/%A_%a.log"))
        .arg(&script);
    let printed = output("sbatch", &mut sbatch)?;
    // Also the cluster, behind a semicolon.
    let number = printed.trim().split(';').next().unwrap_or_default();
    let number = number.parse();
    number.with_context(|| format!("`sbatch` printed `{}`, not a job number", printed.trim()))
}

/// The name of the experiment whose files for Slurm are in `folder`: that of its own folder.
fn name(folder: &Path) -> OsString {
    let name = folder.parent().and_then(Path::file_name);
    name.unwrap_or(folder.as_os_str()).to_owned()
}

/// The script of an array job: the run with its index, which is resumed if it was begun.
fn job_script(program: &Path, runs: &[Planned]) -> anyhow::Result<String> {
    let mut script = script_start();
    for (index, run) in runs.iter().enumerate() {
        let folder = path::absolute(&run.folder).context("cannot find the current folder")?;
        let out = folder.parent().unwrap_or(Path::new("/"));
        let mut resume = vec![flag("--resume", &folder)];
        resume.extend(run.arguments_to_resume()?);
        let mut start = run.arguments.clone();
        start.extend([flag("--name", &run.name), flag("--run-dir", out)]);
        let [record, lock] =
            [file::RECORD, file::LOCK].map(|name| folder.join(name).into_os_string());
        let (record, lock) = (words([record])?, words([lock])?);
        let (resume, start) = (words(resume)?, words(start)?);
        // Not where the runs have a number of threads.
        let threads = match run.settings.threads {
            Some(_) => "",
            None => " --threads=\"$SLURM_CPUS_ON_NODE\"",
        };
        write!(
            script,
            "{index})\n  if [ -e {record} ]; then\n    wait_until_unlocked {lock}\n    set -- {resume}{threads}\n  else\n    set -- {start}{threads}\n  fi\n  ;;\n"
        )?;
    }
    let program = words([program.as_os_str().to_owned()])?;
    Ok(script + "esac\n" + &SCRIPT_END.replace("PROGRAM", &program))
}

/// Where a run was begun, the process of the job before may still have its lock: on another machine, a file system may keep
/// that for a while. A file system without locks is not waited for.
fn script_start() -> String {
    format!(
        "#!/bin/sh
# Written by `cargo xtask`: trains the run of this job, or resumes it.
wait_until_unlocked() {{
  flock --wait {} \"$1\" true 2> /dev/null
}}
case \"$SLURM_ARRAY_TASK_ID\" in
",
        PATIENCE.as_secs()
    )
}

/// What follows the arguments. Slurm sends SIGTERM ahead of the time limit, when a job is preempted, requeued or cancelled.
const SCRIPT_END: &str = r#"stops=0
trap 'stops=$((stops + 1)); kill -TERM "$trainer" 2> /dev/null' TERM
PROGRAM --no-progress "$@" < /dev/null &
trainer=$!
# A signal ends `wait` before the trainer has finished its step and its checkpoint.
before=-1
while [ "$stops" != "$before" ]; do
  before=$stops
  wait "$trainer" 2> /dev/null
  ended=$?
  # 127: it had ended before the signal.
  [ "$ended" = 127 ] && [ "$stops" != 0 ] || code=$ended
done
# The number of one job of the array is also that of the whole array, so SLURM_JOB_ID does not do.
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
# 143: SIGTERM came before the trainer watched for it.
case "$code" in
130 | 143)
  # Ahead of its time limit a job is still running; in the other cases Slurm decides what becomes of it. A job that was
  # cancelled would come back.
  if [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ]; then
    scontrol requeue "$job"
  fi
  ;;
esac
exit "$code"
"#;

/// Words of a shell command.
fn words(words: impl IntoIterator<Item = OsString>) -> anyhow::Result<String> {
    let words = words.into_iter().map(|word| {
        let Some(text) = word.to_str() else {
            bail!(
                "`{}` is not UTF-8, which a script of a job needs",
                word.display()
            );
        };
        Ok(cli::quoted_word(text))
    });
    Ok(words.collect::<anyhow::Result<Vec<_>>>()?.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_squeue_are_jobs() {
        let job = Job::parse("12 3 PENDING Nodes required for job are DOWN, DRAINED").unwrap();
        assert_eq!((job.id.array, job.id.index), (12, 3));
        assert!(job.is_queued());
        assert_eq!(job.reason, "Nodes required for job are DOWN, DRAINED");
        assert!(!Job::parse("7 0 RUNNING None").unwrap().is_queued());
        // A job outside an array has no index.
        assert_eq!(Job::parse("8 N/A RUNNING None"), None);
    }

    #[test]
    fn a_run_belongs_to_the_last_array_that_has_it() {
        let submitted = |run: &str| Submitted {
            name: run.to_owned(),
            settings: Table::from_iter([("lr".to_owned(), 0.1.into())]),
        };
        let array = |job, runs: &[&str]| Array {
            job,
            runs: runs.iter().map(|run| submitted(run)).collect(),
        };
        let arrays = Arrays {
            array: vec![array(1, &["a", "b"]), array(5, &["b"])],
        };
        let last_job = |run| arrays.last_job(run).map(|(id, _)| id.to_string());
        assert_eq!(last_job("a").as_deref(), Some("1_0"));
        assert_eq!(last_job("b").as_deref(), Some("5_0"));
        assert_eq!(arrays.last_job("c"), None);
        let text = toml::to_string(&arrays).unwrap();
        assert_eq!(toml::from_str::<Arrays>(&text).unwrap(), arrays);
    }

    #[test]
    fn the_last_error_of_a_log_is_found() {
        let log = "error: first\nepoch 1/2\nerror: no usable CIFAR-10\nnote\n";
        assert_eq!(last_error(log), Some("no usable CIFAR-10"));
        for daemon in ["slurmstepd", "slurmstepd-node1"] {
            let killed = format!("{daemon}: error: *** JOB 3 ON a CANCELLED ***\nepoch 2/2\n");
            assert_eq!(last_error(&killed), Some("JOB 3 ON a CANCELLED"));
        }
        assert_eq!(last_error("epoch 1/2\n"), None);
    }
}
