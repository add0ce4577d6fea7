//! `metrics.jsonl`: one JSON object per epoch; `metrics.csv`, the same as a table; and the steps of the LR finder.

use crate::error::Error;
use crate::settings::named_values;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::path::Path;
use std::{fmt, fs, io};

/// The metrics of one epoch: a line of `metrics.jsonl`. Losses are means over samples, accuracies are fractions of
/// samples, 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochMetrics {
    /// The epoch, from 1.
    pub epoch: u32,
    /// Training loss: the mean over the epoch's steps, measured while the weights change.
    pub train_loss: f64,
    /// Training accuracy, measured while the weights change.
    pub train_accuracy: f64,
    /// Metrics after the epoch on the evaluated samples.
    #[serde(flatten)]
    pub evaluated: SplitMetrics,
    /// Learning rate of the epoch's first step.
    pub learning_rate: f64,
    /// Wall-clock time of training and evaluation, without test-time augmentation.
    pub seconds: f64,
    /// Training throughput, without evaluation.
    pub images_per_second: f64,
    /// SHA-256 in hexadecimal of the weights after the epoch: their values in the order of PyTorch's `state_dict`,
    /// little-endian. On a GPU only after epochs with a checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_sha256: Option<String>,
    /// Whether early stopping ended the run after this epoch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped_early: bool,
}

named_values! {
    /// The samples on which a run is evaluated after every epoch.
    EvaluationSplit {
        /// The test set.
        Test,
        /// Training samples: those held out by `--validation`, or those trained on with `--overfit-batches`.
        Validation,
    }
}

/// Metrics of a network on one set of samples. The keys in a file name the split: `test_loss` or `validation_loss`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SplitMetrics {
    /// The samples.
    pub split: EvaluationSplit,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Accuracy, 0 to 1.
    pub accuracy: f64,
    /// Mean cross-entropy with the EMA of the weights, if the run has one.
    pub model_ema_loss: Option<f64>,
    /// Accuracy with the EMA of the weights, 0 to 1.
    pub model_ema_accuracy: Option<f64>,
    /// Accuracy with test-time augmentation, 0 to 1: the logits are the mean over an image and its horizontal flip.
    /// Measured after the last epoch.
    pub tta_accuracy: Option<f64>,
}

impl Serialize for SplitMetrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let split = self.split;
        let entries = [
            (format!("{split}_loss"), Some(self.loss)),
            (format!("{split}_accuracy"), Some(self.accuracy)),
            (format!("model_ema_{split}_loss"), self.model_ema_loss),
            (
                format!("model_ema_{split}_accuracy"),
                self.model_ema_accuracy,
            ),
            (format!("tta_{split}_accuracy"), self.tta_accuracy),
        ];
        serializer.collect_map(entries.into_iter().filter_map(|(key, v)| Some((key, v?))))
    }
}

impl<'de> Deserialize<'de> for SplitMetrics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = serde_json::Map::deserialize(deserializer)?;
        let splits = [EvaluationSplit::Test, EvaluationSplit::Validation];
        let split = splits
            .into_iter()
            .find(|split| values.contains_key(&format!("{split}_loss")))
            .ok_or_else(|| D::Error::custom("it has neither `test_loss` nor `validation_loss`"))?;
        // Keys by their current name and by that of earlier versions.
        let optional = |keys: &[String]| {
            let value = keys.iter().find_map(|key| Some((key, values.get(key)?)));
            let number = |(key, value): (&String, &serde_json::Value)| {
                let error = || D::Error::custom(format_args!("`{key}` is {value}, not a number"));
                value.as_f64().ok_or_else(error)
            };
            value.map(number).transpose()
        };
        let required = |key: String| {
            let missing = format!("`{key}` is missing");
            optional(&[key])?.ok_or_else(|| D::Error::custom(missing))
        };
        let model_ema = |metric| {
            optional(&["model_ema", "average"].map(|name| format!("{name}_{split}_{metric}")))
        };
        Ok(Self {
            split,
            loss: required(format!("{split}_loss"))?,
            accuracy: required(format!("{split}_accuracy"))?,
            model_ema_loss: model_ema("loss")?,
            model_ema_accuracy: model_ema("accuracy")?,
            tta_accuracy: optional(
                &["tta", "mirrored"].map(|name| format!("{name}_{split}_accuracy")),
            )?,
        })
    }
}

