//! The learning rate, as a function of the step.

use crate::plateau::Plateau;
use crate::recipe::Recipe;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the learning rate changes after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Not at all.
    Constant,
    /// It falls when the test loss no longer does: see [`Plateau`].
    Plateau,
    /// Half a period of a cosine, down to the final rate
    /// (`torch.optim.lr_scheduler.CosineAnnealingLR`).
    Cosine,
    /// A straight line down to the final rate: with its warm-up
    /// `torch.optim.lr_scheduler.OneCycleLR` with `anneal_strategy="linear"` and `cycle_momentum=False`.
    OneCycle,
}

impl Schedule {
    /// Whether the rate depends on how many epochs the run has.
    #[must_use]
    pub fn depends_on_length(self) -> bool {
        matches!(self, Self::Cosine | Self::OneCycle)
    }
}

/// The rate of every step of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    schedule: Schedule,
    /// The rate after the warm-up.
    peak: f64,
    /// The rate of the first step, as a share of the peak, where there is a warm-up.
    start: f64,
    /// The rate that cosine and one-cycle end at, as a share of the peak.
    last: f64,
    warm_up: f64,
    steps: f64,
}

impl Rates {
    /// The rates of a run with that many steps an epoch.
    #[must_use]
    pub fn new(recipe: &Recipe, steps_per_epoch: usize) -> Self {
        let per_epoch = steps_per_epoch as f64;
        let steps = f64::from(recipe.epochs.get()) * per_epoch;
        Self {
            schedule: recipe.schedule,
            peak: recipe.learning_rate.get(),
            start: recipe.warmup_start.get(),
            last: recipe.final_rate.get(),
            warm_up: (recipe.warmup_epochs.get() * per_epoch).round().min(steps),
            steps,
        }
    }

    /// The rate of the step of this number, the first of the run being 0. `plateau` is the schedule's state in that
    /// step's epoch.
    #[must_use]
    pub fn at(&self, step: u64, plateau: &Plateau) -> f64 {
        let step = step as f64;
        // OneCycleLR is at its peak in the last step of the warm-up, LinearLR in the step after it.
        let (top, end) = match self.schedule {
            Schedule::OneCycle => ((self.warm_up - 1.0).max(0.0), self.steps - 1.0),
            _ => (self.warm_up, self.steps),
        };
        let peak = match self.schedule {
            Schedule::Plateau => plateau.learning_rate(),
            _ => self.peak,
        };
        if step < top {
            return peak * (self.start + (1.0 - self.start) * step / top);
        }
        let done = if end > top {
            ((step - top) / (end - top)).min(1.0)
        } else {
            0.0
        };
        match self.schedule {
            Schedule::Constant | Schedule::Plateau => peak,
            Schedule::Cosine => {
                peak * (self.last + (1.0 - self.last) * (1.0 + libm::cos(PI * done)) / 2.0)
            }
            Schedule::OneCycle => peak * (1.0 + (self.last - 1.0) * done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::built_in;

    fn rates(settings: &str, steps_per_epoch: usize) -> impl Fn(u64) -> f64 + use<> {
        let mut table = built_in("reference", "alexnet".parse().unwrap()).unwrap();
        table.extend(settings.parse::<toml::Table>().unwrap());
        let recipe: Recipe = table.try_into().unwrap();
        let rates = Rates::new(&recipe, steps_per_epoch);
        let plateau = Plateau::new(&recipe);
        move |step| rates.at(step, &plateau)
    }

    fn agree(rate: impl Fn(u64) -> f64, expected: &[f64]) {
        for (step, expected) in (0..).zip(expected) {
            let found = rate(step);
            assert!(
                (found - expected).abs() <= 1e-12,
                "step {step}: {found}, not {expected}"
            );
        }
    }

    /// Settings of the schedules that PyTorch 2.15 was asked for below.
    fn of(schedule: &str, warm_up: &str) -> impl Fn(u64) -> f64 + use<> {
        rates(
            &format!(
                "schedule = \"{schedule}\"\nlearning_rate = 0.4\nepochs = 3\n\
                 warmup_epochs = {warm_up}\nwarmup_start = 0.1\nfinal_rate = 0.01"
            ),
            4,
        )
    }

    #[test]
    fn a_cosine_is_pytorchs() {
        // lr=0.4; CosineAnnealingLR(o, T_max=12, eta_min=0.004)
        agree(
            of("cosine", "0"),
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
        agree(
            of("cosine", "1"),
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
    fn one_cycle_is_pytorchs() {
        // OneCycleLR(o, max_lr=0.4, total_steps=12, pct_start=4 / 12, anneal_strategy="linear",
        //            cycle_momentum=False, div_factor=10, final_div_factor=10)
        agree(
            of("one-cycle", "1"),
            &[
                0.04, 0.16, 0.28, 0.4, 0.3505, 0.301, 0.2515, 0.202, 0.1525, 0.103, 0.0535, 0.004,
            ],
        );
        // Without a warm-up it falls from the first step on.
        let rate = of("one-cycle", "0");
        assert_eq!(rate(0), 0.4);
        assert!((rate(11) - 0.004).abs() < 1e-15);
    }

    #[test]
    fn a_warm_up_is_pytorchs() {
        // LinearLR(o, start_factor=0.1, total_iters=6)
        agree(
            of("constant", "1.5"),
            &[
                0.04, 0.1, 0.16, 0.22, 0.28, 0.34, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4,
            ],
        );
        agree(of("plateau", "1.5"), &[0.04, 0.1, 0.16]);
    }

    #[test]
    fn a_warm_up_longer_than_the_run_ends_with_it() {
        for schedule in ["constant", "plateau", "cosine", "one-cycle"] {
            let rate = of(schedule, "9");
            assert!((0..12).all(|step| rate(step) <= rate(step + 1) && rate(step).is_finite()));
            assert!(rate(11) > 0.3, "{schedule}: {}", rate(11));
        }
    }

    #[test]
    fn without_a_warm_up_a_constant_rate_is_the_given_one_to_the_bit() {
        let rate = rates("schedule = \"constant\"\nlearning_rate = 0.01", 7);
        assert!((0..350).all(|step| rate(step) == 0.01));
    }
}
