//! Settings in layers: a network's defaults, a recipe, a file, the command line.

use super::{Augment, FIELDS, Field, LrScheduler, Overrides, Property, Settings};
use crate::error::Error;
use crate::file::RECORD_VERSION;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Where a layer of settings comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The defaults of the network and of this machine.
    Defaults,
    /// A recipe.
    Recipe(String),
    /// A settings file or a run's record.
    File(PathBuf),
    /// Flags.
    CommandLine,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Defaults => f.write_str("default"),
            Self::Recipe(name) => write!(f, "recipe `{name}`"),
            Self::File(path) => write!(f, "`{}`", path.display()),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// A setting with two different values, as TOML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The setting.
    pub key: &'static str,
    /// One value, or `none`.
    pub first: String,
    /// The other value, or `none`.
    pub second: String,
}

/// A layer of settings. In a list of layers, a later one overrides an earlier one.
pub type Layer = (Source, Overrides);

/// A setting's value in the last layer that has it, and this layer's source.
pub fn last<T>(layers: &[Layer], value: impl Fn(&Overrides) -> Option<T>) -> Option<(&Source, T)> {
    let mut layers = layers.iter().rev();
    layers.find_map(|(source, overrides)| Some((source, value(overrides)?)))
}

impl Overrides {
    /// Reads a settings file or a run's record.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, is the record of a later version, or has an unknown key or a value out
    /// of range.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(Error::text("read the settings in", path))?;
        // First, since a later version may have settings that this one does not know.
        let version = toml::from_str(&text).ok().and_then(|record: Table| {
            let version = record.get("made_by")?.get("record_version")?.as_integer()?;
            u64::try_from(version).ok()
        });
        Error::check_version(path, version.unwrap_or(0), RECORD_VERSION)?;
        toml::from_str(&text).map_err(|error| Error::Invalid {
            path: path.to_owned(),
            place: error.span().map_or_else(String::new, |span| {
                let line = text[..span.start.min(text.len())].matches('\n').count();
                let quoted = text.lines().nth(line).unwrap_or("").trim().chars();
                let quoted: String = quoted.take(80).collect();
                format!(" at line {} (`{quoted}`)", line + 1)
            }),
            reason: reason(error.message()),
        })
    }

    /// The settings that are present, as TOML.
    ///
    /// # Errors
    /// When a number does not fit TOML.
    pub fn to_table(&self) -> Result<Table, Error> {
        Ok(Table::try_from(self)?)
    }

    /// The first of these settings, in the order of the record, that is present and has a property.
    ///
    /// # Errors
    /// As for [`Overrides::to_table`].
    pub fn first_with(&self, property: Property) -> Result<Option<&'static Field>, Error> {
        let table = self.to_table()?;
        let mut fields = FIELDS.iter();
        Ok(fields.find(|field| field.has(property) && table.contains_key(field.key)))
    }

    /// Checks that these settings are allowed when the run in the folder `run`, which was started with `recorded`, is
    /// resumed.
    ///
    /// # Errors
    /// When one of them differs from the run's and may not.
    pub fn check_resume(&self, run: &Path, recorded: &Self) -> Result<(), Error> {
        let (wanted, ours) = (self.to_table()?, recorded.to_table()?);
        for Field { key, .. } in FIELDS.iter().filter(|field| is_fixed(field)) {
            let (wanted, recorded) = (wanted.get(*key), ours.get(*key));
            if wanted.is_some() && wanted != recorded {
                return Err(Error::ChangedOnResume {
                    run: run.to_owned(),
                    key,
                    recorded: text(recorded),
                    wanted: text(wanted),
                });
            }
        }
        if let (Some(wanted), Some(recorded_epochs), Some(scheduler)) =
            (self.epochs, recorded.epochs, recorded.lr_scheduler)
            && scheduler.depends_on_epochs()
            && wanted != recorded_epochs
        {
            return Err(Error::EpochsOfScheduler {
                run: run.to_owned(),
                recorded: recorded_epochs.get(),
                wanted: wanted.get(),
            });
        }
        Ok(())
    }
}

impl Settings {
    /// The settings as TOML.
    ///
    /// # Errors
    /// When a number does not fit TOML.
    pub fn to_table(&self) -> Result<Table, Error> {
        Ok(Table::try_from(self)?)
    }

    /// The settings as a TOML document, the content of a settings file.
    ///
    /// # Errors
    /// As for [`Settings::to_table`].
    pub fn to_toml(&self) -> Result<String, Error> {
        Ok(toml::to_string(self)?)
    }

    /// The settings in which two runs differ, in the order of the record, but for those with a property.
    ///
    /// # Errors
    /// As for [`Settings::to_table`].
    pub fn differences(&self, other: &Self, but_for: Property) -> Result<Vec<Difference>, Error> {
        let (first, second) = (self.to_table()?, other.to_table()?);
        Ok(differences(&first, &second, |field| !field.has(but_for)))
    }

    /// The first setting that differs from `earlier`, a table of [`Self::to_table`], whose value comes first.
    ///
    /// # Errors
    /// As for [`Settings::to_table`].
    pub fn first_difference(&self, earlier: &Table) -> Result<Option<Difference>, Error> {
        let differences = differences(earlier, &self.to_table()?, |_| true);
        Ok(differences.into_iter().next())
    }

