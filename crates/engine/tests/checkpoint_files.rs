//! Files that are not checkpoints are refused with an error, whatever their bytes.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use engine::{Error, Unusable, Weights};
use models::Architecture;
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use tempfile::TempDir;

fn lenet() -> Architecture {
    "lenet".parse().unwrap()
}

/// A file of weights in half precision: small, and read as `f32`.
fn file(prefix: &str, metadata: &[(&str, &str)]) -> Vec<u8> {
    let tensors: Vec<_> = lenet()
        .parameters()
        .into_iter()
        .map(|parameter| {
            let zeros = vec![0; 2 * parameter.shape.iter().product::<usize>()];
            (prefix.to_owned() + &parameter.name, parameter.shape, zeros)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name.as_str(),
            TensorView::new(Dtype::F16, shape.clone(), bytes).unwrap(),
        )
    });
    let metadata = metadata.iter();
    let metadata = metadata.map(|(key, value)| (key.to_string(), value.to_string()));
    let metadata: HashMap<_, _> = metadata.collect();
    safetensors::serialize(views, (!metadata.is_empty()).then_some(metadata)).unwrap()
}

static WEIGHTS: LazyLock<Vec<u8>> = LazyLock::new(|| file("", &[]));

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

fn refused(bytes: &[u8]) -> String {
    read(bytes).err().unwrap().to_string()
}

#[test]
fn files_that_are_something_else_are_refused_with_a_remedy() {
    for (bytes, expected) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"[..],
            "git lfs pull",
        ),
        (b"\x08\x07\x12\x07pytorch\x1a\x051.9.0\0\0", "an ONNX model"),
        (&[0; 100], "nothing but zeros"),
        (&WEIGHTS[..WEIGHTS.len() - 1], "ends too early"),
        (b"<!DOCTYPE html><html>", "HTML page"),
        (b"", "it is empty"),
        (
            b"Repository not found",
            "begins with `Repository not found`",
        ),
    ] {
        let error = refused(bytes);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_prefix_of_all_names_is_removed() {
    for prefix in [
        "",
        "module.",
        "_orig_mod.",
        "model.",
        "module._orig_mod.",
        "_orig_mod.model.",
        "net.",
    ] {
        let weights = read(&file(prefix, &[])).unwrap();
        assert_eq!(weights.prefix, prefix);
        let names = weights.tensors.into_iter().map(|(name, _)| name);
        let expected = lenet()
            .parameters()
            .into_iter()
            .map(|parameter| parameter.name);
        assert!(names.eq(expected));
    }
    // Not of all names, or no prefix of Python attributes.
    let mut mixed = file("module.", &[]);
    let place = mixed
        .windows(7)
        .position(|name| name == b"module.")
        .unwrap();
    mixed[place] = b'M';
    assert!(refused(&mixed).contains("is not a parameter of lenet"));
    assert!(refused(&file("module", &[])).contains("is not a parameter of lenet"));
}

#[test]
fn the_callers_network_decides_where_shapes_fit() {
    for name in ["AlexNet-CIFAR", "alexnet"] {
        let bytes = file(
            "",
            &[
                ("model", name),
                ("format_version", "1.0 beta"),
                ("inputs", "image"),
            ],
        );
        let weights = read(&bytes).unwrap();
        assert_eq!(weights.other_model.as_deref(), Some(name));
        assert!(weights.inputs.is_none());
    }
    let (_folder, path) = written(&file("", &[("model", "AlexNet-CIFAR")]));
    let error = Weights::read(&path, None).err().unwrap().to_string();
    assert!(
        error.contains("`AlexNet-CIFAR`") && error.contains("--model"),
        "{error}"
    );
    let small = "small-alexnet".parse().unwrap();
    let error = Weights::read(&path, Some(small)).err().unwrap().to_string();
    assert!(error.contains("does not fit the network"), "{error}");
    let (_folder, path) = written(&file("", &[("model", "lenet")]));
    let error = Weights::read(&path, Some(small)).err().unwrap().to_string();
    assert!(
        error.contains("contains weights of lenet, not of small-alexnet"),
        "{error}"
    );
}

#[test]
fn inputs_are_checked() {
    let inputs = |mean: &str, std: &str, class: &str| {
        let classes = format!("[\"{class}\"{}]", ",\"b\"".repeat(9));
        format!("{{\"mean\":{mean},\"std\":{std},\"class_names\":{classes}}}")
    };
    let good = inputs("[0,0.5,1]", "[1,2,3]", "a b");
    assert!(
        read(&file("", &[("inputs", &good)]))
            .unwrap()
            .inputs
            .is_some()
    );
    for bad in [
        inputs("[0,0.5,1e39]", "[1,2,3]", "a"),
        inputs("[0,0.5,null]", "[1,2,3]", "a"),
        inputs("[0,0.5,1]", "[1,0,3]", "a"),
        inputs("[0,0.5,1]", "[1,-2,3]", "a"),
        inputs("[0,0.5,1]", "[1,1e-60,3]", "a"),
        inputs("[0,0.5]", "[1,2,3]", "a"),
        inputs("[0,0.5,1]", "[1,2,3]", "\\u001b[2J"),
        inputs("[0,0.5,1]", "[1,2,3]", "a\\nb"),
        inputs("[0,0.5,1]", "[1,2,3]", "\\u202eb"),
    ] {
        for metadata in [
            &[("inputs", bad.as_str())][..],
            &[("inputs", &bad), ("format_version", "2")],
        ] {
            let error = refused(&file("", metadata));
            assert!(
                error.contains("description of the inputs is damaged"),
                "{error}"
            );
            assert!(!error.contains(char::is_control), "{error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn a_truncated_file_is_refused(length in 0..WEIGHTS.len()) {
        let refused = matches!(read(&WEIGHTS[..length]), Err(Error::Unusable { reason: Unusable::NotWeights(_), .. }));
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
    fn any_metadata_are_read_or_refused(key in "model|inputs|format_version|format", value: String, prefix in "[a-z.]{0,5}") {
        if let Ok(weights) = read(&file(&prefix, &[(&key, &value)])) {
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
