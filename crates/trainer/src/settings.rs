//! What a run is to do: settings given (flags, files, recipes; every one optional) and settings
//! resolved (every one there).

use crate::data::Source;
use crate::device;
use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use datasets::{Edges, Flip};
use engine::{
    Augment, Cutout, DecayOn, DropoutEpochs, Fraction, NonNegative, OpenFraction, Positive, Recipe,
    Schedule,
};
use models::{Architecture, Initialisation};
use ops::{ConvAlgorithm, Precision};
use run::cli::UsageError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use toml::Table;

/// Settings given on the command line or in a file. What is left out comes from elsewhere.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Given {
    /// The network to train.
    #[arg(long, value_parser = architecture())]
    pub(crate) model: Option<Architecture>,

    /// The recipe whose settings hold where nothing else is said [default: reference].
    #[arg(long, value_name = "NAME")]
    pub(crate) recipe: Option<String>,

    /// The images: CIFAR-10 from the data folder, or a set drawn by the program (ten classes,
    /// 10,000 training and 2,000 test images unless the limits say otherwise) [default: cifar10].
    #[arg(long)]
    pub(crate) dataset: Option<Source>,

    /// The folder that holds `cifar-10-batches-bin` [default: data].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Use the first N training images only.
    #[arg(long, value_name = "N")]
    pub(crate) limit_train: Option<NonZeroUsize>,

    /// Use the first N test images only.
    #[arg(long, value_name = "N")]
    pub(crate) limit_test: Option<NonZeroUsize>,

    /// Passes over the training images.
    #[arg(long, value_name = "N")]
    pub(crate) epochs: Option<NonZeroU32>,

    /// Images a step.
    #[arg(long, value_name = "N")]
    pub(crate) batch_size: Option<NonZeroUsize>,

    /// How initial weights are drawn: as PyTorch does, or by Kaiming's bounds for rectifiers, with biases of 0.
    #[arg(long, value_parser = named::<Initialisation>(["pytorch", "kaiming"]))]
    pub(crate) initialisation: Option<Initialisation>,

    /// Learning rate, at its highest.
    #[arg(long = "lr", value_name = "RATE", allow_negative_numbers = true)]
    pub(crate) learning_rate: Option<NonNegative>,

    /// How the learning rate changes: not at all, down when the test loss falls no more, along half a cosine, or in
    /// a straight line.
    #[arg(long, value_parser = named::<Schedule>(["constant", "plateau", "cosine", "one-cycle"]))]
    pub(crate) schedule: Option<Schedule>,

    /// Epochs, or parts of one, in which the learning rate rises first.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) warmup_epochs: Option<NonNegative>,

    /// Where it rises from, as a share of the highest rate.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) warmup_start: Option<Fraction>,

    /// Where the schedules cosine and one-cycle end, as a share of the highest rate.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) final_rate: Option<Fraction>,

    /// Momentum of the gradient descent.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) momentum: Option<Fraction>,

    /// Whether the momentum is Nesterov's.
    #[arg(long, value_name = "true|false")]
    pub(crate) nesterov: Option<bool>,

    /// Share of each weight that is added to its gradient.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) weight_decay: Option<NonNegative>,

    /// Whether that is done to all parameters or to weights alone, not to biases.
    #[arg(long, value_parser = named::<DecayOn>(["all", "weights"]))]
    pub(crate) weight_decay_on: Option<DecayOn>,

    /// The most that the norm of all gradients may be, to which they are scaled down; 0 for no limit.
    #[arg(long, value_name = "NORM", allow_negative_numbers = true)]
    pub(crate) clip_norm: Option<NonNegative>,

    /// Share of the labels that is spread over all classes.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) label_smoothing: Option<Fraction>,

    /// How much of the weights' moving average is kept in a step; it is evaluated beside the weights. 0 for none.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) average_decay: Option<Fraction>,

    /// Share of features that dropout sets to 0.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) dropout: Option<Fraction>,

    /// For how many epochs, from the first, dropout is active: `all` or a number.
    #[arg(long, value_name = "N|all")]
    pub(crate) dropout_epochs: Option<DropoutEpochs>,

    /// Epochs, from the first, over which that share rises from 0.
    #[arg(long, value_name = "N")]
    pub(crate) dropout_rise: Option<u32>,

    /// What is done to training images: nothing, or pad, random crop and flip.
    #[arg(long, value_parser = named::<Augment>(["none", "standard"]))]
    pub(crate) augment: Option<Augment>,

    /// What crops show beyond an image's edges: black, or its reflection.
    #[arg(long, value_parser = named::<Edges>(["zero", "reflect"]))]
    pub(crate) padding: Option<Edges>,

    /// When training images are mirrored: at random, or at random in the first epoch and then in every other one.
    #[arg(long, value_parser = named::<Flip>(["random", "alternating"]))]
    pub(crate) flip: Option<Flip>,

    /// Side of a square hole in training images, in pixels; 0 for none.
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    pub(crate) cutout: Option<Cutout>,

    #[arg(skip)]
    mean: Option<[f64; 3]>,

    #[arg(skip)]
    standard_deviation: Option<[Positive; 3]>,

    /// Epochs without a better test loss before the learning rate falls.
    #[arg(long, value_name = "N")]
    pub(crate) patience: Option<u32>,

    #[arg(skip)]
    plateau_factor: Option<OpenFraction>,

    #[arg(skip)]
    plateau_threshold: Option<Fraction>,

    /// Epochs without a lower test loss after which the run ends; 0 for never.
    #[arg(long, value_name = "N")]
    pub(crate) early_stopping: Option<u32>,

    /// Hold out N training images, as many of each class, and evaluate on them: the test images are not looked at.
    #[arg(long, value_name = "N", conflicts_with = "overfit_batches")]
    pub(crate) validation: Option<NonZeroUsize>,

    /// Train and evaluate on the first N batches alone, in the same order in every epoch: a network that works learns
    /// them by heart.
    #[arg(long, value_name = "N")]
    pub(crate) overfit_batches: Option<NonZeroUsize>,

    /// Decides every random number of the run [default: 0].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub(crate) seed: Option<u64>,

    /// Threads that compute; the result does not depend on them [default: one a core].
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,

    /// The device that computes: auto, cpu, cuda or cuda:N [default: auto].
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<device::Choice>,

    /// How convolutions are computed: `direct`, as the sums that define them, or `fast`, with fewer
    /// operations and slightly larger rounding errors [default: fast].
    #[arg(long, value_parser = convolution())]
    pub(crate) conv: Option<ConvAlgorithm>,

    /// In what numbers a GPU computes products: `f32`, `tf32` (11 bits in the factors) or `bf16` (8 bits in
    /// activations and gradients); weights, momentum and loss are f32 in all of them. A processor computes
    /// in `f32` [default: tf32 on a GPU].
    #[arg(long, value_parser = precision())]
    pub(crate) precision: Option<Precision>,

    /// Start from the weights in this file, a checkpoint or one made by PyTorch.
    #[arg(long, value_name = "FILE")]
    pub(crate) init: Option<PathBuf>,

    /// Minutes between two checkpoints inside an epoch [default: 10].
    #[arg(long, value_name = "MINUTES", allow_negative_numbers = true)]
    pub(crate) checkpoint_minutes: Option<NonNegative>,

    /// What a run record adds to its settings; not a setting.
    #[arg(skip)]
    #[serde(skip_serializing)]
    made_by: Option<Table>,
}

