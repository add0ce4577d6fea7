//! CIFAR-10 in the official binary version: six files of 10,000 records, each of one label byte and
//! 3,072 pixel bytes (1,024 red, 1,024 green, 1,024 blue, row-major).
//! Source: <https://www.cs.toronto.edu/~kriz/cifar.html>.

#[cfg(feature = "tensors")]
use crate::dataset::Dataset;
use crate::error::Error;
use crate::info::{DatasetInfo, Images};
use crate::records::{CLASSES, IMAGE_BYTES, Records};
use run::cli::quoted;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub(crate) const INFO: DatasetInfo = DatasetInfo {
    name: "cifar10",
    display_name: "CIFAR-10",
    class_names: &[
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ],
    images: Images {
        training: TRAINING_FILES.len() * RECORDS,
        test: RECORDS,
    },
    max_generated: None,
    remedy,
    #[cfg(feature = "tensors")]
    load: |data_dir, _| load(data_dir),
};

/// The folder that the official archive unpacks to.
pub const FOLDER: &str = "cifar-10-batches-bin";

/// The files of the training set, in order.
pub const TRAINING_FILES: [&str; 5] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
];

/// The file of the test set.
pub const TEST_FILE: &str = "test_batch.bin";

/// Bytes per record: the label and the image.
pub const RECORD_BYTES: usize = 1 + IMAGE_BYTES;

/// Records per file.
pub const RECORDS: usize = 10_000;

/// Bytes per file.
pub const FILE_BYTES: usize = RECORDS * RECORD_BYTES;

/// Reads one file of the data set and checks its size and labels.
///
/// # Errors
/// When it is missing, has the wrong size, or contains a label above 9.
pub fn read_file(path: &Path) -> Result<Records, Error> {
    let read_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::MissingFile(path.to_owned()),
        _ => Error::read(path)(source),
    };
    let file = File::open(path).map_err(read_error)?;
    // One byte more than expected, to notice a longer file.
    let mut bytes = Vec::with_capacity(FILE_BYTES + 1);
    let mut first = (&file).take(FILE_BYTES as u64 + 1);
    first.read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() != FILE_BYTES {
        return Err(Error::Size {
            path: path.to_owned(),
            found: file.metadata().map_err(read_error)?.len(),
            expected: FILE_BYTES,
        });
    }
    parse(&bytes).map_err(|BadLabel { record, label }| Error::Label {
        path: path.to_owned(),
        record,
        label,
    })
}

/// A label above 9.
#[derive(Debug, PartialEq, Eq)]
struct BadLabel {
    record: usize,
    label: u8,
}

/// Splits records into labels and pixels. A last, incomplete record is ignored.
fn parse(bytes: &[u8]) -> Result<Records, BadLabel> {
    let count = bytes.len() / RECORD_BYTES;
    let mut labels = Vec::with_capacity(count);
    let mut pixels = Vec::with_capacity(count * IMAGE_BYTES);
    for (record, bytes) in bytes.chunks_exact(RECORD_BYTES).enumerate() {
        let label = bytes[0];
        if usize::from(label) >= CLASSES {
            return Err(BadLabel { record, label });
        }
        labels.push(label);
        pixels.extend_from_slice(&bytes[1..]);
    }
    Ok(Records { labels, pixels })
}

/// The folder of the data set in `data_dir`.
///
/// # Errors
/// When it is missing or is not a folder.
pub fn folder(data_dir: &Path) -> Result<PathBuf, Error> {
    let folder = data_dir.join(FOLDER);
    for path in [data_dir, &folder] {
        let metadata = fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::MissingFolder(folder.clone()),
            _ => Error::read(path)(error),
        })?;
        if !metadata.is_dir() {
            return Err(Error::NotAFolder(path.to_owned()));
        }
    }
    Ok(folder)
}

/// Checks that all six files are in `folder`, with the right sizes and labels.
///
/// # Errors
/// As for [`read_file`], for the first bad file.
pub fn check(folder: &Path) -> Result<(), Error> {
    for name in TRAINING_FILES.iter().chain([&TEST_FILE]) {
        read_file(&folder.join(name))?;
    }
    Ok(())
}

