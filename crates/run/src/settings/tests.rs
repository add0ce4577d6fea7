use super::*;
use crate::recipes;
use std::fs;
use std::path::Path;

fn overrides(text: &str) -> Result<Overrides, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    fs::write(&path, text).unwrap();
    Overrides::read(&path)
}

/// What every run has besides the given settings.
fn layers(text: &str) -> Vec<Layer> {
    let machine = overrides("patience = 5").unwrap();
    vec![
        (Source::Defaults, machine),
        (Source::File("a.toml".into()), overrides(text).unwrap()),
    ]
}

fn settings(text: &str) -> Settings {
    Settings::resolve(&layers(text)).unwrap()
}

/// The facts of the original code (shared/reference/original.md).
#[test]
fn the_defaults_are_those_of_the_original() {
    let defaults = settings("model = \"alexnet\"");
    assert_eq!(defaults.epochs.get(), 50);
    assert_eq!(defaults.batch_size.get(), 500);
    assert_eq!(defaults.weight_init, WeightInit::Pytorch);
    assert_eq!(defaults.lr.get(), 0.01);
    assert_eq!(defaults.momentum.get(), 0.9);
    assert!(!defaults.nesterov);
    assert_eq!(defaults.weight_decay.get(), 5e-4);
    assert_eq!(defaults.weight_decay_on, WeightDecayOn::All);
    assert_eq!(defaults.dropout.get(), 0.5);
    assert_eq!(defaults.dropout_epochs, DropoutEpochs::All(All::All));
    assert_eq!(defaults.lr_scheduler, LrScheduler::Plateau);
    assert_eq!(defaults.plateau_factor.get(), 0.1);
    assert_eq!(defaults.plateau_threshold.get(), 1e-4);
    assert_eq!(defaults.augment, Augment::Standard);
    assert_eq!(defaults.padding_mode, PaddingMode::Constant);
    assert_eq!(defaults.flip, Flip::Random);
    assert_eq!(defaults.mean.0.map(Finite::get), [0.485, 0.456, 0.406]);
    assert_eq!(defaults.std.0.map(Positive::get), [0.229, 0.224, 0.225]);
    for off in [
        defaults.lr_warmup_epochs.get(),
        defaults.clip_grad_norm.get(),
        defaults.label_smoothing.get(),
        defaults.model_ema_decay.get(),
        f64::from(defaults.cutout.get()),
        f64::from(defaults.dropout_warmup_epochs),
        f64::from(defaults.early_stopping),
    ] {
        assert_eq!(off, 0.0);
    }
}

#[test]
fn every_recipe_is_read_and_holds_only_settings_of_a_recipe() {
    for name in recipes::names() {
        let recipe = recipes::recipe(name).unwrap().to_table().unwrap();
        for key in recipe.keys() {
            assert!(
                Field::named(key).unwrap().has(Property::Recipe),
                "{name}: {key}"
            );
        }
        // A recipe states what differs from the reference.
        let reference = settings("model = \"alexnet\"").to_table().unwrap();
        for (key, value) in &recipe {
            assert_ne!(reference.get(key), Some(value), "{name}: {key}");
        }
        assert_eq!(recipe.is_empty(), name == "reference");
    }
    assert!(recipes::recipe("none").is_none());
}

#[test]
fn a_later_layer_overrides_an_earlier_one() {
    let mut all = layers("model = \"alexnet\"\npatience = 9\nepochs = 3");
    all.push((Source::CommandLine, overrides("epochs = 4").unwrap()));
    let settings = Settings::resolve(&all).unwrap();
    assert_eq!(settings.epochs.get(), 4);
    assert_eq!(settings.patience, 9);
    assert_eq!(settings.batch_size.get(), 500);
    assert_eq!(last(&all, |o| o.epochs).unwrap().0, &Source::CommandLine);
    assert_eq!(
        last(&all, |o| o.patience).unwrap().0,
        &Source::File("a.toml".into())
    );
    assert_eq!(last(&all, |o| o.batch_size), None);
}

#[test]
fn settings_are_read_back_as_written() {
    for text in [
        "model = \"alexnet\"",
        "model = \"small-alexnet\"\nseed = 7\nlimit_train = 100\ndropout_epochs = 1\naugment = \"none\"\ninit = \"a.safetensors\"\nprecision = \"bf16\"\nstd = [1, 2.5, 3]",
    ] {
        let written = settings(text);
        let read = overrides(&written.to_toml().unwrap()).unwrap();
        let layers = [(Source::CommandLine, read)];
        assert_eq!(Settings::resolve(&layers).unwrap(), written);
    }
}

