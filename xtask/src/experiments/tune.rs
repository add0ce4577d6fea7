//! `cargo xtask tune`: a seeded search over keys of a recipe, judged on held-out training images.

use crate::experiments::plan::{Planned, State};
use crate::experiments::pool::{self, Ended};
use crate::experiments::trainer::{self, Trainer};
use anyhow::{Context, bail};
use rng::{Purpose, Stream, unit};
use run::Run;
use run::cli::{self, Exit, UsageError};
use run::settings::{Field, Property};
use std::fmt::Write;
use std::fs;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use toml::{Table, Value};

/// What is asked of the command.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The network.
    #[arg(long, value_name = "NAME", default_value = "small-alexnet")]
    model: String,

    /// The recipe that the search begins from.
    #[arg(long, value_name = "NAME", default_value = "reference")]
    recipe: String,

    /// A key of the recipe and where to look: `learning_rate=log:0.003..0.1` (evenly in the logarithm),
    /// `dropout=0.0..0.5` (evenly), `cutout=0..8` (whole numbers), `flip=random,alternating` (one of these). May be
    /// repeated.
    #[arg(long, value_name = "KEY=VALUES", required = true)]
    search: Vec<Search>,

    /// How many settings are tried.
    #[arg(long, value_name = "N", default_value = "12")]
    trials: NonZeroU32,

    /// Successive halving: try all for few epochs, and only the best 1/N of them for N times as many, and so on up to
    /// all epochs. Without it every trial has all epochs.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    halving: Option<u32>,

    /// Decides which settings are tried. (The runs' own seed is a flag of the trainer: `-- --seed N`.)
    #[arg(long, value_name = "N", default_value = "0")]
    search_seed: u64,

    /// Training images that are held out, and decide.
    #[arg(long, value_name = "N", default_value = "5000")]
    validation: NonZeroUsize,

    /// Passes over the training images [default: the recipe's].
    #[arg(long, value_name = "N")]
    epochs: Option<NonZeroU32>,

    /// The images, cifar10 or synthetic [default: cifar10].
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,

    /// The folder that holds `cifar-10-batches-bin` [default: data].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Use the first N training images only; those held out are among them.
    #[arg(long, value_name = "N")]
    limit_train: Option<NonZeroUsize>,

    /// The device that computes: auto, cpu, cuda or cuda:N [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,

    /// Runs at a time; they share the processor's cores.
    #[arg(long, value_name = "N", default_value = "1")]
    jobs: NonZeroUsize,

    /// The folder for the runs, tune.md and best.toml.
    #[arg(long, value_name = "DIR", default_value = "runs/tune")]
    out: PathBuf,

    /// List what would be tried.
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    trainer: trainer::Args,

    /// More flags of the trainer, for every trial, such as `-- --batch-size 100`.
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

/// A key and where its values come from.
#[derive(Clone, Debug, PartialEq)]
struct Search {
    key: String,
    values: Values,
}

#[derive(Clone, Debug, PartialEq)]
enum Values {
    /// Evenly between two numbers.
    Even(f64, f64),
    /// Evenly between two numbers' logarithms.
    Logarithmic(f64, f64),
    /// A whole number from the first to the last.
    Whole(i64, i64),
    /// One of these.
    OneOf(Vec<Value>),
}

impl FromStr for Search {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let wrong = |why: &str| {
            UsageError(format!(
                "`{text}`: {why}; give it as learning_rate=log:0.003..0.1, dropout=0.0..0.5, cutout=0..8 or flip=random,alternating"
            ))
        };
        let (key, values) = text
            .split_once('=')
            .ok_or_else(|| wrong("there is no `=`"))?;
        let is_key = |c: char| c.is_ascii_lowercase() || c == '_';
        if key.is_empty() || !key.chars().all(is_key) {
            return Err(wrong("what is left of `=` is no key of a recipe"));
        }
        // Halving decides the number of epochs.
        if key == "epochs" || Field::named(key).is_some_and(|field| !field.has(Property::Recipe)) {
            return Err(wrong(&format!(
                "`{key}` is the same for all trials, and a flag of this command or of the trainer"
            )));
        }
        let (range, logarithmic) = match values.strip_prefix("log:") {
            Some(range) => (range, true),
            None => (values, false),
        };
        let values = if let Some((low, high)) = range.split_once("..") {
            let whole = (low.parse::<i64>(), high.parse::<i64>());
            match (whole, low.parse::<f64>(), high.parse::<f64>()) {
                ((Ok(low), Ok(high)), ..) if !logarithmic && low < high => Values::Whole(low, high),
                (_, Ok(low), Ok(high)) if low < high && low.is_finite() && high.is_finite() => {
                    match logarithmic {
                        true if low <= 0.0 => {
                            return Err(wrong("a logarithm needs numbers above 0"));
                        }
                        true => Values::Logarithmic(low, high),
                        false => Values::Even(low, high),
                    }
                }
                _ => return Err(wrong("a range needs a smaller and a larger number")),
            }
        } else if logarithmic || range.is_empty() {
            return Err(wrong("there are no values"));
        } else {
            let values: Vec<Value> = range.split(',').map(value).collect();
            Values::OneOf(values)
        };
        Ok(Self {
            key: key.to_owned(),
            values,
        })
    }
}

