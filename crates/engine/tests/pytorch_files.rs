//! Files of `torch.save` are read as PyTorch reads them, or refused with an error, whatever their bytes.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use engine::{Error, Unusable, Weights};
use models::Architecture;
use proptest::prelude::*;
use std::fs;
use std::io::{Cursor, Read, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

const STATE_DICT: &[u8] = include_bytes!("fixtures/state_dict.pth");
const LEGACY: &[u8] = include_bytes!("fixtures/legacy.pth");
const NETWORK: &[u8] = include_bytes!("fixtures/network.pth");
const LIGHTNING: &[u8] = include_bytes!("fixtures/lightning.ckpt");
const WRAPPED: &[u8] = include_bytes!("fixtures/wrapped_in_dictionary.pth");

const EXPANDED: &[u8] = include_bytes!("fixtures/expanded.pth");

fn lenet() -> Architecture {
    "lenet".parse().unwrap()
}

fn read(bytes: &[u8]) -> Result<Weights, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.pth");
    fs::write(&path, bytes).unwrap();
    Weights::read(&path, Some(lenet()))
}

/// Why a file is refused.
fn refused(bytes: &[u8]) -> String {
    let error = read(bytes).err().unwrap();
    let is_expected = matches!(
        error,
        Error::Unusable {
            reason: Unusable::NotPyTorch(_),
            ..
        }
    );
    assert!(is_expected, "{error}");
    error.to_string()
}

/// The elements of a parameter of the fixtures, as `fixtures/pytorch.py` describes them.
fn expected(index: usize, shape: &[usize]) -> Vec<f32> {
    let mut elements = vec![1 + index];
    for (length, stride) in shape.iter().zip([2, 1, 3, 5]) {
        let indices = |start| (0..*length).map(move |index| start + index * stride);
        elements = elements.into_iter().flat_map(indices).collect();
    }
    elements
        .into_iter()
        .map(|element| (element % 251) as f32)
        .collect()
}

/// An archive with the entries of another one, changed, and with their checksums.
fn changed(archive: &[u8], change: impl Fn(&str, &mut Vec<u8>)) -> Vec<u8> {
    let mut archive = ZipArchive::new(Cursor::new(archive)).unwrap();
    let mut new = ZipWriter::new(Cursor::new(Vec::new()));
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let name = entry.name().unwrap().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        change(&name, &mut bytes);
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        new.start_file(name, options).unwrap();
        new.write_all(&bytes).unwrap();
    }
    new.finish().unwrap().into_inner()
}

/// An archive whose pickle is another one.
fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    changed(STATE_DICT, |name, bytes| {
        if name.ends_with("data.pkl") {
            *bytes = pickle.to_vec();
        }
    })
}

fn pickle(archive: &[u8], name: &str) -> Vec<u8> {
    let mut archive = ZipArchive::new(Cursor::new(archive)).unwrap();
    let mut bytes = Vec::new();
    archive
        .by_name(name)
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

/// In bytes: the first occurrence of `old`, which is as long as `new`.
fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    let mut windows = bytes.windows(old.len());
    let place = windows.position(|window| window == old).unwrap();
    bytes[place..place + old.len()].copy_from_slice(new);
}

#[test]
fn what_pytorch_saves_is_read() {
    for (file, prefix) in [
        (STATE_DICT, ""),
        (LEGACY, ""),
        (NETWORK, ""),
        (LIGHTNING, "model."),
        (WRAPPED, "module."),
    ] {
        let weights = read(file).unwrap();
        assert_eq!(weights.prefix, prefix);
        assert!(weights.inputs.is_none() && weights.other_model.is_none());
        let parameters = lenet().parameters();
        assert_eq!(weights.tensors.len(), parameters.len());
        for (index, parameter) in parameters.into_iter().enumerate() {
            let (name, tensor) = &weights.tensors[index];
            assert_eq!(*name, parameter.name);
            assert_eq!(tensor.dims(), parameter.shape);
            let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(values, expected(index, &parameter.shape), "{name}");
        }
    }
}

