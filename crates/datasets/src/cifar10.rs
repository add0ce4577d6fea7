//! CIFAR-10: six files of 10,000 images. The [official archives](https://www.cs.toronto.edu/~kriz/cifar.html) are a binary
//! version, which `cargo xtask fetch-data` fetches, and one for Python, which torchvision fetches.

#[cfg(feature = "tensors")]
use crate::cifar;
use crate::cifar::{Archive, Format, ImageFile};
use crate::cifar100;
#[cfg(feature = "tensors")]
use crate::dataset::Dataset;
use crate::error::Error;
use crate::info::{DatasetInfo, Images};
use crate::records::IMAGE_BYTES;
use run::cli::quoted;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// What is known of CIFAR-10 without its images.
pub const INFO: DatasetInfo = DatasetInfo {
    name: "cifar10",
    display_name: "CIFAR-10",
    class_names: CLASS_NAMES,
    images: Images {
        training: TRAINING_FILES.len() * RECORDS,
        test: RECORDS,
    },
    channels: None,
    max_generated: None,
    remedy,
    #[cfg(feature = "tensors")]
    load,
};

const CLASS_NAMES: &[&str] = &[
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

/// The folder that the official archive of the binary version unpacks to.
pub const FOLDER: &str = "cifar-10-batches-bin";

/// The files of the training set in the binary version, in order.
pub const TRAINING_FILES: [&str; 5] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
];

/// The file of the test set in the binary version.
pub const TEST_FILE: &str = "test_batch.bin";

/// Bytes per record of the binary version: the label and the image.
pub const RECORD_BYTES: usize = 1 + IMAGE_BYTES;

/// Images per file.
pub const RECORDS: usize = 10_000;

/// Bytes per file of the binary version.
pub const FILE_BYTES: usize = RECORDS * RECORD_BYTES;

const fn image_file(name: &'static str, checksum: &'static str) -> ImageFile {
    ImageFile {
        name,
        images: RECORDS,
        checksum: Some(checksum),
    }
}

/// The binary version.
pub const BINARY: Archive = Archive {
    file_name: "cifar-10-binary.tar.gz",
    sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    bytes: 170_052_171,
    folder: FOLDER,
    files: &[
        image_file(
            TRAINING_FILES[0],
            "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        ),
        image_file(
            TRAINING_FILES[1],
            "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        ),
        image_file(
            TRAINING_FILES[2],
            "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        ),
        image_file(
            TRAINING_FILES[3],
            "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        ),
        image_file(
            TRAINING_FILES[4],
            "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        ),
        image_file(
            TEST_FILE,
            "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        ),
    ],
    names: None,
    format: Format::Binary {
        labels: &[CLASS_NAMES.len()],
    },
    class_names: CLASS_NAMES,
};

/// The version for Python.
pub const PYTHON: Archive = Archive {
    file_name: "cifar-10-python.tar.gz",
    // That of `keras/datasets/cifar10.py`.
    sha256: "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    bytes: 170_498_071,
    folder: "cifar-10-batches-py",
    // The checksums of `torchvision/datasets/cifar.py`.
    files: &[
        image_file("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        image_file("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        image_file("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        image_file("data_batch_4", "634d18415352ddfa80567beed471001a"),
        image_file("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        image_file("test_batch", "40351d587109b95175f43aff81a1287e"),
    ],
    names: Some("batches.meta"),
    format: Format::Python {
        labels: "labels",
        names: "label_names",
    },
    class_names: CLASS_NAMES,
};

/// Folders of other archives, which people take for the binary version, and what is in them.
const OTHER_ARCHIVES: [(&str, &str); 4] = [
    (PYTHON.folder, "the Python version of CIFAR-10"),
    ("cifar-10-batches-mat", "the MATLAB version of CIFAR-10"),
    (cifar100::BINARY.folder, "CIFAR-100"),
    (cifar100::PYTHON.folder, "CIFAR-100"),
];

/// What is in a folder with the name of another archive's; `None` for other names.
#[must_use]
pub fn other_archive(folder: &OsStr) -> Option<&'static str> {
    let mut known = OTHER_ARCHIVES.iter();
    let (_, content) = known.find(|(name, _)| *name == folder)?;
    Some(content)
}

/// The folder of the binary version in `data_dir`.
///
/// # Errors
/// When it is missing or is not a folder.
pub fn folder(data_dir: &Path) -> Result<PathBuf, Error> {
    BINARY.folder(data_dir).map_err(or_other_archive(data_dir))
}

/// Instead of an error for a missing folder, the one that names another archive unpacked in `data_dir`, if there is one.
fn or_other_archive(data_dir: &Path) -> impl FnOnce(Error) -> Error {
    move |error| match error {
        Error::MissingFolder(_) => {
            let mut folders = OTHER_ARCHIVES.iter();
            let other = folders.find(|(name, _)| data_dir.join(name).is_dir());
            other.map_or(error, |(name, content)| Error::OtherArchive {
                path: data_dir.join(name),
                content,
            })
        }
        error => error,
    }
}

/// Checks that all six files of the binary version are in `folder`, with the correct sizes and labels. Returns their names
/// and their SHA-256, in hexadecimal.
///
/// # Errors
/// For the first bad file.
pub fn digests(folder: &Path) -> Result<Vec<(&'static str, String)>, Error> {
    BINARY.checksums(folder)
}

/// Whether this is the SHA-256, in hexadecimal, of the file of this name in the official archive of the binary version.
#[must_use]
pub fn is_official(name: &str, sha256: &str) -> bool {
    BINARY.is_official(name, sha256)
}

/// Reads the images of `data_dir`: all of them, or the test images alone where no training images are wanted.
#[cfg(feature = "tensors")]
fn load(data_dir: &Path, wanted: Images) -> Result<Dataset, Error> {
    let remedy = format!(
        "`cargo xtask fetch-data{}` fetches the official files",
        data_dir_flag(data_dir)
    );
    cifar::load(&INFO, &[&BINARY, &PYTHON], data_dir, wanted, &remedy)
        .map_err(or_other_archive(data_dir))
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
    use std::fs;

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
        link(&dir.path().join(TRAINING_FILES[0]));
        named(digests(dir.path()).unwrap_err());
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
        let error = load(dir.path(), INFO.images).err().unwrap().to_string();
        assert!(error.contains("data_batch_1.bin` is missing"), "{error}");
    }
}
