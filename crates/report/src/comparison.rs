//! Runs laid side by side: grouped by what they have in common, checked to be comparable.

use crate::run::Run;
use crate::statistics::Sample;
use std::collections::BTreeMap;
use toml::{Table, Value};

/// Settings by which runs of one group may differ: the seed, and what does not change a run's result.
pub const INDIFFERENT: [&str; 5] = [
    "seed",
    "threads",
    "data_dir",
    "device",
    "checkpoint_minutes",
];

/// Runs that differ in their seeds alone.
#[derive(Clone, Debug)]
pub struct Group {
    /// For people: the network, and the recipe where more than one is compared.
    pub label: String,
    /// The network's name.
    pub model: String,
    /// The runs, by seed.
    pub runs: Vec<Run>,
}

/// Runs that can be compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The groups, in the order of their first runs.
    pub groups: Vec<Group>,
    /// The images: `cifar10` or `synthetic`.
    pub dataset: String,
}

/// Why runs cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are none.
    #[error("there is no run to report on")]
    NoRuns,
    /// They saw other images.
    #[error(
        "the runs `{first}` and `{second}` cannot be laid side by side: they saw different data ({first_data}; {second_data})"
    )]
    DifferentData {
        /// A run's name.
        first: String,
        /// Another run's name.
        second: String,
        /// The data of the first.
        first_data: String,
        /// The data of the second.
        second_data: String,
    },
    /// The same run is there twice.
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
}

impl Comparison {
    /// Lays runs side by side.
    ///
    /// # Errors
    /// When there are none, they saw different data, or two differ in nothing.
    pub fn new(runs: Vec<Run>) -> Result<Self, Error> {
        let first = runs.first().ok_or(Error::NoRuns)?;
        let dataset = text(&first.settings, "dataset");
        if let Some(other) = runs.iter().find(|run| data(run) != data(first)) {
            return Err(Error::DifferentData {
                first: first.name.clone(),
                second: other.name.clone(),
                first_data: data(first),
                second_data: data(other),
            });
        }
        let mut groups: Vec<(Table, Vec<Run>)> = Vec::new();
        for run in runs {
            let key = key(&run);
            match groups.iter_mut().find(|(other, _)| *other == key) {
                Some((_, group)) => {
                    if let Some(same) = group.iter().find(|other| other.seed == run.seed) {
                        return Err(Error::SameSeed {
                            first: same.name.clone(),
                            second: run.name,
                            seed: run.seed,
                        });
                    }
                    group.push(run);
                }
                None => groups.push((key, vec![run])),
            }
        }
        let labels = labels(&groups.iter().map(|(key, _)| key).collect::<Vec<_>>());
        let groups = groups
            .into_iter()
            .zip(labels)
            .map(|((key, mut runs), label)| {
                runs.sort_by_key(|run| run.seed);
                Group {
                    label,
                    model: text(&key, "model"),
                    runs,
                }
            });
        Ok(Self {
            groups: groups.collect(),
            dataset,
        })
    }

    /// All runs, group by group.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.groups.iter().flat_map(|group| &group.runs)
    }

    /// Every two groups.
    pub fn pairs(&self) -> impl Iterator<Item = (&Group, &Group)> {
        let groups = self.groups.iter().enumerate();
        groups.flat_map(|(number, a)| self.groups[number + 1..].iter().map(move |b| (a, b)))
    }
}

impl Group {
    /// A value of every run.
    #[must_use]
    pub fn values(&self, value: impl Fn(&Run) -> f64) -> Vec<f64> {
        self.runs.iter().map(value).collect()
    }

    /// The sample of a value over the runs.
    #[must_use]
    pub fn sample(&self, value: impl Fn(&Run) -> f64) -> Option<Sample> {
        Sample::of(&self.values(value))
    }

    /// Runs of both groups with the same seed.
    pub fn paired<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a Run, &'a Run)> {
        self.runs.iter().filter_map(|run| {
            let partner = other.runs.iter().find(|other| other.seed == run.seed)?;
            Some((run, partner))
        })
    }
}

/// The network's name for people.
#[must_use]
pub fn network_name(model: &str) -> &str {
    match model {
        "alexnet" => "AlexNet",
        "small-alexnet" => "SmallAlexNet",
        other => other,
    }
}