/// The networks' names, as clap offers them.
pub(crate) fn architecture() -> impl TypedValueParser<Value = Architecture> {
    PossibleValuesParser::new(Architecture::ALL.iter().map(|known| known.name))
        .try_map(|name| name.parse::<Architecture>())
}

/// The ways to compute convolutions, as clap offers them.
pub(crate) fn convolution() -> impl TypedValueParser<Value = ConvAlgorithm> {
    PossibleValuesParser::new(ConvAlgorithm::ALL.map(ConvAlgorithm::name))
        .try_map(|name| name.parse::<ConvAlgorithm>())
}

/// The precisions, as clap offers them.
pub(crate) fn precision() -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(Precision::ALL.map(Precision::name))
        .try_map(|name| name.parse::<Precision>())
}

/// The values of a setting by the names that they have in files, as clap offers them.
fn named<T>(names: impl IntoIterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| T::deserialize(toml::Value::String(name)))
}

/// Settings of a run, all resolved.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) run: Run,
    pub(crate) recipe: Recipe,
}

/// The settings that are not the recipe's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) model: Architecture,
    /// The recipe's name.
    pub(crate) recipe: String,
    pub(crate) dataset: Source,
    pub(crate) data_dir: PathBuf,
    pub(crate) limit_train: Option<NonZeroUsize>,
    pub(crate) limit_test: Option<NonZeroUsize>,
    pub(crate) validation: Option<NonZeroUsize>,
    pub(crate) overfit_batches: Option<NonZeroUsize>,
    pub(crate) seed: u64,
    pub(crate) threads: NonZeroUsize,
    pub(crate) device: device::Choice,
    pub(crate) conv: ConvAlgorithm,
    /// `None` for what is usual on the device.
    pub(crate) precision: Option<Precision>,
    pub(crate) init: Option<PathBuf>,
    pub(crate) checkpoint_minutes: NonNegative,
}

