//! The LR finder: the loss at a learning rate that rises from step to step (L. N. Smith, "Cyclical learning rates for
//! training neural networks", 2017), with the smoothing and the early end of PyTorch Lightning's `lr_find`.

use crate::data_loader::Batches;
use crate::error::Error;
use crate::progress::Position;
use crate::training_step::TrainingStep;
use run::{LrFinderStep, OutOfRange};

/// Learning rates to try, one per training step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrFinder {
    min_lr: f64,
    max_lr: f64,
    steps: u32,
}

/// The decay of the moving average, as in Lightning and fastai.
const DECAY: f64 = 0.98;

/// The search ends when the smoothed loss exceeds its lowest value by this factor, as in Lightning.
const EARLY_STOP_FACTOR: f64 = 4.0;

impl LrFinder {
    /// `steps` learning rates from `min_lr` to `max_lr`, with a constant ratio between neighbours.
    ///
    /// # Errors
    /// When the learning rates are not between 1e-12 and 1e12 or do not rise, or there are fewer than two steps.
    pub fn new(min_lr: f64, max_lr: f64, steps: u32) -> Result<Self, OutOfRange> {
        if !(1e-12 <= min_lr && min_lr < max_lr && max_lr <= 1e12) {
            let expected = "two numbers from 1e-12 to 1e12, the second larger than the first";
            return Err(OutOfRange::new(
                format_args!("{min_lr} to {max_lr}"),
                expected,
            ));
        }
        if steps < 2 {
            return Err(OutOfRange::new(steps, "at least 2 steps"));
        }
        Ok(Self {
            min_lr,
            max_lr,
            steps,
        })
    }

    /// The learning rates.
    pub fn lrs(self) -> impl Iterator<Item = f64> {
        let last = f64::from(self.steps - 1);
        (0..self.steps).map(move |step| {
            self.min_lr * libm::pow(self.max_lr / self.min_lr, f64::from(step) / last)
        })
    }

    /// How many learning rates there are.
    #[must_use]
    pub fn steps(self) -> u32 {
        self.steps
    }

    /// Takes one training step per learning rate, on the `batches` of epochs 0, 1, ... The result ends early if the loss
    /// explodes or `stop` returns true.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub(crate) fn run(
        self,
        step: &mut TrainingStep,
        batches: impl Fn(u32) -> candle_core::Result<Batches>,
        stop: &dyn Fn() -> bool,
        observe: &mut dyn FnMut(&LrFinderStep),
    ) -> Result<Vec<LrFinderStep>, Error> {
        let mut curve = Vec::new();
        let mut lrs = self.lrs();
        for epoch in 0.. {
            for (number, batch) in batches(epoch)?.enumerate() {
                let Some(lr) = lrs.next().filter(|_| !stop()) else {
                    return Ok(curve);
                };
                // With the metrics of this step alone.
                let mut position = Position {
                    step: number,
                    ..Position::start_of(epoch)
                };
                let stepped = batch
                    .map_err(Error::from)
                    .and_then(|batch| step.step(&batch, &mut position, lr))
                    .and_then(|()| step.collect(&mut position));
                match stepped {
                    Err(Error::Diverged { .. }) => return Ok(curve),
                    other => other.map_err(|error| step.explain(error))?,
                }
                let Some(point) = next_step(&curve, lr, position.loss()) else {
                    return Ok(curve);
                };
                observe(&point);
                curve.push(point);
            }
        }
        Ok(curve)
    }
}

/// The step after those of `curve`; `None` if its loss ends the search.
fn next_step(curve: &[LrFinderStep], lr: f64, loss: f64) -> Option<LrFinderStep> {
    let steps = curve.len() as i32;
    // The average without the correction for its start at 0.
    let average = curve
        .last()
        .map_or(0.0, |last| last.smoothed_loss * (1.0 - DECAY.powi(steps)));
    let average = DECAY * average + (1.0 - DECAY) * loss;
    let smoothed_loss = average / (1.0 - DECAY.powi(steps + 1));
    let lowest = curve
        .iter()
        .map(|step| step.smoothed_loss)
        .fold(f64::INFINITY, f64::min);
    let over = !loss.is_finite() || (steps > 0 && smoothed_loss > EARLY_STOP_FACTOR * lowest);
    (!over).then_some(LrFinderStep {
        lr,
        loss,
        smoothed_loss,
    })
}

