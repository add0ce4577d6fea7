//! The command that evaluates a checkpoint.

use crate::data::{Data, Limits, Pictures, first_names};
use crate::settings::dataset;
use crate::weights::{WeightArgs, load};
use anyhow::{Context, ensure};
use datasets::DatasetSource;
use engine::Evaluator;
use models::Architecture;
use run::NativePath;
use run::cli::{self, UsageError};
use run::predictions::MATRIX_CLASSES;
use serde::Serialize;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) weights: WeightArgs,

    /// The images: cifar10, cifar100, synthetic, or the folder of your own pictures.
    #[arg(long, value_name = "NAME|DIR", default_value = "cifar10", value_parser = dataset())]
    pub(crate) dataset: DatasetSource,

    /// Leave out pictures of a folder that cannot be read.
    #[arg(long)]
    pub(crate) skip_unreadable: bool,

    /// The folder of the data sets.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub(crate) data_dir: NativePath,

    /// Use the first N test images only.
    #[arg(long, value_name = "N")]
    pub(crate) limit_test: Option<NonZeroUsize>,

    /// Test-time augmentation: average the logits of each image and of its horizontal flip.
    #[arg(long)]
    pub(crate) tta: bool,

    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Evaluates and prints the result.
pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let loaded = load(&args.weights, &args.dataset)?;
    let limits = Limits {
        test_only: true,
        test: args.limit_test,
        ..Limits::default()
    };
    let pictures = Pictures {
        skip_unreadable: args.skip_unreadable,
        show_bar: true,
        stop: None,
    };
    // Before the images, which may have to be downloaded.
    let class_names = args.dataset.class_names()?;
    let differ = match loaded.inputs_are_known {
        true => loaded.inputs.class_names != class_names,
        false => loaded.inputs.class_names.len() != class_names.len(),
    };
    if differ {
        let classes = |names: &[String]| match loaded.inputs_are_known {
            true => first_names(names),
            false => names.len().to_string(),
        };
        return Err(UsageError(format!(
            "`{}` was trained on other classes ({}) than --dataset {} has ({}); name the data set that it was trained on",
            args.weights.checkpoint.display(),
            classes(&loaded.inputs.class_names),
            args.dataset,
            classes(&class_names)
        ))
        .into());
    }
    let data = Data::load(&args.dataset, &args.data_dir, limits, pictures)?;
    let images = data.test.len();
    let mut evaluator = Evaluator::new(
        data.test,
        loaded.normalisation(),
        &loaded.device,
        loaded.arithmetic,
        None,
    )?;
    evaluator.fit(&loaded.network, false, || Ok(()))?;
    let stopped = "the evaluation was stopped";
    let network = &loaded.network;
    let mut evaluation = evaluator.evaluate(network, || false)?.context(stopped)?;
    if args.tta {
        let tta = evaluator.evaluate_tta(network, &evaluation, || false)?;
        evaluation = tta.context(stopped)?;
    }
    let is_finite = |logits: &[f32]| logits.iter().all(|logit| logit.is_finite());
    let logits = evaluation.logits.chunks_exact(class_names.len());
    let finite = logits.filter(|logits| is_finite(logits));
    let not_finite = images - finite.count();
    ensure!(
        not_finite == 0 && evaluation.loss.is_finite(),
        "the outputs of the network are infinite or NaN for {not_finite} of {images} images; the weights in `{}` are too \
         large, or --std is too small",
        args.weights.checkpoint.display()
    );
    let result = EvalResult {
        model: loaded.network.architecture(),
        images,
        loss: evaluation.loss,
        accuracy: evaluation.accuracy,
        class_accuracy: class_names
            .iter()
            .cloned()
            .zip(evaluation.class_accuracies())
            .collect(),
        confusion: evaluation
            .confusion
            .chunks_exact(class_names.len())
            .map(<[u64]>::to_vec)
            .collect(),
        class_names,
    };
    if args.json {
        cli::line(&serde_json::to_string(&result)?);
    } else {
        cli::text(&table(&result));
    }
    Ok(())
}

/// An evaluation as `--json` prints it. Accuracies are fractions, 0 to 1.
#[derive(Serialize)]
struct EvalResult {
    model: Architecture,
    images: usize,
    loss: f64,
    accuracy: f64,
    class_accuracy: BTreeMap<String, Option<f64>>,
    class_names: Vec<String>,
    /// `[row][column]` counts the images of class `row` that are classified as `column`.
    confusion: Vec<Vec<u64>>,
}

