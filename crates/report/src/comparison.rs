//! Runs grouped into repetitions of one experiment, and checked to be comparable.

use crate::statistics::Sample;
use datasets::{DatasetInfo, DatasetSource};
use models::Architecture;
use run::settings::{Difference, Field, LrScheduler, Property};
use run::{EvaluationSplit, Run};
use std::collections::BTreeSet;

/// Repetitions of one experiment: runs that differ only in settings with [`Property::VariesBetweenRepetitions`], such as the seed.
#[derive(Clone, Debug)]
pub struct Group {
    /// The network's name, and what else tells the group from the others.
    pub label: String,
    /// The runs, by seed; at least one.
    pub runs: Vec<Run>,
}

/// Runs that can be compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The groups, in the order of their first runs.
    pub groups: Vec<Group>,
}

/// Why runs cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are none.
    #[error("there is no run to report on")]
    NoRuns,
    /// They have different data.
    #[error(
        "the runs cannot be compared: `{first}` was trained on {first_data}, `{second}` on {second_data}"
    )]
    DifferentData {
        /// A run's name.
        first: String,
        /// Another run's name.
        second: String,
        /// The data of the first: the name, and what else tells them from those of the second.
        first_data: String,
        /// The data of the second.
        second_data: String,
    },
    /// They have different classes.
    #[error(
        "the runs `{first}` and `{second}` cannot be compared: their classes have different names"
    )]
    DifferentClasses {
        /// A run's name.
        first: String,
        /// Another run's name.
        second: String,
    },
    /// Two runs have the same settings.
    #[error(
        "the runs `{first}` and `{second}` have the same settings and the same seed {seed}; give each seed once"
    )]
    SameSeed {
        /// A run's name.
        first: String,
        /// Another run's name.
        second: String,
        /// Their seed.
        seed: u64,
    },
    /// Settings cannot be compared.
    #[error(transparent)]
    Settings(#[from] run::Error),
}

impl Comparison {
    /// Groups the runs.
    ///
    /// # Errors
    /// When there are none, they have different data, or two have the same settings and seed.
    pub fn new(runs: Vec<Run>) -> Result<Self, Error> {
        let first = runs.first().ok_or(Error::NoRuns)?;
        if let Some(other) = runs.iter().find(|run| data(run) != data(first)) {
            let [first_data, second_data] = tell_apart(first, other);
            return Err(Error::DifferentData {
                first: first.name.clone(),
                second: other.name.clone(),
                first_data,
                second_data,
            });
        }
        let mut classes = runs.iter().filter_map(|run| {
            let predictions = run.predictions.as_ref()?;
            Some((run, &predictions.class_names))
        });
        if let Some((first, names)) = classes.next()
            && let Some((other, _)) = classes.find(|(_, other)| *other != names)
        {
            return Err(Error::DifferentClasses {
                first: first.name.clone(),
                second: other.name.clone(),
            });
        }
        let mut groups: Vec<Vec<Run>> = Vec::new();
        for run in runs {
            let mut group = None;
            for other in &mut groups {
                if differences(&other[0], &run)?.is_empty() {
                    group = Some(other);
                    break;
                }
            }
            let Some(group) = group else {
                groups.push(vec![run]);
                continue;
            };
            let seed = run.settings.seed;
            if let Some(same) = group.iter().find(|other| other.settings.seed == seed) {
                return Err(Error::SameSeed {
                    first: same.name.clone(),
                    second: run.name,
                    seed,
                });
            }
            group.push(run);
        }
        let labels = labels(&groups)?;
        let groups = groups.into_iter().zip(labels).map(|(mut runs, label)| {
            runs.sort_by_key(|run| run.settings.seed);
            Group { label, runs }
        });
        Ok(Self {
            groups: groups.collect(),
        })
    }

    /// All runs, group by group.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.groups.iter().flat_map(|group| &group.runs)
    }

    /// The first run, which has its data in common with all others.
    #[must_use]
    pub fn first(&self) -> &Run {
        // `new` returns no comparison without runs.
        self.groups[0].first()
    }

    /// Every two groups.
    pub fn pairs(&self) -> impl Iterator<Item = (&Group, &Group)> {
        let groups = self.groups.iter().enumerate();
        groups.flat_map(|(number, a)| self.groups[number + 1..].iter().map(move |b| (a, b)))
    }
}

impl Group {
    /// The run with the lowest seed.
    #[must_use]
    pub fn first(&self) -> &Run {
        &self.runs[0]
    }

    /// The sample of a value over the runs.
    pub(crate) fn sample(&self, value: impl Fn(&Run) -> f64) -> Sample {
        let values: Vec<_> = self.runs.iter().map(value).collect();
        Sample::of(&values)
    }

