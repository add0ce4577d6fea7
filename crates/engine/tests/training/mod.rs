//! Short runs of the engine, for tests.

use candle_core::Device;
use datasets::Dataset;
use engine::{Checkpoint, Checkpoints, Inputs, Outcome, Training, TrainingSetup};
use models::{Architecture, Network, initial_parameters};
use ops::ConvAlgorithm;
use run::settings::{Source, WeightInit};
use run::{EvaluationSplit, Overrides, Settings, recipes};
use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

/// Two epochs of two steps of LeNet, with EMA, warm-up and dropout, which LeNet ignores.
pub(crate) fn setup(changes: &str) -> TrainingSetup {
    let layer = |text: &str| toml::from_str::<Overrides>(text).unwrap();
    let shared = "model = \"lenet\"\nseed = 1\npatience = 5\nthreads = 1\nepochs = 2\nbatch_size = 3\n\
                  model_ema_decay = 0.5\n";
    let layers = [
        (Source::Defaults, recipes::recipe("best").unwrap()),
        (Source::Defaults, layer(shared)),
        (Source::CommandLine, layer(changes)),
    ];
    let set = Dataset::synthetic(5, 4).unwrap();
    TrainingSetup {
        settings: Settings::resolve(&layers).unwrap(),
        train: set.training(),
        test: set.test(),
        split: EvaluationSplit::Test,
        device: Device::Cpu,
        arithmetic: ConvAlgorithm::Winograd.into(),
        evaluation_batch: None,
        cudnn_engines: Default::default(),
        process_group: None,
    }
}

pub(crate) fn start(setup: TrainingSetup) -> Training {
    let architecture = setup.settings.model.parse().unwrap();
    let parameters = initial_parameters(architecture, WeightInit::Kaiming, 1, &setup.device);
    let network = Network::new(architecture, parameters.unwrap()).unwrap();
    Training::new(setup, network).unwrap()
}

pub(crate) fn checkpoints(folder: &Path) -> Checkpoints {
    let inputs = Inputs {
        mean: [0.5; 3].map(|value: f64| value.try_into().unwrap()),
        std: [0.25; 3].map(|value: f64| value.try_into().unwrap()),
        class_names: (0..10).map(|class| class.to_string()).collect(),
    };
    Checkpoints::new(folder, inputs)
}

pub(crate) fn last(checkpoints: &Checkpoints, architecture: Architecture) -> Checkpoint {
    checkpoints.read_last(architecture).unwrap().unwrap()
}

/// Trains until `stop` is called for the `calls`-th time.
pub(crate) fn train(training: &mut Training, checkpoints: &Checkpoints, calls: u32) -> Outcome {
    let left = Cell::new(calls);
    let stop = || {
        left.set(left.get().saturating_sub(1));
        left.get() == 0
    };
    let outcome = training.run(checkpoints, Duration::MAX, &stop, &mut |_| Ok(()));
    outcome.unwrap()
}

/// What a checkpoint restores, without times.
pub(crate) fn state(checkpoint: Checkpoint) -> (Vec<Vec<f32>>, Vec<Option<String>>) {
    let weights = checkpoint.weights.tensors.into_iter();
    let weights = weights.map(|(_, tensor)| tensor);
    let tensors = weights.chain(checkpoint.momentum_buffers);
    let tensors = tensors.chain(checkpoint.ema.unwrap());
    let digests = checkpoint.progress.history.into_iter();
    (
        tensors
            .map(|tensor| tensor.flatten_all().unwrap().to_vec1().unwrap())
            .collect(),
        digests.map(|epoch| epoch.weights_sha256).collect(),
    )
}
