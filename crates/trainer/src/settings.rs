//! The settings that apply: the network's defaults and, above them, a recipe, a settings file and the command line.

use anyhow::Context;
use clap::builder::{PossibleValuesParser, StringValueParser, TypedValueParser};
use datasets::{Channels, DatasetInfo, DatasetSource, Split};
use models::Architecture;
use run::cli::{self, UsageError};
use run::settings::{Difference, Field, Property, Source, last, with_defaults_in_help};
use run::{Choices, OutOfRange, Overrides, PerChannel, Settings, Shards, recipes};
use std::path::Path;

/// The settings of a run, with the network and the data set that they name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resolved {
    pub(crate) settings: Settings,
    pub(crate) architecture: Architecture,
    pub(crate) dataset: DatasetSource,
    /// Whether flags or a file set the mean of images.
    pub(crate) mean_is_given: bool,
    /// Whether flags or a file set the standard deviation of images.
    pub(crate) std_is_given: bool,
    /// Where the precision is set.
    pub(crate) precision_source: Source,
    /// What the run that is resumed or repeated chose for its device.
    pub(crate) choices: Option<Choices>,
}

impl Resolved {
    /// The settings in which the run differs from its recipe, apart from paths on this machine.
    pub(crate) fn differences_from_recipe(&self) -> anyhow::Result<Vec<Difference>> {
        let recipe = Overrides {
            model: Some(self.settings.model.clone()),
            dataset: Some(self.settings.dataset.clone()),
            recipe: Some(self.settings.recipe.clone()),
            ..Overrides::default()
        };
        let mut recipe = resolve(&recipe, None)?.settings;
        if matches!(self.dataset, DatasetSource::Folder(_)) {
            // They are those of the images.
            (recipe.mean, recipe.std) = (self.settings.mean, self.settings.std);
        }
        Ok(self.settings.differences(&recipe, Property::LocalPath)?)
    }

    /// The flag that leaves the setting with this key without effect; `None` if the setting has an effect.
    fn overriding_flag(&self, key: &str) -> Option<String> {
        match key {
            "dropout" | "dropout_epochs" | "dropout_warmup_epochs"
                if !self.architecture.has_dropout() =>
            {
                Some(format!("--model {}", self.settings.model))
            }
            "skip_unreadable" if matches!(self.dataset, DatasetSource::Known(_)) => {
                Some(format!("--dataset {}", self.settings.dataset))
            }
            _ => self.settings.overriding_flag(key),
        }
    }

    /// Whether flags or a file set the mean and the standard deviation of images.
    pub(crate) fn normalisation_is_given(&self) -> bool {
        self.mean_is_given && self.std_is_given
    }

    /// Whether the mean or the standard deviation is that of the training images, which have to be loaded first.
    pub(crate) fn needs_channels(&self) -> bool {
        matches!(self.dataset, DatasetSource::Folder(_)) && !self.normalisation_is_given()
    }

    /// These settings with the mean and the standard deviation of the training images, where they are needed.
    pub(crate) fn with_channels(mut self, training: &Split) -> anyhow::Result<Self> {
        if self.needs_channels() {
            let normalisation = normalisation(training.channels()?).context(
                "the training images have a channel without variation; give --mean and --std",
            )?;
            let settings = &mut self.settings;
            if !self.mean_is_given {
                settings.mean = normalisation.mean.unwrap_or(settings.mean);
            }
            if !self.std_is_given {
                settings.std = normalisation.std.unwrap_or(settings.std);
            }
        }
        Ok(self)
    }
}

/// Resolves the settings of flags and, below them, of a file.
pub(crate) fn resolve(flags: &Overrides, file: Option<&Path>) -> Result<Resolved, UsageError> {
    resolve_with(flags, file, None)
}

/// The same with a default number of gradient shards. A record without that setting has one.
pub(crate) fn resolve_with(
    flags: &Overrides,
    file: Option<&Path>,
    gradient_shards: Option<Shards>,
) -> Result<Resolved, UsageError> {
    let file = file.map(|path| Ok((path, read(path)?)));
    resolve_layers(flags, file.transpose()?, gradient_shards)
}

