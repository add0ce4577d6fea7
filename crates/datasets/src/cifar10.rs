//! CIFAR-10: six files of 10,000 images. The [official archives](https://www.cs.toronto.edu/~kriz/cifar.html) are a binary
//! version, which `cargo xtask fetch-data` fetches, and one for Python, which torchvision fetches.

#[cfg(feature = "tensors")]
use crate::cifar;
use crate::cifar::{Archive, Format, ImageFile};
use crate::info::{DatasetInfo, Images};
use run::predictions::IMAGE_BYTES;

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
    archives: &[&BINARY, &PYTHON],
    #[cfg(feature = "tensors")]
    load: cifar::load,
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
        checksum,
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
    names: "batches.meta.txt",
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
    names: "batches.meta",
    format: Format::Python {
        labels: "labels",
        names: "label_names",
    },
    class_names: CLASS_NAMES,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use std::fs;

    #[test]
    fn a_file_is_not_accepted_as_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(BINARY.folder(&file), Err(Error::NotAFolder(path)) if path == file));
        assert!(matches!(
            BINARY.folder(dir.path()),
            Err(Error::MissingFolder(_))
        ));
        fs::write(dir.path().join(FOLDER), "").unwrap();
        assert!(matches!(
            BINARY.folder(dir.path()),
            Err(Error::NotAFolder(_))
        ));
    }

    #[test]
    fn files_are_found_before_they_are_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            INFO.check(dir.path()),
            Err(Error::MissingFolder(_))
        ));
        fs::create_dir(dir.path().join(PYTHON.folder)).unwrap();
        INFO.check(dir.path()).unwrap();
        assert!(
            INFO.remedy("data".as_ref())
                .contains("`cargo xtask fetch-data`")
        );
        let other = crate::cifar100::INFO.remedy("my data".as_ref());
        let command = "`cargo xtask fetch-data --dataset cifar100 --data-dir 'my data'`";
        assert!(cfg!(windows) || other.contains(command), "{other}");
    }

    #[test]
    fn what_is_not_a_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(TRAINING_FILES[0])).unwrap();
        let error = BINARY.checksums(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("it is not a file"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_nowhere_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let link =
            |path: &std::path::Path| std::os::unix::fs::symlink("/nonexistent", path).unwrap();
        let name = dir.path().join(FOLDER);
        link(&name);
        let named = |error: Error| {
            let error = error.to_string();
            assert!(
                error.contains("is a link to `/nonexistent`, which does not exist"),
                "{error}"
            );
        };
        named(BINARY.folder(dir.path()).unwrap_err());
        named(BINARY.folder(&name).unwrap_err());
        link(&dir.path().join(TRAINING_FILES[0]));
        named(BINARY.checksums(dir.path()).unwrap_err());
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
        let dataset = INFO.load(dir.path(), test_only).unwrap();
        assert_eq!(
            (dataset.training().len(), dataset.test().len()),
            (0, 10_000)
        );
        let warning = dataset.warning().unwrap();
        assert!(
            warning.contains("the SHA-256 of test_batch.bin is not that of CIFAR-10"),
            "{warning}"
        );
        let error = INFO
            .load(dir.path(), INFO.images)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("data_batch_1.bin` is missing"), "{error}");
    }
}
