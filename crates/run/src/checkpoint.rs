//! What can be read from a checkpoint without tensors: its progress, and how far the weights of two differ.

use crate::error::Error;
use crate::file::LAST_WEIGHTS;
use safetensors::tensor::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// The largest header that is read, in bytes: more than that of a run of ten thousand epochs.
const MAX_HEADER: u64 = 1 << 26;

/// How far a run was trained.
#[derive(Deserialize)]
struct Position {
    /// The number of finished epochs.
    epoch: u32,
    /// The number of finished steps of the epoch after them.
    step: u64,
}

/// The position of the checkpoint of the run in `folder`; `None` without a readable checkpoint.
fn position(folder: &Path) -> Option<Position> {
    let mut file = File::open(folder.join(LAST_WEIGHTS)).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    let mut header = Vec::new();
    file.take(length.min(MAX_HEADER))
        .read_to_end(&mut header)
        .ok()?;
    let header: Value = serde_json::from_slice(&header).ok()?;
    let progress = header.pointer("/__metadata__/progress")?.as_str()?;
    let progress: Value = serde_json::from_str(progress).ok()?;
    Position::deserialize(progress.get("position")?).ok()
}

/// The number of finished epochs in the checkpoint of the run in `folder`; `None` without a readable checkpoint.
#[must_use]
pub fn finished_epochs(folder: &Path) -> Option<u32> {
    position(folder).map(|position| position.epoch)
}

/// Whether the run in `folder` has a checkpoint after this many epochs, and not within the next one.
#[must_use]
pub fn is_after_epoch(folder: &Path, epochs: u32) -> bool {
    position(folder).is_some_and(|position| position.epoch == epochs && position.step == 0)
}

/// How far the weights of two checkpoints differ.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightsDifference {
    /// The largest absolute difference of two elements.
    pub largest: f64,
    /// The tensor with the largest difference.
    pub tensor: String,
    /// The number of elements with different bits.
    pub different: u64,
    /// The number of all elements.
    pub elements: u64,
}

/// Compares the weights of two checkpoints.
///
/// # Errors
/// When a file cannot be read or is damaged, or their tensors have different names, shapes or types.
pub fn weights_difference(first: &Path, second: &Path) -> Result<WeightsDifference, Error> {
    let bytes = |path: &Path| fs::read(path).map_err(Error::file("read", path));
    let [first_bytes, second_bytes] = [bytes(first)?, bytes(second)?];
    let damaged = Error::damaged::<String>(second);
    let first = SafeTensors::deserialize(&first_bytes).map_err(Error::damaged(first))?;
    let second = SafeTensors::deserialize(&second_bytes).map_err(Error::damaged(second))?;
    let mut difference = WeightsDifference::default();
    if first.len() != second.len() {
        return Err(damaged(
            "it does not have the tensors of the other checkpoint".to_owned(),
        ));
    }
    let mut tensors = first.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, a) in tensors {
        let b = second
            .tensor(&name)
            .map_err(|error| damaged(error.to_string()))?;
        if a.dtype() != Dtype::F32 || b.dtype() != Dtype::F32 || a.shape() != b.shape() {
            return Err(damaged(format!(
                "`{name}` has another type or shape in the other checkpoint"
            )));
        }
        for (a, b) in a.data().as_chunks().0.iter().zip(b.data().as_chunks().0) {
            difference.elements += 1;
            if a == b {
                continue;
            }
            difference.different += 1;
            let apart = f64::from(f32::from_le_bytes(*a) - f32::from_le_bytes(*b)).abs();
            if apart > difference.largest || difference.tensor.is_empty() {
                difference.largest = apart;
                difference.tensor.clone_from(&name);
            }
        }
    }
    Ok(difference)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use safetensors::tensor::TensorView;

    fn file(folder: &Path, name: &str, step: u64, numbers: [f32; 4]) -> std::path::PathBuf {
        let bytes: Vec<u8> = numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        let view = |bytes| TensorView::new(Dtype::F32, vec![2], bytes).unwrap();
        let tensors = [("a", view(&bytes[..8])), ("b", view(&bytes[8..]))];
        let metadata = [(
            "progress".to_owned(),
            format!(r#"{{"position":{{"epoch":7,"step":{step},"loss":0.5}}}}"#),
        )];
        let path = folder.join(name);
        fs::write(
            &path,
            safetensors::serialize(tensors, Some(metadata.into())).unwrap(),
        )
        .unwrap();
        path
    }

    #[test]
    fn differences_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let first = file(folder.path(), LAST_WEIGHTS, 3, [1.0, 2.0, 3.0, 4.0]);
        let second = file(folder.path(), "b", 0, [1.0, 2.5, 3.0, 2.0]);
        let difference = weights_difference(&first, &second).unwrap();
        assert_eq!(
            difference,
            WeightsDifference {
                largest: 2.0,
                tensor: "b".to_owned(),
                different: 2,
                elements: 4
            }
        );
        assert_eq!(weights_difference(&first, &first).unwrap().different, 0);
        assert!(!is_after_epoch(folder.path(), 7));
        assert_eq!(finished_epochs(folder.path()), Some(7));
        fs::rename(second, first).unwrap();
        assert!(is_after_epoch(folder.path(), 7) && !is_after_epoch(folder.path(), 6));
    }

    proptest! {
        #[test]
        fn other_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(LAST_WEIGHTS), &bytes).unwrap();
            prop_assert_eq!(finished_epochs(folder.path()), None);
            let path = folder.path().join(LAST_WEIGHTS);
            prop_assert!(weights_difference(&path, &path).is_err());
        }
    }
}