/// Resolves the settings of a run that is resumed: its own, but for those that may change.
pub(crate) fn resolve_resumed(flags: &Overrides, record: &Path) -> Result<Resolved, UsageError> {
    let recorded = read(record)?;
    if recorded.model.is_none() {
        return Err(usage(run::Error::Damaged {
            path: record.to_owned(),
            reason: "the setting `model` is missing".to_owned(),
        }));
    }
    // The precision that the run has, also where it was not asked for.
    let precision = Choices::of(record, &recorded).map_err(usage)?;
    let precision = precision.map(|choices| choices.precision);
    let with_precision = Overrides {
        precision: precision.or(recorded.precision),
        ..recorded.clone()
    };
    // A folder may be at another path now; the images decide whether it is the same data.
    let is_folder = |name: &&String| !matches!(name.parse(), Ok(DatasetSource::Known(_)));
    let moved = flags.dataset.clone().filter(|name| {
        is_folder(&name)
            && recorded
                .dataset
                .as_ref()
                .is_some_and(|name| is_folder(&name))
    });
    let unmoved = Overrides {
        dataset: flags.dataset.clone().filter(|_| moved.is_none()),
        ..flags.clone()
    };
    unmoved
        .check_resume(record.parent().unwrap_or(record), &with_precision)
        .map_err(usage)?;
    let flags = Overrides {
        precision: None,
        dataset: moved,
        ..flags.clone()
    };
    resolve_layers(&flags, Some((record, recorded)), None)
}

/// Reads a settings file or a record. Records without sessions are of earlier versions, which recorded the number of
/// threads also where it was the number of cores.
fn read(path: &Path) -> Result<Overrides, UsageError> {
    let mut overrides = Overrides::read(path).map_err(usage)?;
    if let Some(made_by) = &overrides.made_by
        && !made_by.contains_key("sessions")
    {
        overrides.threads = None;
    }
    Ok(overrides)
}

fn usage(error: run::Error) -> UsageError {
    UsageError(cli::message(&error))
}

/// Resolves the settings of flags and a file, with the network's defaults and the recipe below them.
fn resolve_layers(
    flags: &Overrides,
    file: Option<(&Path, Overrides)>,
    gradient_shards: Option<Shards>,
) -> Result<Resolved, UsageError> {
    let is_record = file
        .as_ref()
        .is_some_and(|(_, overrides)| overrides.made_by.is_some());
    let choices = file
        .as_ref()
        .map(|(path, overrides)| Choices::of(path, overrides));
    let mut choices = choices.transpose().map_err(usage)?.flatten();
    // Asked for anew. A run that is resumed cannot change it.
    if let Some(choices) = &mut choices
        && flags.cudnn_benchmark == Some(true)
    {
        choices.cudnn_engines.clear();
    }
    if let (Some((path, overrides)), Some(wanted)) = (&file, &flags.recipe) {
        check_recipe(wanted, path, overrides)?;
    }
    let file = file.map(|(path, overrides)| (Source::File(path.to_owned()), overrides));
    let flags = (Source::CommandLine, flags.clone());
    let given: Vec<_> = file.into_iter().chain([flags]).collect();
    let (source, model) = last(&given, |layer| layer.model.clone()).ok_or_else(|| {
        let known = join(models());
        UsageError(format!(
            "--model is missing; give it one of these names: {known}"
        ))
    })?;
    let architecture: Architecture = model
        .parse()
        .map_err(|_| unknown("--model", &model, source, models()))?;
    let defaults = Overrides {
        patience: Some(architecture.patience),
        gradient_shards: gradient_shards.filter(|_| !is_record),
        ..Overrides::default()
    };
    let mut layers = vec![(Source::Defaults, defaults)];
    // A record has all settings that its version knew; those that it lacks meant their defaults then.
    if let Some((source, name)) = last(&given, |layer| layer.recipe.clone())
        && !(is_record && matches!(source, Source::File(_)))
    {
        let recipe = recipes::recipe(&name)
            .ok_or_else(|| unknown("--recipe", &name, source, recipes::names()))?;
        layers.push((Source::Recipe(name), recipe));
    }
    // A recipe is for any data set.
    let name = last(&given, |layer| layer.dataset.clone());
    if let Some(Ok(DatasetInfo {
        channels: Some(channels),
        ..
    })) = name.map(|(_, name)| name.parse())
    {
        layers.push((Source::Defaults, normalisation(channels)?));
    }
    let precision_source = last(&given, |layer| layer.precision)
        .map_or(Source::Defaults, |(source, _)| source.clone());
    let mean_is_given = last(&given, |layer| layer.mean).is_some();
    let std_is_given = last(&given, |layer| layer.std).is_some();
    layers.extend(given);
    if let (Some((first, _)), Some((second, _))) = (
        last(&layers, |layer| layer.validation),
        last(&layers, |layer| layer.overfit_batches),
    ) {
        return Err(UsageError(format!(
            "--validation ({first}) and --overfit-batches ({second}) exclude each other; give one of them"
        )));
    }
    let settings = Settings::resolve(&layers).map_err(usage)?;
    let dataset = settings.dataset.parse().map_err(|error: datasets::Error| {
        let source = last(&layers, |layer| layer.dataset.clone());
        let source = source.map_or(&Source::Defaults, |(source, _)| source);
        UsageError(format!("--dataset ({source}): {error}"))
    })?;
    Ok(Resolved {
        settings,
        architecture,
        dataset,
        mean_is_given,
        std_is_given,
        precision_source,
        choices,
    })
}

