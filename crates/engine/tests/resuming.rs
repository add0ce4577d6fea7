//! Training that stops and resumes, and checkpoints of earlier formats.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

mod training;

use candle_core::Device;
use engine::{Event, LrFinder, Outcome, Training, TrainingSetup};
use models::{Architecture, initial_parameters};
use run::file;
use run::settings::WeightInit;
use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;
use training::{checkpoints, last, setup, start, state, train};

fn lenet() -> Architecture {
    "lenet".parse().unwrap()
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
fn frozen_features_keep_their_bits_and_the_others_resume_exactly() {
    let setup = |changes: &str| {
        let settings =
            "momentum = 0.9\nweight_decay = 0.1\nclip_grad_norm = 0.5\nfreeze_features =";
        setup(&format!("{settings} {changes}"))
    };
    let folder = tempfile::tempdir().unwrap();
    let whole = checkpoints(&folder.path().join("whole"));
    let parts = checkpoints(&folder.path().join("parts"));
    for name in ["whole", "parts"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    train(&mut start(setup("true")), &whole, u32::MAX);
    // Stopped before the third of four steps.
    train(&mut start(setup("true")), &parts, 3);
    let error = Training::resume(setup("false"), last(&parts, lenet())).err();
    let error = error.unwrap().to_string();
    assert!(error.contains("freeze_features = true"), "{error}");
    let mut resumed = Training::resume(setup("true"), last(&parts, lenet())).unwrap();
    train(&mut resumed, &parts, u32::MAX);
    let found = state(last(&whole, lenet()));
    assert_eq!(found, state(last(&parts, lenet())));

    let initial = initial_parameters(lenet(), WeightInit::Kaiming, 1, &Device::Cpu).unwrap();
    let count = initial.len();
    for (index, (name, initial)) in initial.into_iter().enumerate() {
        let initial: Vec<f32> = initial.flatten_all().unwrap().to_vec1().unwrap();
        let [weight, momentum, ema] = [0, 1, 2].map(|part| &found.0[part * count + index]);
        let is_frozen = name.starts_with("conv");
        assert_eq!(*weight == initial, is_frozen, "{name}");
        assert_eq!(*ema == initial, is_frozen, "{name}");
        assert_eq!(
            momentum.iter().all(|value| *value == 0.0),
            is_frozen,
            "{name}"
        );
    }
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
