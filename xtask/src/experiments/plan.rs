//! Which runs a comparison is made of, and where each of them stands.

use crate::experiments::trainer::Trainer;
use anyhow::Context;
use run::cli::UsageError;
use run::settings::{Field, Property};
use run::{Run, file};
use std::fs;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// A run of a comparison.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) name: String,
    /// The network and the recipe: runs with both in common take the same time.
    pub(crate) kind: String,
    pub(crate) folder: PathBuf,
    /// Arguments of the trainer, but for those that name the run.
    pub(crate) arguments: Vec<String>,
    /// Its settings, resolved.
    pub(crate) settings: Table,
    pub(crate) state: State,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing is there.
    Missing,
    /// Some epochs are done, or none.
    Begun(u32),
    /// All epochs are done.
    Finished,
}

impl Planned {
    /// The run in `out` that `arguments` describe.
    pub(crate) fn new(
        trainer: &Trainer,
        out: &Path,
        name: String,
        arguments: Vec<String>,
    ) -> anyhow::Result<Self> {
        let settings = trainer.output(arguments.iter().map(String::as_str).chain(["--dry-run"]))?;
        let settings: Table = settings
            .parse()
            .context("the program `trainer` prints no settings")?;
        let folder = out.join(&name);
        let state = state(&folder, &settings)?;
        let text = |key| {
            settings
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let kind = format!("{}, {}", text("model"), text("recipe"));
        Ok(Self {
            name,
            kind,
            folder,
            arguments,
            settings,
            state,
        })
    }

    /// A setting that is a whole number.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.settings.get(key)?.as_integer()?.try_into().ok()
    }

    /// All its epochs.
    pub(crate) fn epochs(&self) -> u32 {
        self.number("epochs")
            .and_then(|epochs| epochs.try_into().ok())
            .unwrap_or(0)
    }

    /// Epochs that are done.
    pub(crate) fn done(&self) -> u32 {
        match self.state {
            State::Missing => 0,
            State::Begun(epochs) => epochs,
            State::Finished => self.epochs(),
        }
    }
}

/// Where the run in `folder` stands, which must have been started with `settings`.
fn state(folder: &Path, settings: &Table) -> anyhow::Result<State> {
    let path = folder.join(file::RECORD);
    let Ok(record) = fs::read_to_string(&path) else {
        return Ok(State::Missing);
    };
    let mut record: Table = record
        .parse()
        .with_context(|| format!("the record `{}` is damaged", path.display()))?;
    record.remove("made_by");
    let begun_with = record.get("epochs").and_then(Value::as_integer);
    let wanted = settings.get("epochs").and_then(Value::as_integer);
    let keys = settings.keys().chain(record.keys());
    for key in keys {
        let may_differ = Field::named(key)
            .is_some_and(|field| field.has(Property::MayChangeOnResume))
            && key != "epochs";
        // A run may be made longer.
        let longer = key == "epochs" && begun_with <= wanted;
        if !may_differ && !longer && settings.get(key) != record.get(key) {
            let shown = |table: &Table| {
                table
                    .get(key)
                    .map_or_else(|| "none".to_owned(), Value::to_string)
            };
            return Err(UsageError(format!(
                "the run `{}` was made with {key} = {}, and {key} = {} is asked for; give another --out, or remove that run",
                folder.display(),
                shown(&record),
                shown(settings)
            ))
            .into());
        }
    }
    let done = run::checkpoint::finished_epochs(folder).unwrap_or(0);
    let all = wanted.and_then(|epochs| u32::try_from(epochs).ok());
    let stopped_early = || Run::read(folder).is_ok_and(|run| run.last().stopped_early);
    Ok(
        if all.is_some_and(|all| done >= all) || (done > 0 && stopped_early()) {
            State::Finished
        } else {
            State::Begun(done)
        },
    )
}
