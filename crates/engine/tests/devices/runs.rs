//! Whole runs on each device: as on a CPU, and with the same bits after any interruption.

use crate::training::{checkpoints, last, setup, start, state, train};
use candle_core::{DType, Device, Result};
use candle_nn::Optimizer;
use datasets::{Augmentation, Dataset};
use engine::{Checkpoints, DataLoader, Event, Outcome, Training, TrainingSetup};
use models::{Architecture, DropoutMasks, Network, initial_parameters};
use ops::{Arithmetic, ConvAlgorithm, Precision, Tape, cross_entropy, cross_entropy_gradient};
use reference::{elements, test_device};
use run::file;
use run::settings::WeightInit;
use std::num::NonZeroUsize;
use std::process::{Command, abort};
use std::time::Duration;
use std::{env, fs};
use tempfile::TempDir;

fn small_alexnet() -> Architecture {
    "small-alexnet".parse().unwrap()
}

test_device!(training_is_as_on_a_cpu);

/// The losses of four steps, with the same images, masks and weights.
fn training_is_as_on_a_cpu(device: &Device, _: DType, arithmetic: Arithmetic) -> Result<()> {
    let limit = match arithmetic.precision {
        Precision::F32 => 1e-4,
        Precision::Tf32 => 1e-3,
        Precision::Bf16 => 1e-2,
    };
    let (found, expected) = (
        losses(device, arithmetic)?,
        losses(&Device::Cpu, ConvAlgorithm::Direct.into())?,
    );
    assert_eq!(found.len(), 4);
    for (found, expected) in found.iter().zip(&expected) {
        let error = (found - expected).abs() / expected;
        assert!(error <= limit, "{error} ({limit})");
    }
    Ok(())
}

fn losses(device: &Device, arithmetic: Arithmetic) -> Result<Vec<f64>> {
    let architecture = small_alexnet();
    let parameters = initial_parameters(architecture, WeightInit::Pytorch, 0, device)?;
    let network = Network::new(architecture, parameters)?;
    let variables = network.variables().iter();
    let variables = variables.map(|(_, variable)| variable.clone());
    let sgd = ops::Sgd {
        learning_rate: 0.02,
        momentum: 0.9,
        weight_decay: 5e-4,
        ..ops::Sgd::default()
    };
    let mut optimiser = engine::Sgd::new(variables.collect(), sgd)?;
    let set = Dataset::synthetic(16, 1).unwrap();
    let (settings, batch) = (setup("").settings, NonZeroUsize::new(4).unwrap());
    let (split, precision) = (set.training(), arithmetic.precision);
    let loader = DataLoader::new(split, batch, (&settings).into(), device, precision)?;
    let mut losses = Vec::new();
    for (step, batch) in (0..).zip(loader.training(0, 0, Augmentation::STANDARD, 0)?) {
        let batch = batch?;
        let masks = DropoutMasks {
            probability: 0.5,
            seed: 0,
            step,
        };
        let mut tape = Tape::recording(arithmetic);
        let images = tape.activations(&batch.images)?;
        let logits = network.forward(&mut tape, &images, Some(masks))?;
        losses.extend(elements(&cross_entropy(&logits, &batch.labels)?)?);
        let gradient = cross_entropy_gradient(&logits, &batch.labels, 0.0)?;
        optimiser.step(&tape.backward(gradient)?)?;
    }
    Ok(losses)
}

/// Two epochs of two steps of SmallAlexNet.
fn small_setup(device: &Device, arithmetic: Arithmetic) -> TrainingSetup {
    TrainingSetup {
        device: device.clone(),
        arithmetic,
        ..setup("model = \"small-alexnet\"")
    }
}

/// The folder of a run.
struct Folder {
    folder: TempDir,
    checkpoints: Checkpoints,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(folder.path());
        Self {
            folder,
            checkpoints,
        }
    }

    fn resume(&self, setup: TrainingSetup) -> Training {
        Training::resume(setup, last(&self.checkpoints, small_alexnet())).unwrap()
    }

    /// Trains to the end.
    fn finish(self, mut training: Training, device: &Device) -> impl PartialEq + use<> {
        let outcome = train(&mut training, &self.checkpoints, u32::MAX);
        assert_eq!(outcome, Outcome::Finished);
        assert_eq!(training.history().len(), 2);
        let (tensors, digests) = state(last(&self.checkpoints, small_alexnet()));
        let best = fs::read(self.folder.path().join(file::BEST_WEIGHTS)).unwrap();
        // On a GPU, epochs without a checkpoint have no digest.
        (tensors, device.is_cpu().then_some(digests), best)
    }
}

