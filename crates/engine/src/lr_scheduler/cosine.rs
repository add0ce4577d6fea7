//! Cosine annealing.

use std::f64::consts::PI;

/// `torch.optim.lr_scheduler.CosineAnnealingLR`: half a period of a cosine, from the peak to a fraction of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cosine {
    peak: f64,
    final_factor: f64,
    steps: u64,
}

impl Cosine {
    /// From `peak` to `final_factor * peak` in `steps` steps (PyTorch's `T_max`).
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
        let last = self.final_factor;
        self.peak * (last + (1.0 - last) * (1.0 + libm::cos(PI * done)) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_at_the_final_factor_and_stays_there() {
        let cosine = Cosine::new(0.4, 0.25, 8);
        assert_eq!(cosine.lr(0), 0.4);
        assert!((cosine.lr(4) - 0.25).abs() < 1e-15);
        assert_eq!((cosine.lr(8), cosine.lr(9)), (0.1, 0.1));
        assert_eq!(Cosine::new(0.4, 0.25, 0).lr(3), 0.4);
    }
}
