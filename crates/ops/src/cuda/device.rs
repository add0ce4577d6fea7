//! Opening a GPU, and what can be wrong with it.

use super::product::blas;
use super::program::Program;
use super::{cudnn, libraries};
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaContext, result, sys};
use candle_core::cuda::cudarc::nvrtc;
use candle_core::{CudaDevice, DType, Device, Error, bail};
use std::any::Any;
use std::fmt::{self, Debug};
use std::sync::{Mutex, PoisonError};
use std::{panic, ptr};

/// Why a GPU cannot be used. Messages name what is missing, without a full stop.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver's library is not installed.
    #[error("NVIDIA's driver is not installed (there is no library libcuda)")]
    NoDriver,
    /// The driver does not start.
    #[error("NVIDIA's driver does not start: {0}")]
    Driver(String),
    /// The driver knows of no GPU.
    #[error("there is no NVIDIA GPU")]
    NoDevice,
    /// There are fewer GPUs.
    #[error("there is no GPU {index}: the machine has {count}, counted from 0")]
    OutOfRange {
        /// The GPU asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A library of CUDA cannot be opened.
    #[error(
        "CUDA's library lib{0} cannot be opened; install CUDA 13 with cuDNN 9, or let LD_LIBRARY_PATH name \
         the folder that holds it"
    )]
    MissingLibrary(String),
    /// The driver is older than the libraries.
    #[error(
        "the driver knows CUDA {driver}, and the libraries are of CUDA {libraries}; install a newer driver, or the \
         libraries of CUDA {}",
        .driver.major
    )]
    OldDriver {
        /// The latest version of CUDA that the driver knows.
        driver: Version,
        /// The version of CUDA of the libraries.
        libraries: Version,
    },
    /// The libraries are of different major versions.
    #[error(
        "NVRTC is of CUDA {nvrtc}, cuDNN is made for CUDA {cudnn} and cuBLASLt for CUDA {cublaslt}; install libraries of one \
         version, or let LD_LIBRARY_PATH name their folders first (these were opened: {files})"
    )]
    MixedLibraries {
        /// NVRTC's version.
        nvrtc: Version,
        /// The version of CUDA for which cuDNN was made.
        cudnn: Version,
        /// The version of CUDA for which cuBLASLt was made.
        cublaslt: Version,
        /// The files that were opened.
        files: String,
    },
    /// NVRTC does not compile for the GPU.
    #[error(
        "NVRTC of CUDA {nvrtc} does not compile for this GPU, whose compute capability is {gpu}; GPUs before 7.5 need the \
         libraries of CUDA 12, new ones may need later libraries"
    )]
    Capability {
        /// The GPU's compute capability.
        gpu: Version,
        /// NVRTC's version.
        nvrtc: Version,
    },
    /// Anything else.
    #[error("the GPU cannot be used: {0}")]
    Failed(String),
}

/// A version of CUDA, or a compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The number before the point.
    pub major: i32,
    /// The number behind it.
    pub minor: i32,
}

impl Version {
    /// Of CUDA, as the driver writes it: 12040 for 12.4.
    pub(super) fn of_cuda(number: i32) -> Self {
        Self {
            major: number / 1000,
            minor: number % 1000 / 10,
        }
    }

    /// Whether GPUs of this compute capability have tensor cores for bf16 and TF32.
    #[must_use]
    pub fn has_tensor_cores_for_bf16(self) -> bool {
        self.major >= 8
    }

