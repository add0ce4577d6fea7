//! Training in several processes, which are threads here.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

mod training;

use engine::{Checkpoints, Outcome, ProcessGroup, Training, TrainingSetup};
use models::Architecture;
use ops::{ConvAlgorithm, Precision};
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use training::{checkpoints, last, setup, start, state, train};

/// A thread that plays a process, with a channel to each other one.
struct Threads {
    rank: usize,
    senders: Vec<Mutex<Sender<Vec<u8>>>>,
    receivers: Vec<Mutex<Receiver<Vec<u8>>>>,
}

impl Threads {
    fn groups(size: usize) -> Vec<Arc<dyn ProcessGroup>> {
        let mut groups: Vec<_> = (0..size)
            .map(|rank| Self {
                rank,
                senders: Vec::new(),
                receivers: Vec::new(),
            })
            .collect();
        for from in 0..size {
            for to in 0..size {
                let (sender, receiver) = channel();
                groups[from].senders.push(sender.into());
                groups[to].receivers.push(receiver.into());
            }
        }
        let shared = |group| Arc::new(group) as Arc<dyn ProcessGroup>;
        groups.into_iter().map(shared).collect()
    }
}

impl ProcessGroup for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.senders.len()
    }

    fn exchange(&self, partner: usize, sent: &[u8], received: &mut [u8]) -> io::Result<()> {
        let ended = |_| io::Error::other("the other thread has ended");
        let sender = self.senders[partner].lock().unwrap();
        sender.send(sent.to_vec()).map_err(|_| ended(()))?;
        let receiver = self.receivers[partner].lock().unwrap();
        received.copy_from_slice(&receiver.recv().map_err(|_| ended(()))?);
        Ok(())
    }
}

/// The state of a run's checkpoint, and the metrics of its epochs without times.
type State = ((Vec<Vec<f32>>, Vec<Option<String>>), Vec<[f64; 5]>);

fn checkpoint(checkpoints: &Checkpoints, architecture: Architecture) -> State {
    let checkpoint = last(checkpoints, architecture);
    let history = checkpoint.progress.history.iter().map(|epoch| {
        [
            epoch.train_loss,
            epoch.train_accuracy,
            epoch.evaluated.loss,
            epoch.evaluated.accuracy,
            epoch.evaluated.model_ema_loss.unwrap(),
        ]
    });
    let history = history.collect();
    (state(checkpoint), history)
}

/// Trains in `size` processes, from the checkpoint in `folder` if there is one, until `stop` of one process was called
/// `calls` times.
fn train_in(
    size: usize,
    setup: &(dyn Fn() -> TrainingSetup + Sync),
    folder: &Path,
    calls: u32,
) -> Vec<Outcome> {
    thread::scope(|scope| {
        let groups = Threads::groups(size).into_iter().enumerate();
        let threads = groups.map(|(rank, group)| {
            scope.spawn(move || {
                let setup = TrainingSetup {
                    process_group: Some(group),
                    ..setup()
                };
                let architecture = setup.settings.model.parse().unwrap();
                let checkpoints = checkpoints(folder);
                let resumed = checkpoints.read_last(architecture).unwrap();
                let mut training = match resumed {
                    Some(checkpoint) => Training::resume(setup, checkpoint).unwrap(),
                    None => start(setup),
                };
                // Only the last process is asked to stop.
                let calls = if rank + 1 == size { calls } else { u32::MAX };
                train(&mut training, &checkpoints, calls)
            })
        });
        let threads: Vec<_> = threads.collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

/// Holds runs in 2, 4 and 8 processes against one in a single process.
fn assert_same_bits(setup: &(dyn Fn() -> TrainingSetup + Sync)) {
    let architecture: Architecture = setup().settings.model.parse().unwrap();
    let expected = {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(folder.path());
        train(&mut start(setup()), &checkpoints, u32::MAX);
        checkpoint(&checkpoints, architecture)
    };
    for size in [1, 2, 4, 8] {
        let folder = tempfile::tempdir().unwrap();
        let outcomes = train_in(size, setup, folder.path(), u32::MAX);
        assert_eq!(outcomes, vec![Outcome::Finished; size]);
        let found = checkpoint(&checkpoints(folder.path()), architecture);
        assert_eq!(found.1, expected.1, "{size} processes");
        assert!(found == expected, "{size} processes");
    }
}

/// Batches of 3 images and, the last one, of 2: most of 8 processes have none.
#[test]
fn any_number_of_processes_gives_the_same_bits() {
    assert_same_bits(&|| setup("gradient_shards = 8"));
}

#[test]
fn dropout_and_bf16_are_the_same_in_any_number_of_processes() {
    for precision in [Precision::F32, Precision::Bf16] {
        assert_same_bits(&|| {
            let mut setup = setup(
                "model = \"small-alexnet\"\ngradient_shards = 8\nbatch_size = 4\nepochs = 1\ndropout = 0.5\n\
                 clip_grad_norm = 0.1",
            );
            setup.arithmetic.precision = precision;
            setup
        });
    }
}

#[test]
fn frozen_features_and_the_direct_algorithm_are_the_same_in_any_number_of_processes() {
    assert_same_bits(&|| TrainingSetup {
        arithmetic: ConvAlgorithm::Direct.into(),
        ..setup("gradient_shards = 16\nfreeze_features = true")
    });
}

#[test]
fn a_run_stops_everywhere_and_resumes_in_another_number_of_processes() {
    let setup = || setup("gradient_shards = 4");
    let architecture: Architecture = "lenet".parse().unwrap();
    let whole = tempfile::tempdir().unwrap();
    train(&mut start(setup()), &checkpoints(whole.path()), u32::MAX);
    let expected = checkpoint(&checkpoints(whole.path()), architecture);

    let folder = tempfile::tempdir().unwrap();
    // Asked before the second of two steps; the processes agree within that step.
    let outcomes = train_in(4, &setup, folder.path(), 2);
    assert_eq!(outcomes, [Outcome::Interrupted; 4]);
    let stopped = last(&checkpoints(folder.path()), architecture);
    let position = stopped.progress.position;
    assert_eq!((position.epoch, position.step), (0, 2));
    let outcomes = train_in(2, &setup, folder.path(), u32::MAX);
    assert_eq!(outcomes, [Outcome::Finished; 2]);
    let found = checkpoint(&checkpoints(folder.path()), architecture);
    assert!(found == expected);
}

#[test]
fn shards_change_the_order_of_sums_alone() {
    let train_with = |changes: &str| {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(folder.path());
        train(&mut start(setup(changes)), &checkpoints, u32::MAX);
        checkpoint(&checkpoints, "lenet".parse().unwrap()).0.0
    };
    let (one, eight) = (
        train_with("gradient_shards = 1"),
        train_with("gradient_shards = 8"),
    );
    assert!(one == train_with(""));
    assert!(one != eight);
    for (one, eight) in one.iter().flatten().zip(eight.iter().flatten()) {
        assert!((one - eight).abs() < 1e-4, "{one}, {eight}");
    }
}
