//! Reference values that PyTorch computed in float64 (`golden/make_golden.py`), and how far this program is from
//! them on a device: for tests, and for checking a GPU.

mod deviation;
mod networks;
mod operations;
mod uniform;

pub use deviation::{Deviation, relative_error};
pub use networks::{NetworkDeviations, network};
pub use operations::operations;
pub use uniform::uniform;

use candle_core::{DType, Device, Result, Tensor};
use ops::{Arithmetic, Precision};
use std::path::PathBuf;

/// What can go wrong, apart from deviations.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reference values cannot be read.
    #[error("the reference values are damaged: {0}")]
    Golden(#[from] serde_json::Error),
    /// The file with the reference values cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A reference value is missing.
    #[error("there is no reference value for {0}")]
    Missing(String),
    /// A network could not be made.
    #[error(transparent)]
    Network(#[from] models::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Where and how something is computed.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The device.
    pub device: Device,
    /// `f32` or `f64` on a processor, `f32` on a GPU.
    pub dtype: DType,
    /// How operations compute.
    pub arithmetic: Arithmetic,
}

impl Setting {
    /// A tensor of the generator's numbers on the device.
    fn tensor(&self, seed: u64, shape: &[usize], bound: f32) -> Result<Tensor> {
        let values = uniform(seed, shape.iter().product(), bound);
        Tensor::from_vec(values, shape, &Device::Cpu)?
            .to_dtype(self.dtype)?
            .to_device(&self.device)
    }

    /// Numbers in the type of the activations.
    fn activations(&self, x: &Tensor) -> Result<Tensor> {
        ops::activations(x, self.arithmetic.precision)
    }

    /// Whether activations have fewer bits than weights.
    fn is_narrow(&self) -> bool {
        self.arithmetic.precision == Precision::Bf16
    }
}

/// A tensor's numbers in double precision, row by row.
fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor
        .to_device(&Device::Cpu)?
        .flatten_all()?
        .to_dtype(DType::F64)?
        .to_vec1::<f64>()
}
