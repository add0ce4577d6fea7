//! The command that evaluates a checkpoint.

use crate::data::{Data, Limits};
use crate::settings::dataset;
use crate::weights::{WeightArgs, load};
use anyhow::{Context, ensure};
use datasets::DatasetInfo;
use engine::Evaluator;
use models::Architecture;
use run::NativePath;
use run::cli::{self, UsageError};
use serde::Serialize;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) weights: WeightArgs,

    /// The images.
    #[arg(long, value_name = "NAME", default_value = "cifar10", value_parser = dataset())]
    pub(crate) dataset: DatasetInfo,

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

/// Evaluates, and prints the result.
pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let loaded = load(&args.weights, args.dataset)?;
    let limits = Limits {
        test_only: true,
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
    let finite = evaluation.logits.iter().filter(|logits| is_finite(*logits));
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
        class_accuracy: data
            .class_names
            .into_iter()
            .zip(evaluation.class_accuracies())
            .collect(),
        class_names: data.class_names,
        confusion: evaluation.confusion,
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
    class_accuracy: BTreeMap<&'static str, Option<f64>>,
    class_names: [&'static str; 10],
    /// `[row][column]` counts the images of class `row` that are classified as `column`.
    confusion: [[u64; 10]; 10],
}

fn table(result: &EvalResult) -> String {
    let EvalResult {
        model,
        images,
        loss,
        ..
    } = result;
    let names = result.class_names.iter();
    let width = names.clone().map(|name| name.len()).max().unwrap_or(0);
    let mut text = format!(
        "{model} on {images} test images: loss {loss:.4}, accuracy {:.2} %\n\n\
         {:width$}  accuracy   predicted as (columns in the order of the rows)\n",
        100.0 * result.accuracy,
        "class"
    );
    for (name, row) in names.zip(result.confusion) {
        let accuracy =
            result.class_accuracy[name].map(|accuracy| format!("{:.1} %", 100.0 * accuracy));
        let accuracy = accuracy.unwrap_or_else(|| "-".to_owned());
        let counts: String = row.iter().map(|count| format!("{count:6}")).collect();
        text += &format!("{name:width$}  {accuracy:>8} {counts}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> EvalResult {
        let class_names = *DatasetInfo::ALL[0].class_names;
        let mut confusion = [[0; 10]; 10];
        confusion[0][0] = 3;
        confusion[0][9] = 1;
        confusion[3][5] = 2;
        let mut accuracies = [None; 10];
        accuracies[0] = Some(0.75);
        accuracies[3] = Some(0.0);
        EvalResult {
            model: "alexnet".parse().unwrap(),
            images: 6,
            loss: 1.25,
            accuracy: 0.5,
            class_accuracy: class_names.into_iter().zip(accuracies).collect(),
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
    fn json_has_fractions() {
        let value = serde_json::to_value(result()).unwrap();
        assert_eq!(value["accuracy"], 0.5);
        assert_eq!(value["class_accuracy"]["airplane"], 0.75);
        assert_eq!(value["class_accuracy"]["bird"], serde_json::Value::Null);
        assert_eq!(value["confusion"][3][5], 2);
    }
}
