//! Training that stops and resumes, and checkpoints of earlier formats.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use candle_core::Device;
use datasets::Dataset;
use engine::{Checkpoint, Checkpoints, Event, Inputs, LrFinder, Outcome, Training, TrainingSetup};
use models::{Architecture, Network, initial_parameters};
use ops::ConvAlgorithm;
use run::settings::{Source, WeightInit};
use run::{EvaluationSplit, Overrides, Settings, file, recipes};
use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

fn lenet() -> Architecture {
    "lenet".parse().unwrap()
}

/// Two epochs of two steps of LeNet, with EMA, warm-up and dropout, which LeNet ignores.
fn setup(changes: &str) -> TrainingSetup {
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
    }
}

fn start(setup: TrainingSetup) -> Training {
    let architecture = setup.settings.model.parse().unwrap();
    let parameters = initial_parameters(architecture, WeightInit::Kaiming, 1, &Device::Cpu);
    let network = Network::new(architecture, parameters.unwrap()).unwrap();
    Training::new(setup, network).unwrap()
}

fn checkpoints(folder: &Path) -> Checkpoints {
    let inputs = Inputs {
        mean: [0.5; 3].map(|value: f64| value.try_into().unwrap()),
        std: [0.25; 3].map(|value: f64| value.try_into().unwrap()),
        class_names: std::array::from_fn(|class| class.to_string()),
    };
    Checkpoints::new(folder, inputs)
}

fn last(checkpoints: &Checkpoints, architecture: Architecture) -> Checkpoint {
    checkpoints.read_last(architecture).unwrap().unwrap()
}

/// Trains until `stop` is called for the `calls`-th time.
fn train(training: &mut Training, checkpoints: &Checkpoints, calls: u32) -> Outcome {
    let left = Cell::new(calls);
    let stop = || {
        left.set(left.get().saturating_sub(1));
        left.get() == 0
    };
    let outcome = training.run(checkpoints, Duration::MAX, &stop, &mut |_| Ok(()));
    outcome.unwrap()
}

/// What a checkpoint restores, without times.
fn state(checkpoint: Checkpoint) -> (Vec<Vec<f32>>, Vec<Option<String>>) {
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

#[test]
fn a_run_that_is_stopped_anywhere_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let whole = checkpoints(&folder.path().join("whole"));
    let parts = checkpoints(&folder.path().join("parts"));
    for name in ["whole", "parts"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let small_alexnet: Architecture = "small-alexnet".parse().unwrap();
    let setup = || setup("model = \"small-alexnet\"");
    let mut training = start(setup());
    assert_eq!(train(&mut training, &whole, u32::MAX), Outcome::Finished);
    assert_eq!(training.history().len(), 2);

    // Before the first step, before the second one, and in the evaluation, of the weights and of the EMA.
    let mut training = start(setup());
    let mut stops = 0;
    for calls in [1, 2, 2, 2, 3, 4, u32::MAX] {
        let outcome = train(&mut training, &parts, calls);
        if outcome == Outcome::Finished {
            break;
        }
        stops += 1;
        training = Training::resume(setup(), last(&parts, small_alexnet)).unwrap();
    }
    assert!(stops > 3, "{stops}");
    let [parts, whole] = [parts, whole].map(|run| state(last(&run, small_alexnet)));
    assert!(parts == whole);
    let best = |name: &str| fs::read(folder.path().join(name).join(file::BEST_WEIGHTS)).unwrap();
    assert!(best("parts") == best("whole"));
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(folder.path());
    let mut training = start(setup("model_ema_decay = 0.0"));
    train(&mut training, &checkpoints, 2);
    let refused = |setup: TrainingSetup| {
        let error = Training::resume(setup, last(&checkpoints, lenet()))
            .err()
            .unwrap();
        let error = error.to_string();
        assert!(error.contains("cannot be resumed from"), "{error}");
        error
    };
    let seed = setup("seed = 2\nmodel_ema_decay = 0.0");
    assert!(refused(seed).contains("seed 1, but the run has 2"));
    assert!(refused(setup("batch_size = 2")).contains("batch size 3"));
    let ema = refused(setup(""));
    assert!(ema.contains("model_ema_decay = 0.0"), "{ema}");
}

#[test]
fn early_stopping_ends_a_run_and_is_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(folder.path());
    let setup = || setup("lr = 0.0\nepochs = 9\nearly_stopping = 1");
    let mut training = start(setup());
    let mut events = Vec::new();
    let outcome = training.run(&checkpoints, Duration::MAX, &|| false, &mut |event| {
        if let Event::EpochFinished { last, history, .. } = event {
            events.push((*last, history.len()));
        }
        Ok(())
    });
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert_eq!(events, [(false, 1), (true, 2)]);
    assert!(training.stopped_early());
    let mut resumed = Training::resume(setup(), last(&checkpoints, lenet())).unwrap();
    assert_eq!(
        train(&mut resumed, &checkpoints, u32::MAX),
        Outcome::Finished
    );
    assert_eq!(resumed.history().len(), 2);
}

