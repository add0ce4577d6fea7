//! The device to compute on, and its arithmetic.

use crate::settings::Resolved;
use candle_core::Device;
use ops::Arithmetic;
use run::cli::{self, UsageError};
use run::settings::{ConvAlgorithm, DevicePreference, Precision, Source};
use run::{Machine, Settings};
use std::env::consts;
use std::num::NonZeroUsize;

/// Opens a device. `auto` is the first GPU if it works, else the CPU; where a GPU seems to be present, a note says
/// why it does not work.
///
/// # Errors
/// When a GPU was asked for and does not work.
pub(crate) fn open(preference: DevicePreference) -> anyhow::Result<Device> {
    match preference {
        DevicePreference::Cpu => Ok(Device::Cpu),
        DevicePreference::Auto => Ok(first_gpu()),
        DevicePreference::Cuda(index) => gpu(preference, index),
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu(preference: DevicePreference, _: usize) -> anyhow::Result<Device> {
    Err(UsageError(format!(
        "--device {preference}: this program was built without GPU support; build it with `cargo cuda build --features cuda`, \
         or use --device cpu or --device auto"
    ))
    .into())
}

#[cfg(feature = "cuda")]
fn gpu(preference: DevicePreference, index: usize) -> anyhow::Result<Device> {
    use ops::cuda::{DeviceError, open};
    open(index).map_err(|error| match error {
        DeviceError::OutOfRange { .. } => {
            UsageError(format!("--device {preference}: {error}")).into()
        }
        error => anyhow::Error::from(error).context(format!("--device {preference}")),
    })
}

#[cfg(not(feature = "cuda"))]
fn first_gpu() -> Device {
    Device::Cpu
}

#[cfg(feature = "cuda")]
fn first_gpu() -> Device {
    use ops::cuda::{DeviceError, open};
    open(0).unwrap_or_else(|error| {
        cli::note(&match error {
            DeviceError::NoDriver | DeviceError::NoDevice => {
                format!("{error}: computing on the CPU")
            }
            error => {
                format!("warning: computing on the CPU, since the GPU does not work: {error}")
            }
        });
        Device::Cpu
    })
}

/// What a run computes with.
pub(crate) struct Backend {
    pub(crate) device: Device,
    pub(crate) arithmetic: Arithmetic,
    /// A GPU's model name.
    pub(crate) gpu: Option<String>,
    pub(crate) threads: NonZeroUsize,
}

impl Backend {
    /// The backend that the settings ask for. Sets the number of threads.
    ///
    /// # Errors
    /// When the device does not work, or does not have the precision.
    pub(crate) fn new(resolved: &Resolved) -> anyhow::Result<Self> {
        let settings = &resolved.settings;
        let threads = use_threads(settings.threads)?;
        let device = open(settings.device)?;
        let shards = settings.gradient_shards;
        if shards.get() > 1 && !device.is_cpu() {
            let message = format!("--gradient-shards {shards} is not for GPUs; use --device cpu");
            return Err(UsageError(message).into());
        }
        if device.is_cpu() {
            note_flags_for_gpus(settings);
        }
        let recorded = resolved.choices.as_ref().map(|choices| choices.precision);
        Ok(Self {
            arithmetic: arithmetic(
                settings.conv,
                settings.precision,
                &resolved.precision_source,
                recorded,
                &device,
            )?,
            gpu: gpu_model(&device)?,
            device,
            threads,
        })
    }

    /// The precision of products.
    pub(crate) fn precision(&self) -> Precision {
        match self.arithmetic.precision {
            ops::Precision::F32 => Precision::F32,
            ops::Precision::Tf32 => Precision::Tf32,
            ops::Precision::Bf16 => Precision::Bf16,
        }
    }

    /// This machine and this program.
    pub(crate) fn machine(&self, processes: NonZeroUsize) -> Machine {
        let device = device_name(&self.device).to_owned();
        Machine {
            os: consts::OS.to_owned(),
            arch: consts::ARCH.to_owned(),
            instruction_set: ops::InstructionSet::current().name().to_owned(),
            processor: ops::processor_name(),
            device: self.gpu.clone().unwrap_or(device),
            threads: self.threads,
            processes,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: env!("BUILT_FROM").to_owned(),
        }
    }

    /// The device in words.
    pub(crate) fn description(&self) -> String {
        let device = device_name(&self.device);
        match &self.gpu {
            Some(gpu) => format!("{device} ({gpu}) in {}", self.precision()),
            None if self.precision() == Precision::F32 => device.to_owned(),
            None => format!("{device} in {}", self.precision()),
        }
    }
}

/// The largest number of threads that a run may have.
const MAX_THREADS: usize = 1024;

/// Sets the number of threads, by default one per core, and returns it.
pub(crate) fn use_threads(threads: Option<NonZeroUsize>) -> anyhow::Result<NonZeroUsize> {
    // 0 means one per core.
    let threads = threads.map_or(0, NonZeroUsize::get);
    if threads > MAX_THREADS {
        let message = format!("--threads {threads}: expected at most {MAX_THREADS}");
        return Err(UsageError(message).into());
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global()?;
    Ok(NonZeroUsize::new(rayon::current_num_threads()).unwrap_or(NonZeroUsize::MIN))
}

/// Notes which settings have no effect on a CPU.
fn note_flags_for_gpus(settings: &Settings) {
    for (flag, is_given) in [
        ("--cudnn-benchmark", settings.cudnn_benchmark),
        ("--cuda-graphs false", !settings.cuda_graphs),
    ] {
        if is_given {
            cli::note(&format!("note: {flag} has no effect on a CPU"));
        }
    }
}

/// Notes what another precision would bring on this processor.
fn note_other_precision(precision: Option<Precision>) {
    let has_amx = ops::InstructionSet::current() == ops::InstructionSet::Amx;
    match (precision, has_amx) {
        (None, true) => cli::note(
            "note: this processor has a matrix unit for bf16 (AMX): --precision bf16 computes with it, in less memory; \
             --precision f32 hides this note",
        ),
        (Some(Precision::Bf16), false) => cli::note(
            "note: AMX, a matrix unit for bf16, is not available here: --precision f32 is faster; bf16 gives the same bits \
             as with AMX",
        ),
        _ => {}
    }
}

/// The arithmetic of a device. The precision is that of the setting from `source` or else `recorded`, that of the run which
/// is resumed or repeated. By default it is bf16 on a GPU that has it, and f32 elsewhere.
///
/// # Errors
/// When the device does not have the precision.
pub(crate) fn arithmetic(
    conv: ConvAlgorithm,
    setting: Option<Precision>,
    source: &Source,
    recorded: Option<Precision>,
    device: &Device,
) -> anyhow::Result<Arithmetic> {
    if device.is_cpu() && recorded.is_none() {
        note_other_precision(setting);
    }
    let precision = match setting.or(recorded) {
        Some(precision) => match lack(precision, device)? {
            None => precision,
            Some(lack) if recorded == Some(precision) => {
                let error = format!(
                    "the run computes in {precision}, and {lack}; use another device (--device), or start a new run with \
                     another --precision"
                );
                return Err(UsageError(error).into());
            }
            Some(lack) => {
                let error = format!(
                    "--precision {precision} ({source}): {lack}; use another precision or --device"
                );
                return Err(UsageError(error).into());
            }
        },
        None if device.is_cpu() || lack(Precision::Bf16, device)?.is_some() => Precision::F32,
        None => Precision::Bf16,
    };
    Ok(Arithmetic {
        conv_algorithm: match conv {
            ConvAlgorithm::Winograd => ops::ConvAlgorithm::Winograd,
            ConvAlgorithm::Direct => ops::ConvAlgorithm::Direct,
        },
        precision: match precision {
            Precision::F32 => ops::Precision::F32,
            Precision::Tf32 => ops::Precision::Tf32,
            Precision::Bf16 => ops::Precision::Bf16,
        },
    })
}

/// What a device lacks for a precision, in words; `None` where it has it.
fn lack(precision: Precision, device: &Device) -> anyhow::Result<Option<String>> {
    match (precision, device) {
        (Precision::Tf32, Device::Cpu) => Ok(Some("the CPU computes in f32 or bf16".to_owned())),
        #[cfg(feature = "cuda")]
        (Precision::Tf32 | Precision::Bf16, Device::Cuda(gpu)) => {
            let capability = ops::cuda::capability(gpu)?;
            Ok((!capability.has_tensor_cores_for_bf16()).then(|| {
                format!("the GPU has compute capability {capability} ({precision} takes 8.0)")
            }))
        }
        _ => Ok(None),
    }
}

/// The message for an error that is caused by a GPU without memory for weights and images; other errors are unchanged.
pub(crate) fn explained(error: anyhow::Error) -> anyhow::Error {
    #[cfg(feature = "cuda")]
    if ops::cuda::is_out_of_memory(&error) {
        return anyhow::anyhow!(
            "the GPU has too little free memory for the weights and the images; free some of it (nvidia-smi lists the \
             programs that use it), or use --device cpu"
        );
    }
    error
}

/// A GPU's model name; `None` for a CPU.
fn gpu_model(device: &Device) -> anyhow::Result<Option<String>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => Ok(Some(ops::cuda::name(gpu)?)),
        _ => Ok(None),
    }
}

/// The kind of device, as a run's record names it.
pub(crate) fn device_name(device: &Device) -> &'static str {
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
    fn the_cpu_computes_in_f32() {
        let arithmetic = |flag, recorded| {
            let (conv, source) = (ConvAlgorithm::Direct, Source::CommandLine);
            arithmetic(conv, flag, &source, recorded, &Device::Cpu)
        };
        for precision in [None, Some(Precision::F32)] {
            let arithmetic = arithmetic(precision, None).unwrap();
            assert_eq!(arithmetic.precision, ops::Precision::F32);
            assert_eq!(arithmetic.conv_algorithm, ops::ConvAlgorithm::Direct);
        }
        let [bf16, tf32] = [Precision::Bf16, Precision::Tf32].map(Some);
        for (flag, recorded) in [(bf16, None), (None, bf16), (bf16, tf32)] {
            let arithmetic = arithmetic(flag, recorded).unwrap();
            assert_eq!(arithmetic.precision, ops::Precision::Bf16);
        }
        let refused = |flag, recorded| arithmetic(flag, recorded).unwrap_err().to_string();
        assert!(refused(tf32, bf16).starts_with("--precision tf32 (command line): the CPU"));
        for flag in [None, tf32] {
            assert!(refused(flag, tf32).starts_with("the run computes in tf32, and the CPU"));
        }
    }
}