impl EpochMetrics {
    /// The values by key, in the order of a line of `metrics.jsonl`. Those that are absent there are left out.
    ///
    /// # Errors
    /// When they do not fit JSON.
    pub fn values(&self) -> serde_json::Result<Vec<(String, Value)>> {
        let Values(values) = serde_json::from_str(&serde_json::to_string(self)?)?;
        Ok(values)
    }

    /// An epoch that has every value that an epoch can have.
    fn complete(split: EvaluationSplit) -> Self {
        Self {
            epoch: 0,
            train_loss: 0.0,
            train_accuracy: 0.0,
            evaluated: SplitMetrics {
                split,
                loss: 0.0,
                accuracy: 0.0,
                model_ema_loss: Some(0.0),
                model_ema_accuracy: Some(0.0),
                tta_accuracy: Some(0.0),
            },
            learning_rate: 0.0,
            seconds: 0.0,
            images_per_second: 0.0,
            weights_sha256: Some(String::new()),
            stopped_early: true,
        }
    }
}

/// A JSON object whose keys keep their order.
struct Values(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Values;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Values, A::Error> {
                let mut values = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    values.push(entry);
                }
                Ok(Values(values))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// One step of the LR finder, as `lr-find.json` has it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LrFinderStep {
    /// The learning rate of the step.
    #[serde(rename = "learning_rate")]
    pub lr: f64,
    /// The loss of the batch, before the step.
    pub loss: f64,
    /// The exponential moving average of the losses up to this one.
    pub smoothed_loss: f64,
}

/// Reads the epochs of a run from `metrics.jsonl`. A last line without an end, which a crash left, is not read.
///
/// # Errors
/// When the file is missing, a line is not the metrics of an epoch, or the epochs are not 1, 2, 3, ...
pub fn read(path: &Path) -> Result<Vec<EpochMetrics>, Error> {
    let text = fs::read_to_string(path).map_err(Error::text("read", path))?;
    let damaged = Error::damaged(path);
    let read = |(line, text)| {
        let metrics: EpochMetrics =
            serde_json::from_str(text).map_err(|error| damaged(format!("line {line}: {error}")))?;
        match metrics.epoch {
            epoch if epoch == line => Ok(metrics),
            found => Err(damaged(format!(
                "line {line} has epoch {found}; expected epoch {line}"
            ))),
        }
    };
    let end = text.rfind('\n').map_or(0, |last| last + 1);
    (1..).zip(text[..end].lines()).map(read).collect()
}

/// Replaces `metrics.jsonl` with these epochs, atomically.
///
/// # Errors
/// When the file cannot be written; the old one is then unchanged.
pub fn write(path: &Path, epochs: &[EpochMetrics]) -> Result<(), Error> {
    let text: io::Result<String> = epochs.iter().map(line).collect();
    let written = text.and_then(|text| atomic_file::write(path, text.as_bytes()));
    written.map_err(Error::file("write", path))
}

/// Appends an epoch to `metrics.jsonl`, so that `tail -f` shows it.
///
/// # Errors
/// When the file cannot be written.
pub fn append(path: &Path, epoch: &EpochMetrics) -> Result<(), Error> {
    let written = line(epoch).and_then(|line| atomic_file::append(path, line.as_bytes()));
    written.map_err(Error::file("write", path))
}

