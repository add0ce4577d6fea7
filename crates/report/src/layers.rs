//! `layers.json`: the layers of a run's network, and the time that each of them took.

use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

/// The file's name in a run's folder.
pub const LAYERS: &str = "layers.json";

/// One layer of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// PyTorch's name, such as `conv_layer1.0`.
    pub name: String,
    /// PyTorch's type, such as `Conv2d`.
    pub kind: String,
    /// Shape of the output, without the batch.
    pub output: Vec<usize>,
    /// Numbers that it learns.
    pub parameters: u64,
    /// Multiplications, each with an addition, that one image takes forward.
    pub multiply_adds: u64,
    /// Mean seconds of a training step, forward and backward; `None` where it was not taken, or where the layer is
    /// computed together with the one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<[f64; 2]>,
}

/// Writes the layers of a run.
///
/// # Errors
/// When the file cannot be written.
pub fn write_layers(path: &Path, layers: &[Layer]) -> std::io::Result<()> {
    let mut text = serde_json::to_string_pretty(layers)?;
    text.push('\n');
    atomic_file::write(path, text.as_bytes())
}

/// Reads the layers of a run.
///
/// # Errors
/// When the file cannot be read or is damaged.
pub fn read_layers(path: &Path) -> std::io::Result<Vec<Layer>> {
    Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
}
