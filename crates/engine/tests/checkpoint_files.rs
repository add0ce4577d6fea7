//! Files that are not checkpoints are refused with an error, whatever their bytes.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use engine::{Error, Unusable, Weights};
use models::Architecture;
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use tempfile::TempDir;

fn lenet() -> Architecture {
    "lenet".parse().unwrap()
}

/// A file of plain weights in half precision: small, and read as `f32`.
static WEIGHTS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let tensors: Vec<_> = lenet()
        .parameters()
        .into_iter()
        .map(|parameter| {
            let zeros = vec![0; 2 * parameter.shape.iter().product::<usize>()];
            (parameter.name, parameter.shape, zeros)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name.as_str(),
            TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize(views, None).unwrap()
});

fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn read(bytes: &[u8]) -> Result<Weights, Error> {
    let (_folder, path) = written(bytes);
    Weights::read(&path, Some(lenet()))
}

#[test]
fn weights_in_half_precision_are_read() {
    let weights = read(&WEIGHTS).unwrap();
    assert_eq!(weights.tensors.len(), 10);
    assert!(
        weights
            .tensors
            .iter()
            .all(|(_, tensor)| tensor.dtype() == candle_core::DType::F32)
    );
}

#[test]
fn a_file_of_torch_save_is_refused_with_a_remedy() {
    let error = read(b"PK\x03\x04 and so on").err().unwrap().to_string();
    assert!(error.contains("safetensors.torch.save_file"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn a_truncated_file_is_refused(length in 0..WEIGHTS.len()) {
        let refused = matches!(read(&WEIGHTS[..length]), Err(Error::Unusable { reason: Unusable::NotSafetensors(_), .. }));
        prop_assert!(refused);
    }

    #[test]
    fn a_header_with_a_changed_byte_is_read_or_refused(place in 0_usize..1500, byte: u8) {
        let mut bytes = WEIGHTS.clone();
        bytes[place] = byte;
        if let Ok(weights) = read(&bytes) {
            prop_assert_eq!(weights.tensors.len(), 10);
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn any_header_is_refused(text in ".{0,200}") {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        prop_assert!(read(&bytes).is_err());
    }
}