/// Replaces `metrics.csv` with these epochs, atomically: a line of keys, which all runs that are evaluated on `split` have
/// in common, and a line for each epoch, on which absent values are empty.
///
/// # Errors
/// When the file cannot be written; the old one is then unchanged.
pub fn write_csv(
    path: &Path,
    split: EvaluationSplit,
    epochs: &[EpochMetrics],
) -> Result<(), Error> {
    let written = csv(split, epochs).and_then(|text| atomic_file::write(path, text.as_bytes()));
    written.map_err(Error::file("write", path))
}

fn csv(split: EvaluationSplit, epochs: &[EpochMetrics]) -> io::Result<String> {
    let columns = EpochMetrics::complete(split).values()?.into_iter();
    let columns: Vec<_> = columns.map(|(key, _)| key).collect();
    let mut text = columns.join(",") + "\n";
    for epoch in epochs {
        let values = epoch.values()?;
        let cell = |column: &String| match values.iter().find(|(key, _)| key == column) {
            // A digest, which needs no quotes.
            Some((_, Value::String(digest))) => digest.clone(),
            Some((_, value)) => value.to_string(),
            None => String::new(),
        };
        text += &(columns.iter().map(cell).collect::<Vec<_>>().join(",") + "\n");
    }
    Ok(text)
}

