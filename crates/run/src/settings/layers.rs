//! Settings in layers: a network's defaults, a recipe, a file, the command line.

use super::{FIELDS, Field, Overrides, Property, Settings};
use crate::file::RECORD_VERSION;
use std::fmt;
use std::fs;
use std::io;
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

/// What can be wrong with settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A settings file cannot be read.
    #[error("cannot read the settings in `{}`: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A settings file holds something else.
    #[error("`{}` is wrong{place}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, where it is known.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A later version of the program wrote the record.
    #[error(
        "`{}` has format version {found}; this program reads versions up to {known}, use a later one",
        path.display()
    )]
    LaterVersion {
        /// The record.
        path: PathBuf,
        /// The version of its format.
        found: u64,
        /// The latest version that this program reads.
        known: u32,
    },
    /// A setting without a default is missing.
    #[error("the setting `{key}` is missing: give {}", flag(key))]
    Missing {
        /// The setting.
        key: &'static str,
    },
    /// A name without a default is missing.
    #[error("{} is missing; give it one of these names: {known}", flag(key))]
    MissingName {
        /// The setting.
        key: &'static str,
        /// The names there are.
        known: String,
    },
    /// A name that nothing has.
    #[error(
        "{} {name} ({layer}): unknown name; expected one of {known}",
        flag(key)
    )]
    UnknownName {
        /// The setting.
        key: &'static str,
        /// The name.
        name: String,
        /// The layer that it comes from.
        layer: Source,
        /// The names there are.
        known: String,
    },
    /// Two settings that exclude each other.
    #[error(
        "{} ({first_layer}) and {} ({second_layer}) exclude each other; give one of them",
        flag(first),
        flag(second)
    )]
    Conflict {
        /// A setting.
        first: &'static str,
        /// The layer that it comes from.
        first_layer: Source,
        /// The other setting.
        second: &'static str,
        /// The layer that it comes from.
        second_layer: Source,
    },
    /// A setting that cannot change when a run is resumed.
    #[error(
        "the run `{}` has {} = {}, not {}; omit {} to resume it, or start a new run",
        run.display(), difference.key, difference.first, difference.second, flag(difference.key)
    )]
    ChangedOnResume {
        /// The run's folder.
        run: PathBuf,
        /// The setting: the run's value, and the other one.
        difference: Difference,
    },
    /// The learning rate depends on a number of epochs that is to change.
    #[error(
        "--epochs {wanted}: the learning-rate scheduler of the run `{}` depends on its {recorded} epochs; start a new run for another number",
        run.display()
    )]
    EpochsOfScheduler {
        /// The run's folder.
        run: PathBuf,
        /// The run's epochs.
        recorded: u32,
        /// The epochs that are asked for.
        wanted: u32,
    },
    /// The settings cannot be written as TOML.
    #[error("cannot write the settings: {0}")]
    Write(#[from] toml::ser::Error),
}

fn flag(key: &str) -> String {
    Field::named(key).map_or_else(|| key.to_owned(), Field::flag)
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

/// Layers of settings, of which a later one overrides an earlier one.
#[derive(Clone, Debug, Default)]
pub struct Layers(Vec<(Source, Overrides)>);

impl Layers {
    /// The same layers with another one on top.
    #[must_use]
    pub fn with(mut self, source: Source, overrides: Overrides) -> Self {
        self.0.push((source, overrides));
        self
    }

    /// These layers below `others`.
    #[must_use]
    pub fn below(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// A setting's value in the last layer that has it.
    pub fn last<T>(&self, value: impl Fn(&Overrides) -> Option<T>) -> Option<T> {
        self.0
            .iter()
            .rev()
            .find_map(|(_, overrides)| value(overrides))
    }

    /// The layer that a setting's value comes from.
    pub fn source<T>(&self, value: impl Fn(&Overrides) -> Option<T>) -> Option<&Source> {
        self.0
            .iter()
            .rev()
            .find(|(_, overrides)| value(overrides).is_some())
            .map(|(source, _)| source)
    }
}

impl Overrides {
    /// Reads a settings file or a run's record.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, is the record of a later version, or has an unknown key or a value out
    /// of range.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })?;
        // First, since a later version may have settings that this one does not know.
        let version = toml::from_str(&text).ok().and_then(|record: Table| {
            let version = record.get("made_by")?.get("record_version")?.as_integer()?;
            u64::try_from(version).ok()
        });
        if let Some(found) = version
            && found > RECORD_VERSION.into()
        {
            return Err(Error::LaterVersion {
                path: path.to_owned(),
                found,
                known: RECORD_VERSION,
            });
        }
        toml::from_str(&text).map_err(|error| Error::Invalid {
            path: path.to_owned(),
            place: error.span().map_or_else(String::new, |span| {
                let line = text[..span.start.min(text.len())].matches('\n').count();
                let quoted = text.lines().nth(line).unwrap_or("").trim();
                format!(" at line {} (`{quoted}`)", line + 1)
            }),
            reason: error.message().replace('\n', "; "),
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

    /// Checks that these settings may be given when the run in the folder `run`, which was started with `recorded`, is
    /// resumed.
    ///
    /// # Errors
    /// When one of them differs from the run's and may not.
    pub fn check_resume(&self, run: &Path, recorded: &Self) -> Result<(), Error> {
        let (given, ours) = (self.to_table()?, recorded.to_table()?);
        for field in FIELDS
            .iter()
            .filter(|field| !field.has(Property::MayChangeOnResume))
        {
            if let Some(value) = given.get(field.key)
                && ours.get(field.key) != Some(value)
            {
                return Err(Error::ChangedOnResume {
                    run: run.to_owned(),
                    difference: difference(field.key, ours.get(field.key), Some(value)),
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

    /// The settings as a TOML document, which a settings file may hold.
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
        Ok(FIELDS
            .iter()
            .filter(|field| !field.has(but_for) && first.get(field.key) != second.get(field.key))
            .map(|field| difference(field.key, first.get(field.key), second.get(field.key)))
            .collect())
    }

    /// The name of a run with these settings, unless another is given.
    #[must_use]
    pub fn default_name(&self) -> String {
        format!("{}-{}-seed{}", self.model, self.recipe, self.seed)
    }
}

fn difference(key: &'static str, first: Option<&Value>, second: Option<&Value>) -> Difference {
    let text = |value: Option<&Value>| value.map_or_else(|| "none".to_owned(), Value::to_string);
    Difference {
        key,
        first: text(first),
        second: text(second),
    }
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
