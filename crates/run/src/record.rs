//! `run.toml`: the settings of a run, and what made it.

use crate::error::Error;
use crate::file;
use crate::session::Session;
use crate::settings::{Overrides, Precision, Settings, Source};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;

/// The record of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// The settings.
    #[serde(flatten)]
    pub settings: Settings,
    /// What made the run.
    pub made_by: MadeBy,
}

/// What made a run: the program, the device and the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MadeBy {
    /// The version of the record's format: [`file::RECORD_VERSION`], or an earlier one.
    #[serde(default = "first_version")]
    pub record_version: u32,
    /// The program's version, at the latest start.
    pub version: String,
    /// The commit it was built from.
    pub commit: String,
    /// `cpu` or `cuda`.
    pub device: String,
    /// The model name of the GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// What was chosen for the device.
    #[serde(flatten)]
    pub choices: Choices,
    /// Number of parameters of the network.
    pub parameters: u64,
    /// Number of training images.
    pub train_images: u64,
    /// Number of images that the run is evaluated on.
    pub test_images: u64,
    /// SHA-256 of the data set.
    pub data_sha256: String,
    /// Pictures of a folder that could not be read, and were left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped_pictures: u64,
    /// The seed that chose the test images, where the folder of pictures has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_split_seed: Option<u64>,
    /// The processes that trained the run, in order. Earlier versions did not record them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sessions: Vec<Session>,
}

/// What a run chose for its device at its start. It keeps that when it is resumed, and a repetition of it takes it over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choices {
    /// The number format of products.
    pub precision: Precision,
    /// Images per batch of an evaluation, on a GPU. Earlier versions did not record them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation_batch: Option<NonZeroUsize>,
    /// The engine of cuDNN for each pass of a convolution, on a GPU.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cudnn_engines: BTreeMap<String, String>,
}

impl Choices {
    /// Those in the record that [`Overrides::read`] read from `path`; `None` in a settings file, and in a record that has no
    /// precision.
    ///
    /// # Errors
    /// When a value is damaged.
    pub fn of(path: &Path, record: &Overrides) -> Result<Option<Self>, Error> {
        let made_by = record.made_by.as_ref();
        let Some(made_by) = made_by.filter(|made_by| made_by.contains_key("precision")) else {
            return Ok(None);
        };
        let choices = made_by.clone().try_into().map_err(made_by_is_damaged(path));
        choices.map(Some)
    }
}