fn line(epoch: &EpochMetrics) -> io::Result<String> {
    Ok(serde_json::to_string(epoch)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn finite() -> impl Strategy<Value = f64> {
        any::<f64>().prop_filter("JSON has finite numbers only", |value| value.is_finite())
    }

    fn split_metrics() -> impl Strategy<Value = SplitMetrics> {
        let optional = prop::array::uniform3(prop::option::of(finite()));
        let values = (any::<bool>(), prop::array::uniform2(finite()), optional);
        values.prop_map(|(test, [loss, accuracy], optional)| SplitMetrics {
            split: if test {
                EvaluationSplit::Test
            } else {
                EvaluationSplit::Validation
            },
            loss,
            accuracy,
            model_ema_loss: optional[0],
            model_ema_accuracy: optional[1],
            tta_accuracy: optional[2],
        })
    }

    fn epoch_metrics() -> impl Strategy<Value = EpochMetrics> {
        let values = prop::array::uniform5(finite());
        let digest = prop::option::of("[0-9a-f]{64}");
        (values, split_metrics(), digest, any::<bool>()).prop_map(
            |(values, evaluated, weights_sha256, stopped_early)| EpochMetrics {
                epoch: 1,
                train_loss: values[0],
                train_accuracy: values[1],
                evaluated,
                learning_rate: values[2],
                seconds: values[3],
                images_per_second: values[4],
                weights_sha256,
                stopped_early,
            },
        )
    }

    proptest! {
        #[test]
        fn metrics_round_trip_to_the_bit(mut epochs in prop::collection::vec(epoch_metrics(), 0..5)) {
            for (number, epoch) in (1..).zip(&mut epochs) {
                epoch.epoch = number;
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("metrics.jsonl");
            let (first, last) = epochs.split_at(epochs.len() / 2);
            write(&path, first).unwrap();
            for epoch in last {
                append(&path, epoch).unwrap();
            }
            let read = read(&path).unwrap();
            prop_assert_eq!(&read, &epochs);
            // Equal numbers may differ in the sign of zero; equal texts do not.
            prop_assert_eq!(format!("{read:?}"), format!("{epochs:?}"));
        }

        #[test]
        fn the_table_has_the_values_of_the_lines(mut epoch in epoch_metrics(), test: bool) {
            epoch.evaluated.split = if test { EvaluationSplit::Test } else { EvaluationSplit::Validation };
            let text = csv(epoch.evaluated.split, std::slice::from_ref(&epoch)).unwrap();
            let lines: Vec<_> = text.lines().map(|line| line.split(',').collect::<Vec<_>>()).collect();
            let [columns, cells] = &lines[..] else { panic!("{text}") };
            prop_assert_eq!(columns.len(), cells.len());
            let cells = columns.iter().zip(cells).filter(|(_, cell)| !cell.is_empty());
            let object = cells.map(|(key, cell)| match *key {
                "weights_sha256" => format!("\"{key}\":\"{cell}\""),
                _ => format!("\"{key}\":{cell}"),
            });
            let object = object.collect::<Vec<_>>().join(",");
            prop_assert_eq!(format!("{{{object}}}\n"), line(&epoch).unwrap());
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("metrics.jsonl");
            fs::write(&path, &text).unwrap();
            let read = read(&path);
            prop_assert!(!text.contains('\n') || read.is_err());
        }
    }

    const LINE: &str = r#"{"epoch":1,"train_loss":1,"train_accuracy":0,"learning_rate":0,"seconds":1,"images_per_second":1"#;

    fn parse(rest: &str) -> Result<EpochMetrics, serde_json::Error> {
        serde_json::from_str(&format!("{LINE},{rest}}}"))
    }

    #[test]
    fn keys_name_the_split() {
        let metrics = |split| SplitMetrics {
            split,
            loss: 1.5,
            accuracy: 0.5,
            model_ema_loss: Some(1.25),
            model_ema_accuracy: Some(0.75),
            tta_accuracy: Some(0.625),
        };
        for split in [EvaluationSplit::Test, EvaluationSplit::Validation] {
            let new = format!(
                r#""{split}_loss":1.5,"{split}_accuracy":0.5,"model_ema_{split}_loss":1.25,"model_ema_{split}_accuracy":0.75,"tta_{split}_accuracy":0.625"#
            );
            let old = new
                .replace("model_ema", "average")
                .replace("tta", "mirrored");
            for text in [&new, &old] {
                let epoch = parse(text).unwrap();
                assert_eq!(epoch.evaluated, metrics(split));
                assert!(serde_json::to_string(&epoch).unwrap().contains(&new));
            }
        }
    }

    #[test]
    fn a_line_without_an_evaluation_is_refused() {
        let good = r#""test_loss":1,"test_accuracy":1"#;
        assert!(parse(good).is_ok());
        for (rest, expected) in [
            (r#""tta_test_accuracy":1"#, "neither `test_loss` nor"),
            (r#""test_loss":1"#, "`test_accuracy` is missing"),
            (
                r#""test_loss":1,"validation_accuracy":1"#,
                "`test_accuracy` is missing",
            ),
            (
                r#""test_loss":null,"test_accuracy":1"#,
                "`test_loss` is null, not a number",
            ),
            (
                &format!(r#"{good},"tta_test_accuracy":"x""#),
                r#"`tta_test_accuracy` is "x", not a number"#,
            ),
        ] {
            let message = parse(rest).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn what_a_crash_left_of_a_line_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let line = format!(r#"{LINE},"test_loss":1,"test_accuracy":0}}"#);
        for part in ["", "{", &line] {
            fs::write(&path, format!("{line}\n{part}")).unwrap();
            assert_eq!(read(&path).unwrap().len(), 1, "{part}");
        }
    }

    #[test]
    fn the_table_has_all_columns_from_its_first_line_on() {
        let epoch = parse(r#""test_loss":2.5,"test_accuracy":0.25"#).unwrap();
        assert_eq!(
            csv(EvaluationSplit::Test, &[epoch]).unwrap(),
            "epoch,train_loss,train_accuracy,test_loss,test_accuracy,model_ema_test_loss,model_ema_test_accuracy,\
             tta_test_accuracy,learning_rate,seconds,images_per_second,weights_sha256,stopped_early\n\
             1,1.0,0.0,2.5,0.25,,,,0.0,1.0,1.0,,\n"
        );
        assert!(
            csv(EvaluationSplit::Validation, &[])
                .unwrap()
                .starts_with("epoch,train_loss,train_accuracy,validation_loss,")
        );
    }

    #[test]
    fn a_gap_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let line = format!(r#"{LINE},"test_loss":1,"test_accuracy":0}}"#);
        fs::write(&path, format!("{line}\n{line}\n")).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(
            message.ends_with("line 2 has epoch 1; expected epoch 2"),
            "{message}"
        );
    }
}
