//! `cargo xtask tune`: a seeded search for settings of a recipe, judged by the accuracy on held-out training images.

use crate::experiments::flags::{All, SettingFlags};
use crate::experiments::plan::{Planned, State};
use crate::experiments::{pool, slurm};
use crate::files::write;
use crate::lock::Lock;
use crate::trainer::{self, Trainer, flag};
use anyhow::bail;
use rng::{Purpose, Stream, unit};
use run::cli::{self, Exit, UsageError, count};
use run::settings::{FIELDS, Field, Property, check_value};
use run::{NativePath, Run, Settings};
use std::cmp::{Ordering, Reverse};
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::str::FromStr;
use toml::{Table, Value};

/// Options of `tune`. Settings that are not searched for are the recipe's, unless they are given.
#[derive(Clone, Debug, clap::Args)]
#[command(mut_arg("model", |arg| arg.default_value("small-alexnet")))]
#[command(mut_arg("validation", |arg| arg.default_value("5000")))]
pub(crate) struct Args {
    /// A setting of the recipe and its range: `lr=log:0.003..0.1` (uniform in the logarithm), `dropout=0.0..0.5`
    /// (uniform), `cutout=0..8` (integers) or `flip=random,alternating` (one of these). May be repeated.
    #[arg(long, value_name = "KEY=VALUES", required = true)]
    search: Vec<Search>,

    /// The number of trials: how many combinations of settings are tried.
    #[arg(long, value_name = "N", default_value = "12")]
    trials: NonZeroU32,

    /// Successive halving: train all trials for few epochs, then the best 1/N of them for N times as many, and so on up
    /// to all epochs. Without it every trial is trained for all epochs.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    halving: Option<u32>,

    /// The seed of the trials' settings; `--seed` is the seed of their runs.
    #[arg(long, value_name = "N", default_value = "0")]
    search_seed: u64,

    /// Concurrent runs; they divide the cores among them.
    #[arg(long, value_name = "N", default_value = "1")]
    jobs: NonZeroUsize,

    /// The folder for the runs, tune.md and best.toml.
    #[arg(long, value_name = "DIR", default_value = "runs/tune")]
    out: NativePath,

    /// List the trials.
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    slurm: slurm::Args,

    #[command(flatten)]
    trainer: trainer::Args,

    #[command(flatten)]
    settings: SettingFlags<All>,

    /// Other flags of the trainer for every trial, such as `-- --log-level debug`.
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<OsString>,
}

/// A setting and the range of its values.
#[derive(Clone, Debug, PartialEq)]
struct Search {
    key: String,
    values: Values,
}

#[derive(Clone, Debug, PartialEq)]
enum Values {
    /// Uniform between two numbers.
    Uniform(f64, f64),
    /// Uniform in the logarithm between two numbers.
    LogUniform(f64, f64),
    /// An integer from the first to the last.
    Integer(i64, i64),
    /// One of these.
    OneOf(Vec<Value>),
}

/// Whether a search may vary this setting: one of the recipe, apart from the number of epochs, which all trials share.
fn is_searchable(field: &Field) -> bool {
    field.has(Property::Recipe) && field.key != "epochs"
}

impl FromStr for Search {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        let wrong = |why: &str| {
            UsageError(format!(
                "`{text}`: {why}; give it as lr=log:0.003..0.1, dropout=0.0..0.5, cutout=0..8 or flip=random,alternating"
            ))
        };
        let (key, values) = text
            .split_once('=')
            .ok_or_else(|| wrong("there is no `=`"))?;
        let searchable = || FIELDS.iter().filter(|field| is_searchable(field));
        if !searchable().any(|field| field.key == key) {
            let keys: Vec<_> = searchable().map(|field| field.key).collect();
            return Err(wrong(&format!(
                "`{key}` cannot be searched for; these settings can: {}",
                keys.join(", ")
            )));
        }
        let (range, logarithmic) = match values.strip_prefix("log:") {
            Some(range) => (range, true),
            None => (values, false),
        };
        let values = match range.split_once("..") {
            Some((low, high)) => Values::range(low, high, logarithmic).map_err(wrong)?,
            None if logarithmic || range.is_empty() => return Err(wrong("there are no values")),
            None => Values::OneOf(range.split(',').map(value).collect()),
        };
        for value in values.extremes() {
            let setting = format!("{key} = {value}");
            check_value(key, value)
                .map_err(|reason| UsageError(format!("`{setting}`: {reason}")))?;
        }
        Ok(Self {
            key: key.to_owned(),
            values,
        })
    }
}

