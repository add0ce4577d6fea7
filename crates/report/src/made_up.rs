//! Runs for tests.

use run::settings::{Precision, Source};
use run::{Choices, EpochMetrics, EvaluationSplit, MadeBy, Run, Settings, SplitMetrics};

/// A run with these settings (TOML), and the training loss, test loss and test accuracy of its epochs.
pub(crate) fn run(model: &str, seed: u64, settings: &str, epochs: &[(f64, f64, f64)]) -> Run {
    let parameters = match model {
        "alexnet" => 58_292_074,
        _ => 12_417_098,
    };
    let mut given: run::Overrides = toml::from_str(settings).unwrap();
    given.model = Some(model.to_owned());
    given.seed = Some(seed);
    let machine = toml::from_str("patience = 5").unwrap();
    let layers = [(Source::Defaults, machine), (Source::CommandLine, given)];
    let settings = Settings::resolve(&layers).unwrap();
    Run {
        name: settings.default_name(),
        made_by: MadeBy {
            record_version: run::file::RECORD_VERSION,
            version: "0.1.0".to_owned(),
            commit: "0".to_owned(),
            device: "cpu".to_owned(),
            gpu: None,
            choices: Choices {
                precision: Precision::F32,
                evaluation_batch: None,
                cudnn_engines: Default::default(),
            },
            parameters,
            train_images: 50_000,
            test_images: 10_000,
            data_sha256: "00".to_owned(),
            skipped_pictures: 0,
            test_split_seed: None,
            sessions: Vec::new(),
        },
        settings,
        epochs: (1..)
            .zip(epochs)
            .map(|(epoch, (train_loss, loss, accuracy))| EpochMetrics {
                epoch,
                train_loss: *train_loss,
                train_accuracy: 0.5,
                evaluated: SplitMetrics {
                    split: EvaluationSplit::Test,
                    loss: *loss,
                    accuracy: *accuracy,
                    model_ema_loss: None,
                    model_ema_accuracy: None,
                    tta_accuracy: None,
                },
                learning_rate: 0.01,
                seconds: 60.0,
                images_per_second: 1000.0,
                weights_sha256: None,
                stopped_early: false,
            })
            .collect(),
        predictions: None,
        layers: None,
    }
}