    /// The mean of a value over the runs.
    pub(crate) fn mean(&self, value: impl Fn(&Run) -> f64) -> f64 {
        self.sample(value).mean
    }

    /// Runs of both groups with the same seed.
    pub fn paired<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a Run, &'a Run)> {
        self.runs.iter().filter_map(|run| {
            let seed = run.settings.seed;
            let mut others = other.runs.iter();
            Some((run, others.find(|other| other.settings.seed == seed)?))
        })
    }
}

/// The accuracy after the last epoch, 0 to 1.
pub(crate) fn accuracy(run: &Run) -> f64 {
    run.last().evaluated.accuracy
}

/// The display name of a network. A network that this version does not know keeps its name.
pub(crate) fn network_name(model: &str) -> &str {
    model
        .parse()
        .map_or(model, |known: Architecture| known.display_name)
}

/// The data of two runs in words: by name, or else by what differs besides.
fn tell_apart(first: &Run, second: &Run) -> [String; 2] {
    let name = |run: &Run| DatasetSource::display_name(&run.settings.dataset).to_owned();
    let is_same_name = name(first) == name(second);
    let is_same_number = data(first).1 == data(second).1;
    [first, second].map(|run| match (is_same_name, data(run)) {
        (false, _) => name(run),
        (true, (_, images, _)) if !is_same_number => format!("{} ({images})", name(run)),
        (true, (_, _, sha256)) => format!("{} (SHA-256 {sha256:.12}...)", name(run)),
    })
}

/// The data of a run: the data set, the number of images, and their digest.
fn data(run: &Run) -> (&str, String, &str) {
    let made_by = &run.made_by;
    let evaluated = match (run.last().evaluated.split, run.settings.overfit_batches) {
        (_, Some(_)) => "memorised",
        (EvaluationSplit::Validation, None) => "validation",
        (EvaluationSplit::Test, None) => "test",
    };
    // The path of a folder says nothing of its images.
    let known = run.settings.dataset.parse::<DatasetInfo>();
    let images = format!(
        "{} training and {} {evaluated} images",
        made_by.train_images, made_by.test_images
    );
    let name = known.map_or("pictures", |info| info.name);
    (name, images, &made_by.data_sha256)
}

/// What makes two runs different experiments.
fn differences(first: &Run, second: &Run) -> Result<Vec<Difference>, Error> {
    let mut differences = first
        .settings
        .differences(&second.settings, Property::VariesBetweenRepetitions)?;
    // The precision that was used counts, whether it was asked for or not. That the data are the same is checked, and a
    // folder of pictures may have moved.
    differences.retain(|difference| !matches!(difference.key, "precision" | "dataset"));
    if [first, second].map(|run| run.settings.lr_scheduler) != [LrScheduler::Plateau; 2] {
        differences.retain(|difference| {
            Field::named(difference.key).is_none_or(|field| !field.has(Property::PlateauOnly))
        });
    }
    let [first, second] = [first, second].map(|run| run.made_by.choices.precision.to_string());
    if first != second {
        differences.push(Difference {
            key: "computed_in",
            first,
            second,
        });
    }
    Ok(differences)
}