/// The settings that may be given anew when a run is resumed: they do not change what was done
/// before, and of the rest of the run only how long it is.
const MAY_CHANGE: [&str; 5] = [
    "epochs",
    "data_dir",
    "threads",
    "device",
    "checkpoint_minutes",
];

impl Given {
    /// Reads settings from a TOML file: any of the keys that `--dry-run` prints.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).map_err(|error| {
            UsageError(format!(
                "cannot read the settings in `{}`: {error}",
                path.display()
            ))
        })?;
        let given: Self = toml::from_str(&text).map_err(|error| {
            let place = error.span().map_or_else(String::new, |span| {
                let line = text[..span.start.min(text.len())].matches('\n').count();
                format!(
                    " at line {} (`{}`)",
                    line + 1,
                    text.lines().nth(line).unwrap_or("").trim()
                )
            });
            UsageError(format!(
                "`{}` is wrong{place}: {}",
                path.display(),
                error.message().replace('\n', "; ")
            ))
        })?;
        let version = given
            .made_by
            .as_ref()
            .and_then(|made_by| made_by.get(report::RECORD_VERSION_KEY));
        match version {
            Some(version) if version.as_integer() != Some(report::RECORD_VERSION.into()) => Err(UsageError(format!(
                "`{}` is a run record of version {version}, and this program knows version {}; use a later version of it",
                path.display(),
                report::RECORD_VERSION
            ))
            .into()),
            _ => Ok(given),
        }
    }

    /// The settings that are there.
    fn table(&self) -> anyhow::Result<Table> {
        Ok(Table::try_from(self)?)
    }

    /// The first of these keys that is given.
    pub(crate) fn first_of<'a>(&self, keys: &[&'a str]) -> anyhow::Result<Option<&'a str>> {
        let table = self.table()?;
        Ok(keys.iter().copied().find(|key| table.contains_key(*key)))
    }

    /// Fills in what is left out: first from `file`, then from the recipe, then from the defaults.
    pub(crate) fn resolve(&self, file: Option<&Self>) -> anyhow::Result<Settings> {
        let mut given = file.map_or_else(|| Ok(Table::new()), Self::table)?;
        given.extend(self.table()?);
        let model = self.model.or(file.and_then(|file| file.model));
        let model = model.ok_or_else(|| {
            let names: Vec<_> = Architecture::ALL.iter().map(|known| known.name).collect();
            UsageError(format!(
                "which network? give --model with one of {}",
                names.join(", ")
            ))
        })?;
        let both = ["validation", "overfit_batches"].map(|key| given.contains_key(key));
        if both == [true; 2] {
            return Err(UsageError(
                "validation and overfit_batches: a run is evaluated on one of them; give one"
                    .to_owned(),
            )
            .into());
        }
        let name = given
            .get("recipe")
            .and_then(|name| name.as_str())
            .unwrap_or("reference");
        let recipe = engine::built_in(name, model).ok_or_else(|| {
            let names: Vec<_> = engine::recipe_names().collect();
            UsageError(format!(
                "--recipe {name}: there is no such recipe; there is {}",
                names.join(", ")
            ))
        })?;
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let mut all: Table = toml::toml! {
            recipe = "reference"
            dataset = "cifar10"
            data_dir = "data"
            seed = 0
            device = "auto"
            conv = "fast"
            checkpoint_minutes = 10.0
        };
        all.insert("threads".to_owned(), toml::Value::Integer(threads as i64));
        all.extend(recipe);
        all.extend(given);
        let (run, recipe) = all
            .into_iter()
            .partition(|(key, _)| report::RUN_KEYS.contains(&key.as_str()));
        Ok(Settings {
            run: Table::try_into(run)?,
            recipe: Table::try_into(recipe)?,
        })
    }

    /// The settings of a run that is resumed: its own, but for those that may change.
    pub(crate) fn resolve_resumed(&self, run: &Path, of_run: &Self) -> anyhow::Result<Settings> {
        let theirs = of_run.table()?;
        for (key, value) in self.table()? {
            let same = theirs.get(&key) == Some(&value);
            if !same && !MAY_CHANGE.contains(&key.as_str()) {
                let theirs = theirs
                    .get(&key)
                    .map_or_else(|| "none".to_owned(), toml::Value::to_string);
                return Err(UsageError(format!(
                    "the run `{}` has {key} = {theirs}, not {value}; leave that flag out to resume it, or start a new run",
                    run.display()
                ))
                .into());
            }
        }
        let settings = self.resolve(Some(of_run))?;
        if settings.recipe.schedule.depends_on_length()
            && let Some(epochs) = of_run.epochs
            && epochs != settings.recipe.epochs
        {
            return Err(UsageError(format!(
                "--epochs {}: the learning rate of the run `{}` follows a schedule over its {epochs} epochs; start a new run for another number",
                settings.recipe.epochs,
                run.display()
            ))
            .into());
        }
        Ok(settings)
    }
}

