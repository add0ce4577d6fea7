//! The falling part of the one-cycle policy (L. N. Smith and N. Topin, "Super-convergence", 2019).

/// The factor of the peak in the second phase of `torch.optim.lr_scheduler.OneCycleLR` with `anneal_strategy="linear"`:
/// a straight line from 1 to `final_factor`. `done` is the fraction of its steps that are done, 0 to 1. The first phase
/// is a [`WarmUp`](super::WarmUp).
pub(super) fn factor(final_factor: f64, done: f64) -> f64 {
    1.0 + (final_factor - 1.0) * done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_in_a_straight_line() {
        let factors = [0.0, 0.25, 0.5, 0.75, 1.0].map(|done| factor(0.5, done));
        assert_eq!(factors, [1.0, 0.875, 0.75, 0.625, 0.5]);
    }
}