fn text(settings: &Table, key: &str) -> String {
    settings
        .get(key)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn data(run: &Run) -> String {
    let made_by = &run.made_by;
    let evaluated =
        match ["validation", "overfit_batches"].map(|key| run.settings.contains_key(key)) {
            [false, false] => "test",
            [true, _] => "validation",
            [_, true] => "memorised",
        };
    format!(
        "{}, {} training and {} {evaluated} images, SHA-256 {}",
        text(&run.settings, "dataset"),
        made_by.train_images,
        made_by.test_images,
        made_by.data_sha256
    )
}

/// What runs of a group have in common.
fn key(run: &Run) -> Table {
    let mut settings = run.settings.clone();
    settings.retain(|key, _| !INDIFFERENT.contains(&key));
    settings.insert(
        "computed in".to_owned(),
        Value::String(run.made_by.precision.clone()),
    );
    settings
}

/// The shortest names that tell the groups apart.
fn labels(keys: &[&Table]) -> Vec<String> {
    let label = |key: &Table, names: &[String]| {
        let mut label = network_name(&text(key, "model")).to_owned();
        for name in names {
            let value = key
                .get(name)
                .map_or_else(|| "none".to_owned(), ToString::to_string);
            label += &if name == "recipe" {
                format!(", {}", value.trim_matches('"'))
            } else {
                format!(", {} {}", name.replace('_', " "), value.trim_matches('"'))
            };
        }
        label
    };
    let mut values: BTreeMap<&String, Vec<Option<&Value>>> = BTreeMap::new();
    for name in keys.iter().flat_map(|key| key.keys()) {
        values.insert(name, keys.iter().map(|key| key.get(name)).collect());
    }
    // What differs between groups of the same network; the patience differs between networks by the recipe.
    let differs = |name: &String| {
        keys.iter().enumerate().any(|(i, a)| {
            keys[..i]
                .iter()
                .any(|b| a.get("model") == b.get("model") && a.get(name) != b.get(name))
        })
    };
    let mut names: Vec<String> = values
        .keys()
        .filter(|name| differs(name))
        .map(|name| (*name).clone())
        .collect();
    names.sort_by_key(|name| (name != "recipe", name.clone()));
    // A recipe brings its own settings.
    if names.first().is_some_and(|name| name == "recipe") {
        let short: Vec<_> = keys.iter().map(|key| label(key, &names[..1])).collect();
        let distinct: std::collections::BTreeSet<_> = short.iter().collect();
        if distinct.len() == keys.len() {
            return short;
        }
    }
    keys.iter().map(|key| label(key, &names)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::tests::made_up;

    fn labels_of(runs: Vec<Run>) -> Vec<String> {
        let comparison = Comparison::new(runs).unwrap();
        comparison
            .groups
            .into_iter()
            .map(|group| group.label)
            .collect()
    }

    #[test]
    fn groups_are_named_by_what_tells_them_apart() {
        let run = |model, seed, settings| made_up(model, seed, settings, &[(1.0, 1.0, 0.5)]);
        let both = vec![
            run("alexnet", 0, "patience = 5"),
            run("small-alexnet", 0, "patience = 2"),
            run("alexnet", 1, "patience = 5"),
        ];
        assert_eq!(labels_of(both), ["AlexNet", "SmallAlexNet"]);
        // A recipe's own settings need no mention.
        let recipes = vec![
            run("alexnet", 0, "recipe = 'reference'\nbatch_size = 500"),
            run("alexnet", 0, "recipe = 'best'\nbatch_size = 100"),
        ];
        assert_eq!(labels_of(recipes), ["AlexNet, reference", "AlexNet, best"]);
        let rates = vec![
            run("alexnet", 0, "learning_rate = 0.01\nthreads = 1"),
            run("alexnet", 0, "learning_rate = 0.02"),
            run("alexnet", 1, "learning_rate = 0.01"),
        ];
        assert_eq!(
            labels_of(rates),
            ["AlexNet, learning rate 0.01", "AlexNet, learning rate 0.02"]
        );
    }

    #[test]
    fn runs_are_in_the_order_of_their_seeds() {
        let run = |seed| made_up("alexnet", seed, "", &[(1.0, 1.0, 0.5)]);
        let comparison = Comparison::new(vec![run(2), run(0), run(1)]).unwrap();
        assert!(comparison.runs().map(|run| run.seed).eq(0..3));
        assert!(matches!(Comparison::new(Vec::new()), Err(Error::NoRuns)));
    }
}
