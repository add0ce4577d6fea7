//! Reference values from PyTorch in float64 (`golden/make_golden.py`), and the deviations of this program from them on a
//! device: for tests, and to check a GPU.

mod deviation;
mod networks;
mod operations;
mod uniform;

pub use deviation::{Deviation, relative_error};
pub use networks::{NetworkDeviations, autocast_errors, gradients, network};
pub use operations::operations;
pub use uniform::uniform;

use candle_core::{DType, Device, Result, Tensor};
use ops::{Arithmetic, Precision};
use std::path::PathBuf;

/// Why deviations cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reference values cannot be parsed.
    #[error("cannot parse the reference values")]
    Golden(#[from] serde_json::Error),
    /// The file with the reference values cannot be read.
    #[error("cannot read `{}`: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// A reference value is missing.
    #[error("there is no reference value for {0}")]
    Missing(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The device and arithmetic of a computation.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The device.
    pub device: Device,
    /// The type of weights: `f32` or `f64` on a CPU, `f32` on a GPU.
    pub dtype: DType,
    /// How operations compute.
    pub arithmetic: Arithmetic,
}

impl Setting {
    /// A tensor of the generator's values on the device, uniform in `-bound..bound`.
    fn tensor(&self, seed: u64, shape: &[usize], bound: f32) -> Result<Tensor> {
        let values = uniform(seed, shape.iter().product(), bound);
        Tensor::from_vec(values, shape, &Device::Cpu)?
            .to_dtype(self.dtype)?
            .to_device(&self.device)
    }

    /// `x` in the type of activations.
    fn activations(&self, x: &Tensor) -> Result<Tensor> {
        ops::activations(x, self.arithmetic.precision)
    }

    /// Whether activations have lower precision than weights.
    fn is_narrow(&self) -> bool {
        self.arithmetic.precision == Precision::Bf16
    }
}

/// From PyTorch's layout to `[batch, height, width, channels]`, on the device of `x`.
fn channels_last(x: &Tensor) -> Result<Tensor> {
    let host = x.to_device(&Device::Cpu)?.permute((0, 2, 3, 1))?;
    host.contiguous()?.to_device(x.device())
}

/// A tensor's elements in double precision, in row-major order.
fn elements(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor
        .to_device(&Device::Cpu)?
        .flatten_all()?
        .to_dtype(DType::F64)?
        .to_vec1::<f64>()
}