/// A value as in a settings file; a word needs no quotes.
fn value(text: &str) -> Value {
    if let Ok(number) = text.parse() {
        return Value::Integer(number);
    }
    if let Ok(number) = text.parse() {
        return Value::Float(number);
    }
    match text {
        "true" => Value::Boolean(true),
        "false" => Value::Boolean(false),
        _ => Value::String(text.to_owned()),
    }
}

impl Values {
    /// The value that two random words choose.
    fn choose(&self, words: [u32; 2]) -> Value {
        let share = f64::from(unit(words[0]));
        let below = |bound: u64| (u64::from(words[0]) * bound) >> 32;
        // Four digits are as much as a search can tell apart, and can be read.
        let rounded = |number: f64| Value::Float(format!("{number:.3e}").parse().unwrap_or(number));
        match self {
            Self::Even(low, high) => rounded(low + share * (high - low)),
            Self::Logarithmic(low, high) => {
                rounded((low.ln() + share * (high.ln() - low.ln())).exp())
            }
            Self::Whole(low, high) => {
                Value::Integer(low + below(high.abs_diff(*low).saturating_add(1)) as i64)
            }
            Self::OneOf(values) => values
                .get(below(values.len() as u64) as usize)
                .cloned()
                .unwrap_or(Value::Boolean(false)),
        }
    }
}

/// The settings of a trial.
fn settings(searches: &[Search], seed: u64, trial: u32) -> Table {
    let stream = Stream::new(seed, Purpose::Search, trial);
    (0..)
        .zip(searches)
        .map(|(number, search)| {
            let [first, second, ..] = stream.words(number);
            (search.key.clone(), search.values.choose([first, second]))
        })
        .collect()
}

/// Epochs of each round: the last has all, each before it 1/`halving` of the next, as long as there are trials to
/// choose from.
fn rounds(trials: u32, epochs: u32, halving: Option<u32>) -> Vec<u32> {
    let mut rounds = vec![epochs];
    if let Some(halving) = halving {
        let mut left = trials;
        while left / halving >= 1 && left > 1 && rounds[0] / halving >= 1 {
            left /= halving;
            rounds.insert(0, rounds[0] / halving);
        }
    }
    rounds
}

/// What a trial came to in a round.
struct Outcome {
    trial: u32,
    epochs: u32,
    /// On the images held out, after the last epoch; `None` where it failed.
    accuracy: Option<f64>,
}

