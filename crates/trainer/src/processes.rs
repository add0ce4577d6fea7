//! The processes of a run that MPI started together.

use crate::args::explained;
use anyhow::{Context, anyhow};
use engine::ProcessGroup;
use run::cli::{self, Exit, UsageError};
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::env;
use std::num::NonZeroUsize;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// The variables in which launchers tell a process its rank and the number of processes: Open MPI's `mpirun`; `srun` and
/// MPICH with PMI; `srun` itself.
const LAUNCHERS: [[&str; 2]; 3] = [
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
    ["PMI_RANK", "PMI_SIZE"],
    ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS"],
];

/// How long the main process has to find the same error as another one, and its launcher to end that.
const TIME_OF_MAIN: Duration = Duration::from_secs(2);

/// What a launcher says about this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launched {
    rank: usize,
    size: usize,
}

impl Launched {
    /// `None` where no launcher started this process, or it alone.
    pub(crate) fn from_environment() -> Option<Self> {
        Self::new(|name| env::var(name).ok())
    }

    fn new(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| variable(name)?.parse().ok();
        let launched = |[rank, size]: [&str; 2]| {
            let (rank, size) = (number(rank)?, number(size)?);
            Some(Self { rank, size }).filter(|_| rank < size)
        };
        LAUNCHERS.into_iter().find_map(launched)
    }

    /// Whether this process is the one that prints.
    pub(crate) fn is_main(self) -> bool {
        self.rank == 0
    }

    /// Called before this process prints an error that it found before it was connected to the others. The main process
    /// prints one that all have, and the launcher ends the others then; after that, the error is this process's own.
    pub(crate) fn before_error(self) {
        if !self.is_main() {
            thread::sleep(TIME_OF_MAIN);
            cli::set_silent(false);
            cli::note(&format!("process {} failed:", self.rank));
        }
    }

    /// Refuses a command that runs in one process.
    ///
    /// # Errors
    /// When there are several.
    pub(crate) fn check_alone(launched: Option<Self>) -> Result<(), UsageError> {
        match launched {
            Some(Self { size, .. }) if size > 1 => Err(UsageError(format!(
                "this command runs in one process, and {size} were started; only training runs in several"
            ))),
            _ => Ok(()),
        }
    }
}

/// This process and those that train the same network.
pub(crate) struct Processes {
    /// `None` where there is this process alone, and MPI did not start it.
    pub(crate) group: Option<Arc<dyn ProcessGroup>>,
    /// Whether all processes know that the run fails.
    all_fail: Cell<bool>,
    /// Ends MPI when it is dropped.
    #[cfg(feature = "mpi")]
    _universe: Option<mpi::environment::Universe>,
}

impl Processes {
    /// Connects to the other processes that the launcher started, if it did.
    ///
    /// # Errors
    /// When the program was built without MPI, or MPI does not connect the processes.
    #[cfg(not(feature = "mpi"))]
    pub(crate) fn connect(launched: Option<Launched>) -> anyhow::Result<Self> {
        if let Some(Launched { size: 2.., .. }) = launched {
            return Err(UsageError(
                "several processes were started, but this program was built without MPI; build it with `--features mpi`"
                    .to_owned(),
            )
            .into());
        }
        Ok(Self {
            group: None,
            all_fail: Cell::new(false),
        })
    }

    /// Connects to the other processes that the launcher started, if it did.
    ///
    /// # Errors
    /// When MPI does not connect the processes.
    #[cfg(feature = "mpi")]
    pub(crate) fn connect(launched: Option<Launched>) -> anyhow::Result<Self> {
        let Some(launched) = launched else {
            return Ok(Self {
                group: None,
                all_fail: Cell::new(false),
                _universe: None,
            });
        };
        let (universe, group) = world::connect()?;
        let (found, started) = (group.size(), launched.size);
        if found != started {
            return Err(UsageError(format!(
                "{started} processes were started, but MPI connects {found}; start them with `mpirun`, or with `srun --mpi=` \
                 and a kind of PMI that this MPI has"
            ))
            .into());
        }
        Ok(Self {
            group: Some(Arc::new(group)),
            all_fail: Cell::new(false),
            _universe: Some(universe),
        })
    }