#[test]
fn keys_of_earlier_versions_are_read() {
    let old = overrides(
        "initialisation = \"kaiming\"\nlearning_rate = 0.5\nschedule = \"cosine\"\nwarmup_epochs = 1\n\
         warmup_start = 0.1\nfinal_rate = 0.2\nclip_norm = 3\naverage_decay = 0.4\ndropout_rise = 5\n\
         padding = \"zero\"\nstandard_deviation = [1, 2, 3]\nconv = \"fast\"",
    )
    .unwrap();
    let new = overrides(
        "weight_init = \"kaiming\"\nlr = 0.5\nlr_scheduler = \"cosine\"\nlr_warmup_epochs = 1\n\
         lr_warmup_start_factor = 0.1\nlr_final_factor = 0.2\nclip_grad_norm = 3\nmodel_ema_decay = 0.4\n\
         dropout_warmup_epochs = 5\npadding_mode = \"constant\"\nstd = [1, 2, 3]\nconv = \"winograd\"",
    )
    .unwrap();
    assert_eq!(old, new);
}

#[test]
fn bad_settings_are_named() {
    let message = |text: &str| {
        let error = match overrides(text) {
            Ok(_) => Settings::resolve(&layers(text)).unwrap_err(),
            Err(error) => error,
        };
        let text = error.to_string();
        text.split_once("is invalid at ")
            .map_or(text.clone(), |(_, rest)| rest.to_owned())
    };
    for (text, expected) in [
        (
            "epoch = 3",
            "line 1 (`epoch = 3`): unknown key; did you mean `epochs`?",
        ),
        (
            "xyz = 3",
            "line 1 (`xyz = 3`): unknown key; the keys are the flags of `trainer` with underscores for hyphens",
        ),
        (
            "model = \"alexnet\"\nlr = -0.1",
            "line 2 (`lr = -0.1`): -0.1 is out of range: expected a finite number of at least 0",
        ),
        (
            "batch_size = 0",
            "line 1 (`batch_size = 0`): invalid value: integer `0`, expected an integer of at least 1",
        ),
        (
            "dropout_epochs = \"some\"",
            "line 1 (`dropout_epochs = \"some\"`): expected \"all\" or a number of epochs",
        ),
        (
            "model = ",
            "line 1 (`model =`): string values must be quoted, expected literal string",
        ),
        ("seed = 1", "the setting `model` is missing: give --model"),
    ] {
        assert_eq!(message(text), expected);
    }
}

#[test]
fn a_resumed_run_keeps_its_settings() {
    let recorded =
        overrides("model = \"alexnet\"\nseed = 3\nepochs = 2\nlr_scheduler = \"plateau\"").unwrap();
    let run = Path::new("runs/a");
    let check = |text: &str| overrides(text).unwrap().check_resume(run, &recorded);
    check("epochs = 5\nthreads = 1\nmodel = \"alexnet\"").unwrap();
    assert_eq!(
        check("model = \"small-alexnet\"").unwrap_err().to_string(),
        "the run `runs/a` has model = \"alexnet\", not \"small-alexnet\"; omit --model to resume it, or start a new run"
    );
    let cosine = overrides("epochs = 2\nlr_scheduler = \"cosine\"").unwrap();
    let error = overrides("epochs = 3")
        .unwrap()
        .check_resume(run, &cosine)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::EpochsOfScheduler {
                recorded: 2,
                wanted: 3,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn differences_leave_out_repetitions() {
    let first = settings("model = \"alexnet\"\nseed = 1");
    let second = settings("model = \"alexnet\"\nseed = 2\nlimit_test = 5\nlr = 0.5");
    let differences = first
        .differences(&second, Property::VariesBetweenRepetitions)
        .unwrap();
    let keys: Vec<_> = differences
        .iter()
        .map(|difference| difference.key)
        .collect();
    assert_eq!(keys, ["limit_test", "lr"]);
    assert_eq!(
        (
            differences[0].first.as_str(),
            differences[0].second.as_str()
        ),
        ("none", "5")
    );
}

#[test]
fn every_default_is_shown_in_the_help() {
    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        overrides: Overrides,
    }
    let command = with_defaults_in_help(<Command as clap::CommandFactory>::command());
    command.clone().debug_assert();
    for field in FIELDS {
        let arg = command
            .get_arguments()
            .find(|arg| arg.get_id() == field.key)
            .unwrap();
        assert_eq!(format!("--{}", arg.get_long().unwrap()), field.flag());
        if let Some(default) = field.default {
            let help = arg.get_help().unwrap().to_string();
            assert!(help.ends_with(&format!(" [default: {default}]")), "{help}");
        }
    }
}

#[test]
fn the_record_of_a_later_version_is_refused() {
    let error = overrides("new = 1\n[made_by]\nrecord_version = 7").unwrap_err();
    assert!(
        matches!(error, Error::LaterVersion { found: 7, .. }),
        "{error}"
    );
}

#[test]
fn values_that_a_record_cannot_have_are_refused() {
    for (text, expected) in [
        ("seed = 9223372036854775808", "expected an integer from 0"),
        ("mean = [1, 2, 3, 4]", "an array of 4 is out of range"),
        ("std = [1, 2]", "an array of 2 is out of range"),
    ] {
        let message = overrides(text).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    assert_eq!(settings("model = \"lenet\"\nseed = 7").seed, 7);
}