#[test]
fn what_is_not_a_state_dict_is_refused_with_a_remedy() {
    for (bytes, expected) in [
        (b"PK\x03\x04 and so on".to_vec(), "download or copy it again"),
        // `pickle.dump({})`.
        (b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.".to_vec(), "made by pickle, not by torch.save"),
        // `{"epoch": 1, "optimizer": {}}`, a list, and `{"model": {"model": ...}}` without an end.
        (with_pickle(b"\x80\x02}(X\x05\0\0\0epochK\x01X\x09\0\0\0optimizer}u."), "but [epoch, optimizer]; in Python"),
        (with_pickle(b"\x80\x02]."), "it has no state_dict; in Python"),
        (with_pickle(b"\x80\x02}q\0X\x05\0\0\0modelh\0s."), "it has no state_dict; in Python"),
        // An object whose modules are the object itself.
        (
            with_pickle(b"\x80\x02c__main__\nNet\n)\x81q\0}X\x08\0\0\0_modules}q\x01(X\x01\0\0\0ah\0X\x01\0\0\0bh\0usb."),
            "too many modules",
        ),
        (with_pickle(b"\x80\x02cos\nsystem\nX\x04\0\0\0exit\x85R."), "it has no state_dict; in Python"),
        (with_pickle(b"\x80\x02X\xff\xff\xff\xff"), "it ends within a pickle"),
        // A tensor of nine dimensions.
        (
            with_pickle(
                b"\x80\x02}U\x01actorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x01tQK\0\
                (K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01t(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01t\x89NtRs.",
            ),
            "is not a tensor that can be read",
        ),
        (
            with_pickle(
                b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x01tQK\0\
                (K\x01t(K\x01t\x89NtR.",
            ),
            "it has a single tensor and no state_dict; in Python",
        ),
        (with_pickle(b"F1\n."), "unknown opcode 0x46"),
        (with_pickle(b"\x80\x02e."), "missing or wrong operands"),
        (
            changed(STATE_DICT, |name, bytes| {
                if name.ends_with("byteorder") {
                    *bytes = b"big".to_vec();
                }
            }),
            "its values are big-endian",
        ),
        (STATE_DICT[..STATE_DICT.len() - 1].to_vec(), "download or copy it again"),
        (LEGACY[..LEGACY.len() - 1].to_vec(), "download or copy it again"),
        (LEGACY[..1000].to_vec(), "it ends within a pickle"),
    ] {
        let error = refused(&bytes);
        assert!(error.contains(expected), "{error}");
    }
    let mut new = ZipWriter::new(Cursor::new(Vec::new()));
    new.start_file("a.npy", SimpleFileOptions::default())
        .unwrap();
    assert!(refused(&new.finish().unwrap().into_inner()).contains("NumPy arrays"));
    // The method of compression of the first entry, `data.pkl`.
    let mut compressed = STATE_DICT.to_vec();
    let mut places = compressed.windows(4);
    let place = places.position(|bytes| bytes == b"PK\x01\x02").unwrap() + 10;
    compressed[place] = 8;
    let error = refused(&compressed);
    assert!(error.contains("it is compressed"), "{error}");
    let mut big_endian = LEGACY.to_vec();
    replace(
        &mut big_endian,
        b"little_endianq\x02\x88",
        b"little_endianq\x02\x89",
    );
    assert!(refused(&big_endian).contains("big-endian"));
}

#[test]
fn tensors_outside_of_the_file_are_refused() {
    let pickle = pickle(STATE_DICT, "state_dict/data.pkl");
    let refused_with = |old: &[u8], new: &[u8]| {
        let mut pickle = pickle.clone();
        replace(&mut pickle, old, new);
        refused(&with_pickle(&pickle))
    };
    // The first weight: offset 1 and shape (6, 3, 5, 5).
    let error = refused_with(
        b"QK\x01(K\x06K\x03K\x05K\x05t",
        b"QK\xff(K\xffK\xffK\xffK\xfft",
    );
    assert!(
        error.contains("`conv_layer1.0.weight` has values that the file does not have"),
        "{error}"
    );
    // The key of the storage, and the function.
    let error = refused_with(b"X\x01\0\0\x000q", b"X\x01\0\0\x009q");
    assert!(
        error.contains("has values that the file does not have"),
        "{error}"
    );
    let error = refused_with(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9");
    assert!(
        error.contains("no state_dict, but [conv_layer1.0.weight, conv_layer1.0.bias, "),
        "{error}"
    );
}

#[test]
fn the_file_does_not_choose_what_is_allocated() {
    let error = read(EXPANDED).err().unwrap().to_string();
    let expected = "`fc_layer2.0.weight` has shape [1099511627776, 84], but lenet expects [10, 84]";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn damaged_values_are_refused() {
    // Of the first storage.
    let mut damaged = STATE_DICT.to_vec();
    let place = damaged
        .windows(6)
        .position(|bytes| bytes == b"data/0")
        .unwrap()
        + 200;
    damaged[place] ^= 1;
    assert!(refused(&damaged).contains("download or copy it again"));
    let infinite = changed(STATE_DICT, |name, bytes| {
        if name.ends_with("data/3") {
            // The seventh value of f64, which is the bias's second.
            bytes[48..56].copy_from_slice(&1e300_f64.to_le_bytes());
        }
    });
    let error = read(&infinite).err().unwrap().to_string();
    assert!(
        error.contains("`conv_layer2.0.bias` has the value inf"),
        "{error}"
    );
    let integers = |name: &str, bytes: &mut Vec<u8>| {
        if name.ends_with("data.pkl") {
            replace(bytes, b"DoubleStorage", b"UInt64Storage");
        }
    };
    let error = read(&changed(STATE_DICT, integers));
    let error = error.err().unwrap().to_string();
    assert!(
        error.contains("which is not a floating-point type"),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn a_truncated_file_is_refused(length in 10_usize..6000, legacy: bool) {
        let file = if legacy { LEGACY } else { STATE_DICT };
        prop_assert!(read(&file[..length]).is_err());
    }

    #[test]
    fn a_file_with_changed_bytes_is_read_or_refused(
        file in prop::sample::select(vec![STATE_DICT, LEGACY, NETWORK, LIGHTNING, WRAPPED]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = file.to_vec();
        for (place, byte) in changes {
            bytes[place.index(file.len())] = byte;
        }
        if let Ok(weights) = read(&bytes) {
            prop_assert_eq!(weights.tensors.len(), 10);
        }
    }

    #[test]
    fn a_pickle_with_changed_bytes_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = pickle(STATE_DICT, "state_dict/data.pkl");
        let length = bytes.len();
        for (place, byte) in changes {
            bytes[place.index(length)] = byte;
        }
        if let Ok(weights) = read(&with_pickle(&bytes)) {
            prop_assert_eq!(weights.tensors.len(), 10);
        }
    }

    #[test]
    fn any_bytes_are_refused(
        start in prop::sample::select(vec![&b"PK\x03\x04"[..], &LEGACY[..200], b"PK\x05\x06", b"\x80\x02}"]),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        prop_assert!(read(&[start, &bytes[..]].concat()).is_err());
    }
}