/// Checks that a recipe has an effect beside a file, whose settings come before those of a recipe. A record and the output
/// of --dry-run have all of them.
fn check_recipe(wanted: &str, path: &Path, file: &Overrides) -> Result<(), UsageError> {
    let Some(other) = file.recipe.as_deref().filter(|other| *other != wanted) else {
        return Ok(());
    };
    let present = file.to_table().map_err(usage)?;
    for recipe in [wanted, other].into_iter().filter_map(recipes::recipe) {
        let mut keys = recipe.to_table().map_err(usage)?.into_iter();
        if keys.any(|(key, _)| !present.contains_key(&key)) {
            return Ok(());
        }
    }
    Err(UsageError(format!(
        "--recipe {wanted} would have no effect: `{}`, with the recipe {other}, sets all that either recipe sets; remove \
         from it what {wanted} is to set, or give --recipe {other}",
        path.display()
    )))
}

/// Notes which flags have no effect beside the other settings. One that gives the default asks for nothing.
pub(crate) fn note_flags_without_effect(
    flags: &Overrides,
    resolved: &Resolved,
) -> anyhow::Result<()> {
    for (key, value) in flags.to_table()? {
        let Some((field, other)) = Field::named(&key).zip(resolved.overriding_flag(&key)) else {
            continue;
        };
        if !field.is_default(&value) {
            let flag = field.flag();
            cli::note(&format!("note: {flag} has no effect with {other}"));
        }
    }
    Ok(())
}

/// The settings that normalise images by these means and standard deviations.
fn normalisation(channels: Channels) -> Result<Overrides, UsageError> {
    let refused = |error: OutOfRange| UsageError(error.to_string());
    Ok(Overrides {
        mean: Some(PerChannel::try_from(channels.mean).map_err(refused)?),
        std: Some(PerChannel::try_from(channels.std).map_err(refused)?),
        ..Overrides::default()
    })
}

fn unknown<'a>(
    flag: &str,
    name: &str,
    source: &Source,
    known: impl Iterator<Item = &'a str>,
) -> UsageError {
    let known = join(known);
    UsageError(format!(
        "{flag} {name} ({source}): unknown name; expected one of {known}"
    ))
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// The command with the names that settings can have, and with each setting's default in its help text.
pub(crate) fn with_names(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_id().as_str() {
        "model" => arg.value_parser(PossibleValuesParser::new(models())),
        "dataset" => with_datasets(arg),
        "recipe" => arg.value_parser(PossibleValuesParser::new(recipes::names())),
        _ => arg,
    });
    with_defaults_in_help(command)
}

/// The parser of a network's name.
pub(crate) fn architecture() -> impl TypedValueParser<Value = Architecture> {
    PossibleValuesParser::new(models()).try_map(|name| name.parse::<Architecture>())
}

fn models() -> impl Iterator<Item = &'static str> {
    Architecture::ALL
        .iter()
        .map(|architecture| architecture.name)
}

/// The flag of a data set, with the names in its help text.
fn with_datasets(arg: clap::Arg) -> clap::Arg {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let parser =
        StringValueParser::new().try_map(|text| text.parse::<DatasetSource>().map(|_| text));
    arg.help(format!("{help} [names: {}]", join(datasets())))
        .value_parser(parser)
}

/// The parser of a data set's name, or of a folder.
pub(crate) fn dataset() -> impl TypedValueParser<Value = DatasetSource> {
    StringValueParser::new().try_map(|text| text.parse::<DatasetSource>())
}

fn datasets() -> impl Iterator<Item = &'static str> {
    DatasetInfo::ALL.iter().map(|dataset| dataset.name)
}
