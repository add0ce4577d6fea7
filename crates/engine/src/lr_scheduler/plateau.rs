//! A learning rate that falls when the test loss no longer does.

use serde::{Deserialize, Serialize};

/// The smallest change of the learning rate that is made (`eps` of PyTorch's scheduler).
const EPS: f64 = 1e-8;

/// `torch.optim.lr_scheduler.ReduceLROnPlateau` with `mode="min"`, `threshold_mode="rel"`, no cooldown and no lower
/// bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plateau {
    #[serde(rename = "learning_rate")]
    lr: f64,
    patience: u32,
    factor: f64,
    threshold: f64,
    /// The lowest loss so far.
    best: Option<f64>,
    /// Epochs since the lowest loss, or since the learning rate was last reduced.
    bad_epochs: u32,
}

impl Plateau {
    /// The state before the first epoch. After more than `patience` epochs without a loss below
    /// `(1 - threshold)` times the lowest, the learning rate is multiplied by `factor`.
    pub(crate) fn new(lr: f64, patience: u32, factor: f64, threshold: f64) -> Self {
        Self {
            lr,
            patience,
            factor,
            threshold,
            best: None,
            bad_epochs: 0,
        }
    }

    /// The current learning rate.
    pub(crate) fn lr(&self) -> f64 {
        self.lr
    }

    /// Takes note of the test loss after an epoch.
    pub(crate) fn end_epoch(&mut self, loss: f64) {
        if self
            .best
            .is_none_or(|best| loss < best * (1.0 - self.threshold))
        {
            self.best = Some(loss);
            self.bad_epochs = 0;
        } else {
            self.bad_epochs += 1;
        }
        if self.bad_epochs > self.patience {
            let reduced = self.lr * self.factor;
            if self.lr - reduced > EPS {
                self.lr = reduced;
            }
            self.bad_epochs = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        initial_lr: f64,
        patience: u32,
        factor: f64,
        threshold: f64,
        validation_loss: Vec<f64>,
        lr_after: Vec<f64>,
    }

    /// 60 losses and the learning rate after each, for four settings, made by `make_golden.py` with PyTorch.
    #[test]
    fn agrees_with_pytorch() {
        let golden: Golden =
            serde_json::from_str(include_str!("../../tests/golden/plateau.json")).unwrap();
        assert_eq!(golden.cases.len(), 4);
        for case in golden.cases {
            let mut plateau =
                Plateau::new(case.initial_lr, case.patience, case.factor, case.threshold);
            for (loss, expected) in case.validation_loss.iter().zip(&case.lr_after) {
                plateau.end_epoch(*loss);
                let error = (plateau.lr() - expected).abs();
                assert!(error <= 1e-12 * expected, "{plateau:?}, not {expected}");
            }
        }
    }
}