/// A tenth of the learning rate with the lowest smoothed loss; `None` if that is below the first one tried. This is
/// fastai's suggestion `minimum`.
///
/// Lightning's suggestion, the steepest descent, is 2e-4 for SmallAlexNet with the recipe `best`, where this one is
/// 1.2e-2: well-initialised weights learn fastest in their first steps, whatever the learning rate.
#[must_use]
pub fn suggested_lr(curve: &[LrFinderStep]) -> Option<f64> {
    let first = curve.first()?;
    let lowest = curve
        .iter()
        .min_by(|a, b| a.smoothed_loss.total_cmp(&b.smoothed_loss))?;
    Some(lowest.lr / 10.0).filter(|suggested| *suggested >= first.lr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(losses: impl IntoIterator<Item = f64>) -> Vec<LrFinderStep> {
        let mut curve = Vec::new();
        for (step, loss) in losses.into_iter().enumerate() {
            match next_step(&curve, 10_f64.powi(step as i32), loss) {
                Some(step) => curve.push(step),
                None => break,
            }
        }
        curve
    }

    #[test]
    fn learning_rates_rise_evenly() {
        let finder = LrFinder::new(1e-4, 1.0, 5).unwrap();
        for (found, expected) in finder.lrs().zip([1e-4, 1e-3, 1e-2, 1e-1, 1.0]) {
            assert!((found / expected - 1.0).abs() < 1e-12, "{found}");
        }
        assert!(LrFinder::new(1.0, 1.0, 5).is_err());
        assert!(LrFinder::new(0.0, 1.0, 5).is_err());
        assert!(LrFinder::new(0.1, f64::NAN, 5).is_err());
        assert!(LrFinder::new(0.1, 1.0, 1).is_err());
        assert!(LrFinder::new(1e-300, 1e300, 5).is_err());
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
        for (step, expected) in curve([2.0, 1.0, 4.0]).iter().zip(expected) {
            assert!((step.smoothed_loss - expected).abs() < 1e-12, "{step:?}");
        }
    }

    #[test]
    fn the_search_ends_when_the_loss_explodes() {
        assert_eq!(curve([1.0, 1.0, 1e6, 1.0]).len(), 2);
        assert_eq!(curve([1.0, f64::NAN, 1.0]).len(), 1);
    }

    /// ```python
    /// losses = numpy.array([3.0, 2.9, 2.5, 1.5, 1.2, 1.1, 9.0])
    /// 10.0 ** losses.argmin() / 10   # 10000.0
    /// ```
    #[test]
    fn a_tenth_of_the_learning_rate_with_the_lowest_loss_is_suggested() {
        let at = |losses: &[f64]| {
            let curve: Vec<LrFinderStep> = (0..)
                .zip(losses)
                .map(|(step, loss)| LrFinderStep {
                    lr: 10_f64.powi(step),
                    loss: *loss,
                    smoothed_loss: *loss,
                })
                .collect();
            suggested_lr(&curve)
        };
        assert_eq!(at(&[3.0, 2.9, 2.5, 1.5, 1.2, 1.1, 9.0]), Some(1e4));
        assert_eq!(at(&[3.0, 2.9]), Some(1.0));
        assert_eq!(at(&[3.0, 3.1]), None);
        let step = |lr, smoothed_loss| LrFinderStep {
            lr,
            loss: smoothed_loss,
            smoothed_loss,
        };
        assert_eq!(suggested_lr(&[step(1.0, 3.0), step(2.0, 2.0)]), None);
        assert_eq!(at(&[]), None);
    }
}
