//! The dropout probability of each epoch.

use run::Settings;
use run::settings::DropoutEpochs;

/// Dropout that is active in the first epochs alone, or rises over them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DropoutSchedule {
    /// The probability of a feature to be set to 0, at least 0 and below 1.
    pub(crate) probability: f64,
    /// In how many epochs dropout is active; `None` for all.
    pub(crate) epochs: Option<u32>,
    /// Epochs over which the probability rises from 0 in equal steps.
    pub(crate) warmup_epochs: u32,
}

impl From<&Settings> for DropoutSchedule {
    fn from(settings: &Settings) -> Self {
        Self {
            probability: settings.dropout.get(),
            epochs: match settings.dropout_epochs {
                DropoutEpochs::All(_) => None,
                DropoutEpochs::First(epochs) => Some(epochs),
            },
            warmup_epochs: settings.dropout_warmup_epochs,
        }
    }
}

impl DropoutSchedule {
    /// The dropout probability in an epoch, the first being 0.
    pub(crate) fn probability(self, epoch: u32) -> f64 {
        if self.epochs.is_some_and(|epochs| epoch >= epochs) {
            0.0
        } else if epoch < self.warmup_epochs {
            self.probability * f64::from(epoch) / f64::from(self.warmup_epochs)
        } else {
            self.probability
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_rises_and_ends() {
        let schedule = DropoutSchedule {
            probability: 0.5,
            epochs: Some(6),
            warmup_epochs: 4,
        };
        let probabilities = (0..8).map(|epoch| schedule.probability(epoch));
        assert!(probabilities.eq([0.0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.0, 0.0]));
        let all = DropoutSchedule {
            epochs: None,
            warmup_epochs: 0,
            ..schedule
        };
        assert!([0, 7, 49].map(|epoch| all.probability(epoch)) == [0.5; 3]);
    }
}