    /// Whether this process prints, and writes the files of the run.
    pub(crate) fn is_main(&self) -> bool {
        self.group.as_ref().is_none_or(|group| group.rank() == 0)
    }

    /// The number of processes.
    pub(crate) fn count(&self) -> NonZeroUsize {
        let size = self.group.as_ref().map_or(1, |group| group.size());
        NonZeroUsize::new(size).unwrap_or(NonZeroUsize::MIN)
    }

    /// Checks that every process has a gradient shard.
    ///
    /// # Errors
    /// A usage error otherwise.
    pub(crate) fn check_shards(&self, shards: u32) -> Result<(), UsageError> {
        let count = self.count().get();
        if count > shards as usize {
            return Err(UsageError(format!(
                "{count} processes were started, and the run has {}; start at most as many, or give a new run more \
                 --gradient-shards",
                cli::count(shards as usize, "gradient shard")
            )));
        }
        Ok(())
    }

    /// Checks that the number of processes is a power of two.
    fn check_count(&self) -> anyhow::Result<()> {
        let count = self.count().get();
        if count.is_power_of_two() {
            return Ok(());
        }
        self.all_fail.set(true);
        Err(UsageError(format!(
            "{count} processes were started; a run is trained by 1, 2, 4, 8 or another power of two"
        ))
        .into())
    }

    /// The result of this process, if all processes succeed.
    ///
    /// # Errors
    /// In every process, if one fails: that of the lowest rank which fails is printed, and the others print nothing.
    pub(crate) fn agree<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        let Some(group) = &self.group else {
            return result;
        };
        let own = match &result {
            Ok(_) => Exit::Success,
            Err(error) => Exit::of_error(error.as_ref()),
        };
        let exits = engine::gather(&**group, [own as u8])?;
        let failed = |exit: &[u8; 1]| exit[0] != Exit::Success as u8;
        let Some(first) = exits.iter().position(failed) else {
            return result;
        };
        self.all_fail.set(true);
        cli::set_silent(first != group.rank());
        let result = match first {
            0 => result,
            rank => result.with_context(|| format!("process {rank}")),
        };
        result.and_then(|_| match exits[first][0] == Exit::Usage as u8 {
            true => Err(UsageError("another process failed".to_owned()).into()),
            false => Err(anyhow!("another process failed")),
        })
    }

    /// Whether something holds in any process.
    ///
    /// # Errors
    /// When another process cannot be reached.
    pub(crate) fn any(&self, own: bool) -> anyhow::Result<bool> {
        let Some(group) = &self.group else {
            return Ok(own);
        };
        let all = engine::gather(&**group, [u8::from(own)])?;
        Ok(all.iter().any(|holds| holds[0] != 0))
    }

    /// Does something in the main process first, and then in the others.
    ///
    /// # Errors
    /// As for [`Self::agree`].
    pub(crate) fn main_first<T>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        if self.group.is_none() {
            return work();
        }
        if self.is_main() {
            let result = self.agree(work())?;
            return self.agree(Ok(result));
        }
        self.agree(Ok(()))?;
        self.agree(work())
    }

    /// Checks that all processes have the same text, which says `what` they have.
    ///
    /// # Errors
    /// When one has another text than the main process.
    pub(crate) fn check_same(&self, what: &str, text: &str) -> anyhow::Result<()> {
        let Some(group) = &self.group else {
            return Ok(());
        };
        let digest: [u8; 32] = Sha256::digest(text).into();
        let digests = engine::gather(&**group, digest)?;
        let other = digests.iter().position(|digest| *digest != digests[0]);
        self.agree(match other {
            None => Ok(()),
            Some(rank) => Err(anyhow!(
                "process {rank} has {what} than process 0; all processes of a run need the same"
            )),
        })
    }

    /// Runs `work`, and ends the other processes where it fails in this one alone. Several processes print an error at once,
    /// since MPI ends those that are left when the first one ends.
    ///
    /// # Errors
    /// Those of `work` in a process that is alone.
    pub(crate) fn run(&self, work: impl FnOnce() -> anyhow::Result<Exit>) -> anyhow::Result<Exit> {
        let Some(group) = &self.group else {
            return work();
        };
        let work = || {
            self.check_count()?;
            work().map_err(explained)
        };
        let result = panic::catch_unwind(AssertUnwindSafe(work));
        let fails_everywhere = |error: &anyhow::Error| {
            let error = error.downcast_ref::<engine::Error>();
            self.all_fail.get() || error.is_some_and(engine::Error::is_everywhere)
        };
        match result {
            Ok(Err(error)) if !fails_everywhere(&error) => {
                cli::set_silent(false);
                let exit = match group.rank() {
                    0 => Exit::of::<anyhow::Error>(Err(error)),
                    rank => Exit::of(Err(error.context(format!("process {rank}")))),
                };
                abort(exit as i32)
            }
            Ok(result) => Ok(Exit::of(result)),
            Err(_) => abort(Exit::Failure as i32),
        }
    }
}