    /// A compute capability, as NVRTC writes it: 90 for 9.0.
    fn of_architecture(number: i32) -> Self {
        Self {
            major: number / 10,
            minor: number % 10,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The memory of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes that are free.
    pub free: usize,
    /// All bytes.
    pub total: usize,
}

/// Opens GPU number `index` and everything that is needed to compute on it, so that a missing part is found
/// at once: driver, device, cuBLAS, cuRAND (candle opens it), cuDNN, and NVRTC with our kernels.
///
/// The device is to be used from the thread that opened it: candle's stream is the thread's own.
///
/// # Errors
/// When any of these is missing or does not start.
pub fn open(index: usize) -> Result<Device, DeviceError> {
    // Where libraries are opened at run time, a missing one is a panic of the bindings. Its message would be
    // printed, so the hook that does it is taken out, by one thread at a time.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let opened = panic::catch_unwind(|| open_or_panic(index));
    panic::set_hook(hook);
    opened.unwrap_or_else(|panic| Err(from_panic(panic.as_ref())))
}

fn open_or_panic(index: usize) -> Result<Device, DeviceError> {
    let unusable = |error: result::DriverError| match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => DeviceError::NoDevice,
        code => DeviceError::Driver(format!("{code:?}")),
    };
    result::init().map_err(unusable)?;
    let count = CudaContext::device_count().map_err(unusable)?;
    let count = usize::try_from(count).unwrap_or(0);
    if count == 0 {
        return Err(DeviceError::NoDevice);
    }
    if index >= count {
        return Err(DeviceError::OutOfRange { index, count });
    }
    let failed = |error: Error| DeviceError::Failed(error.to_string());
    check_versions(index)?;
    let device = Device::new_cuda(index).map_err(failed)?;
    if let Device::Cuda(cuda) = &device {
        // SAFETY: the events order work on several streams. Here is one, that of the thread that opened the
        // device, and whoever uses the device does so from that thread: see `open`.
        unsafe { cuda.disable_event_tracking() };
        keep_memory(cuda).map_err(failed)?;
        cudnn::cudnn(cuda).map_err(failed)?;
        blas(cuda).map_err(failed)?;
        let program = Program::packed(DType::F32, 4);
        program.prepare(cuda).map_err(failed)?;
    }
    Ok(device)
}

/// Checks that driver, libraries and GPU know one another.
fn check_versions(index: usize) -> Result<(), DeviceError> {
    let failed = |error: &dyn Debug| DeviceError::Failed(format!("{error:?}"));
    let driver = libraries::driver().map_err(|error| failed(&error))?;
    let nvrtc = libraries::nvrtc().map_err(|error| failed(&error))?;
    let (cudnn, cublaslt) = (libraries::cuda_of_cudnn(), libraries::cuda_of_cublaslt());
    if [cudnn, cublaslt]
        .iter()
        .any(|library| library.major != nvrtc.major)
    {
        let files = libraries::files().join(", ");
        return Err(DeviceError::MixedLibraries {
            nvrtc,
            cudnn,
            cublaslt,
            files,
        });
    }
    // Within a major version, drivers run programs of later minor ones.
    if driver.major < nvrtc.major {
        return Err(DeviceError::OldDriver {
            driver,
            libraries: nvrtc,
        });
    }
    let index = i32::try_from(index).map_err(|error| failed(&error))?;
    let gpu = compute_capability(index).map_err(|error| failed(&error))?;
    let known = architectures().map_err(|error| failed(&error))?;
    match nearest(gpu, &known) {
        Some(_) => Ok(()),
        None => Err(DeviceError::Capability { gpu, nvrtc }),
    }
}

/// The compute capability of GPU number `index`.
fn compute_capability(index: i32) -> Result<Version, result::DriverError> {
    let device = result::device::get(index)?;
    let attribute = |attribute| {
        // SAFETY: the driver gave the device.
        unsafe { result::device::get_attribute(device, attribute) }
    };
    Ok(Version {
        major: attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        minor: attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    })
}

/// The compute capabilities for which NVRTC compiles.
fn architectures() -> Result<Vec<Version>, nvrtc::result::NvrtcError> {
    let mut count = 0;
    // SAFETY: the library writes a number.
    unsafe { nvrtc::sys::nvrtcGetNumSupportedArchs(&raw mut count) }.result()?;
    let mut all = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: the library writes as many numbers as it said.
    unsafe { nvrtc::sys::nvrtcGetSupportedArchs(all.as_mut_ptr()) }.result()?;
    Ok(all.into_iter().map(Version::of_architecture).collect())
}

/// The greatest of the compute capabilities `known` whose programs run on a GPU: those of its major version, up to its own.
fn nearest(gpu: Version, known: &[Version]) -> Option<Version> {
    let known = known.iter().copied();
    known
        .filter(|version| version.major == gpu.major && *version <= gpu)
        .max()
}

/// The architecture for which our kernels are compiled on a GPU, such as `sm_90`.
pub(super) fn architecture(device: &CudaDevice) -> candle_core::Result<String> {
    let gpu = capability(device)?;
    let known = architectures().map_err(|error| Error::Msg(format!("NVRTC: {error:?}")))?;
    match nearest(gpu, &known) {
        Some(Version { major, minor }) => Ok(format!("sm_{major}{minor}")),
        None => bail!("NVRTC does not compile for compute capability {gpu}"),
    }
}

/// Lets the driver keep freed memory for later allocations. Otherwise it returns it to the system whenever the GPU is
/// synchronised, and allocating it again takes longer than a step.
fn keep_memory(device: &CudaDevice) -> candle_core::Result<()> {
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(());
    }
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let pool = default_pool(device)?;
    let mut bytes = u64::MAX;
    // SAFETY: the pool is the device's; the driver reads the threshold, which is of the type that the attribute has.
    let set = unsafe { sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut bytes).cast()) };
    set.result().w()
}

