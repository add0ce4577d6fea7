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
    #[cfg(feature = "cuda")]
    pub(crate) fn open(self) -> anyhow::Result<Device> {
        Ok(match self {
            Self::Cpu => Device::Cpu,
            Self::Cuda => ops::cuda::open(0)?,
        })
    }

    #[cfg(not(feature = "cuda"))]
    pub(crate) fn open(self) -> anyhow::Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
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

/// Measures the memory that this process takes from now on.
pub(crate) struct Memory {
    #[cfg(feature = "cuda")]
    device: Device,
    /// Free before, on a GPU.
    #[cfg(feature = "cuda")]
    free: Option<usize>,
}

#[cfg(feature = "cuda")]
fn free(device: &Device) -> Option<usize> {
    match device {
        Device::Cuda(gpu) => Some(ops::cuda::memory(gpu).ok()?.free),
        _ => None,
    }
}

impl Memory {
    pub(crate) fn new(#[cfg_attr(not(feature = "cuda"), allow(unused))] device: &Device) -> Self {
        Self {
            #[cfg(feature = "cuda")]
            device: device.clone(),
            #[cfg(feature = "cuda")]
            free: free(device),
        }
    }

    /// On a GPU, what is allocated there, without the driver and the libraries' handles; freed memory is kept. On a CPU, the
    /// process's largest resident memory, where the system reports it.
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        #[cfg(feature = "cuda")]
        if let Some(before) = self.free {
            return Some(before.saturating_sub(free(&self.device)?) as u64);
        }
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kilobytes * 1024)
    }
}
