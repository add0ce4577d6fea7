//! The learning-rate schedule of the reference recipe.

use crate::recipe::Recipe;
use serde::{Deserialize, Serialize};

/// The least change of the rate that is made at all (`eps` of PyTorch's scheduler).
const LEAST_CHANGE: f64 = 1e-8;

/// `torch.optim.lr_scheduler.ReduceLROnPlateau` in its mode `min` with a relative threshold, no
/// cooldown and no lower bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plateau {
    learning_rate: f64,
    patience: u32,
    factor: f64,
    threshold: f64,
    /// The lowest loss so far.
    best: Option<f64>,
    /// Epochs since then, or since the rate last fell.
    bad_epochs: u32,
}

impl Plateau {
    /// The state before the first epoch.
    #[must_use]
    pub fn new(recipe: &Recipe) -> Self {
        Self {
            learning_rate: recipe.learning_rate.get(),
            patience: recipe.patience,
            factor: recipe.plateau_factor.get(),
            threshold: recipe.plateau_threshold.get(),
            best: None,
            bad_epochs: 0,
        }
    }

    /// The rate that holds now.
    #[must_use]
    pub fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    /// The state after an epoch with this test loss.
    #[must_use]
    pub fn after(mut self, loss: f64) -> Self {
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
            let reduced = self.learning_rate * self.factor;
            if self.learning_rate - reduced > LEAST_CHANGE {
                self.learning_rate = reduced;
            }
            self.bad_epochs = 0;
        }
        self
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

    /// 60 losses and the rate after each, for four settings, made by `make_golden.py` with PyTorch.
    #[test]
    fn agrees_with_pytorch() {
        let golden: Golden =
            serde_json::from_str(include_str!("../tests/golden/plateau.json")).unwrap();
        assert_eq!(golden.cases.len(), 4);
        for case in golden.cases {
            let table = crate::built_in("reference", "alexnet".parse().unwrap()).unwrap();
            let recipe = Recipe {
                learning_rate: case.initial_lr.try_into().unwrap(),
                patience: case.patience,
                plateau_factor: case.factor.try_into().unwrap(),
                plateau_threshold: case.threshold.try_into().unwrap(),
                ..table.try_into().unwrap()
            };
            let mut plateau = Plateau::new(&recipe);
            for (loss, expected) in case.validation_loss.iter().zip(&case.lr_after) {
                plateau = plateau.after(*loss);
                let error = (plateau.learning_rate() - expected).abs();
                assert!(error <= 1e-12 * expected, "{plateau:?}, not {expected}");
            }
        }
    }
}