/// A value as in a settings file, but strings need no quotes.
fn value(text: &str) -> Value {
    let number = text.parse().map(Value::Integer);
    let number = number.or_else(|_| text.parse().map(Value::Float));
    number
        .or_else(|_| text.parse().map(Value::Boolean))
        .unwrap_or_else(|_| Value::String(text.to_owned()))
}

impl Values {
    fn range(low: &str, high: &str, logarithmic: bool) -> Result<Self, &'static str> {
        if let (false, Ok(low), Ok(high)) = (logarithmic, low.parse(), high.parse())
            && low < high
        {
            return Ok(Self::Integer(low, high));
        }
        match (low.parse(), high.parse()) {
            (Ok(low), Ok(high)) if low < high && f64::is_finite(low) && f64::is_finite(high) => {
                match logarithmic {
                    true if low <= 0.0 => Err("a logarithm needs positive numbers"),
                    true => Ok(Self::LogUniform(low, high)),
                    false => Ok(Self::Uniform(low, high)),
                }
            }
            _ => Err("a range needs two numbers, the smaller one first"),
        }
    }

    /// The smallest and the largest value, or all of a list: if these are valid, so are those between them.
    fn extremes(&self) -> Vec<Value> {
        match self {
            Self::Uniform(low, high) | Self::LogUniform(low, high) => {
                [*low, *high].map(Value::Float).into()
            }
            Self::Integer(low, high) => [*low, *high].map(Value::Integer).into(),
            Self::OneOf(values) => values.clone(),
        }
    }

    /// The value for a random word.
    fn sample(&self, word: u32) -> Value {
        let fraction = f64::from(unit(word));
        let below = |bound: u64| (u64::from(word) * bound) >> 32;
        // Four digits are easy to read and precise enough, where they are within the range.
        let rounded = |number: f64, low: f64, high: f64| {
            let digits = format!("{number:.3e}").parse().ok();
            let digits = digits.filter(|digits| (low..=high).contains(digits));
            Value::Float(digits.unwrap_or(number.clamp(low, high)))
        };
        match *self {
            Self::Uniform(low, high) => rounded(low + fraction * (high - low), low, high),
            Self::LogUniform(low, high) => {
                let (start, end) = (libm::log(low), libm::log(high));
                rounded(libm::exp(start + fraction * (end - start)), low, high)
            }
            Self::Integer(low, high) => {
                Value::Integer(low + below(high.abs_diff(low).saturating_add(1)) as i64)
            }
            Self::OneOf(ref values) => values
                .get(below(values.len() as u64) as usize)
                .cloned()
                .unwrap_or(Value::Boolean(false)),
        }
    }
}

/// The settings of a trial.
fn settings(searches: &[Search], seed: u64, trial: u32) -> Table {
    let stream = Stream::new(seed, Purpose::Search, trial);
    let searches = (0..).zip(searches);
    let settings = searches.map(|(number, Search { key, values })| {
        let [word, ..] = stream.words(number);
        (key.clone(), values.sample(word))
    });
    settings.collect()
}

/// The epochs of each round: all of them in the last, and 1/`halving` of the next round's in each before it, as long as
/// there are trials to choose from.
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

/// The result of a trial in a round.
#[derive(Clone, Copy)]
struct Outcome {
    trial: usize,
    epochs: u32,
    /// Validation accuracy after the last epoch, 0 to 1; `None` if the run failed.
    accuracy: Option<f64>,
}

