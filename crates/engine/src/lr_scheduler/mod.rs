//! Learning-rate schedulers, one file each. The learning rate is a function of the step; [`Plateau`] alone has a state,
//! which follows the test loss.

mod cosine;
mod one_cycle;
mod plateau;
mod warm_up;

pub(crate) use plateau::Plateau;
pub(crate) use warm_up::WarmUp;

/// The learning rate of every step of a run: a linear warm-up to the peak, and then a schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scheduler {
    lr: f64,
    warm_up: WarmUp,
    schedule: Schedule,
    /// The steps in which the learning rate falls to its final factor.
    annealing_steps: u64,
}

/// What follows the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Schedule {
    /// The peak.
    Constant,
    /// The learning rate of the plateau, to which the warm-up rises too.
    Plateau(Plateau),
    /// Cosine annealing to `final_factor` times the peak at the end of the run.
    Cosine { final_factor: f64 },
    /// A straight line from the peak, which the last step of the warm-up reaches, to `final_factor` times the peak,
    /// which the last step of the run reaches: `torch.optim.lr_scheduler.OneCycleLR` with `anneal_strategy="linear"`
    /// and `cycle_momentum=False`. A warm-up of a single step takes two, so that the run begins below the peak.
    OneCycle { final_factor: f64 },
}

impl Scheduler {
    /// `schedule` with the peak `lr` after a warm-up. Where the schedule depends on the number of steps of the run, the
    /// warm-up ends with the run at the latest.
    pub(crate) fn new(lr: f64, mut warm_up: WarmUp, schedule: Schedule, steps: u64) -> Self {
        if matches!(
            schedule,
            Schedule::Cosine { .. } | Schedule::OneCycle { .. }
        ) {
            warm_up.steps = warm_up.steps.min(steps);
        }
        let mut end = steps;
        if matches!(schedule, Schedule::OneCycle { .. }) {
            // The other schedules reach the peak in the step after the warm-up.
            if warm_up.steps > 0 {
                warm_up.steps = warm_up.steps.max(2).min(steps) - 1;
            }
            end = steps.saturating_sub(1);
        }
        Self {
            lr,
            warm_up,
            schedule,
            annealing_steps: end.saturating_sub(warm_up.steps),
        }
    }

    /// The learning rate of a step, the run's first being 0.
    pub(crate) fn lr(&self, step: u64) -> f64 {
        let peak = self.state().map_or(self.lr, |plateau| plateau.lr());
        let factor = self.warm_up.factor(step).unwrap_or_else(|| {
            let done = match self.annealing_steps {
                0 => 0.0,
                steps => ((step - self.warm_up.steps) as f64 / steps as f64).min(1.0),
            };
            match self.schedule {
                Schedule::Constant | Schedule::Plateau(_) => 1.0,
                Schedule::Cosine { final_factor } => cosine::factor(final_factor, done),
                Schedule::OneCycle { final_factor } => one_cycle::factor(final_factor, done),
            }
        });
        peak * factor
    }

    /// Takes note of the test loss after an epoch.
    pub(crate) fn end_epoch(&mut self, test_loss: f64) {
        if let Schedule::Plateau(plateau) = &mut self.schedule {
            plateau.end_epoch(test_loss);
        }
    }

    /// The state to save in a checkpoint.
    pub(crate) fn state(&self) -> Option<Plateau> {
        match self.schedule {
            Schedule::Plateau(plateau) => Some(plateau),
            Schedule::Constant | Schedule::Cosine { .. } | Schedule::OneCycle { .. } => None,
        }
    }

    /// Restores the state of a checkpoint. A schedule without a state ignores it: checkpoints of format 1 have one for
    /// every schedule.
    pub(crate) fn restore(&mut self, state: Option<Plateau>) {
        if let (Schedule::Plateau(plateau), Some(saved)) = (&mut self.schedule, state) {
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
        let schedule = Schedule::Cosine { final_factor: 0.01 };
        Scheduler::new(LR, warm_up(epochs), schedule, STEPS)
    }

    fn one_cycle(epochs: f64) -> Scheduler {
        let schedule = Schedule::OneCycle { final_factor: 0.01 };
        Scheduler::new(LR, warm_up(epochs), schedule, STEPS)
    }

    fn constant(epochs: f64) -> Scheduler {
        Scheduler::new(LR, warm_up(epochs), Schedule::Constant, STEPS)
    }

    fn plateau(epochs: f64) -> Scheduler {
        let schedule = Schedule::Plateau(Plateau::new(LR, 5, 0.1, 1e-4));
        Scheduler::new(LR, warm_up(epochs), schedule, STEPS)
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
    fn a_warm_up_longer_than_the_run_ends_with_it_where_the_schedule_does() {
        for scheduler in [cosine, one_cycle] {
            let lr = |step| scheduler(9.0).lr(step);
            assert!((0..12).all(|step| lr(step) <= lr(step + 1) && lr(step).is_finite()));
            assert!(lr(11) > 0.3, "{}", lr(11));
        }
    }

    #[test]
    fn a_run_that_is_made_longer_goes_on_as_a_longer_run() {
        let plateau = Schedule::Plateau(Plateau::new(LR, 5, 0.1, 1e-4));
        for schedule in [Schedule::Constant, plateau] {
            let lr = |steps, step| Scheduler::new(LR, warm_up(9.0), schedule, steps).lr(step);
            assert!((0..STEPS).all(|step| lr(STEPS, step) == lr(4 * STEPS, step)));
        }
    }

    #[test]
    fn a_run_of_one_step_has_a_finite_lr() {
        for warm_up in [WarmUp::new(0.0, 1, 0.1), WarmUp::new(2.0, 1, 0.1)] {
            let final_factor = 0.0;
            for schedule in [
                Schedule::Constant,
                Schedule::Cosine { final_factor },
                Schedule::OneCycle { final_factor },
            ] {
                let scheduler = Scheduler::new(LR, warm_up, schedule, 1);
                assert!(scheduler.lr(0) > 0.0, "{scheduler:?}");
            }
        }
    }

    #[test]
    fn after_its_last_step_the_learning_rate_stays() {
        for scheduler in ALL {
            assert_eq!(scheduler(1.0).lr(12), scheduler(1.0).lr(13));
        }
    }

    #[test]
    fn the_state_of_a_plateau_is_restored_and_others_have_none() {
        let schedule = Schedule::Plateau(Plateau::new(LR, 0, 0.5, 0.0));
        let mut scheduler = Scheduler::new(LR, warm_up(0.0), schedule, STEPS);
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
