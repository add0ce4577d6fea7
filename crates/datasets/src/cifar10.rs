//! CIFAR-10 in the official binary version: six files of 10,000 records, each of one label byte and
//! 3,072 pixel bytes (1,024 red, 1,024 green, 1,024 blue, row-major).
//! Source: <https://www.cs.toronto.edu/~kriz/cifar.html>.

#[cfg(feature = "tensors")]
use crate::dataset::Dataset;
use crate::error::Error;
use crate::info::{DatasetInfo, Images};
use crate::records::{IMAGE_BYTES, Records, hexadecimal};
use run::cli::quoted;
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// What is known of CIFAR-10 without its images.
pub const INFO: DatasetInfo = DatasetInfo {
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
    load,
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

/// SHA-256 of the files of the official archive, in hexadecimal.
const SHA256: [(&str, &str); 6] = [
    (
        TRAINING_FILES[0],
        "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    ),
    (
        TRAINING_FILES[1],
        "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    ),
    (
        TRAINING_FILES[2],
        "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    ),
    (
        TRAINING_FILES[3],
        "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    ),
    (
        TRAINING_FILES[4],
        "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    ),
    (
        TEST_FILE,
        "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    ),
];

/// Folders of other archives, which people take for this one, and what is in them.
const OTHER_ARCHIVES: [(&str, &str); 4] = [
    ("cifar-10-batches-py", "the Python version of CIFAR-10"),
    ("cifar-10-batches-mat", "the MATLAB version of CIFAR-10"),
    ("cifar-100-binary", "CIFAR-100"),
    ("cifar-100-python", "CIFAR-100"),
];

/// What is in a folder with the name of another archive's; `None` for other names.
#[must_use]
pub fn other_archive(folder: &OsStr) -> Option<&'static str> {
    let mut known = OTHER_ARCHIVES.iter();
    let (_, content) = known.find(|(name, _)| *name == folder)?;
    Some(content)
}

/// Bytes per record: the label and the image.
pub const RECORD_BYTES: usize = 1 + IMAGE_BYTES;

/// Records per file.
pub const RECORDS: usize = 10_000;

/// Bytes per file.
pub const FILE_BYTES: usize = RECORDS * RECORD_BYTES;

/// A file of the data set, with the right size and labels.
struct CheckedFile {
    records: Records,
    sha256: String,
}

impl CheckedFile {
    fn read(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Error::dangling_link(path).unwrap_or_else(|| Error::MissingFile(path.to_owned()))
            }
            _ => Error::read(path)(error),
        })?;
        // One byte more than expected, to notice a longer file.
        let mut bytes = Vec::with_capacity(FILE_BYTES + 1);
        let mut first = (&file).take(FILE_BYTES as u64 + 1);
        first.read_to_end(&mut bytes).map_err(Error::read(path))?;
        if bytes.len() != FILE_BYTES {
            return Err(Error::Size {
                path: path.to_owned(),
                found: file.metadata().map_err(Error::read(path))?.len(),
                expected: FILE_BYTES,
            });
        }
        let records = parse(&bytes).map_err(|BadLabel { record, label }| Error::Label {
            path: path.to_owned(),
            record,
            label,
        })?;
        let sha256 = hexadecimal(&Sha256::digest(&bytes));
        Ok(Self { records, sha256 })
    }
}

/// Reads one file of the data set and checks its size and labels.
///
/// # Errors
/// When it is missing, has the wrong size, or contains a label above 9.
pub fn read_file(path: &Path) -> Result<Records, Error> {
    Ok(CheckedFile::read(path)?.records)
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
    let mut records = Records::with_capacity(count);
    for (record, bytes) in bytes.chunks_exact(RECORD_BYTES).enumerate() {
        let label = bytes[0];
        if usize::from(label) >= INFO.class_names.len() {
            return Err(BadLabel { record, label });
        }
        records.labels.push(label.into());
        records.pixels.extend_from_slice(&bytes[1..]);
    }
    Ok(records)
}

/// The folder of the data set in `data_dir`.
///
/// # Errors
/// When it is missing or is not a folder.
pub fn folder(data_dir: &Path) -> Result<PathBuf, Error> {
    let folder = data_dir.join(FOLDER);
    for path in [data_dir, &folder] {
        let metadata = fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::dangling_link(path)
                .or_else(|| other_archive_in(data_dir))
                .unwrap_or_else(|| Error::MissingFolder(folder.clone())),
            _ => Error::read(path)(error),
        })?;
        if !metadata.is_dir() {
            return Err(Error::NotAFolder(path.to_owned()));
        }
    }
    Ok(folder)
}

/// The error that names another archive unpacked in `data_dir`, if there is one.
fn other_archive_in(data_dir: &Path) -> Option<Error> {
    let mut folders = OTHER_ARCHIVES.iter();
    let (name, content) = folders.find(|(name, _)| data_dir.join(name).is_dir())?;
    Some(Error::OtherArchive {
        path: data_dir.join(name),
        content,
    })
}

/// Checks that all six files are in `folder`, with the right sizes and labels. Returns their names and their SHA-256, in
/// hexadecimal.
///
/// # Errors
/// As for [`read_file`], for the first bad file.
pub fn digests(folder: &Path) -> Result<Vec<(&'static str, String)>, Error> {
    let names = SHA256.iter().map(|(name, _)| *name);
    names
        .map(|name| Ok((name, CheckedFile::read(&folder.join(name))?.sha256)))
        .collect()
}

/// Whether this is the SHA-256, in hexadecimal, of the file of this name in the official archive.
#[must_use]
pub fn is_official(name: &str, sha256: &str) -> bool {
    SHA256.contains(&(name, sha256))
}

/// Reads the images of `data_dir`: all of them, or the test images alone where no training images are wanted.
///
/// # Errors
/// As for [`read_file`].
#[cfg(feature = "tensors")]
fn load(data_dir: &Path, wanted: Images) -> Result<Dataset, Error> {
    use rayon::prelude::*;
    let folder = folder(data_dir)?;
    let names = match wanted.training {
        0 => &SHA256[TRAINING_FILES.len()..],
        _ => &SHA256[..],
    };
    // In parallel: the SHA-256 of 184 MB takes most of the time.
    let files: Vec<_> = names
        .par_iter()
        .map(|(name, _)| CheckedFile::read(&folder.join(name)))
        .collect();
    let mut foreign = Vec::new();
    let mut training = Records::with_capacity(RECORDS * (names.len() - 1));
    let mut test = Records::with_capacity(RECORDS);
    for ((name, _), file) in names.iter().zip(files) {
        let mut file = file?;
        if !is_official(name, &file.sha256) {
            foreign.push(*name);
        }
        let split = if *name == TEST_FILE {
            &mut test
        } else {
            &mut training
        };
        split.labels.append(&mut file.records.labels);
        split.pixels.append(&mut file.records.pixels);
    }
    let mut dataset = Dataset::new(training, test, INFO.class_names.iter().copied())?;
    dataset.warning = (!foreign.is_empty()).then(|| {
        format!(
            "in `{}`, the SHA-256 of {} is not that of CIFAR-10; `cargo xtask fetch-data{}` fetches the official files",
            folder.display(),
            foreign.join(", "),
            data_dir_flag(data_dir)
        )
    });
    Ok(dataset)
}

/// Where the files should be, and how to get them.
fn remedy(data_dir: &Path) -> String {
    format!(
        "no usable CIFAR-10 in `{}`; fetch it with `cargo xtask fetch-data{}`, or use --dataset synthetic",
        data_dir.join(FOLDER).display(),
        data_dir_flag(data_dir)
    )
}

/// The flag of `cargo xtask fetch-data` for this data folder.
fn data_dir_flag(data_dir: &Path) -> String {
    if data_dir == Path::new("data") {
        String::new()
    } else {
        format!(" --data-dir {}", quoted(data_dir))
    }
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
            let first_wrong = labels.iter().position(|label| *label > 9);
            let labels: Vec<_> = labels.into_iter().map(u32::from).collect();
            match (parse(&bytes), first_wrong) {
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
                .replace(&dir.path().display().to_string(), "DIR")
                .replace('\\', "/"),
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

    #[test]
    fn other_archives_are_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("cifar-10-batches-py")).unwrap();
        let error = folder(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("cifar-10-batches-py` is the Python version of CIFAR-10"),
            "{error}"
        );
        fs::create_dir(dir.path().join(FOLDER)).unwrap();
        folder(dir.path()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_nowhere_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let link = |path: &Path| std::os::unix::fs::symlink("/nonexistent", path).unwrap();
        let name = dir.path().join(FOLDER);
        link(&name);
        let named = |error: Error| {
            let error = error.to_string();
            assert!(
                error.contains("is a link to `/nonexistent`, which does not exist"),
                "{error}"
            );
        };
        named(folder(dir.path()).unwrap_err());
        named(folder(&name).unwrap_err());
        let file = dir.path().join(TEST_FILE);
        link(&file);
        named(read_file(&file).err().unwrap());
    }

    #[cfg(feature = "tensors")]
    #[test]
    fn test_images_are_read_alone_and_other_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let set = dir.path().join(FOLDER);
        fs::create_dir(&set).unwrap();
        fs::write(set.join(TEST_FILE), vec![0; FILE_BYTES]).unwrap();
        let test_only = Images {
            training: 0,
            test: 1,
        };
        let dataset = load(dir.path(), test_only).unwrap();
        assert_eq!(
            (dataset.training().len(), dataset.test().len()),
            (0, 10_000)
        );
        let warning = dataset.warning().unwrap();
        assert!(
            warning.contains("the SHA-256 of test_batch.bin is not that of CIFAR-10"),
            "{warning}"
        );
        // The first missing file, although all are read at once.
        let error = load(dir.path(), INFO.images).err().unwrap().to_string();
        assert!(error.contains("data_batch_1.bin` is missing"), "{error}");
    }
}
