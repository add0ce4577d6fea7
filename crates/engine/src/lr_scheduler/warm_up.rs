//! Linear warm-up.

/// `torch.optim.lr_scheduler.LinearLR` with `end_factor=1`: the learning rate rises in a straight line from
/// `start_factor` times its peak, in the first step, to the peak, in the step after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct WarmUp {
    pub(super) steps: u64,
    start_factor: f64,
}

impl WarmUp {
    /// A warm-up over `epochs` epochs (at least 0, fractions allowed) of `steps_per_epoch` steps, from `start_factor`
    /// on. It is rounded to whole steps: to none for 0 epochs, otherwise to at least one.
    pub(crate) fn new(epochs: f64, steps_per_epoch: usize, start_factor: f64) -> Self {
        let steps = (epochs * steps_per_epoch as f64).round() as u64;
        Self {
            steps: if epochs > 0.0 { steps.max(1) } else { 0 },
            start_factor,
        }
    }

    /// What the peak is multiplied by in a step; `None` after the warm-up.
    pub(super) fn factor(self, step: u64) -> Option<f64> {
        (step < self.steps).then(|| {
            self.start_factor + (1.0 - self.start_factor) * step as f64 / self.steps as f64
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_rounded_to_steps_but_not_to_none() {
        for (epochs, steps) in [
            (0.0, 0),
            (0.01, 1),
            (0.12, 1),
            (0.13, 1),
            (0.5, 2),
            (0.62, 2),
            (0.63, 3),
            (2.0, 8),
        ] {
            assert_eq!(WarmUp::new(epochs, 4, 0.1).steps, steps, "{epochs}");
        }
    }

    #[test]
    fn the_factor_rises_from_the_start_factor_to_below_one() {
        let warm_up = WarmUp::new(1.0, 4, 0.5);
        let factors: Vec<_> = (0..5).map(|step| warm_up.factor(step)).collect();
        assert_eq!(
            factors,
            [Some(0.5), Some(0.625), Some(0.75), Some(0.875), None]
        );
        assert_eq!(WarmUp::new(0.0, 4, 0.5).factor(0), None);
    }
}