/// The error that the table `made_by` of a record is damaged.
fn made_by_is_damaged(path: &Path) -> impl Fn(toml::de::Error) -> Error {
    move |error| Error::damaged(path)(format!("[made_by]: {}", error.message()))
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The version of a record that has none.
fn first_version() -> u32 {
    1
}

impl Record {
    /// Reads the record of the run in `folder`. Settings that an earlier version did not have get their defaults.
    ///
    /// # Errors
    /// When there is none, it is damaged, or it is of a later version.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(file::RECORD);
        let mut overrides = match Overrides::read(&path) {
            Err(Error::File { reason, .. })
                if matches!(
                    reason.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(Error::NoRecord(folder.to_owned()));
            }
            overrides => overrides?,
        };
        let damaged = Error::damaged::<String>(&path);
        let made_by = overrides.made_by.take();
        let made_by = made_by
            .ok_or_else(|| damaged("it has no table `made_by`".to_owned()))?
            .try_into()
            .map_err(made_by_is_damaged(&path))?;
        let settings = Settings::resolve(&[(Source::File(path.clone()), overrides)])
            .map_err(|error| damaged(error.to_string()))?;
        Ok(Self { settings, made_by })
    }

    /// The record as TOML.
    ///
    /// # Errors
    /// When a number does not fit TOML.
    pub fn to_toml(&self) -> Result<String, Error> {
        Ok(toml::to_string(self)?)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::session;
    use proptest::prelude::*;
    use std::fs;

    /// A record with these settings, as TOML.
    pub(crate) fn record(settings: &str) -> Record {
        let overrides = toml::from_str(settings).unwrap();
        let machine = toml::from_str("model = \"alexnet\"\npatience = 5").unwrap();
        let layers = [
            (Source::Defaults, machine),
            (Source::CommandLine, overrides),
        ];
        Record {
            settings: Settings::resolve(&layers).unwrap(),
            made_by: MadeBy {
                record_version: file::RECORD_VERSION,
                version: "0.1.0".to_owned(),
                commit: "0".to_owned(),
                device: "cpu".to_owned(),
                gpu: None,
                choices: Choices {
                    precision: Precision::F32,
                    evaluation_batch: None,
                    cudnn_engines: BTreeMap::new(),
                },
                parameters: 58_292_074,
                train_images: 50_000,
                test_images: 10_000,
                data_sha256: "00".to_owned(),
                skipped_pictures: 3,
                test_split_seed: Some(0),
                sessions: session::resumed(
                    vec![Session::new(0, 0, session::tests::machine("linux"))],
                    Session::new(1, 7, session::tests::machine("windows")),
                ),
            },
        }
    }

    fn read(text: &str) -> Result<Record, Error> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(file::RECORD), text).unwrap();
        Record::read(folder.path())
    }

    proptest! {
        #[test]
        fn any_text_is_refused(text: String) {
            prop_assert!(read(&text).is_err());
        }
    }

    #[test]
    fn records_round_trip() {
        for settings in [
            "",
            "model = \"small-alexnet\"\nseed = 9223372036854775807\nvalidation = 50\nprecision = \"bf16\"\nlr = 0.1",
        ] {
            let record = record(settings);
            assert_eq!(read(&record.to_toml().unwrap()).unwrap(), record);
        }
    }

    #[test]
    fn settings_that_the_first_version_did_not_have_mean_what_it_did() {
        let written = record("").to_toml().unwrap();
        let later = ["nesterov", "clip_grad_norm", "label_smoothing", "cutout"];
        let earlier = written.lines().filter(|line| {
            let key = line.split(" =").next();
            key.is_none_or(|key| !later.contains(&key))
        });
        let earlier: Vec<_> = earlier.collect();
        assert_eq!(earlier.len() + later.len(), written.lines().count());
        let settings = read(&earlier.join("\n")).unwrap().settings;
        assert!(!settings.nesterov);
        assert_eq!(settings.clip_grad_norm.get(), 0.0);
        assert_eq!(settings.label_smoothing.get(), 0.0);
        assert_eq!(settings.cutout.get(), 0);
    }

    #[test]
    fn a_run_knows_what_it_chose_for_its_device() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file::RECORD);
        let choices = |text: &str| {
            fs::write(&path, text).unwrap();
            Choices::of(&path, &Overrides::read(&path).unwrap())
        };
        let mut record = record("");
        let on_cpu = record.to_toml().unwrap();
        assert!(!on_cpu.contains("evaluation_batch"), "{on_cpu}");
        assert_eq!(choices(&on_cpu).unwrap(), Some(record.made_by.choices));
        record.made_by.choices = Choices {
            precision: Precision::Bf16,
            evaluation_batch: NonZeroUsize::new(500),
            cudnn_engines: [("forward 500x32x32x8".to_owned(), "eng1_k2=3".to_owned())].into(),
        };
        let on_gpu = record.to_toml().unwrap();
        assert!(on_gpu.contains("precision = \"bf16\"\nevaluation_batch = 500\n"));
        assert_eq!(read(&on_gpu).unwrap(), record);
        assert_eq!(choices(&on_gpu).unwrap(), Some(record.made_by.choices));
        assert_eq!(choices("lr = 0.1").unwrap(), None);
        assert_eq!(choices("[made_by]\nrecord_version = 1").unwrap(), None);
        let error = choices(&on_gpu.replace("batch = 500\n", "batch = 0\n")).unwrap_err();
        assert!(
            error.to_string().contains("is damaged: [made_by]"),
            "{error}"
        );
    }

    #[test]
    fn bad_records_are_refused() {
        let good = record("").to_toml().unwrap();
        let message = |text: &str| read(text).unwrap_err().to_string();
        let cases = [
            (
                good.replace("record_version = 1", "record_version = 7\nnew = 1"),
                "has format version 7; this program reads versions up to 1",
            ),
            (
                good.replace("[made_by]", "[made]"),
                "(`[made]`): unknown key",
            ),
            (
                good.replace("parameters = 58292074", "parameters = \"many\""),
                "is damaged: [made_by]: invalid type: string \"many\"",
            ),
            (
                good.replace("model = \"alexnet\"\n", ""),
                "is damaged: the setting `model` is missing",
            ),
            (good.replace("seed = 0", "seed = -1"), "is invalid at line"),
            (
                good.split_once("[made_by]").unwrap().0.to_owned(),
                "is damaged: it has no table `made_by`",
            ),
        ];
        for (text, expected) in cases {
            assert!(message(&text).contains(expected), "{}", message(&text));
        }
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(
            Record::read(empty.path()),
            Err(Error::NoRecord(_))
        ));
    }
}
