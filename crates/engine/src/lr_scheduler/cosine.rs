//! Cosine annealing.

use std::f64::consts::PI;

/// The factor of the peak in `torch.optim.lr_scheduler.CosineAnnealingLR`: half a period of a cosine, from 1 to
/// `final_factor`. `done` is the fraction of its steps (PyTorch's `T_max`) that are done, 0 to 1.
pub(super) fn factor(final_factor: f64, done: f64) -> f64 {
    final_factor + (1.0 - final_factor) * (1.0 + libm::cos(PI * done)) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_at_the_final_factor() {
        assert_eq!(factor(0.25, 0.0), 1.0);
        assert!((factor(0.25, 0.5) - 0.625).abs() < 1e-15);
        assert_eq!(factor(0.25, 1.0), 0.25);
    }
}
