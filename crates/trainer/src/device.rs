//! The device that computes.

use candle_core::Device;
use ops::Precision;
#[cfg(feature = "cuda")]
use run::cli;
use run::cli::UsageError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What `--device` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Choice {
    /// The best there is.
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl Choice {
    /// The device itself. `auto` is the first GPU where it works, and says why it does not where there seems to
    /// be one; a GPU that was asked for and does not work is an error.
    pub(crate) fn device(self) -> anyhow::Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto => Ok(first_gpu()),
            Self::Cuda(number) => self.gpu(number),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn gpu(self, _: usize) -> anyhow::Result<Device> {
        Err(UsageError(format!(
            "--device {self}: this program was built for the processor alone; build it with `--features cuda`, or use \
             --device cpu or --device auto"
        ))
        .into())
    }

    #[cfg(feature = "cuda")]
    fn gpu(self, number: usize) -> anyhow::Result<Device> {
        use ops::cuda::{DeviceError, open};
        open(number).map_err(|error| match error {
            DeviceError::OutOfRange { .. } => {
                UsageError(format!("--device {self}: {error}")).into()
            }
            error => anyhow::Error::from(error).context(format!("--device {self}")),
        })
    }
}

#[cfg(not(feature = "cuda"))]
fn first_gpu() -> Device {
    Device::Cpu
}

#[cfg(feature = "cuda")]
fn first_gpu() -> Device {
    use ops::cuda::{DeviceError, open};
    match open(0) {
        Ok(device) => device,
        Err(error) => {
            match error {
                DeviceError::NoDriver | DeviceError::NoDevice => {
                    cli::note(&format!("{error}: computing on the processor"));
                }
                error => cli::note(&format!(
                    "warning: computing on the processor, since the GPU does not work: {error}"
                )),
            }
            Device::Cpu
        }
    }
}

/// In what numbers a device computes: what was asked for, or what is usual on it.
pub(crate) fn precision(asked: Option<Precision>, device: &Device) -> anyhow::Result<Precision> {
    match (asked, device.is_cpu()) {
        (None, true) => Ok(Precision::F32),
        // As PyTorch's convolutions do.
        (None, false) => Ok(Precision::Tf32),
        (Some(precision @ (Precision::Tf32 | Precision::Bf16)), true) => Err(UsageError(format!(
            "--precision {precision}: the processor computes in f32; use a GPU (--device cuda), or --precision f32"
        ))
        .into()),
        (Some(precision), _) => Ok(precision),
    }
}

/// What is said of an error that comes from a GPU without memory for weights and images; other errors are left as
/// they are.
#[cfg_attr(not(feature = "cuda"), allow(unused_mut))]
pub(crate) fn explained(mut error: anyhow::Error) -> anyhow::Error {
    #[cfg(feature = "cuda")]
    {
        let full = ops::cuda::is_out_of_memory(&error);
        if full {
            error = anyhow::anyhow!(
                "the GPU's memory does not hold the weights and the images; free some of it (nvidia-smi names the \
                 programs that use it), or use --device cpu"
            );
        }
    }
    error
}

/// A GPU's own name; `None` for a processor.
pub(crate) fn model(device: &Device) -> anyhow::Result<Option<String>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => Ok(Some(ops::cuda::name(gpu)?)),
        _ => Ok(None),
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.split_once(':') {
            Some(("cuda", number)) => number.parse().ok(),
            _ => None,
        };
        match (text, number) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(number)) => Ok(Self::Cuda(number)),
            _ => Err(format!(
                "`{text}` is not a device: expected auto, cpu, cuda or cuda:N"
            )),
        }
    }
}

impl TryFrom<String> for Choice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Choice> for String {
    fn from(choice: Choice) -> String {
        choice.to_string()
    }
}

/// What a run record says of the device.
pub(crate) fn name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written() {
        for text in ["auto", "cpu", "cuda", "cuda:3"] {
            assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
        }
        for text in ["", "gpu", "cuda:", "cuda:x", "cpu:1", "cuda:-1"] {
            assert!(text.parse::<Choice>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_processor_computes_in_f32() {
        let cpu = &Device::Cpu;
        assert_eq!(precision(None, cpu).unwrap(), Precision::F32);
        assert_eq!(
            precision(Some(Precision::F32), cpu).unwrap(),
            Precision::F32
        );
        for asked in [Precision::Tf32, Precision::Bf16] {
            let error = precision(Some(asked), cpu).unwrap_err();
            assert!(error.is::<UsageError>(), "{error}");
        }
    }
}
