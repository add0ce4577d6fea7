//! Learning-rate schedulers, one file each. The learning rate is a function of the step; [`Plateau`] alone has a state,
//! which follows the test loss.

mod constant;
mod cosine;
mod one_cycle;
mod plateau;
mod warm_up;

pub use constant::Constant;
pub use cosine::Cosine;
pub use one_cycle::OneCycle;
pub use plateau::Plateau;
pub use warm_up::WarmUp;

/// The learning rate of every step of a run: a linear warm-up, and then a schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scheduler {
    warm_up: WarmUp,
    schedule: AfterWarmUp,
}

/// What follows the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
enum AfterWarmUp {
    Constant(Constant),
    Plateau(Plateau),
    Cosine(Cosine),
    OneCycle(OneCycle),
}

impl Scheduler {
    /// The learning rate `lr` after the warm-up, which ends with the run of `steps` steps at the latest.
    #[must_use]
    pub fn constant(lr: f64, warm_up: WarmUp, steps: u64) -> Self {
        Self {
            warm_up: warm_up.at_most(steps),
            schedule: AfterWarmUp::Constant(Constant::new(lr)),
        }
    }

    /// The learning rate of `plateau` after the warm-up, which ends with the run of `steps` steps at the latest.
    #[must_use]
    pub fn plateau(plateau: Plateau, warm_up: WarmUp, steps: u64) -> Self {
        Self {
            warm_up: warm_up.at_most(steps),
            schedule: AfterWarmUp::Plateau(plateau),
        }
    }

    /// After the warm-up, cosine annealing from `lr` to `final_factor * lr` at the end of the run of `steps` steps.
    #[must_use]
    pub fn cosine(lr: f64, final_factor: f64, warm_up: WarmUp, steps: u64) -> Self {
        let warm_up = warm_up.at_most(steps);
        Self {
            warm_up,
            schedule: AfterWarmUp::Cosine(Cosine::new(lr, final_factor, steps - warm_up.steps())),
        }
    }

    /// A straight line up to `lr`, which the last step of the warm-up reaches, and one down to `final_factor * lr`,
    /// which the last of the run's `steps` steps reaches:
    /// `torch.optim.lr_scheduler.OneCycleLR` with `anneal_strategy="linear"` and `cycle_momentum=False`.
    ///
    /// A warm-up of a single step takes two, so that the run begins below the peak.
    #[must_use]
    pub fn one_cycle(lr: f64, final_factor: f64, warm_up: WarmUp, steps: u64) -> Self {
        // The other schedules reach their highest rate in the step after the warm-up.
        let warm_up = warm_up.at_least(2).at_most(steps).shortened();
        let annealing = steps.saturating_sub(1).saturating_sub(warm_up.steps());
        Self {
            warm_up,
            schedule: AfterWarmUp::OneCycle(OneCycle::new(lr, final_factor, annealing)),
        }
    }

    /// The learning rate of a step, the run's first being 0.
    #[must_use]
    pub fn lr(&self, step: u64) -> f64 {
        if let Some(factor) = self.warm_up.factor(step) {
            return self.peak() * factor;
        }
        let step = step - self.warm_up.steps();
        match &self.schedule {
            AfterWarmUp::Constant(constant) => constant.lr(),
            AfterWarmUp::Plateau(plateau) => plateau.lr(),
            AfterWarmUp::Cosine(cosine) => cosine.lr(step),
            AfterWarmUp::OneCycle(one_cycle) => one_cycle.lr(step),
        }
    }

    /// The learning rate that the warm-up rises to.
    fn peak(&self) -> f64 {
        match &self.schedule {
            AfterWarmUp::Constant(constant) => constant.lr(),
            AfterWarmUp::Plateau(plateau) => plateau.lr(),
            AfterWarmUp::Cosine(cosine) => cosine.peak(),
            AfterWarmUp::OneCycle(one_cycle) => one_cycle.peak(),
        }
    }

    /// Takes note of the test loss after an epoch.
    pub fn end_epoch(&mut self, test_loss: f64) {
        if let AfterWarmUp::Plateau(plateau) = &mut self.schedule {
            plateau.end_epoch(test_loss);
        }
    }

    /// The state to save in a checkpoint.
    #[must_use]
    pub fn state(&self) -> Option<Plateau> {
        match self.schedule {
            AfterWarmUp::Plateau(plateau) => Some(plateau),
            _ => None,
        }
    }

