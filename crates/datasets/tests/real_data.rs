//! This reader against candle's, on CIFAR-10 where it is available.

use candle_core::DType;
use datasets::DatasetInfo;
use datasets::cifar10::{self, FOLDER, TEST_FILE, TRAINING_FILES};
use std::env;
use std::fs;
use std::io::{Write, stderr};
use std::path::{Path, PathBuf};

/// The data folder; `None` where it has no CIFAR-10.
fn cifar10_dir() -> Option<PathBuf> {
    let data = env::var_os("CIFAR10_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data"),
        PathBuf::from,
    );
    if data.join(FOLDER).is_dir() {
        return Some(data);
    }
    // Written directly, since the test harness captures what is printed.
    let _ = writeln!(stderr(), "skipped: no CIFAR-10 in `{}`", data.display());
    None
}

#[test]
fn a_file_copied_over_another_is_named() {
    let Some(data) = cifar10_dir() else { return };
    let cifar10: DatasetInfo = "cifar10".parse().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let folder = copy.path().join(FOLDER);
    fs::create_dir(&folder).unwrap();
    for name in TRAINING_FILES {
        fs::copy(data.join(FOLDER).join(name), folder.join(name)).unwrap();
    }
    fs::copy(folder.join(TRAINING_FILES[0]), folder.join(TEST_FILE)).unwrap();
    let set = cifar10.load(copy.path(), cifar10.images).unwrap();
    let warning = set.warning().unwrap();
    assert!(
        warning.contains("the SHA-256 of test_batch.bin is not that of CIFAR-10"),
        "{warning}"
    );
}

#[test]
fn images_and_labels_match_candle() -> candle_core::Result<()> {
    let Some(data) = cifar10_dir() else {
        return Ok(());
    };
    let folder = data.join(FOLDER);
    let cifar10: DatasetInfo = "cifar10".parse().unwrap();
    let ours = cifar10.load(&data, cifar10.images).unwrap();
    assert_eq!(ours.warning(), None);
    let theirs = candle_datasets::vision::cifar::load_dir(&folder)?;
    assert_eq!(ours.class_names().len(), theirs.labels);
    for (ours, theirs, their_labels) in [
        (ours.training(), &theirs.train_images, &theirs.train_labels),
        (ours.test(), &theirs.test_images, &theirs.test_labels),
    ] {
        let labels = ours.with_slices(|labels, _| labels.to_vec())?;
        assert_eq!(labels, their_labels.to_dtype(DType::U32)?.to_vec1::<u32>()?);
        let ours = ours.images();
        assert_eq!(ours.dims(), theirs.dims());
        // Candle's pixels are divided by 255. In parts, since all of them in f32 take gigabytes.
        let count = ours.dim(0)?;
        for first in (0..count).step_by(5_000) {
            let ours = ours.narrow(0, first, 5_000)?;
            let theirs = (theirs.narrow(0, first, 5_000)? * 255.0)?
                .round()?
                .to_dtype(DType::U8)?;
            let different = ours.ne(&theirs)?.to_dtype(DType::F32)?.sum_all()?;
            assert_eq!(different.to_scalar::<f32>()?, 0.0);
        }
    }
    Ok(())
}

#[test]
fn both_versions_have_the_same_images() {
    let Some(data) = cifar10_dir() else { return };
    if !data.join(cifar10::PYTHON.folder).is_dir() {
        let _ = writeln!(
            stderr(),
            "skipped: no Python version in `{}`",
            data.display()
        );
        return;
    }
    let cifar10: DatasetInfo = "cifar10".parse().unwrap();
    let binary = cifar10.load(&data, cifar10.images).unwrap();
    // A folder with the Python version alone.
    let copy = tempfile::tempdir().unwrap();
    let folder = copy.path().join(cifar10::PYTHON.folder);
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(data.join(cifar10::PYTHON.folder)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let python = cifar10.load(copy.path(), cifar10.images).unwrap();
    assert_eq!((python.warning(), python.notes()), (None, &[][..]));
    assert_eq!(python.digest().unwrap(), binary.digest().unwrap());
}