/// The shortest labels that tell the groups apart.
fn labels(groups: &[Vec<Run>]) -> Result<Vec<String>, Error> {
    // What differs between groups of the same network; recipes may set other values for other networks.
    let mut values: Vec<Vec<(&str, String)>> = vec![Vec::new(); groups.len()];
    for (j, second) in groups.iter().enumerate() {
        for (i, first) in groups[..j].iter().enumerate() {
            if first[0].settings.model != second[0].settings.model {
                continue;
            }
            for Difference { key, first, second } in differences(&first[0], &second[0])? {
                for (group, value) in [(i, first), (j, second)] {
                    if values[group].iter().all(|(known, _)| *known != key) {
                        values[group].push((key, value));
                    }
                }
            }
        }
    }
    let labels = |recipes_only: bool| -> Vec<String> {
        let labels = groups.iter().zip(&values).map(|(runs, values)| {
            let mut label = network_name(&runs[0].settings.model).to_owned();
            let (recipes, others): (Vec<_>, _) =
                values.iter().partition(|(key, _)| *key == "recipe");
            for (_, value) in recipes {
                label += &format!(", {}", value.trim_matches('"'));
            }
            for (key, value) in others {
                if !recipes_only {
                    label += &format!(", {} {}", key.replace('_', " "), value.trim_matches('"'));
                }
            }
            label
        });
        labels.collect()
    };
    // A recipe implies its other settings.
    let short = labels(true);
    let distinct: BTreeSet<_> = short.iter().collect();
    Ok(if distinct.len() == groups.len() {
        short
    } else {
        labels(false)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up::run as made_up;
    use run::settings::Precision;
    use run::{Choices, MadeBy};

    fn labels_of(runs: Vec<Run>) -> Vec<String> {
        let comparison = Comparison::new(runs).unwrap();
        comparison
            .groups
            .into_iter()
            .map(|group| group.label)
            .collect()
    }

    #[test]
    fn labels_tell_groups_apart() {
        let run = |model, seed, settings| made_up(model, seed, settings, &[(1.0, 1.0, 0.5)]);
        let both = vec![
            run("alexnet", 0, "patience = 5"),
            run("small-alexnet", 0, "patience = 2"),
            run("alexnet", 1, "patience = 5"),
        ];
        assert_eq!(labels_of(both), ["AlexNet", "SmallAlexNet"]);
        // A recipe implies its settings.
        let recipes = vec![
            run("alexnet", 0, "recipe = 'reference'\nbatch_size = 500"),
            run("alexnet", 0, "recipe = 'best'\nbatch_size = 100"),
        ];
        assert_eq!(labels_of(recipes), ["AlexNet, reference", "AlexNet, best"]);
        for settings in ["", "precision = 'tf32'"] {
            let precisions = vec![
                run("alexnet", 0, ""),
                Run {
                    made_by: MadeBy {
                        choices: Choices {
                            precision: Precision::Tf32,
                            evaluation_batch: None,
                            cudnn_engines: Default::default(),
                        },
                        ..run("alexnet", 0, "").made_by
                    },
                    ..run("alexnet", 0, settings)
                },
            ];
            assert_eq!(
                labels_of(precisions),
                ["AlexNet, computed in f32", "AlexNet, computed in tf32"]
            );
        }
        let rates = vec![
            run("alexnet", 0, "lr = 0.01\nthreads = 1"),
            run("alexnet", 0, "lr = 0.02"),
            run("alexnet", 1, "lr = 0.01"),
        ];
        assert_eq!(labels_of(rates), ["AlexNet, lr 0.01", "AlexNet, lr 0.02"]);
    }

    #[test]
    fn settings_of_plateau_do_not_tell_runs_with_another_scheduler_apart() {
        let groups = |scheduler: &str| {
            let others = "plateau_factor = 0.5\nplateau_threshold = 0.01";
            let runs = [(0, "patience = 2"), (1, others)].map(|(seed, of_plateau)| {
                let settings = format!("lr_scheduler = '{scheduler}'\n{of_plateau}");
                made_up("alexnet", seed, &settings, &[(1.0, 1.0, 0.5)])
            });
            labels_of(runs.into())
        };
        assert_eq!(groups("one-cycle"), ["AlexNet"]);
        let different = [
            "AlexNet, patience 2, plateau factor 0.1, plateau threshold 0.0001",
            "AlexNet, patience 5, plateau factor 0.5, plateau threshold 0.01",
        ];
        assert_eq!(groups("plateau"), different);
    }

    #[test]
    fn different_data_are_told_apart_in_short() {
        let run = |settings, sha256: &str, train_images| {
            let run = made_up("alexnet", 0, settings, &[(1.0, 1.0, 0.5)]);
            let data_sha256 = sha256.repeat(32);
            Run {
                made_by: MadeBy {
                    data_sha256,
                    train_images,
                    ..run.made_by
                },
                name: sha256.to_owned(),
                ..run
            }
        };
        let message = |second| {
            let runs = vec![run("", "ab", 50_000), second];
            Comparison::new(runs).unwrap_err().to_string()
        };
        let start = "the runs cannot be compared: `ab` was trained on CIFAR-10";
        for (second, expected) in [
            (
                run("dataset = 'cifar100'", "cd", 50_000),
                ", `cd` on CIFAR-100",
            ),
            (run("dataset = '../pets'", "cd", 400), ", `cd` on pets"),
            (
                run("", "cd", 400),
                " (50000 training and 10000 test images), `cd` on CIFAR-10 (400 training and 10000 test images)",
            ),
            (
                run("", "cd", 50_000),
                " (SHA-256 abababababab...), `cd` on CIFAR-10 (SHA-256 cdcdcdcdcdcd...)",
            ),
        ] {
            assert_eq!(message(second), format!("{start}{expected}"));
        }
    }

    #[test]
    fn runs_are_sorted_by_seed() {
        let run = |seed| made_up("alexnet", seed, "", &[(1.0, 1.0, 0.5)]);
        let comparison = Comparison::new(vec![run(2), run(0), run(1)]).unwrap();
        assert!(comparison.runs().map(|run| run.settings.seed).eq(0..3));
        assert!(matches!(Comparison::new(Vec::new()), Err(Error::NoRuns)));
    }
}
