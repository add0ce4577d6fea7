//! The same run on several systems: its weights have the same bits, also where it moves from one to another.

use anyhow::{Context, ensure};
use run::Run;
use std::path::Path;
use std::process::{Command, Stdio};

/// A system.
pub(super) struct System<'a> {
    pub(super) name: &'static str,
    /// The trainer, without arguments.
    pub(super) trainer: &'a dyn Fn() -> Command,
}

/// Runs of seconds, also under QEMU.
const LENET: &str =
    "--model lenet --recipe best --epochs 4 --limit-train 60 --limit-test 20 --batch-size 25";
const SMALL_ALEXNET: &str = "--model small-alexnet --recipe sprint --epochs 3 --limit-train 24 --limit-test 10 \
    --batch-size 12";

/// The orders in which a run can visit three systems.
const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

/// Trains on each of the systems, and on one after the other in every order. The runs are left in `folder`. `report` is
/// told what was trained, and an error where the weights after some epoch are not those of the first system.
pub(super) fn run(
    systems: &[System; 3],
    folder: &Path,
    mut report: impl FnMut(&str, anyhow::Result<()>),
) {
    let here = &systems[0];
    for (network, settings) in [("lenet", LENET), ("small-alexnet", SMALL_ALEXNET)] {
        for system in systems {
            let name = format!("{network}-{}", system.name);
            let trained = system.train(folder, &name, settings);
            let expected = format!("{network}-{}", here.name);
            let result = trained.and_then(|()| same_bits(folder, &name, &expected));
            report(&format!("{network} on {}", system.name), result);
        }
    }
    for order in ORDERS {
        let names = order.map(|index| systems[index].name);
        let moved = || {
            let name = format!("lenet-{}", names.join("-"));
            let [first, second, third] = order.map(|index| &systems[index]);
            first.train(folder, &name, &format!("{LENET} --stop-after 1"))?;
            second.run(folder, &format!("--resume {name} --stop-after 2"))?;
            third.run(folder, &format!("--resume {name}"))?;
            same_bits(folder, &name, &format!("lenet-{}", here.name))?;
            // Which reads every file of the run.
            here.run(folder, &format!("report {name} --out report-{name}"))
        };
        report(&format!("lenet on {}", names.join(", then ")), moved());
    }
}

impl System<'_> {
    /// Runs the trainer in the folder of runs.
    fn run(&self, folder: &Path, arguments: &str) -> anyhow::Result<()> {
        let mut trainer = (self.trainer)();
        trainer.args(arguments.split(' ')).args(["--run-dir", "."]);
        let output = trainer.current_dir(folder).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot run the trainer on {}", self.name))?;
        let messages = String::from_utf8_lossy(&output.stderr);
        let message = messages.lines().last().unwrap_or_default();
        ensure!(output.status.success(), "on {}: {message}", self.name);
        Ok(())
    }

    fn train(&self, folder: &Path, name: &str, settings: &str) -> anyhow::Result<()> {
        let settings = format!("{settings} --dataset synthetic --threads 2 --name {name}");
        self.run(folder, &settings)
    }
}

/// Checks that two runs have the same digests after every epoch.
fn same_bits(folder: &Path, run: &str, expected: &str) -> anyhow::Result<()> {
    let digests = |name: &str| -> anyhow::Result<Vec<_>> {
        let epochs = Run::read(&folder.join(name))?.epochs.into_iter();
        Ok(epochs.map(|epoch| epoch.weights_sha256).collect())
    };
    let (found, expected) = (digests(run)?, digests(expected)?);
    ensure!(
        found == expected,
        "other bits: {found:?}, here {expected:?}"
    );
    Ok(())
}
