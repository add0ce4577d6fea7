//! `--tensorboard`: the curves of a run, in a file that TensorBoard reads.

mod event_file;
#[cfg(test)]
mod tests;

use anyhow::Context;
use atomic_file::Unfinished;
use engine::{Event, Position, Training};
use event_file::Scalars;
use run::{EpochMetrics, file};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// How the tags of an epoch's values begin. TensorBoard shows those with the same beginning in a group.
const EPOCH: &str = "epoch/";

/// How the name of a file ends, where other programs have the name of the computer.
const SUFFIX: &str = ".trainer";

/// The file with the curves of a run.
///
/// A process that resumes a run begins a new file, with what the last one has up to the checkpoint. A TensorBoard that has
/// read the last one drops that, since a file begins with the start of a session at step 0. Earlier ones are emptied and not
/// removed, because TensorBoard without TensorFlow never gets past a file that has disappeared.
pub(crate) struct TensorBoard {
    path: PathBuf,
    file: File,
    steps_per_epoch: usize,
}

impl TensorBoard {
    /// Whether a run's folder has such a file.
    pub(crate) fn is_in(folder: &Path) -> anyhow::Result<bool> {
        Ok(!event_files(folder)?.is_empty())
    }

    /// A file in a run's folder, with the curves up to where `training` is.
    pub(crate) fn create(folder: &Path, training: &Training) -> anyhow::Result<Self> {
        let earlier = event_files(folder)?;
        let last = earlier.last();
        let bytes = last.map_or(Ok(Vec::new()), |(_, path)| {
            fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))
        });
        let (known, unread) = event_file::decode(&bytes?);
        if let Some((_, path)) = last
            && unread > 0
        {
            let path = path.display();
            tracing::warn!(
                "the last {unread} bytes of `{path}` are not complete records; the curves continue without them"
            );
        }
        let (history, steps_per_epoch) = (training.history(), training.steps_per_epoch());
        let scalars = continued(known, training.position(), history, steps_per_epoch)?;
        // Readers take files in the order of their names, and clocks differ between machines.
        let number =
            (wall_time() as u64).max(last.map_or(0, |(number, _)| number.saturating_add(1)));
        let path = folder.join(format!("{}{number:010}{SUFFIX}", file::EVENTS_PREFIX));
        let file = begin(&path, &scalars).with_context(|| cannot_write(&path))?;
        for (_, path) in &earlier {
            // The new file stands in for them also where another program keeps them.
            if let Err(error) = File::create(path) {
                tracing::warn!("cannot empty `{}`: {error}", path.display());
            }
        }
        Ok(Self {
            path,
            file,
            steps_per_epoch,
        })
    }

    /// Writes what an event adds.
    pub(crate) fn update(&mut self, event: &Event<'_>) -> anyhow::Result<()> {
        let is_epoch = matches!(event, Event::EpochFinished { .. });
        let scalars = match *event {
            Event::IntervalFinished {
                steps,
                loss,
                accuracy,
                images_per_second,
                learning_rate,
                gradient_norm,
            } => {
                let values = [
                    ("train_loss", Some(loss)),
                    ("train_accuracy", Some(accuracy)),
                    ("learning_rate", Some(learning_rate)),
                    ("images_per_second", Some(images_per_second)),
                    ("grad_norm", gradient_norm),
                ];
                let values = values.into_iter();
                let values =
                    values.filter_map(|(name, value)| Some((format!("step/{name}"), value?)));
                Scalars::new(wall_time(), steps, values)
            }
            Event::EpochFinished { history, .. } => match history.last() {
                Some(epoch) => epoch_scalars(epoch, self.steps_per_epoch)?,
                None => return Ok(()),
            },
            _ => return Ok(()),
        };
        let written = self.file.write_all(&event_file::encode(&scalars));
        let written = written.and_then(|()| match is_epoch {
            // Before the checkpoint, with which the epoch is not trained again.
            true => atomic_file::sync(&self.file),
            false => Ok(()),
        });
        written.with_context(|| cannot_write(&self.path))
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write `{}`", path.display())
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64()
}

/// The values of an epoch at its last step, named as in `metrics.jsonl`.
fn epoch_scalars(epoch: &EpochMetrics, steps_per_epoch: usize) -> serde_json::Result<Scalars> {
    let values = epoch.values()?.into_iter();
    let values = values.filter_map(|(key, value)| Some((format!("{EPOCH}{key}"), value.as_f64()?)));
    let steps = u64::from(epoch.epoch) * steps_per_epoch as u64;
    Ok(Scalars::new(wall_time(), steps, values))
}

/// What a run that resumes from `position` has of the scalars `known`; the values of epochs are those of `history`.
fn continued(
    mut known: Vec<Scalars>,
    position: Position,
    history: &[EpochMetrics],
    steps_per_epoch: usize,
) -> serde_json::Result<Vec<Scalars>> {
    let finished = history.len() as u64 * steps_per_epoch as u64;
    let done = finished + position.step as u64;
    known.retain(|scalars| {
        scalars.step
            <= if scalars.begin_with(EPOCH) {
                finished
            } else {
                done
            }
    });
    // Epochs after the checkpoint may have been trained again, without `--tensorboard`.
    for epoch in history {
        let epoch = epoch_scalars(epoch, steps_per_epoch)?;
        let is_same = |other: &&mut Scalars| other.step == epoch.step && other.begin_with(EPOCH);
        match known.iter_mut().find(is_same) {
            Some(known) => known.replace_values(epoch),
            None => known.push(epoch),
        }
    }
    known.sort_by_key(|scalars| scalars.step);
    Ok(known)
}

/// Writes a file with these scalars, to which others are appended.
fn begin(path: &Path, scalars: &[Scalars]) -> io::Result<File> {
    let mut file = Unfinished::create(path)?;
    file.write_all(&event_file::beginning(wall_time()))?;
    for scalars in scalars {
        file.write_all(&event_file::encode(scalars))?;
    }
    file.keep()
}

/// The files of this program in a folder, with the numbers in their names, in this order.
fn event_files(folder: &Path) -> anyhow::Result<Vec<(u64, PathBuf)>> {
    let cannot_read = || format!("cannot read the folder `{}`", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(cannot_read)? {
        let entry = entry.with_context(cannot_read)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let number = name.strip_prefix(file::EVENTS_PREFIX);
        let number = number.and_then(|name| name.strip_suffix(SUFFIX)?.parse().ok());
        files.extend(number.map(|number: u64| (number, entry.path())));
    }
    files.sort();
    Ok(files)
}
