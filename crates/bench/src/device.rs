//! The device that is measured.

use candle_core::Device;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fs;

/// A device.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DeviceKind {
    /// The CPU.
    #[default]
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

impl DeviceKind {
    pub(crate) fn open(self) -> anyhow::Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            #[cfg(feature = "cuda")]
            Self::Cuda => Ok(ops::cuda::open(0)?),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda => anyhow::bail!(
                "--device cuda: this program was built without GPU support; `cargo xtask bench` builds it with it"
            ),
        }
    }
}

/// The name of a processor or GPU.
pub(crate) fn model(device: &Device) -> anyhow::Result<String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => Ok(ops::cuda::name(gpu)?),
        _ => Ok(format!(
            "{} ({})",
            ops::processor_name(),
            ops::InstructionSet::current().name()
        )),
    }
}

/// The free bytes of a GPU; `None` for a CPU.
fn free(device: &Device) -> Option<usize> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => Some(ops::cuda::memory(gpu).ok()?.free),
        _ => None,
    }
}

/// Measures the memory that this process takes.
pub(crate) struct Memory {
    device: Device,
    /// Before, on a GPU.
    free: Option<usize>,
}

impl Memory {
    pub(crate) fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            free: free(device),
        }
    }

    /// On a GPU, what was allocated since `new`, without the driver and the libraries' handles; freed memory is kept. On a
    /// CPU, the process's largest resident memory, where the system reports it.
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        if let Some(before) = self.free {
            return Some(before.saturating_sub(free(&self.device)?) as u64);
        }
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kilobytes * 1024)
    }
}