/// Does what is asked, and gives the exit code.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    for (number, search) in args.search.iter().enumerate() {
        if args.search[..number]
            .iter()
            .any(|other| other.key == search.key)
        {
            return Err(UsageError(format!(
                "--search: `{}` is given twice; give each key once",
                search.key
            ))
            .into());
        }
    }
    let trainer = Trainer::new(&args.trainer, args.device.as_deref())?;
    let trials: Vec<(u32, Table)> = (0..args.trials.get())
        .map(|trial| (trial, settings(&args.search, args.search_seed, trial)))
        .collect();
    let epochs = match args.epochs {
        Some(epochs) => epochs.get(),
        None => recipe_epochs(&trainer, args)?,
    };
    let rounds = rounds(args.trials.get(), epochs, args.halving);
    if args.dry_run {
        cli::line(&format!(
            "{} trials of {}, epochs of each: {}{}",
            trials.len(),
            args.model,
            rounds[0],
            rounds[1..]
                .iter()
                .map(|epochs| format!(
                    "; the best 1/{} anew for {epochs}",
                    args.halving.unwrap_or(1)
                ))
                .collect::<String>()
        ));
        for (trial, settings) in &trials {
            cli::line(&format!("trial {trial}: {}", one_line(settings)));
        }
        return Ok(Exit::Success);
    }
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make the folder `{}`", args.out.display()))?;
    let mut results: Vec<Outcome> = Vec::new();
    let mut left: Vec<u32> = trials.iter().map(|(trial, _)| *trial).collect();
    for (round, epochs) in rounds.iter().enumerate() {
        let mut plan = Vec::new();
        for trial in &left {
            let settings = &trials[*trial as usize].1;
            plan.push(planned(&trainer, args, *trial, settings, *epochs)?);
        }
        if plan.iter().any(|run| run.state != State::Finished) {
            cli::note(&format!(
                "round {} of {}: {} trials, epochs of each: {epochs}",
                round + 1,
                rounds.len(),
                plan.len()
            ));
        }
        let failed = match pool::train(&trainer, &plan, args.jobs)? {
            Ended::Interrupted => {
                cli::note("interrupted; the same command goes on where it stopped");
                return Ok(Exit::Interrupted);
            }
            Ended::Done(failed) => failed,
        };
        let mut round = Vec::new();
        for (trial, run) in left.iter().zip(&plan) {
            let accuracy = if failed.contains(&run.name) {
                None
            } else {
                Some(Run::read(&run.folder)?.last().evaluated().accuracy)
            };
            round.push(Outcome {
                trial: *trial,
                epochs: *epochs,
                accuracy,
            });
        }
        sort(&mut round);
        let keep = args
            .halving
            .map_or(left.len(), |halving| (left.len() / halving as usize).max(1));
        left = round
            .iter()
            .filter(|result| result.accuracy.is_some())
            .take(keep)
            .map(|result| result.trial)
            .collect();
        results.retain(|result| round.iter().all(|new| new.trial != result.trial));
        results.extend(round);
    }
    // Those that were trained for longer were better before.
    sort(&mut results);
    let Some(best) = results.first().filter(|best| best.accuracy.is_some()) else {
        bail!(
            "every trial failed; the log of each is in its folder in `{}`",
            args.out.display()
        );
    };
    let table = table(args, &trials, &results);
    let write = |name: &str, text: &str| {
        let path = args.out.join(name);
        atomic_file::write(&path, text.as_bytes())
            .with_context(|| format!("cannot write `{}`", path.display()))
    };
    write("tune.md", &table)?;
    write("best.toml", &trials[best.trial as usize].1.to_string())?;
    cli::line(&table);
    cli::line(&format!(
        "the best settings are in {0}; train with them: cargo run -p trainer -- --model {1} --recipe {2} --config {0}",
        args.out.join("best.toml").display(),
        args.model,
        args.recipe
    ));
    Ok(Exit::Success)
}

/// The best first; those that failed last.
fn sort(results: &mut [Outcome]) {
    results.sort_by(|a, b| {
        b.epochs
            .cmp(&a.epochs)
            .then(
                b.accuracy
                    .unwrap_or(-1.0)
                    .total_cmp(&a.accuracy.unwrap_or(-1.0)),
            )
            .then(a.trial.cmp(&b.trial))
    });
}

/// The trainer's arguments that all trials have in common.
fn common(args: &Args) -> Vec<String> {
    let mut arguments = vec!["--model".to_owned(), args.model.clone()];
    let mut add = |flag: &str, value: Option<String>| {
        arguments.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
    };
    add("--recipe", Some(args.recipe.clone()));
    add("--dataset", args.dataset.clone());
    let folder = args.data_dir.as_ref();
    add(
        "--data-dir",
        folder.map(|folder| folder.display().to_string()),
    );
    add(
        "--limit-train",
        args.limit_train.map(|images| images.to_string()),
    );
    add("--validation", Some(args.validation.to_string()));
    add("--device", args.device.clone());
    add("--threads", pool::threads(args.jobs));
    arguments.extend(args.flags.iter().cloned());
    arguments
}

/// How many epochs the recipe has.
fn recipe_epochs(trainer: &Trainer, args: &Args) -> anyhow::Result<u32> {
    let arguments = common(args).into_iter().chain(["--dry-run".to_owned()]);
    let settings: Table = trainer
        .output(arguments)?
        .parse()
        .context("the program `trainer` prints no settings")?;
    let epochs = settings.get("epochs").and_then(Value::as_integer);
    epochs
        .and_then(|epochs| u32::try_from(epochs).ok())
        .context("the program `trainer` prints no number of epochs")
}

/// The run of a trial with that many epochs.
fn planned(
    trainer: &Trainer,
    args: &Args,
    trial: u32,
    settings: &Table,
    epochs: u32,
) -> anyhow::Result<Planned> {
    let name = format!("trial{trial:03}");
    let file = args.out.join(format!("{name}.toml"));
    write_if_other(&file, &settings.to_string())?;
    let mut arguments = common(args);
    arguments.extend(
        [
            "--config",
            &file.display().to_string(),
            "--epochs",
            &epochs.to_string(),
        ]
        .map(str::to_owned),
    );
    Planned::new(
        trainer,
        &args.out,
        format!("{name}-epochs{epochs}"),
        arguments,
    )
}

