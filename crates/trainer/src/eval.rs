//! The command that evaluates a checkpoint.

use crate::data::{Data, Limits};
use crate::settings::dataset;
use crate::weights::{WeightArgs, load};
use anyhow::Context;
use datasets::DatasetInfo;
use engine::{Evaluation, Evaluator};
use models::Architecture;
use run::cli::{self, UsageError};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) weights: WeightArgs,

    /// The images.
    #[arg(long, value_name = "NAME", default_value = "cifar10", value_parser = dataset())]
    pub(crate) dataset: DatasetInfo,

    /// The folder that holds `cifar-10-batches-bin`.
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub(crate) data_dir: PathBuf,

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

/// Evaluates, and prints the result.
pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let loaded = load(&args.weights)?;
    let one = std::num::NonZeroUsize::MIN;
    let limit_train = args.dataset.max_generated.map(|_| one);
    let limits = Limits {
        train: limit_train,
        test: args.limit_test,
        ..Limits::default()
    };
    let data = Data::load(args.dataset, &args.data_dir, limits)?;
    if loaded.inputs_are_known && loaded.inputs.class_names != data.class_names {
        return Err(UsageError(format!(
            "`{}` was trained on other classes ({}) than --dataset has ({})",
            args.weights.checkpoint.display(),
            loaded.inputs.class_names.join(", "),
            data.class_names.join(", ")
        ))
        .into());
    }
    let images = data.test.len();
    let evaluator = Evaluator::new(
        data.test,
        loaded.normalisation(),
        &loaded.device,
        loaded.arithmetic,
    )?;
    let stopped = "the evaluation was stopped";
    let network = &loaded.network;
    let mut evaluation = evaluator.evaluate(network, || false)?.context(stopped)?;
    if args.tta {
        let tta = evaluator.evaluate_tta(network, &evaluation, || false)?;
        evaluation = tta.context(stopped)?;
    }
    let model = loaded.network.architecture();
    if args.json {
        cli::line(&json(model, images, &evaluation, &data.class_names)?);
    } else {
        cli::text(&table(model, images, &evaluation, &data.class_names));
    }
    Ok(())
}

/// An evaluation as `--json` prints it. Accuracies are shares, 0 to 1.
#[derive(Serialize)]
struct Record<'a> {
    model: Architecture,
    images: usize,
    loss: f64,
    accuracy: f64,
    class_accuracy: BTreeMap<&'a str, Option<f64>>,
    class_names: &'a [&'a str; 10],
    /// How many images of class `row` were taken for class `column`.
    confusion: [[u64; 10]; 10],
}

fn json(
    model: Architecture,
    images: usize,
    evaluation: &Evaluation,
    class_names: &[&str; 10],
) -> anyhow::Result<String> {
    let accuracies = class_names
        .iter()
        .copied()
        .zip(evaluation.class_accuracies());
    Ok(serde_json::to_string(&Record {
        model,
        images,
        loss: evaluation.loss,
        accuracy: evaluation.accuracy,
        class_accuracy: accuracies.collect(),
        class_names,
        confusion: evaluation.confusion,
    })?)
}

fn table(
    model: Architecture,
    images: usize,
    evaluation: &Evaluation,
    class_names: &[&str; 10],
) -> String {
    let mut text = format!(
        "{model} on {images} test images: loss {:.4}, accuracy {:.2} %\n\n",
        evaluation.loss,
        100.0 * evaluation.accuracy
    );
    let width = class_names.iter().map(|name| name.len()).max().unwrap_or(0);
    let _ = writeln!(
        text,
        "{:width$}  accuracy   taken for (columns in the order of the rows)",
        "class"
    );
    let accuracies = evaluation.class_accuracies();
    for ((name, accuracy), row) in class_names.iter().zip(accuracies).zip(evaluation.confusion) {
        let accuracy =
            accuracy.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", 100.0 * share));
        let counts: String = row.iter().map(|count| format!("{count:6}")).collect();
        let _ = writeln!(text, "{name:width$}  {accuracy:>8} {counts}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class_names() -> &'static [&'static str; 10] {
        DatasetInfo::ALL[0].class_names
    }

    fn evaluation() -> Evaluation {
        let mut confusion = [[0; 10]; 10];
        confusion[0][0] = 3;
        confusion[0][9] = 1;
        confusion[3][5] = 2;
        Evaluation {
            loss: 1.25,
            accuracy: 0.5,
            confusion,
            logits: Vec::new(),
        }
    }

    #[test]
    fn the_table_shows_every_class() {
        insta::assert_snapshot!(table("alexnet".parse().unwrap(), 6, &evaluation(), class_names()), @r#"
alexnet on 6 test images: loss 1.2500, accuracy 50.00 %

class       accuracy   taken for (columns in the order of the rows)
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
    fn json_holds_shares_of_one() {
        let text = json("alexnet".parse().unwrap(), 6, &evaluation(), class_names()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["accuracy"], 0.5);
        assert_eq!(value["class_accuracy"]["airplane"], 0.75);
        assert_eq!(value["class_accuracy"]["bird"], serde_json::Value::Null);
        assert_eq!(value["confusion"][3][5], 2);
    }
}
