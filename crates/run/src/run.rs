//! A run, read from its folder.

use crate::error::Error;
use crate::layers::{self, Layer};
use crate::metrics::{self, EpochMetrics};
use crate::predictions::Predictions;
use crate::record::{MadeBy, Record};
use crate::{file, folder, settings::Settings};
use std::path::Path;

/// The record of a run and its results.
#[derive(Clone, Debug)]
pub struct Run {
    /// The folder's name.
    pub name: String,
    /// The settings.
    pub settings: Settings,
    /// What made the run.
    pub made_by: MadeBy,
    /// The finished epochs, at least one.
    pub epochs: Vec<EpochMetrics>,
    /// The predictions of the last epoch's weights, if they were recorded.
    pub predictions: Option<Predictions>,
    /// The network's layers, if they were recorded.
    pub layers: Option<Vec<Layer>>,
}

impl Run {
    /// Reads the run in `folder`.
    ///
    /// # Errors
    /// When there is none, it has no finished epoch, or a file is damaged or of a later version.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let Record { settings, made_by } = Record::read(folder)?;
        let epochs = read_if_exists(folder, file::METRICS, metrics::read)?.unwrap_or_default();
        let Some(last) = epochs.last() else {
            return Err(Error::NoEpochs(folder.to_owned()));
        };
        let predictions = read_if_exists(folder, file::PREDICTIONS, Predictions::read)?;
        Ok(Self {
            name: folder::name(folder),
            settings,
            made_by,
            // After a run was resumed for more epochs, older predictions are of other weights.
            predictions: predictions.filter(|predictions| predictions.epoch == last.epoch),
            layers: read_if_exists(folder, file::LAYERS, layers::read)?,
            epochs,
        })
    }

    /// Whether all epochs are done, or early stopping ended the run.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.last().stopped_early || self.epochs.len() >= self.settings.epochs.get() as usize
    }

    /// The last epoch.
    #[must_use]
    pub fn last(&self) -> &EpochMetrics {
        // `read` returns no run without epochs.
        &self.epochs[self.epochs.len() - 1]
    }

    /// The best accuracy after any epoch, 0 to 1.
    #[must_use]
    pub fn best_accuracy(&self) -> f64 {
        let accuracies = self.epochs.iter().map(|epoch| epoch.evaluated.accuracy);
        accuracies.fold(0.0, f64::max)
    }

    /// Seconds of all epochs.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.epochs.iter().map(|epoch| epoch.seconds).sum()
    }

    /// Mean training throughput, without evaluation.
    #[must_use]
    pub fn images_per_second(&self) -> f64 {
        let epochs = self.epochs.iter();
        let seconds: f64 = epochs.map(|epoch| 1.0 / epoch.images_per_second).sum();
        self.epochs.len() as f64 / seconds
    }
}

fn read_if_exists<T>(
    folder: &Path,
    name: &str,
    read: fn(&Path) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    let path = folder.join(name);
    path.exists().then(|| read(&path)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record;
    use std::fs;

    #[test]
    fn published_runs_are_read() {
        let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/results");
        let mut read = 0;
        for entry in fs::read_dir(results).unwrap() {
            let folder = entry.unwrap().path();
            if folder.join(file::RECORD).exists() {
                let run = Run::read(&folder).unwrap();
                assert!(run.finished(), "{}", run.name);
                assert!(run.last().evaluated.tta_accuracy.is_some(), "{}", run.name);
                read += 1;
            }
        }
        assert!(read >= 13, "{read}");
    }

    #[test]
    fn a_run_without_epochs_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join(file::RECORD),
            record("").to_toml().unwrap(),
        )
        .unwrap();
        for metrics in [None, Some("")] {
            if let Some(text) = metrics {
                fs::write(folder.path().join(file::METRICS), text).unwrap();
            }
            let error = Run::read(folder.path()).unwrap_err();
            assert!(matches!(error, Error::NoEpochs(_)), "{error}");
        }
    }
}