fn write_if_other(path: &Path, text: &str) -> anyhow::Result<()> {
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    atomic_file::write(path, text.as_bytes())
        .with_context(|| format!("cannot write `{}`", path.display()))
}

/// Settings as `key = value, key = value`.
fn one_line(settings: &Table) -> String {
    let pairs: Vec<_> = settings
        .iter()
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    pairs.join(", ")
}

/// The trials as a Markdown table, the best first.
fn table(args: &Args, trials: &[(u32, Table)], results: &[Outcome]) -> String {
    let keys: Vec<&str> = args
        .search
        .iter()
        .map(|search| search.key.as_str())
        .collect();
    let mut text = format!(
        "# Trials of {}, recipe {}\n\nAccuracy after the last epoch on {} training images that were held out.\n\n| trial | {} | epochs | accuracy |\n|---|{}---|---|\n",
        args.model,
        args.recipe,
        args.validation,
        keys.join(" | "),
        "---|".repeat(keys.len())
    );
    for result in results {
        let settings = &trials[result.trial as usize].1;
        let values: Vec<_> = keys
            .iter()
            .map(|key| {
                settings
                    .get(*key)
                    .map_or_else(String::new, Value::to_string)
            })
            .collect();
        let accuracy = result.accuracy.map_or_else(
            || "failed".to_owned(),
            |accuracy| format!("{:.2} %", 100.0 * accuracy),
        );
        let _ = writeln!(
            text,
            "| {} | {} | {} | {accuracy} |",
            result.trial,
            values.join(" | "),
            result.epochs
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn search(text: &str) -> Search {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn searches_are_read_as_they_are_written() {
        assert_eq!(
            search("learning_rate=log:0.003..0.1").values,
            Values::Logarithmic(0.003, 0.1)
        );
        assert_eq!(search("dropout=0.0..0.5").values, Values::Even(0.0, 0.5));
        assert_eq!(search("cutout=0..8").values, Values::Whole(0, 8));
        assert_eq!(
            search("batch_size=64,128").values,
            Values::OneOf(vec![Value::Integer(64), Value::Integer(128)])
        );
        assert_eq!(
            search("nesterov=true,false").values,
            Values::OneOf(vec![Value::Boolean(true), Value::Boolean(false)])
        );
        for text in [
            "",
            "dropout",
            "=1",
            "a b=1",
            "dropout=",
            "dropout=0.5..0.1",
            "dropout=a..b",
            "learning_rate=log:0..1",
            "learning_rate=log:1",
            "dropout=0..inf",
            "epochs=1..4",
            "seed=0,1",
        ] {
            assert!(text.parse::<Search>().is_err(), "{text}");
        }
    }

    #[test]
    fn trials_fill_their_ranges_and_depend_on_the_seed_alone() {
        let searches = [
            "learning_rate=log:0.001..0.1",
            "cutout=1..4",
            "flip=random,alternating",
        ]
        .map(search);
        let all: Vec<Table> = (0..300)
            .map(|trial| settings(&searches, 5, trial))
            .collect();
        assert_eq!(all[7], settings(&searches, 5, 7));
        assert_ne!(all[7], settings(&searches, 6, 7));
        let low = all
            .iter()
            .filter(|trial| {
                trial["learning_rate"]
                    .as_float()
                    .is_some_and(|rate| rate < 0.01)
            })
            .count();
        // Half of them, with a standard deviation of 9.
        assert!((105..195).contains(&low), "{low}");
        for cutout in 1..=4 {
            let count = all
                .iter()
                .filter(|trial| trial["cutout"].as_integer() == Some(cutout))
                .count();
            assert!((35..115).contains(&count), "{cutout}: {count}");
        }
        let random = all
            .iter()
            .filter(|trial| trial["flip"].as_str() == Some("random"))
            .count();
        assert!((105..195).contains(&random), "{random}");
    }

    #[test]
    fn halving_spends_its_epochs_on_the_best() {
        assert_eq!(rounds(12, 9, None), [9]);
        assert_eq!(rounds(9, 9, Some(3)), [1, 3, 9]);
        assert_eq!(rounds(12, 8, Some(2)), [1, 2, 4, 8]);
        assert_eq!(rounds(2, 50, Some(3)), [50]);
        assert_eq!(rounds(4, 3, Some(2)), [1, 3]);
        assert_eq!(rounds(1, 8, Some(2)), [8]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z_]{0,8}=?(log:)?[-0-9.,e]{0,12}") {
            if let Ok(search) = text.parse::<Search>() {
                settings(&[search], 1, 1);
            }
        }
    }
}
