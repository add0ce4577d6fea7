//! `layers.json`: the layers of a run's network, and the time of each in a training step.

use crate::error::Error;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// One layer of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// The module's name in PyTorch, such as `conv_layer1.0`.
    pub name: String,
    /// The module's type in PyTorch, such as `Conv2d`.
    pub kind: String,
    /// Shape of the output, without the batch.
    pub output: Vec<usize>,
    /// Number of parameters.
    pub parameters: u64,
    /// Multiply-adds of the forward pass per image.
    pub multiply_adds: u64,
    /// Mean seconds of the forward and backward pass in a training step; `None` on a GPU, and where the layer is fused
    /// into the one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<[f64; 2]>,
}

/// Replaces `layers.json`, atomically.
///
/// # Errors
/// When the file cannot be written; the old one is then unchanged.
pub fn write(path: &Path, layers: &[Layer]) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(layers).map_err(|error| error.into());
    let written = text.and_then(|text| atomic_file::write(path, (text + "\n").as_bytes()));
    written.map_err(Error::file("write", path))
}

/// Reads `layers.json`.
///
/// # Errors
/// When the file cannot be read or is damaged.
pub fn read(path: &Path) -> Result<Vec<Layer>, Error> {
    let text = fs::read_to_string(path).map_err(Error::text("read", path))?;
    serde_json::from_str(&text).map_err(Error::damaged(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn layers_round_trip(seconds in prop::option::of(prop::array::uniform2(0.0_f64..9.0)), parameters: u64) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("layers.json");
            let layer = Layer {
                name: "conv_layer1.0".to_owned(),
                kind: "Conv2d".to_owned(),
                output: vec![64, 16, 16],
                parameters,
                multiply_adds: 7,
                seconds,
            };
            write(&path, std::slice::from_ref(&layer)).unwrap();
            prop_assert_eq!(read(&path).unwrap(), [layer]);
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("layers.json");
            fs::write(&path, &text).unwrap();
            prop_assert!(read(&path).is_err());
        }
    }
}