impl Settings {
    /// The settings as a TOML document, which `--config` takes back.
    pub(crate) fn to_toml(&self) -> anyhow::Result<String> {
        let run = toml::to_string(&self.run).context("cannot write the settings")?;
        let recipe = toml::to_string(&self.recipe).context("cannot write the recipe")?;
        Ok(format!("{run}\n{recipe}"))
    }

    /// The name of a run, unless another is given; to be numbered where it is taken.
    pub(crate) fn default_name(&self) -> String {
        format!(
            "{}-{}-seed{}",
            self.run.model, self.run.recipe, self.run.seed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> anyhow::Result<Given> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.toml");
        fs::write(&path, text).unwrap();
        Given::read(&path)
    }

    fn message(text: &str) -> String {
        let error = given(text)
            .and_then(|given| given.resolve(None))
            .unwrap_err();
        assert!(error.is::<UsageError>(), "{error:#}");
        let text = error.to_string();
        text.split_once("is wrong at ")
            .map_or(text.clone(), |(_, rest)| rest.to_owned())
    }

    #[test]
    fn what_dry_run_prints_is_taken_back() {
        for text in [
            "model = \"alexnet\"",
            "model = \"small-alexnet\"\nseed = 7\nlimit_train = 100\ndropout_epochs = 1\naugment = \"none\"\ninit = \"a.safetensors\"",
        ] {
            let settings = given(text).unwrap().resolve(None).unwrap();
            let again = given(&settings.to_toml().unwrap())
                .unwrap()
                .resolve(None)
                .unwrap();
            assert_eq!(settings, again);
        }
    }

    #[test]
    fn flags_override_the_file_and_the_file_overrides_the_recipe() {
        let file = given("model = \"alexnet\"\npatience = 9\nepochs = 3").unwrap();
        let flags = given("epochs = 4").unwrap();
        let settings = flags.resolve(Some(&file)).unwrap();
        assert_eq!(settings.recipe.epochs.get(), 4);
        assert_eq!(settings.recipe.patience, 9);
        assert_eq!(settings.recipe.batch_size.get(), 500);
    }

    #[test]
    fn bad_settings_are_named() {
        insta::assert_snapshot!(message("model = \"alexnet\"\nepoch = 3"), @r#"line 2 (`epoch = 3`): unknown field `epoch`, expected one of `model`, `recipe`, `dataset`, `data_dir`, `limit_train`, `limit_test`, `epochs`, `batch_size`, `initialisation`, `learning_rate`, `schedule`, `warmup_epochs`, `warmup_start`, `final_rate`, `momentum`, `nesterov`, `weight_decay`, `weight_decay_on`, `clip_norm`, `label_smoothing`, `average_decay`, `dropout`, `dropout_epochs`, `dropout_rise`, `augment`, `padding`, `flip`, `cutout`, `mean`, `standard_deviation`, `patience`, `plateau_factor`, `plateau_threshold`, `early_stopping`, `validation`, `overfit_batches`, `seed`, `threads`, `device`, `conv`, `precision`, `init`, `checkpoint_minutes`, `made_by`"#);
        insta::assert_snapshot!(message("model = \"alexnet\"\nlearning_rate = -0.1"), @r#"line 2 (`learning_rate = -0.1`): -0.1 is out of range: expected a finite number of at least 0"#);
        insta::assert_snapshot!(message("batch_size = 0"), @r#"line 1 (`batch_size = 0`): invalid value: integer `0`, expected a nonzero usize"#);
        insta::assert_snapshot!(message("model = \"vgg\""), @r#"line 1 (`model = "vgg"`): `vgg` is not a model: use `alexnet` or `small-alexnet`"#);
        insta::assert_snapshot!(message("dropout_epochs = \"some\""), @r#"line 1 (`dropout_epochs = "some"`): expected "all" or a number of epochs"#);
        insta::assert_snapshot!(message("momentum = 1"), @r#"line 1 (`momentum = 1`): 1 is out of range: expected a number of at least 0 and below 1"#);
        insta::assert_snapshot!(message("model = "), @r#"line 1 (`model =`): string values must be quoted, expected literal string"#);
        insta::assert_snapshot!(message("seed = 1"), @r#"which network? give --model with one of alexnet, small-alexnet"#);
        insta::assert_snapshot!(message("model = \"alexnet\"\nrecipe = \"none\""), @r#"--recipe none: there is no such recipe; there is reference, best, sprint"#);
    }

    #[test]
    fn a_resumed_run_keeps_its_settings() {
        let run = given("model = \"alexnet\"\nseed = 3\nepochs = 2").unwrap();
        let path = Path::new("runs/a");
        let longer = given("epochs = 5\nthreads = 1\nmodel = \"alexnet\"").unwrap();
        let settings = longer.resolve_resumed(path, &run).unwrap();
        assert_eq!((settings.recipe.epochs.get(), settings.run.seed), (5, 3));
        let error = given("model = \"small-alexnet\"")
            .unwrap()
            .resolve_resumed(path, &run)
            .unwrap_err();
        insta::assert_snapshot!(error, @r#"the run `runs/a` has model = "alexnet", not "small-alexnet"; leave that flag out to resume it, or start a new run"#);
    }
}
