//! Sessions: what each process that trained a run ran on.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroUsize;

/// The training of a run by one process, or by several together, from a start to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Finished epochs when it started.
    pub from_epoch: u32,
    /// Finished steps of the epoch after them.
    pub from_step: usize,
    /// Finished epochs when it ended. Absent while it runs, and after its process was killed until the run is resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_epoch: Option<u32>,
    /// Finished steps of the epoch after them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_step: Option<usize>,
    /// What it ran on; of several processes, what the first one ran on.
    #[serde(flatten)]
    pub machine: Machine,
}

/// A machine, and the program that ran there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The operating system: `linux`, `macos`, `windows`.
    pub os: String,
    /// The architecture: `x86_64`, `aarch64`.
    pub arch: String,
    /// The instruction set of the kernels: `amx`, `avx512`, `avx2`, `neon`, `scalar`.
    pub instruction_set: String,
    /// The model name of the processor.
    pub processor: String,
    /// The device: `cpu`, or the model name of the GPU.
    pub device: String,
    /// Threads of each process.
    pub threads: NonZeroUsize,
    /// Processes that trained the run together.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub processes: NonZeroUsize,
    /// The program's version.
    pub version: String,
    /// The commit it was built from.
    pub commit: String,
}

fn one() -> NonZeroUsize {
    NonZeroUsize::MIN
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference
fn is_one(number: &NonZeroUsize) -> bool {
    *number == one()
}

impl Session {
    /// A session that starts after these epochs, and these steps of the next one.
    #[must_use]
    pub fn new(epoch: u32, step: usize, machine: Machine) -> Self {
        Self {
            from_epoch: epoch,
            from_step: step,
            to_epoch: None,
            to_step: None,
            machine,
        }
    }

    /// Whether the run had a step when the session started or ended.
    #[must_use]
    pub fn has_trained(&self) -> bool {
        self.from() > (0, 0) || (self.to_epoch, self.to_step) > (Some(0), Some(0))
    }

    /// Where the session started.
    fn from(&self) -> (u32, usize) {
        (self.from_epoch, self.from_step)
    }

    /// Sets where it ended.
    fn end(&mut self, (epoch, step): (u32, usize)) {
        self.to_epoch = Some(epoch);
        self.to_step = Some(step);
    }
}

/// The sessions of a run that `next` resumes. An earlier session ends where its successor starts: what a killed process
/// trained after its last checkpoint is not part of the run.
#[must_use]
pub fn resumed(mut sessions: Vec<Session>, next: Session) -> Vec<Session> {
    sessions.retain(|session| session.from() < next.from());
    if let Some(last) = sessions.last_mut() {
        last.end(next.from());
    }
    sessions.push(next);
    sessions
}

/// The sessions of a run when the last one has ended after these epochs, and these steps of the next one. A session
/// without a step, of a run that was already trained, is left out.
#[must_use]
pub fn ended(mut sessions: Vec<Session>, epoch: u32, step: usize) -> Vec<Session> {
    if sessions.len() > 1 {
        sessions.pop_if(|session| session.from() == (epoch, step));
    }
    if let Some(last) = sessions.last_mut() {
        last.end((epoch, step));
    }
    sessions
}

impl Machine {
    /// The threads in words, and the number of processes if there are several.
    #[must_use]
    pub fn threads_in_words(&self) -> String {
        let threads = crate::cli::count(self.threads.get(), "thread");
        match self.processes.get() {
            1 => threads,
            processes => format!("{processes} processes of {threads} each"),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            os,
            arch,
            instruction_set,
            processor,
            device,
            version,
            commit,
            ..
        } = self;
        write!(f, "{os} {arch} ({processor}, {instruction_set}, ")?;
        if device != "cpu" {
            write!(f, "{device}, ")?;
        }
        let threads = self.threads_in_words();
        write!(f, "{threads}, version {version}, commit {commit})")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn machine(os: &str) -> Machine {
        Machine {
            os: os.to_owned(),
            arch: "x86_64".to_owned(),
            instruction_set: "avx2".to_owned(),
            processor: "AMD EPYC".to_owned(),
            device: "cpu".to_owned(),
            threads: NonZeroUsize::MIN,
            processes: NonZeroUsize::MIN,
            version: "0.1.0".to_owned(),
            commit: "0".to_owned(),
        }
    }

    /// Where each session starts and ends.
    fn stretches(sessions: &[Session]) -> Vec<[Option<(u32, usize)>; 2]> {
        let stretches = sessions
            .iter()
            .map(|session| [Some(session.from()), session.to_epoch.zip(session.to_step)]);
        stretches.collect()
    }

    #[test]
    fn sessions_cover_a_run_without_gaps() {
        let start = |epoch, step| Session::new(epoch, step, machine("linux"));
        let sessions = resumed(Vec::new(), start(0, 0));
        assert_eq!(stretches(&sessions), [[Some((0, 0)), None]]);
        // Killed; its last checkpoint is after 3 steps of the second epoch.
        let sessions = resumed(sessions, start(1, 3));
        // Killed before its first checkpoint.
        let sessions = resumed(sessions, start(1, 3));
        let sessions = ended(sessions, 2, 0);
        let expected = [[Some((0, 0)), Some((1, 3))], [Some((1, 3)), Some((2, 0))]];
        assert_eq!(stretches(&sessions), expected);
        // Resumed without anything to train.
        let sessions = ended(resumed(sessions, start(2, 0)), 2, 0);
        assert_eq!(stretches(&sessions), expected);
        // An older checkpoint was put back.
        let sessions = ended(resumed(sessions, start(1, 0)), 2, 0);
        let expected = [[Some((0, 0)), Some((1, 0))], [Some((1, 0)), Some((2, 0))]];
        assert_eq!(stretches(&sessions), expected);
    }
}
