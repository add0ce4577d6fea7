//! Settings of a run as flags of the commands that train several runs. They are the trainer's own flags, which are
//! generated from the declaration in `run::settings`.

use crate::trainer::flag;
use clap::{ArgMatches, Command};
use run::Overrides;
use run::cli;
use run::settings::{FIELDS, Field, Property};
use std::ffi::{OsStr, OsString};
use std::marker::PhantomData;

/// Which settings a command accepts.
pub(crate) trait Selection {
    /// Whether the command accepts a setting.
    const ACCEPTS: fn(&Field) -> bool;
}

/// All settings.
#[derive(Clone, Debug)]
pub(crate) struct All;

impl Selection for All {
    const ACCEPTS: fn(&Field) -> bool = |_| true;
}

/// The settings that all runs of a comparison share: its runs differ in network, recipe and seed.
#[derive(Clone, Debug)]
pub(crate) struct Shared;

impl Selection for Shared {
    const ACCEPTS: fn(&Field) -> bool = |field| !["model", "recipe", "seed"].contains(&field.key);
}

/// The settings in which repetitions may differ, except the seed: data folder, device, threads, checkpoint interval.
#[derive(Clone, Debug)]
pub(crate) struct Environment;

impl Selection for Environment {
    const ACCEPTS: fn(&Field) -> bool =
        |field| field.has(Property::VariesBetweenRepetitions) && field.key != "seed";
}

/// The settings that were given, of those that `S` selects.
#[derive(Clone, Debug)]
pub(crate) struct SettingFlags<S>(Vec<(&'static Field, OsString)>, PhantomData<S>);

impl<S> SettingFlags<S> {
    /// The value given for a setting.
    pub(crate) fn get(&self, key: &str) -> Option<&OsStr> {
        let (_, value) = self.0.iter().find(|(field, _)| field.key == key)?;
        Some(value)
    }

    /// The same flags with another value of a setting.
    pub(crate) fn with(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.0.retain(|(field, _)| field.key != key);
        let field = Field::named(key);
        self.0.extend(field.map(|field| (field, value.into())));
        self
    }

    /// The flags but for some settings, as words of a command that is printed.
    pub(crate) fn words_without(&self, keys: &[&str]) -> Vec<String> {
        let given = self
            .0
            .iter()
            .filter(|(field, _)| !keys.contains(&field.key));
        given
            .map(|(field, value)| {
                format!(
                    "{}={}",
                    field.flag(),
                    cli::quoted_word(&value.to_string_lossy())
                )
            })
            .collect()
    }

    /// The flags for a command that accepts other settings.
    pub(crate) fn into<T>(self) -> SettingFlags<T> {
        SettingFlags(self.0, PhantomData)
    }

    /// The flags as arguments of the trainer.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let given = self.0.iter();
        given
            .map(|(field, value)| flag(&field.flag(), value))
            .collect()
    }
}

impl<S: Selection> clap::Args for SettingFlags<S> {
    fn augment_args(command: Command) -> Command {
        let settings = Overrides::augment_args(Command::new("trainer"));
        let settings = run::settings::with_defaults_in_help(settings);
        let accepted = settings.get_arguments().filter(|arg| {
            let field = Field::named(arg.get_id().as_str());
            field.is_some_and(S::ACCEPTS)
        });
        command.args(accepted.cloned().map(|arg| arg.hide_short_help(true)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<S: Selection> clap::FromArgMatches for SettingFlags<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let accepted = FIELDS.iter().filter(|field| S::ACCEPTS(field));
        let given = accepted.filter_map(|field| {
            let value = matches.get_raw(field.key)?.next()?;
            Some((field, value.to_owned()))
        });
        Ok(Self(given.collect(), PhantomData))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, FromArgMatches};

    #[test]
    fn given_settings_become_arguments_of_the_trainer() {
        let command = SettingFlags::<Shared>::augment_args(Command::new("compare"));
        let matches = command
            .clone()
            .try_get_matches_from(["compare", "--lr", "0.1", "--mean=0,0.5,1"])
            .unwrap();
        let flags = SettingFlags::<Shared>::from_arg_matches(&matches).unwrap();
        let flags = flags.with("lr", "0.2").with("seed", "3");
        assert_eq!(
            flags.arguments(),
            ["--mean=0,0.5,1", "--lr=0.2", "--seed=3"]
        );
        let words = flags.with("dataset", "my pets");
        let words = words.words_without(&["seed", "lr"]);
        let quoted = ["0,0.5,1", "my pets"].map(cli::quoted_word);
        assert_eq!(
            words,
            [
                format!("--mean={}", quoted[0]),
                format!("--dataset={}", quoted[1])
            ]
        );
        for wrong in [["compare", "--lr=-1"], ["compare", "--seed=1"]] {
            assert!(command.clone().try_get_matches_from(wrong).is_err());
        }
    }
}