/// Ends all processes.
#[cfg(feature = "mpi")]
fn abort(code: i32) -> ! {
    use mpi::topology::{Communicator, SimpleCommunicator};
    SimpleCommunicator::world().abort(code)
}

/// Ends this process, which is alone.
#[cfg(not(feature = "mpi"))]
fn abort(code: i32) -> ! {
    std::process::exit(code)
}

#[cfg(feature = "mpi")]
mod world {
    use anyhow::{Context, bail};
    use engine::ProcessGroup;
    use mpi::Threading;
    use mpi::environment::Universe;
    use mpi::point_to_point::{Destination, Source};
    use mpi::request::{Request, Scope, scope};
    use mpi::topology::{Communicator, SimpleCommunicator};
    use std::io;
    use std::thread;
    use std::time::Duration;

    /// The processes of `MPI_COMM_WORLD`.
    pub(super) struct World {
        rank: usize,
        size: usize,
    }

    /// Starts MPI.
    pub(super) fn connect() -> anyhow::Result<(Universe, World)> {
        let started = mpi::initialize_with_threading(Threading::Serialized);
        let (universe, threading) = started.context("MPI was started before")?;
        if threading < Threading::Serialized {
            bail!("this MPI has no threads: it was built without MPI_THREAD_SERIALIZED");
        }
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        Ok((universe, World { rank, size }))
    }

    impl ProcessGroup for World {
        fn rank(&self) -> usize {
            self.rank
        }

        fn size(&self) -> usize {
            self.size
        }

        /// MPI ends all processes where it cannot reach one.
        fn exchange(&self, partner: usize, sent: &[u8], received: &mut [u8]) -> io::Result<()> {
            let most = i32::MAX as usize;
            if sent.len() > most || received.len() > most {
                return Err(io::Error::other("a message of more than 2 GiB"));
            }
            let world = SimpleCommunicator::world();
            let partner = world.process_at_rank(partner as i32);
            scope(|scope| {
                let receive = partner.immediate_receive_into(scope, received);
                let send = partner.immediate_send(scope, sent);
                wait(receive);
                wait(send);
            });
            Ok(())
        }
    }

    /// Polls before the thread sleeps in between.
    const POLLS: u32 = 64;

    /// The time between two polls then.
    const PAUSE: Duration = Duration::from_micros(50);

    /// Waits for a message. MPI would keep a core busy meanwhile, on which another thread can compute.
    fn wait<'a, B: ?Sized, S: Scope<'a>>(mut request: Request<'a, B, S>) {
        for poll in 0_u32.. {
            match request.test() {
                Ok(_) => return,
                Err(unfinished) => request = unfinished,
            }
            match poll < POLLS {
                true => thread::yield_now(),
                false => thread::sleep(PAUSE),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_tell_the_rank() {
        let launched = |variables: &[(&str, &str)]| {
            Launched::new(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let open_mpi = [("OMPI_COMM_WORLD_RANK", "3"), ("OMPI_COMM_WORLD_SIZE", "4")];
        assert_eq!(launched(&open_mpi), Some(Launched { rank: 3, size: 4 }));
        let srun = [("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "2")];
        assert_eq!(launched(&srun), Some(Launched { rank: 0, size: 2 }));
        assert_eq!(launched(&[]), None);
        assert_eq!(launched(&[("PMI_RANK", "0")]), None);
        assert_eq!(launched(&[("PMI_RANK", "x"), ("PMI_SIZE", "2")]), None);
        let alone = Some(Launched { rank: 0, size: 1 });
        assert!(Launched::check_alone(alone).is_ok());
        assert!(Launched::check_alone(launched(&open_mpi)).is_err());
    }
}
