//! Early stopping.

/// Ends a run after this many epochs without a new lowest test loss; never if it is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EarlyStopping(pub(crate) u32);

impl EarlyStopping {
    /// Whether to stop after an epoch with test loss `loss`, given the losses of the epochs `before` it.
    pub(crate) fn stops(self, before: impl IntoIterator<Item = f64>, loss: f64) -> bool {
        let (mut lowest, mut epochs_since) = (f64::INFINITY, 0);
        for loss in before.into_iter().chain([loss]) {
            if loss < lowest {
                (lowest, epochs_since) = (loss, 0);
            } else {
                epochs_since += 1;
            }
        }
        self.0 > 0 && epochs_since >= self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_for_as_many_epochs_as_its_patience() {
        let stops = |patience, losses: &[f64]| {
            let (last, before) = losses.split_last().unwrap();
            EarlyStopping(patience).stops(before.iter().copied(), *last)
        };
        assert!(!stops(2, &[2.0]));
        assert!(!stops(2, &[2.0, 2.1]));
        assert!(stops(2, &[2.0, 2.1, 2.2]));
        // The same loss again is no improvement.
        assert!(stops(2, &[2.0, 2.0, 2.0]));
        assert!(!stops(2, &[2.0, 2.1, 1.9]));
        assert!(!stops(2, &[2.0, 1.9, 1.95]));
        assert!(stops(1, &[2.0, 1.9, 1.95]));
        assert!(!stops(0, &[1.0, 2.0, 3.0, 4.0]));
    }
}
