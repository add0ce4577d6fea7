//! This reader against candle's, on CIFAR-10 where it is available.

use candle_core::DType;
use datasets::DatasetInfo;
use std::env;
use std::io::{Write, stderr};
use std::path::{Path, PathBuf};

#[test]
fn images_and_labels_match_candle() -> candle_core::Result<()> {
    let data = env::var_os("CIFAR10_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data"),
        PathBuf::from,
    );
    let folder = data.join(datasets::cifar10::FOLDER);
    if !folder.is_dir() {
        // Written directly, since the test harness captures what is printed.
        let _ = writeln!(stderr(), "skipped: no CIFAR-10 in `{}`", data.display());
        return Ok(());
    }
    let cifar10: DatasetInfo = "cifar10".parse().unwrap();
    let ours = cifar10.load(&data, cifar10.images).unwrap();
    let theirs = candle_datasets::vision::cifar::load_dir(&folder)?;
    let ours = ours.tensors();
    assert_eq!(ours.labels, theirs.labels);
    for (ours, theirs, labels, their_labels) in [
        (
            &ours.train_images,
            &theirs.train_images,
            &ours.train_labels,
            &theirs.train_labels,
        ),
        (
            &ours.test_images,
            &theirs.test_images,
            &ours.test_labels,
            &theirs.test_labels,
        ),
    ] {
        assert_eq!(ours.dims(), theirs.dims());
        assert_eq!(labels.to_vec1::<u8>()?, their_labels.to_vec1::<u8>()?);
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