fn table(result: &EvalResult) -> String {
    let EvalResult {
        model,
        images,
        loss,
        ..
    } = result;
    let names = result.class_names.iter();
    let width = names.clone().map(|name| name.chars().count());
    let width = width.max().unwrap_or(0).max("class".len());
    let is_matrix = result.class_names.len() <= MATRIX_CLASSES;
    let mut text = format!(
        "{model} on {images} test images: loss {loss:.4}, accuracy {:.2} %\n\n\
         {:width$}  accuracy   {}\n",
        100.0 * result.accuracy,
        "class",
        match is_matrix {
            true => "predicted as (columns in the order of the rows)",
            false => "most often mistaken for",
        }
    );
    for (class, (name, row)) in names.zip(&result.confusion).enumerate() {
        let accuracy =
            result.class_accuracy[name].map(|accuracy| format!("{:.1} %", 100.0 * accuracy));
        let accuracy = accuracy.unwrap_or_else(|| "-".to_owned());
        let predicted = match is_matrix {
            true => row.iter().map(|count| format!("{count:6}")).collect(),
            false => most_frequent_mistake(class, row)
                .map_or_else(String::new, |(other, count)| {
                    format!("  {} ({count})", result.class_names[other])
                }),
        };
        text += format!("{name:width$}  {accuracy:>8} {predicted}").trim_end();
        text.push('\n');
    }
    text
}

/// The class that images of `class` are most often mistaken for, and how many are; the first one of several. `row` counts
/// them by predicted class.
fn most_frequent_mistake(class: usize, row: &[u64]) -> Option<(usize, u64)> {
    let counts = row.iter().copied().enumerate();
    let mistakes = counts.filter(|(other, count)| *other != class && *count > 0);
    mistakes.reduce(|most, next| if next.1 > most.1 { next } else { most })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> EvalResult {
        let class_names: Vec<String> = datasets::DatasetInfo::ALL[0]
            .class_names
            .iter()
            .map(ToString::to_string)
            .collect();
        let mut confusion = vec![vec![0; 10]; 10];
        confusion[0][0] = 3;
        confusion[0][9] = 1;
        confusion[3][5] = 2;
        let mut accuracies = vec![None; 10];
        accuracies[0] = Some(0.75);
        accuracies[3] = Some(0.0);
        EvalResult {
            model: "alexnet".parse().unwrap(),
            images: 6,
            loss: 1.25,
            accuracy: 0.5,
            class_accuracy: class_names.iter().cloned().zip(accuracies).collect(),
            class_names,
            confusion,
        }
    }

    #[test]
    fn the_table_shows_every_class() {
        insta::assert_snapshot!(table(&result()), @r#"
alexnet on 6 test images: loss 1.2500, accuracy 50.00 %

class       accuracy   predicted as (columns in the order of the rows)
airplane      75.0 %      3     0     0     0     0     0     0     0     0     1
automobile         -      0     0     0     0     0     0     0     0     0     0
bird               -      0     0     0     0     0     0     0     0     0     0
cat            0.0 %      0     0     0     0     0     2     0     0     0     0
deer               -      0     0     0     0     0     0     0     0     0     0
dog                -      0     0     0     0     0     0     0     0     0     0
frog               -      0     0     0     0     0     0     0     0     0     0
horse              -      0     0     0     0     0     0     0     0     0     0
ship               -      0     0     0     0     0     0     0     0     0     0
truck              -      0     0     0     0     0     0     0     0     0     0
"#);
    }

    #[test]
    fn many_classes_have_no_matrix() {
        let names = || (0..21).map(|class| format!("kind {class}"));
        let mut confusion = vec![vec![0; 21]; 21];
        confusion[1][1] = 1;
        confusion[1][2] = 2;
        confusion[1][20] = 2;
        let accuracies = (0..21).map(|class| (class == 1).then_some(0.2));
        let table = table(&EvalResult {
            class_accuracy: names().zip(accuracies).collect(),
            class_names: names().collect(),
            confusion,
            ..result()
        });
        let rows: Vec<_> = table.lines().skip(2).take(3).collect();
        assert_eq!(
            rows,
            [
                "class    accuracy   most often mistaken for",
                "kind 0          -",
                "kind 1     20.0 %   kind 2 (2)",
            ]
        );
        assert_eq!(
            first_names(&names().collect::<Vec<_>>()),
            "21: kind 0, kind 1, kind 2, ..., kind 20"
        );
    }

    #[test]
    fn json_has_fractions() {
        let value = serde_json::to_value(result()).unwrap();
        assert_eq!(value["accuracy"], 0.5);
        assert_eq!(value["class_accuracy"]["airplane"], 0.75);
        assert_eq!(value["class_accuracy"]["bird"], serde_json::Value::Null);
        assert_eq!(value["confusion"][3][5], 2);
    }
}