/// The pool that memory is allocated from.
pub(super) fn default_pool(device: &CudaDevice) -> candle_core::Result<sys::CUmemoryPool> {
    let mut pool = ptr::null_mut();
    let stream = device.cuda_stream();
    // SAFETY: the device is open, and the driver writes a pointer to its pool.
    let got =
        unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device()) };
    got.result().w()?;
    Ok(pool)
}

/// The error of a panic.
fn from_panic(panic: &(dyn Any + Send)) -> DeviceError {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a library of CUDA failed");
    let missing = text
        .strip_prefix("Unable to dynamically load the \"")
        .and_then(|rest| rest.split_once('"'));
    match missing {
        Some(("cuda", _)) => DeviceError::NoDriver,
        Some((library, _)) => DeviceError::MissingLibrary(library.to_owned()),
        None => DeviceError::Failed(text.to_owned()),
    }
}

/// A GPU's name, such as `NVIDIA H200`.
///
/// # Errors
/// When the driver fails.
pub fn name(device: &CudaDevice) -> candle_core::Result<String> {
    device.cuda_stream().context().name().w()
}

/// A GPU's compute capability.
///
/// # Errors
/// When the driver fails.
pub fn capability(device: &CudaDevice) -> candle_core::Result<Version> {
    let context = device.cuda_stream().context().clone();
    let (major, minor) = context.compute_capability().w()?;
    Ok(Version { major, minor })
}

/// A GPU's memory.
///
/// # Errors
/// When the driver fails.
pub fn memory(device: &CudaDevice) -> candle_core::Result<Memory> {
    let (free, total) = device.cuda_stream().context().mem_get_info().w()?;
    Ok(Memory { free, total })
}

/// Whether an error, with its causes, says that the GPU had no memory.
#[must_use]
pub fn is_out_of_memory(error: &impl Debug) -> bool {
    // The error may come from the driver or from a library and be wrapped in others; what they have in common
    // is the name of the code.
    let text = format!("{error:?}");
    [
        "CUDA_ERROR_OUT_OF_MEMORY",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUBLAS_STATUS_ALLOC_FAILED",
    ]
    .iter()
    .any(|code| text.contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_of_the_bindings_become_errors() {
        let missing = |library: &str| {
            let text = format!(
                "Unable to dynamically load the \"{library}\" shared library - searched for library names: []"
            );
            from_panic(&text)
        };
        assert!(matches!(missing("cuda"), DeviceError::NoDriver));
        assert!(
            matches!(missing("cudnn"), DeviceError::MissingLibrary(library) if library == "cudnn")
        );
        assert!(matches!(from_panic(&"else"), DeviceError::Failed(text) if text == "else"));
    }

    #[test]
    fn programs_run_on_later_gpus_of_a_major_version() {
        let known = [75, 80, 86, 90, 100, 120].map(Version::of_architecture);
        for (gpu, expected) in [
            (61, None),
            (75, Some(75)),
            (89, Some(86)),
            (103, Some(100)),
            (110, None),
            (121, Some(120)),
        ] {
            let found = nearest(Version::of_architecture(gpu), &known);
            assert_eq!(found, expected.map(Version::of_architecture), "{gpu}");
        }
    }

    #[test]
    fn want_of_memory_is_recognised() {
        let error = Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into());
        assert!(is_out_of_memory(&error.context("in the step")));
        assert!(!is_out_of_memory(&Error::Msg(
            "CUDA_ERROR_NO_DEVICE".into()
        )));
    }
}