/// Reads all images of `data_dir`.
///
/// # Errors
/// As for [`read_file`].
#[cfg(feature = "tensors")]
fn load(data_dir: &Path) -> Result<Dataset, Error> {
    let folder = folder(data_dir)?;
    let mut training = Records {
        labels: Vec::with_capacity(INFO.images.training),
        pixels: Vec::with_capacity(INFO.images.training * IMAGE_BYTES),
    };
    for name in TRAINING_FILES {
        let mut records = read_file(&folder.join(name))?;
        training.labels.append(&mut records.labels);
        training.pixels.append(&mut records.pixels);
    }
    let test = read_file(&folder.join(TEST_FILE))?;
    Dataset::new(training, test, *INFO.class_names)
}

/// Where the files should be, and how to get them.
fn remedy(data_dir: &Path) -> String {
    let flag = if data_dir == Path::new("data") {
        String::new()
    } else {
        format!(" --data-dir {}", quoted(data_dir))
    };
    format!(
        "no usable CIFAR-10 in `{}`; fetch it with `cargo xtask fetch-data{flag}`, or use --dataset synthetic",
        data_dir.join(FOLDER).display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_are_split_or_the_first_bad_label_is_reported(
            labels in prop::collection::vec(0_u8..=10, 0..6), fill: u8
        ) {
            let mut bytes = Vec::new();
            for label in &labels {
                bytes.push(*label);
                bytes.extend([fill; IMAGE_BYTES]);
            }
            match (parse(&bytes), labels.iter().position(|label| *label > 9)) {
                (Ok(records), None) => {
                    prop_assert_eq!(&records.labels, &labels);
                    prop_assert_eq!(records.pixels, vec![fill; labels.len() * IMAGE_BYTES]);
                }
                (Err(bad), Some(record)) => prop_assert_eq!(bad, BadLabel { record, label: 10 }),
                (result, bad) => prop_assert!(false, "{} {bad:?}", result.is_ok()),
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..3 * RECORD_BYTES)) {
            if let Ok(records) = parse(&bytes) {
                prop_assert_eq!(records.pixels.len(), records.labels.len() * IMAGE_BYTES);
                prop_assert!(records.labels.iter().all(|label| *label < 10));
            }
        }
    }

    fn message(bytes: Option<&[u8]>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data_batch_1.bin");
        if let Some(bytes) = bytes {
            fs::write(&path, bytes).unwrap();
        }
        match read_file(&path) {
            Ok(records) => format!("{} images", records.labels.len()),
            Err(error) => error
                .to_string()
                .replace(&dir.path().display().to_string(), "DIR"),
        }
    }

    #[test]
    fn errors_name_the_file_and_the_fault() {
        let good = vec![0; FILE_BYTES];
        assert_eq!(message(Some(&good)), "10000 images");
        assert_eq!(message(None), "the file `DIR/data_batch_1.bin` is missing");
        for length in [0, 1, FILE_BYTES - 1] {
            assert_eq!(
                message(Some(&good[..length])),
                format!("`DIR/data_batch_1.bin` has {length} bytes, but should have 30730000")
            );
        }
        assert_eq!(
            message(Some(&vec![0; FILE_BYTES + 1])),
            "`DIR/data_batch_1.bin` has 30730001 bytes, but should have 30730000"
        );
        let mut bad = good;
        bad[7 * RECORD_BYTES] = 10;
        assert_eq!(
            message(Some(&bad)),
            "`DIR/data_batch_1.bin` has the label 10 at image 7, but labels go from 0 to 9"
        );
    }

    #[test]
    fn a_file_is_not_accepted_as_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(folder(&file), Err(Error::NotAFolder(path)) if path == file));
        assert!(matches!(folder(dir.path()), Err(Error::MissingFolder(_))));
        fs::write(dir.path().join(FOLDER), "").unwrap();
        assert!(matches!(folder(dir.path()), Err(Error::NotAFolder(_))));
    }
}
