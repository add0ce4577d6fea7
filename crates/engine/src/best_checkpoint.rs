//! The weights of the best epoch.

use crate::checkpoint::Checkpoints;
use crate::error::Error;
use crate::named_tensors::{NamedTensors, to_device};
use crate::progress::BestEpoch;
use candle_core::Device;
use models::Architecture;
use std::path::PathBuf;

/// Keeps the weights of the epoch with the best test accuracy until they are written to `best.safetensors`.
pub(crate) struct BestCheckpoint {
    best: Option<BestEpoch>,
    /// The best epoch's weights, if they are not written yet.
    unwritten: Option<NamedTensors>,
}

impl BestCheckpoint {
    /// Continues from the best epoch of a checkpoint, whose weights are written.
    pub(crate) fn new(best: Option<BestEpoch>) -> Self {
        Self {
            best,
            unwritten: None,
        }
    }

    /// The best epoch so far.
    pub(crate) fn best(&self) -> Option<BestEpoch> {
        self.best
    }

    /// Whether an epoch with this test accuracy is better than all before it.
    pub(crate) fn is_improved_by(&self, test_accuracy: f64) -> bool {
        self.best
            .is_none_or(|best| test_accuracy > best.test_accuracy)
    }

    /// Makes this the best epoch. Its `weights` must not change until they are written.
    pub(crate) fn replace(&mut self, best: BestEpoch, weights: NamedTensors) {
        self.best = Some(best);
        self.unwritten = Some(weights);
    }

    /// Writes `best.safetensors`, if it is not up to date, and returns its path.
    pub(crate) fn write(
        &mut self,
        checkpoints: &Checkpoints,
        architecture: Architecture,
    ) -> Result<Option<PathBuf>, Error> {
        let Some(weights) = self.unwritten.take() else {
            return Ok(None);
        };
        let weights = to_device(weights, &Device::Cpu)?;
        Ok(Some(checkpoints.write_best(architecture, &weights)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Inputs, Weights};
    use models::initial_parameters;
    use run::settings::WeightInit;

    #[test]
    fn the_first_of_equally_good_epochs_is_kept_and_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path(), Inputs::example());
        let architecture: Architecture = "small-alexnet".parse().unwrap();
        let weights = |seed| {
            let device = &Device::Cpu;
            initial_parameters(architecture, WeightInit::Pytorch, seed, device).unwrap()
        };
        let mut best = BestCheckpoint::new(None);
        assert!(best.write(&checkpoints, architecture).unwrap().is_none());
        for (epoch, test_accuracy, improves) in [(1, 0.25, true), (2, 0.5, true), (3, 0.5, false)] {
            assert_eq!(best.is_improved_by(test_accuracy), improves, "{epoch}");
            if improves {
                let epoch_weights = weights(epoch.into());
                best.replace(
                    BestEpoch {
                        epoch,
                        test_accuracy,
                    },
                    epoch_weights,
                );
            }
        }
        assert_eq!(best.best().map(|best| best.epoch), Some(2));
        let path = best.write(&checkpoints, architecture).unwrap().unwrap();
        assert!(best.write(&checkpoints, architecture).unwrap().is_none());
        let written = Weights::read(&path, None).unwrap().tensors;
        for ((_, found), (_, expected)) in written.iter().zip(weights(2)) {
            let values = |tensor: &candle_core::Tensor| tensor.flatten_all()?.to_vec1::<f32>();
            assert_eq!(values(found).unwrap(), values(&expected).unwrap());
        }
    }
}