#[test]
fn an_lr_finder_that_ends_early_returns_what_it_tried() {
    let find = |finder: LrFinder, steps: u32| {
        let training = start(setup(""));
        let left = Cell::new(steps);
        let mut observed = 0;
        let stop = || {
            left.set(left.get() - 1);
            left.get() == 0
        };
        let curve = training
            .find_lr(finder, &stop, &mut |_| observed += 1)
            .unwrap();
        assert_eq!(curve.len(), observed);
        curve
    };
    let finder = LrFinder::new(1e-5, 1e-3, 5).unwrap();
    let whole = find(finder, u32::MAX);
    assert_eq!(whole.len(), 5);
    assert_eq!(find(finder, 4), whole[..3]);
    // The loss explodes long before the last step.
    let exploded = find(LrFinder::new(1e-3, 1e6, 40).unwrap(), u32::MAX);
    assert!((2..40).contains(&exploded.len()), "{exploded:?}");
}

/// Rewrites the metadata of a safetensors file.
fn rewrite(path: &Path, change: impl Fn(&mut HashMap<String, String>)) {
    let bytes = fs::read(path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata = header.metadata().clone().unwrap();
    change(&mut metadata);
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let written = safetensors::serialize(tensors.tensors(), Some(metadata)).unwrap();
    fs::write(path, written).unwrap();
}

#[test]
fn a_checkpoint_of_format_1_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(folder.path());
    let mut training = start(setup(""));
    train(&mut training, &checkpoints, 2);
    let new = state(last(&checkpoints, lenet()));
    let last_weights = folder.path().join(file::LAST_WEIGHTS);
    let (ema, average) = ("ema-0-1.safetensors", "average-0-1.safetensors");
    fs::rename(folder.path().join(ema), folder.path().join(average)).unwrap();
    rewrite(&last_weights, |metadata| {
        metadata.insert("format_version".to_owned(), "1".to_owned());
        metadata.remove("ema").unwrap();
        metadata.insert("average".to_owned(), average.to_owned());
        let inputs = metadata.get_mut("inputs").unwrap();
        *inputs = inputs.replace("\"std\"", "\"standard_deviation\"");
        let progress = metadata.get_mut("progress").unwrap();
        assert!(progress.contains("\"correct\":"), "{progress}");
        *progress = progress.replace("\"correct\":", "\"right\":").replace(
            "\"history\":",
            "\"plateau\":{\"learning_rate\":0.02,\"patience\":5,\"factor\":0.1,\
             \"threshold\":0.0001,\"best\":null,\"bad_epochs\":0},\"history\":",
        );
    });
    assert!(state(last(&checkpoints, lenet())) == new);
    assert!(last(&checkpoints, lenet()).weights.inputs.is_some());
    let mut resumed = Training::resume(setup(""), last(&checkpoints, lenet())).unwrap();
    assert_eq!(resumed.position().step, 1);
    assert_eq!(
        train(&mut resumed, &checkpoints, u32::MAX),
        Outcome::Finished
    );
    assert!(!folder.path().join(average).exists());

    // A name that leads elsewhere is refused.
    rewrite(&last_weights, |metadata| {
        metadata.insert("momentum".to_owned(), "momentum-/../other".to_owned());
    });
    let error = checkpoints.read_last(lenet()).err().unwrap().to_string();
    assert!(error.contains("momentum-/../other"), "{error}");
}