    /// Restores the state of a checkpoint. A schedule without a state ignores it: checkpoints of format 1 have one for
    /// every schedule.
    pub fn restore(&mut self, state: Option<Plateau>) {
        if let (AfterWarmUp::Plateau(plateau), Some(saved)) = (&mut self.schedule, state) {
            *plateau = saved;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings that PyTorch 2.15 was given below: three epochs of four steps.
    const STEPS: u64 = 12;
    const LR: f64 = 0.4;

    fn warm_up(epochs: f64) -> WarmUp {
        WarmUp::new(epochs, 4, 0.1)
    }

    fn cosine(epochs: f64) -> Scheduler {
        Scheduler::cosine(LR, 0.01, warm_up(epochs), STEPS)
    }

    fn one_cycle(epochs: f64) -> Scheduler {
        Scheduler::one_cycle(LR, 0.01, warm_up(epochs), STEPS)
    }

    fn constant(epochs: f64) -> Scheduler {
        Scheduler::constant(LR, warm_up(epochs), STEPS)
    }

    fn plateau(epochs: f64) -> Scheduler {
        Scheduler::plateau(Plateau::new(LR, 5, 0.1, 1e-4), warm_up(epochs), STEPS)
    }

    const ALL: [fn(f64) -> Scheduler; 4] = [constant, plateau, cosine, one_cycle];

    fn assert_lrs(scheduler: Scheduler, expected: &[f64]) {
        for (step, expected) in (0..).zip(expected) {
            let found = scheduler.lr(step);
            assert!(
                (found - expected).abs() <= 1e-12,
                "step {step}: {found}, not {expected}"
            );
        }
    }

    #[test]
    fn cosine_matches_pytorch() {
        // lr=0.4; CosineAnnealingLR(o, T_max=12, eta_min=0.004)
        assert_lrs(
            cosine(0.0),
            &[
                0.4,
                0.393253313605236,
                0.373473029949319,
                0.342007142674936,
                0.301,
                0.253246170930299,
                0.202,
                0.150753829069701,
                0.103,
                0.061992857325064,
                0.030526970050681,
                0.010746686394764,
            ],
        );
        // SequentialLR(o, [LinearLR(o, start_factor=0.1, total_iters=4),
        //                  CosineAnnealingLR(o, T_max=8, eta_min=0.004)], milestones=[4])
        assert_lrs(
            cosine(1.0),
            &[
                0.04,
                0.13,
                0.22,
                0.31,
                0.4,
                0.384928147437235,
                0.342007142674936,
                0.277771319608288,
                0.202,
                0.126228680391712,
                0.061992857325064,
                0.019071852562765,
            ],
        );
    }

    #[test]
    fn one_cycle_matches_pytorch() {
        // OneCycleLR(o, max_lr=0.4, total_steps=12, pct_start=4 / 12, anneal_strategy="linear",
        //            cycle_momentum=False, div_factor=10, final_div_factor=10)
        assert_lrs(
            one_cycle(1.0),
            &[
                0.04, 0.16, 0.28, 0.4, 0.3505, 0.301, 0.2515, 0.202, 0.1525, 0.103, 0.0535, 0.004,
            ],
        );
        // Without a warm-up it falls from the first step on.
        assert_eq!(one_cycle(0.0).lr(0), 0.4);
        assert!((one_cycle(0.0).lr(11) - 0.004).abs() < 1e-15);
    }

    #[test]
    fn warm_up_matches_pytorch() {
        // LinearLR(o, start_factor=0.1, total_iters=6)
        assert_lrs(
            constant(1.5),
            &[
                0.04, 0.1, 0.16, 0.22, 0.28, 0.34, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4,
            ],
        );
        assert_lrs(plateau(1.5), &[0.04, 0.1, 0.16]);
    }

    #[test]
    fn a_warm_up_that_rounds_to_no_step_takes_one() {
        for scheduler in ALL {
            let lr = |step| scheduler(0.01).lr(step);
            assert!((lr(0) - 0.04).abs() < 1e-15, "{}", lr(0));
            assert!((lr(1) - LR).abs() < 1e-15, "{}", lr(1));
        }
    }

    #[test]
    fn a_warm_up_longer_than_the_run_ends_with_it() {
        for scheduler in ALL {
            let lr = |step| scheduler(9.0).lr(step);
            assert!((0..12).all(|step| lr(step) <= lr(step + 1) && lr(step).is_finite()));
            assert!(lr(11) > 0.3, "{}", lr(11));
        }
    }

    #[test]
    fn a_run_of_one_step_has_a_finite_lr() {
        for warm_up in [WarmUp::new(0.0, 1, 0.1), WarmUp::new(2.0, 1, 0.1)] {
            for scheduler in [
                Scheduler::constant(LR, warm_up, 1),
                Scheduler::cosine(LR, 0.0, warm_up, 1),
                Scheduler::one_cycle(LR, 0.0, warm_up, 1),
            ] {
                assert!(scheduler.lr(0) > 0.0, "{scheduler:?}");
            }
        }
    }

    #[test]
    fn the_state_of_a_plateau_is_restored_and_others_have_none() {
        let mut scheduler = Scheduler::plateau(Plateau::new(LR, 0, 0.5, 0.0), warm_up(0.0), 12);
        scheduler.end_epoch(1.0);
        scheduler.end_epoch(1.0);
        assert_eq!(scheduler.lr(0), 0.2);
        let mut restored = plateau(0.0);
        restored.restore(scheduler.state());
        assert_eq!(restored, scheduler);
        let mut other = constant(0.0);
        other.restore(scheduler.state());
        assert_eq!(other.lr(0), LR);
        assert_eq!(other.state(), None);
    }
}