/// Trains the trials and writes the table of results and the best settings.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    for (index, Search { key, .. }) in args.search.iter().enumerate() {
        let error = if args.search[..index].iter().any(|other| other.key == *key) {
            "is given twice; give each key once"
        } else if args.settings.get(key).is_some() {
            "is given as a flag as well; give one of them"
        } else {
            continue;
        };
        return Err(UsageError(format!("--search: `{key}` {error}")).into());
    }
    let trainer = Trainer::new(&args.trainer, args.settings.get("device"))?;
    let trials = 0..args.trials.get();
    let trials = trials.map(|trial| settings(&args.search, args.search_seed, trial));
    let trials: Vec<Table> = trials.collect();
    let arguments = pool::arguments(args.settings.clone(), args.jobs, &args.flags);
    let base = trainer.settings(&arguments)?;
    let rounds = rounds(args.trials.get(), base.epochs.get(), args.halving);
    if args.dry_run {
        print_plan(args, &base.model, &rounds, &trials);
        return Ok(Exit::Success);
    }
    let _lock = Lock::wait(&args.out, "tune", cli::note)?;
    let mut results: Vec<Outcome> = Vec::new();
    let mut left: Vec<usize> = (0..trials.len()).collect();
    for (round, epochs) in rounds.iter().enumerate() {
        let plan = left
            .iter()
            .map(|trial| planned(&trainer, args, *trial, &trials[*trial], *epochs));
        let plan = plan.collect::<anyhow::Result<Vec<_>>>()?;
        if plan.iter().any(|run| run.state != State::Finished) {
            cli::note(&format!(
                "round {} of {}: {} for {} each",
                round + 1,
                rounds.len(),
                count(plan.len(), "trial"),
                count(*epochs as usize, "epoch")
            ));
        }
        let failed = if args.slurm.slurm {
            let progress = slurm::train(&args.slurm, &trainer, &plan, &args.out)?;
            if progress.waiting {
                return Ok(Exit::Success);
            }
            // They are out, as without Slurm: a learning rate may be too high.
            progress.failed
        } else {
            match pool::train(&trainer, &plan, args.jobs)? {
                Some(failed) => failed,
                None => return Ok(Exit::Interrupted),
            }
        };
        let outcome = |(trial, run): (&usize, &Planned)| {
            let succeeded = !failed.contains(&run.name);
            let run = succeeded.then(|| Run::read(&run.folder)).transpose()?;
            Ok(Outcome {
                trial: *trial,
                epochs: *epochs,
                accuracy: run.map(|run| run.last().evaluated.accuracy),
            })
        };
        let outcomes = left.iter().zip(&plan).map(outcome);
        let mut outcomes = outcomes.collect::<anyhow::Result<Vec<_>>>()?;
        sort(&mut outcomes);
        results.retain(|result| !left.contains(&result.trial));
        results.extend(&outcomes);
        let keep = args
            .halving
            .map_or(left.len(), |halving| left.len() / halving as usize);
        outcomes.retain(|outcome| outcome.accuracy.is_some());
        outcomes.truncate(keep.max(1));
        left = outcomes.iter().map(|outcome| outcome.trial).collect();
    }
    // Trials that were trained for more epochs did better in the rounds before.
    sort(&mut results);
    let Some(best) = results.first().filter(|best| best.accuracy.is_some()) else {
        bail!("every trial failed, for the reasons above");
    };
    let table = table(&args.search, &base, &trials, &results);
    write(&args.out.join("tune.md"), &table)?;
    let settings = trials[best.trial].to_string();
    let best = args.out.join("best.toml");
    write(&best, &settings)?;
    cli::line(&table);
    cli::line(&format!(
        "the best settings are in {}; train with them: {}",
        best.display(),
        command(args, &base, &best)
    ));
    Ok(Exit::Success)
}

/// The command that trains with the best settings and those of all trials, without held-out images.
fn command(args: &Args, base: &Settings, best: &Path) -> String {
    let mut command = format!(
        "cargo run -p trainer -- --model {} --recipe {} --config {}",
        base.model,
        base.recipe,
        cli::quoted(best)
    );
    let settings = ["model", "recipe", "validation"];
    let flags = args.flags.iter();
    let flags = flags.map(|flag| cli::quoted_word(&flag.to_string_lossy()));
    for word in args
        .settings
        .words_without(&settings)
        .into_iter()
        .chain(flags)
    {
        command = command + " " + &word;
    }
    command
}

/// Prints the rounds and the trials.
fn print_plan(args: &Args, model: &str, rounds: &[u32], trials: &[Table]) {
    let fewer = args.halving.unwrap_or(1);
    let epochs = |round: usize| count(rounds[round] as usize, "epoch");
    let later =
        (1..rounds.len()).map(|round| format!("; then the best 1/{fewer} for {}", epochs(round)));
    cli::line(&format!(
        "{} of {model} for {} each{}",
        count(trials.len(), "trial"),
        epochs(0),
        later.collect::<String>()
    ));
    for (trial, settings) in trials.iter().enumerate() {
        let settings = settings.to_string();
        cli::line(&format!(
            "trial {trial}: {}",
            settings.trim_end().replace('\n', ", ")
        ));
    }
}

