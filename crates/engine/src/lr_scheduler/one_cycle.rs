//! The falling part of the one-cycle policy (L. N. Smith and N. Topin, "Super-convergence", 2019).

/// A straight line from the peak to a fraction of it: the second phase of `torch.optim.lr_scheduler.OneCycleLR` with
/// `anneal_strategy="linear"`. The first phase is a [`WarmUp`](super::WarmUp).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OneCycle {
    peak: f64,
    final_factor: f64,
    steps: u64,
}

impl OneCycle {
    /// From `peak` to `final_factor * peak` in `steps` steps.
    #[must_use]
    pub fn new(peak: f64, final_factor: f64, steps: u64) -> Self {
        Self {
            peak,
            final_factor,
            steps,
        }
    }

    /// The learning rate of step 0.
    #[must_use]
    pub fn peak(self) -> f64 {
        self.peak
    }

    /// The learning rate of a step; after `steps` steps it stays what it is then.
    #[must_use]
    pub fn lr(self, step: u64) -> f64 {
        let done = match self.steps {
            0 => 0.0,
            steps => (step as f64 / steps as f64).min(1.0),
        };
        self.peak * (1.0 + (self.final_factor - 1.0) * done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_in_a_straight_line_and_stays_at_its_end() {
        let line = OneCycle::new(1.0, 0.5, 4);
        let lrs: Vec<f64> = (0..6).map(|step| line.lr(step)).collect();
        assert_eq!(lrs, [1.0, 0.875, 0.75, 0.625, 0.5, 0.5]);
        assert_eq!(OneCycle::new(1.0, 0.5, 0).lr(3), 1.0);
    }
}
