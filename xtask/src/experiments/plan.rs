//! The runs of an experiment, and the state of each.

use crate::trainer::{Trainer, flag};
use run::cli::UsageError;
use run::settings::{FIELDS, Property};
use run::{Record, Run, Settings, file};
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// A run of an experiment.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// The name of the run and of its folder.
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    /// Arguments of the trainer, without those that name the run.
    pub(crate) arguments: Vec<OsString>,
    /// The settings to which the arguments resolve.
    pub(crate) settings: Settings,
    pub(crate) state: State,
}

/// The state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It has no folder.
    Missing,
    /// Its checkpoint is after this many epochs of those asked for.
    Started(u32),
    /// All epochs are done, or early stopping ended it.
    Finished,
}

impl Planned {
    /// The run in the folder `out` that `arguments` describe.
    ///
    /// # Errors
    /// When the trainer refuses the arguments, or the folder has a run with other settings.
    pub(crate) fn new(
        trainer: &Trainer,
        out: &Path,
        name: String,
        arguments: Vec<OsString>,
    ) -> anyhow::Result<Self> {
        let settings = trainer.settings(&arguments)?;
        let folder = out.join(&name);
        let state = state(&folder, &settings)?;
        Ok(Self {
            name,
            folder,
            arguments,
            settings,
            state,
        })
    }

    /// The same run, with the state that its files have now.
    pub(crate) fn again(&self) -> anyhow::Result<Self> {
        let state = state(&self.folder, &self.settings)?;
        Ok(Self {
            state,
            ..self.clone()
        })
    }

    /// The network and the recipe. An epoch takes about the same time in all runs that share both.
    pub(crate) fn kind(&self) -> String {
        format!("{}, {}", self.settings.model, self.settings.recipe)
    }

    /// All epochs of the run.
    pub(crate) fn epochs(&self) -> u32 {
        self.settings.epochs.get()
    }

    /// The epochs that are done.
    pub(crate) fn done(&self) -> u32 {
        match self.state {
            State::Missing => 0,
            State::Started(epochs) => epochs,
            State::Finished => self.epochs(),
        }
    }

    /// The arguments with which the trainer resumes the run: the settings that may change, and the flags that are not
    /// settings.
    pub(crate) fn arguments_to_resume(&self) -> anyhow::Result<Vec<OsString>> {
        let settings = self.settings.to_table()?;
        let fields = FIELDS.iter();
        let changeable = fields.filter(|field| field.has(Property::MayChangeOnResume));
        let arguments = changeable.filter_map(|field| {
            let value = settings.get(field.key)?;
            let text = value.as_str().map(str::to_owned);
            let text = text.unwrap_or_else(|| value.to_string());
            Some(flag(&field.flag(), text))
        });
        Ok(arguments
            .chain(flags_beside_settings(&self.arguments))
            .collect())
    }
}

/// The trainer's flags that neither are settings nor name a file of settings, such as `--tensorboard`.
fn flags_beside_settings(arguments: &[OsString]) -> Vec<OsString> {
    let mut others = Vec::new();
    let mut arguments = arguments.iter().peekable();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        let name = text.split('=').next().unwrap_or_default();
        if name != "--config" && !FIELDS.iter().any(|field| field.flag() == name) {
            others.push(argument.clone());
        } else if name == text {
            // Its value is the next argument; a setting that is true may have none.
            arguments.next_if(|value| !value.to_string_lossy().starts_with("--"));
        }
    }
    others
}

/// The state of the run in `folder`, which must have been started with `settings`.
fn state(folder: &Path, settings: &Settings) -> anyhow::Result<State> {
    if !folder.join(file::RECORD).exists() {
        return Ok(State::Missing);
    }
    let recorded = Record::read(folder)?.settings;
    let differences = recorded.differences(settings, Property::MayChangeOnResume)?;
    let error = |key, before: &dyn Display, now: &dyn Display| {
        let run = folder.display();
        Err(UsageError(format!(
            "the run `{run}` has {key} = {before}, not {key} = {now}; give another --out, or remove that run"
        ))
        .into())
    };
    match differences.first() {
        Some(other) => error(other.key, &other.first, &other.second),
        // A run may be made longer, not shorter, where its learning rates stay the same.
        None if recorded.epochs > settings.epochs
            || recorded.epochs != settings.epochs && settings.lr_scheduler.depends_on_epochs() =>
        {
            error("epochs", &recorded.epochs, &settings.epochs)
        }
        None => Ok(progress(folder, settings)),
    }
}

/// How far the run in `folder` is.
fn progress(folder: &Path, settings: &Settings) -> State {
    let done = run::checkpoint::finished_epochs(folder).unwrap_or(0);
    // A process that was killed may have written the metrics of an epoch, but not the checkpoint after it.
    let stopped_early = || {
        Run::read(folder)
            .is_ok_and(|run| run.last().stopped_early && done as usize >= run.epochs.len())
    };
    if done >= settings.epochs.get() || stopped_early() {
        State::Finished
    } else {
        State::Started(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_are_not_settings_are_kept() {
        let arguments = [
            "--lr=0.1",
            "--config",
            "a file.toml",
            "--tensorboard",
            "--mean",
            "-1,0,0",
            "--skip-unreadable",
            "--log-level",
            "debug",
            "--config=b.toml",
            "--stop-after=3",
        ];
        let others = flags_beside_settings(&arguments.map(OsString::from));
        assert_eq!(
            others,
            ["--tensorboard", "--log-level", "debug", "--stop-after=3"]
        );
    }
}
