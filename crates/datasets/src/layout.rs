//! The official binary version of CIFAR-10: six files of 10,000 records, each one label byte and
//! 3,072 pixel bytes (1,024 red, 1,024 green, 1,024 blue, row-major).
//! Source: <https://www.cs.toronto.edu/~kriz/cifar.html>.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

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

/// Bytes of an image.
pub const IMAGE_BYTES: usize = 3 * 32 * 32;

/// Bytes of a record: the label and the image.
pub const RECORD_BYTES: usize = 1 + IMAGE_BYTES;

/// Records of a file.
pub const RECORDS: usize = 10_000;

/// Bytes of a file.
pub const FILE_BYTES: usize = RECORDS * RECORD_BYTES;

/// The classes by label.
pub const CLASS_NAMES: [&str; 10] = [
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
];

/// What can be wrong with a folder of CIFAR-10.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder does not exist.
    #[error("there is no folder `{}`", .0.display())]
    MissingFolder(PathBuf),
    /// The path leads to something else than a folder.
    #[error("`{}` is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// A file of the set does not exist.
    #[error("the file `{}` is missing", .0.display())]
    MissingFile(PathBuf),
    /// A file has another size than the layout's.
    #[error("`{}` has {found} bytes, but a CIFAR-10 file has {FILE_BYTES}", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
    },
    /// A record's label is none of the ten.
    #[error("`{}` has the label {label} at image {record}, but labels go from 0 to 9", path.display())]
    Label {
        /// The file.
        path: PathBuf,
        /// The record's number in the file.
        record: usize,
        /// The label found.
        label: u8,
    },
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The tensors of a data set cannot be made, or are not images and labels.
    #[cfg(feature = "tensors")]
    #[error("cannot hold the images: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// Labels and pixels of one file, checked.
pub struct Records {
    /// [`RECORDS`] labels, 0 to 9.
    pub labels: Vec<u8>,
    /// [`RECORDS`] images of [`IMAGE_BYTES`].
    pub pixels: Vec<u8>,
}

/// Reads one file of the set and checks its size and labels.
///
/// # Errors
/// When it is missing, is not of the layout's size, or holds a label above 9.
pub fn read_file(path: &Path) -> Result<Records, Error> {
    let read_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::MissingFile(path.to_owned()),
        _ => Error::Read {
            path: path.to_owned(),
            source,
        },
    };
    let file = File::open(path).map_err(read_error)?;
    let found = file.metadata().map_err(read_error)?.len();
    let size_error = |found| Error::Size {
        path: path.to_owned(),
        found,
    };
    if found != FILE_BYTES as u64 {
        return Err(size_error(found));
    }
    // One byte more than expected, so that a file that grew meanwhile is noticed.
    let mut bytes = Vec::with_capacity(FILE_BYTES + 1);
    file.take(FILE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    if bytes.len() != FILE_BYTES {
        return Err(size_error(bytes.len() as u64));
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

/// Splits whole records into labels and pixels.
fn parse(bytes: &[u8]) -> Result<Records, BadLabel> {
    let count = bytes.len() / RECORD_BYTES;
    let mut labels = Vec::with_capacity(count);
    let mut pixels = Vec::with_capacity(count * IMAGE_BYTES);
    for (record, bytes) in bytes.chunks_exact(RECORD_BYTES).enumerate() {
        let label = bytes[0];
        if usize::from(label) >= CLASS_NAMES.len() {
            return Err(BadLabel { record, label });
        }
        labels.push(label);
        pixels.extend_from_slice(&bytes[1..]);
    }
    Ok(Records { labels, pixels })
}

/// The folder of the set inside `data_dir`, which must be there.
///
/// # Errors
/// When it is missing or is not a folder.
pub fn folder(data_dir: &Path) -> Result<PathBuf, Error> {
    let folder = data_dir.join(FOLDER);
    for path in [data_dir, &folder] {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(Error::NotAFolder(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::MissingFolder(folder.clone()));
            }
            Err(source) => {
                return Err(Error::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
    Ok(folder)
}

/// Checks the structure of all six files in `folder`: presence, sizes, labels.
///
/// # Errors
/// As for [`read_file`], at the first file that is not right.
pub fn check(folder: &Path) -> Result<(), Error> {
    for name in TRAINING_FILES.iter().chain([&TEST_FILE]) {
        read_file(&folder.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_are_split_or_the_first_bad_label_is_named(
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
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..3 * RECORD_BYTES)) {
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
    fn a_bad_file_is_named_with_what_is_wrong() {
        let good = vec![0; FILE_BYTES];
        assert_eq!(message(Some(&good)), "10000 images");
        assert_eq!(message(None), "the file `DIR/data_batch_1.bin` is missing");
        for length in [0, 1, FILE_BYTES - 1] {
            assert_eq!(
                message(Some(&good[..length])),
                format!(
                    "`DIR/data_batch_1.bin` has {length} bytes, but a CIFAR-10 file has 30730000"
                )
            );
        }
        assert_eq!(
            message(Some(&vec![0; FILE_BYTES + 1])),
            "`DIR/data_batch_1.bin` has 30730001 bytes, but a CIFAR-10 file has 30730000"
        );
        let mut bad = good;
        bad[7 * RECORD_BYTES] = 10;
        assert_eq!(
            message(Some(&bad)),
            "`DIR/data_batch_1.bin` has the label 10 at image 7, but labels go from 0 to 9"
        );
    }

    #[test]
    fn a_file_is_no_data_folder() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(folder(&file), Err(Error::NotAFolder(path)) if path == file));
        assert!(matches!(folder(dir.path()), Err(Error::MissingFolder(_))));
        fs::write(dir.path().join(FOLDER), "").unwrap();
        assert!(matches!(folder(dir.path()), Err(Error::NotAFolder(_))));
    }
}