test_device!(a_run_that_is_stopped_anywhere_ends_with_the_same_bits:
    cpu_f32, cuda_f32, cuda_tf32, cuda_bf16);

fn a_run_that_is_stopped_anywhere_ends_with_the_same_bits(
    device: &Device,
    _: DType,
    arithmetic: Arithmetic,
) -> Result<()> {
    let setup = || small_setup(device, arithmetic);
    let whole = Folder::new().finish(start(setup()), device);
    let again = Folder::new().finish(start(setup()), device);
    assert!(again == whole, "the same run again");

    // Before the first step, before the second one, and in the evaluation, of the weights and of the EMA.
    let run = Folder::new();
    let mut training = start(setup());
    for calls in [1, 2, 2, 2, 3, 4] {
        let outcome = train(&mut training, &run.checkpoints, calls);
        assert_eq!(outcome, Outcome::Interrupted);
        training = run.resume(setup());
    }
    assert!(run.finish(training, device) == whole);
    Ok(())
}

#[cfg(feature = "cuda")]
test_device!(cuda_graphs_change_no_bit: cuda_bf16);

/// Five steps of one image in each of two epochs, of which all but the first two may be replayed. They have the same
/// gradients, too.
#[cfg(feature = "cuda")]
fn cuda_graphs_change_no_bit(device: &Device, _: DType, arithmetic: Arithmetic) -> Result<()> {
    let [replayed, computed] = [true, false].map(|cuda_graphs| {
        let changes = format!(
            "model = \"small-alexnet\"\nbatch_size = 1\nclip_grad_norm = 0.5\ncuda_graphs = {cuda_graphs}"
        );
        let mut training = start(TrainingSetup {
            device: device.clone(),
            arithmetic,
            ..setup(&changes)
        });
        training.measure_gradient_norm().unwrap();
        let run = Folder::new();
        let mut norms = Vec::new();
        let outcome = training.run(&run.checkpoints, Duration::MAX, &|| false, &mut |event| {
            if let Event::IntervalFinished { gradient_norm, .. } = event {
                norms.push(gradient_norm.unwrap().to_bits());
            }
            Ok(())
        });
        assert_eq!(outcome.unwrap(), Outcome::Finished);
        assert!(norms.len() == 2 && norms[0] != norms[1], "{norms:?}");
        (run.finish(training, device), norms)
    });
    assert!(replayed == computed);
    Ok(())
}

test_device!(a_run_that_is_killed_ends_with_the_same_bits:
    cpu_f32, cuda_f32, cuda_tf32, cuda_bf16);

/// In the process that is killed, the folder of its run.
const KILLED_RUN: &str = "KILLED_RUN";

fn a_run_that_is_killed_ends_with_the_same_bits(
    device: &Device,
    _: DType,
    arithmetic: Arithmetic,
) -> Result<()> {
    let setup = || small_setup(device, arithmetic);
    if let Some(folder) = env::var_os(KILLED_RUN) {
        die_in_second_epoch(start(setup()), &checkpoints(folder.as_ref()));
    }
    let run = Folder::new();
    let output = Command::new(env::current_exe()?)
        .args([
            "--include-ignored",
            "--exact",
            &this_test(device, arithmetic),
        ])
        .env(KILLED_RUN, run.folder.path())
        .output()?;
    // 101: it failed.
    let is_killed = !matches!(output.status.code(), Some(0 | 101));
    assert!(is_killed, "{}", String::from_utf8_lossy(&output.stdout));
    let training = run.resume(setup());
    let whole = Folder::new().finish(start(setup()), device);
    assert!(run.finish(training, device) == whole);
    Ok(())
}

/// The name of the test above.
fn this_test(device: &Device, arithmetic: Arithmetic) -> String {
    let case = match (device.is_cpu(), arithmetic.precision) {
        (true, _) => "cpu_f32",
        (false, Precision::F32) => "cuda_f32",
        (false, Precision::Tf32) => "cuda_tf32",
        (false, Precision::Bf16) => "cuda_bf16",
    };
    format!("runs::a_run_that_is_killed_ends_with_the_same_bits::{case}")
}

/// Trains with a checkpoint after every step, and dies after the last step, before that one's.
fn die_in_second_epoch(mut training: Training, checkpoints: &Checkpoints) -> ! {
    let outcome = training.run(checkpoints, Duration::ZERO, &|| false, &mut |event| {
        if let Event::Step {
            epoch: 2, done: 2, ..
        } = event
        {
            abort();
        }
        Ok(())
    });
    panic!("the run was not killed: {outcome:?}");
}