/// Sorts by epochs, then by accuracy, the highest first. Failed trials are last.
fn sort(results: &mut [Outcome]) {
    let key = |outcome: &Outcome| {
        let succeeded = outcome.accuracy.is_some();
        (
            succeeded,
            outcome.epochs,
            outcome.accuracy,
            Reverse(outcome.trial),
        )
    };
    results.sort_by(|a, b| key(b).partial_cmp(&key(a)).unwrap_or(Ordering::Equal));
}

/// The run of a trial with this many epochs.
fn planned(
    trainer: &Trainer,
    args: &Args,
    trial: usize,
    settings: &Table,
    epochs: u32,
) -> anyhow::Result<Planned> {
    let name = format!("trial{trial:03}");
    let file = args.out.join(format!("{name}.toml"));
    let text = settings.to_string();
    if fs::read_to_string(&file).ok().as_ref() != Some(&text) {
        write(&file, &text)?;
    }
    let flags = args.settings.clone().with("epochs", epochs.to_string());
    let mut arguments = vec![flag("--config", &file)];
    arguments.extend(pool::arguments(flags, args.jobs, &args.flags));
    let name = format!("{name}-epochs{epochs}");
    Planned::new(trainer, &args.out, name, arguments)
}

/// A Markdown table of the trials, in the order of `results`.
fn table(search: &[Search], base: &Settings, trials: &[Table], results: &[Outcome]) -> String {
    let keys: Vec<&str> = search.iter().map(|search| search.key.as_str()).collect();
    let mut text = format!(
        "# Trials of {}, recipe {}\n\nAccuracy after the last epoch on {} held-out training images.\n\n| trial | {} | epochs | accuracy |\n|---|{}---|---|\n",
        base.model,
        base.recipe,
        base.validation.map_or(0, NonZeroUsize::get),
        keys.join(" | "),
        "---|".repeat(keys.len())
    );
    for Outcome {
        trial,
        epochs,
        accuracy,
    } in results
    {
        let value = |key: &&str| trials[*trial].get(*key).map(Value::to_string);
        let values: Vec<_> = keys.iter().filter_map(value).collect();
        let accuracy = accuracy.map(|accuracy| format!("{:.2} %", 100.0 * accuracy));
        let _ = writeln!(
            text,
            "| {trial} | {} | {epochs} | {} |",
            values.join(" | "),
            accuracy.as_deref().unwrap_or("failed")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::slice::from_ref;

    fn search(text: &str) -> Search {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn searches_are_read_as_they_are_written() {
        assert_eq!(
            search("lr=log:0.003..0.1").values,
            Values::LogUniform(0.003, 0.1)
        );
        assert_eq!(search("dropout=0.0..0.5").values, Values::Uniform(0.0, 0.5));
        assert_eq!(search("cutout=0..8").values, Values::Integer(0, 8));
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
            "lr=log:0..1",
            "lr=log:1",
            "dropout=0..inf",
            "epochs=1..4",
            "seed=0,1",
            // Values that the setting cannot have.
            "cutout=0..64",
            "dropout=0.5..1.5",
            "batch_size=0..64",
            "batch_size=1.5..64",
            "flip=random,sometimes",
            "nesterov=yes,no",
        ] {
            assert!(text.parse::<Search>().is_err(), "{text}");
        }
        let error = "batch_size=0..64".parse::<Search>().unwrap_err();
        assert!(
            error.0.contains("`batch_size = 0`") && error.0.contains("at least 1"),
            "{error}"
        );
    }

    #[test]
    fn trials_fill_their_ranges_and_depend_on_the_seed_alone() {
        let searches = [
            "lr=log:0.001..0.1",
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
            .filter(|trial| trial["lr"].as_float().is_some_and(|rate| rate < 0.01))
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
    fn failed_trials_are_last() {
        let outcome = |trial, epochs, accuracy| Outcome {
            trial,
            epochs,
            accuracy,
        };
        let mut results = [
            outcome(0, 4, None),
            outcome(1, 2, Some(0.5)),
            outcome(2, 2, Some(0.6)),
            outcome(3, 4, Some(0.4)),
            outcome(4, 2, None),
        ];
        sort(&mut results);
        assert_eq!(results.map(|outcome| outcome.trial), [3, 2, 1, 0, 4]);
    }

    #[test]
    fn rounded_values_are_within_their_range() {
        let decay = search("model_ema_decay=0.9999..0.99999");
        let trials = (0..200).map(|trial| settings(from_ref(&decay), 0, trial));
        for trial in trials {
            let decay = trial["model_ema_decay"].as_float().unwrap();
            assert!((0.9999..=0.99999).contains(&decay), "{decay}");
        }
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
