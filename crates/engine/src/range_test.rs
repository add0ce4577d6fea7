//! The search for a learning rate: the loss against a rate that rises from step to step (L. N. Smith, "Cyclical
//! learning rates for training neural networks", 2017), with the smoothing and the end of PyTorch Lightning's
//! `lr_find`.

use crate::recipe::{OutOfRange, Positive};

/// The rates that are tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RangeTest {
    lowest: f64,
    highest: f64,
    steps: u32,
}

/// One step of the search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tried {
    /// The step's learning rate.
    pub rate: f64,
    /// The loss of its images, before the step.
    pub loss: f64,
    /// The loss as a moving average with that of the steps before.
    pub smoothed: f64,
}

/// How much of the moving average is kept in a step, as in Lightning and fastai.
const KEPT: f64 = 0.98;

/// The search ends where the moving average is that many times its lowest.
const TOO_HIGH: f64 = 4.0;

impl RangeTest {
    /// `steps` rates from `lowest` to `highest`, each the same multiple of the one before.
    ///
    /// # Errors
    /// When the rates do not rise, or there are fewer than two steps.
    pub fn new(lowest: Positive, highest: Positive, steps: u32) -> Result<Self, OutOfRange> {
        let (lowest, highest) = (lowest.get(), highest.get());
        if lowest >= highest {
            return Err(OutOfRange::new(
                highest,
                "a rate above the lowest that is tried",
            ));
        }
        if steps < 2 {
            return Err(OutOfRange::new(steps, "at least 2 steps"));
        }
        Ok(Self {
            lowest,
            highest,
            steps,
        })
    }

    /// The rates.
    pub fn rates(self) -> impl Iterator<Item = f64> {
        let last = f64::from(self.steps - 1);
        (0..self.steps).map(move |step| {
            self.lowest * libm::pow(self.highest / self.lowest, f64::from(step) / last)
        })
    }

    /// How many rates there are.
    #[must_use]
    pub fn steps(self) -> u32 {
        self.steps
    }
}

/// A step's place in the search after those in `before`; `None` where its loss says that the search is over.
pub(crate) fn tried(before: &[Tried], rate: f64, loss: f64) -> Option<Tried> {
    let steps = before.len() as i32;
    // The average without the correction for its beginning at 0.
    let average = before
        .last()
        .map_or(0.0, |last| last.smoothed * (1.0 - KEPT.powi(steps)));
    let average = KEPT * average + (1.0 - KEPT) * loss;
    let smoothed = average / (1.0 - KEPT.powi(steps + 1));
    let lowest = before
        .iter()
        .map(|tried| tried.smoothed)
        .fold(f64::INFINITY, f64::min);
    let over = !loss.is_finite() || (steps > 0 && smoothed > TOO_HIGH * lowest);
    (!over).then_some(Tried {
        rate,
        loss,
        smoothed,
    })
}

/// A tenth of the rate with the lowest smoothed loss, and no lower than the lowest that was tried; `None` where the loss
/// did not fall. It is fastai's rule `minimum`.
///
/// Lightning's rule, the steepest descent, suggested 2e-4 for SmallAlexNet by the recipe `best`, where this one says
/// 1.2e-2: good initial weights learn fastest in their first steps, at whatever rate.
#[must_use]
pub fn suggested_rate(tried: &[Tried]) -> Option<f64> {
    let first = tried.first()?;
    let lowest = tried
        .iter()
        .min_by(|a, b| a.smoothed.total_cmp(&b.smoothed))?;
    (lowest.rate > first.rate).then(|| (lowest.rate / 10.0).max(first.rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(losses: impl IntoIterator<Item = f64>) -> Vec<Tried> {
        let mut all = Vec::new();
        for (step, loss) in losses.into_iter().enumerate() {
            match tried(&all, 10_f64.powi(step as i32), loss) {
                Some(tried) => all.push(tried),
                None => break,
            }
        }
        all
    }

    #[test]
    fn rates_rise_evenly() {
        let number = |value: f64| Positive::try_from(value).unwrap();
        let test = RangeTest::new(number(1e-4), number(1.0), 5).unwrap();
        for (found, expected) in test.rates().zip([1e-4, 1e-3, 1e-2, 1e-1, 1.0]) {
            assert!((found / expected - 1.0).abs() < 1e-12, "{found}");
        }
        assert!(RangeTest::new(number(1.0), number(1.0), 5).is_err());
        assert!(RangeTest::new(number(0.1), number(1.0), 1).is_err());
    }

    /// ```python
    /// avg = 0.0
    /// for i, loss in enumerate([2.0, 1.0, 4.0]):
    ///     avg = 0.98 * avg + 0.02 * loss
    ///     print(avg / (1 - 0.98 ** (i + 1)))
    /// ```
    #[test]
    fn losses_are_smoothed_as_lightning_does() {
        let expected = [2.0, 1.494_949_494_949_495_6, 2.346_891_579_376_952];
        for (tried, expected) in all([2.0, 1.0, 4.0]).iter().zip(expected) {
            assert!((tried.smoothed - expected).abs() < 1e-12, "{tried:?}");
        }
    }

    #[test]
    fn the_search_ends_where_the_loss_explodes() {
        assert_eq!(all([1.0, 1.0, 1e6, 1.0]).len(), 2);
        assert_eq!(all([1.0, f64::NAN, 1.0]).len(), 1);
    }

    /// ```python
    /// losses = numpy.array([3.0, 2.9, 2.5, 1.5, 1.2, 1.1, 9.0])
    /// 10.0 ** losses.argmin() / 10   # 10000.0
    /// ```
    #[test]
    fn a_tenth_of_the_rate_with_the_lowest_loss_is_suggested() {
        let at = |losses: &[f64]| {
            let tried: Vec<Tried> = (0..)
                .zip(losses)
                .map(|(step, loss)| Tried {
                    rate: 10_f64.powi(step),
                    loss: *loss,
                    smoothed: *loss,
                })
                .collect();
            suggested_rate(&tried)
        };
        assert_eq!(at(&[3.0, 2.9, 2.5, 1.5, 1.2, 1.1, 9.0]), Some(1e4));
        assert_eq!(at(&[3.0, 2.9]), Some(1.0));
        assert_eq!(at(&[3.0, 3.1]), None);
        assert_eq!(at(&[]), None);
    }
}