    /// The flag that leaves the setting with this key without effect, whatever the network, the data set and the device are;
    /// `None` if the setting has an effect.
    #[must_use]
    pub fn overriding_flag(&self, key: &str) -> Option<String> {
        let has = |property| Field::named(key).is_some_and(|field| field.has(property));
        let scheduler = format!("--lr-scheduler {}", self.lr_scheduler);
        let (is_unused, flag) = match key {
            _ if has(Property::PlateauOnly) => {
                (self.lr_scheduler != LrScheduler::Plateau, &*scheduler)
            }
            "lr_final_factor" => (!self.lr_scheduler.depends_on_epochs(), &*scheduler),
            "lr_warmup_start_factor" => {
                (self.lr_warmup_epochs.get() == 0.0, "--lr-warmup-epochs 0")
            }
            "nesterov" => (self.momentum.get() == 0.0, "--momentum 0"),
            "weight_decay_on" => (self.weight_decay.get() == 0.0, "--weight-decay 0"),
            "dropout_epochs" | "dropout_warmup_epochs" => {
                (self.dropout.get() == 0.0, "--dropout 0")
            }
            "padding_mode" | "flip" | "cutout" => (self.augment == Augment::None, "--augment none"),
            "limit_test" if self.validation.is_some() => (true, "--validation"),
            "limit_test" if self.overfit_batches.is_some() => (true, "--overfit-batches"),
            _ => return None,
        };
        is_unused.then(|| flag.to_owned())
    }

    /// The settings that cannot change when a run is resumed, as TOML by key.
    ///
    /// # Errors
    /// As for [`Settings::to_table`].
    pub fn fixed_on_resume(&self) -> Result<BTreeMap<String, String>, Error> {
        let table = self.to_table()?;
        let is_recorded = |field: &&Field| match field.key {
            "epochs" => self.lr_scheduler.depends_on_epochs(),
            // A folder of pictures may have moved; the digest of the images decides.
            "dataset" => false,
            _ => is_fixed(field),
        };
        let fixed = FIELDS.iter().filter(is_recorded);
        Ok(fixed
            .map(|Field { key, .. }| ((*key).to_owned(), text(table.get(*key))))
            .collect())
    }
}

/// Those of the compared settings in which two tables differ, in the order of the record.
fn differences(
    first: &Table,
    second: &Table,
    is_compared: impl Fn(&Field) -> bool,
) -> Vec<Difference> {
    FIELDS
        .iter()
        .filter(|field| is_compared(field) && first.get(field.key) != second.get(field.key))
        .map(|Field { key, .. }| Difference {
            key,
            first: text(first.get(*key)),
            second: text(second.get(*key)),
        })
        .collect()
}

/// Whether a run that is resumed has its recorded value of a setting. Where the learning-rate scheduler depends on the
/// number of epochs, that is fixed as well.
fn is_fixed(field: &Field) -> bool {
    !field.has(Property::MayChangeOnResume)
}

/// Checks that a setting can have a value.
///
/// # Errors
/// What is wrong, in words.
pub fn check_value(key: &str, value: Value) -> Result<(), String> {
    let setting = Table::from_iter([(key.to_owned(), value)]);
    let setting = setting.try_into::<Overrides>();
    setting.map(drop).map_err(|error| reason(error.message()))
}

/// What is wrong with a settings file. Of an unknown key, serde lists all keys that are known.
fn reason(message: &str) -> String {
    let unknown = message.strip_prefix("unknown field `");
    let Some((key, _)) = unknown.and_then(|rest| rest.split_once('`')) else {
        return reword_serde_message(message);
    };
    let similarity = |field: &Field| strsim::jaro_winkler(key, field.key);
    let nearest = FIELDS
        .iter()
        .max_by(|a, b| similarity(a).total_cmp(&similarity(b)))
        .filter(|field| similarity(field) > 0.8);
    match nearest {
        Some(field) => format!("unknown key; did you mean `{}`?", field.key),
        None => "unknown key; the keys are the flags of `trainer` with underscores for hyphens"
            .to_owned(),
    }
}

/// A message of serde, with what it expects in words.
fn reword_serde_message(message: &str) -> String {
    let message = message.replace('\n', "; ");
    let Some((found, expected)) = message.split_once(", expected ") else {
        return message;
    };
    let expected = match expected {
        "a nonzero u32" | "a nonzero usize" => "an integer of at least 1",
        "u8" | "u32" | "u64" | "usize" => "an integer of at least 0",
        "f64" => "a number",
        "a sequence" => "an array",
        "path string" => "a path",
        other => other,
    };
    format!("{found}, expected {expected}")
}

/// A value as TOML, or `none`.
fn text(value: Option<&Value>) -> String {
    value.map_or_else(|| "none".to_owned(), Value::to_string)
}

/// The command with the default of each setting in its help text.
#[must_use]
pub fn with_defaults_in_help(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| {
        let default = Field::named(arg.get_id().as_str()).and_then(|field| field.default);
        match (default, arg.get_help()) {
            (Some(default), Some(help)) => {
                let help = format!("{help} [default: {default}]");
                arg.help(help)
            }
            _ => arg,
        }
    })
}
