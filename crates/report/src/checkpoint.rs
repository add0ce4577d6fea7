//! What a run's checkpoint says to those who compute nothing with it.

use safetensors::tensor::{Dtype, SafeTensors};
use serde::Deserialize;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// The name of a run's checkpoint in its folder.
pub const CHECKPOINT: &str = "last.safetensors";

/// The largest header that is read: far more than a checkpoint of ten thousand epochs has.
const MOST_HEADER: u64 = 1 << 26;

#[derive(Deserialize)]
struct Progress {
    position: Position,
}

#[derive(Deserialize)]
struct Position {
    epoch: u32,
}

/// How many epochs are done in the checkpoint of the run in `folder`; `None` where there is no checkpoint that says so.
#[must_use]
pub fn checkpoint_epochs(folder: &Path) -> Option<u32> {
    let mut file = File::open(folder.join(CHECKPOINT)).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    let mut header = Vec::new();
    file.take(length.min(MOST_HEADER))
        .read_to_end(&mut header)
        .ok()?;
    let header: serde_json::Value = serde_json::from_slice(&header).ok()?;
    let progress = header.get("__metadata__")?.get("progress")?.as_str()?;
    Some(
        serde_json::from_str::<Progress>(progress)
            .ok()?
            .position
            .epoch,
    )
}

/// How far two files of weights are apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The largest difference of two numbers.
    pub largest: f64,
    /// The tensor in which it is.
    pub tensor: String,
    /// Numbers that are not the same bits.
    pub different: u64,
    /// All numbers.
    pub numbers: u64,
}

/// Compares two files of weights, number by number.
///
/// # Errors
/// When a file cannot be read, is damaged, or they have not the same tensors.
pub fn weights_difference(first: &Path, second: &Path) -> io::Result<Difference> {
    let (first, second) = (fs::read(first)?, fs::read(second)?);
    let first = SafeTensors::deserialize(&first).map_err(io::Error::other)?;
    let second = SafeTensors::deserialize(&second).map_err(io::Error::other)?;
    let mut difference = Difference {
        largest: 0.0,
        tensor: String::new(),
        different: 0,
        numbers: 0,
    };
    if first.len() != second.len() {
        return Err(io::Error::other("the files hold different tensors"));
    }
    let mut tensors = first.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, a) in tensors {
        let b = second.tensor(&name).map_err(io::Error::other)?;
        if a.dtype() != Dtype::F32 || b.dtype() != Dtype::F32 || a.shape() != b.shape() {
            return Err(io::Error::other(format!(
                "`{name}` has another type or shape in the other file"
            )));
        }
        for (a, b) in a.data().as_chunks().0.iter().zip(b.data().as_chunks().0) {
            difference.numbers += 1;
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

    fn file(folder: &Path, name: &str, numbers: [f32; 4]) -> std::path::PathBuf {
        let bytes: Vec<u8> = numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        let view = |bytes| TensorView::new(Dtype::F32, vec![2], bytes).unwrap();
        let tensors = [("a", view(&bytes[..8])), ("b", view(&bytes[8..]))];
        let metadata = [(
            "progress".to_owned(),
            r#"{"position":{"epoch":7,"step":0}}"#.to_owned(),
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
    fn differences_are_counted_and_placed() {
        let folder = tempfile::tempdir().unwrap();
        let first = file(folder.path(), CHECKPOINT, [1.0, 2.0, 3.0, 4.0]);
        let second = file(folder.path(), "b", [1.0, 2.5, 3.0, 2.0]);
        let difference = weights_difference(&first, &second).unwrap();
        assert_eq!(
            difference,
            Difference {
                largest: 2.0,
                tensor: "b".to_owned(),
                different: 2,
                numbers: 4
            }
        );
        assert_eq!(weights_difference(&first, &first).unwrap().different, 0);
        assert_eq!(checkpoint_epochs(folder.path()), Some(7));
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_checkpoint(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(CHECKPOINT), &bytes).unwrap();
            prop_assert_eq!(checkpoint_epochs(folder.path()), None);
            let path = folder.path().join(CHECKPOINT);
            prop_assert!(weights_difference(&path, &path).is_err());
        }
    }
}
