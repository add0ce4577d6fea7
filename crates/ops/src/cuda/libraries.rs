//! CUDA's libraries that were opened: their versions and files.

use super::device::Version;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{result::DriverError, sys};
use candle_core::cuda::cudarc::nvrtc::{self, result::NvrtcError};
use candle_core::cuda::cudarc::{cublaslt, cudnn};
use candle_core::{CudaDevice, Error, Result};
use std::fs;

/// The latest version of CUDA that the driver knows.
pub(super) fn driver() -> std::result::Result<Version, DriverError> {
    let mut driver = 0;
    // SAFETY: the driver writes a number.
    unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result()?;
    Ok(Version::of_cuda(driver))
}

/// NVRTC's version.
pub(super) fn nvrtc() -> std::result::Result<Version, NvrtcError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library writes two numbers.
    unsafe { nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result()?;
    Ok(Version { major, minor })
}

/// The version of CUDA for which cuDNN was made.
pub(super) fn cuda_of_cudnn() -> Version {
    // SAFETY: this gives a number.
    let version = unsafe { cudnn::sys::cudnnGetCudartVersion() };
    Version::of_cuda(i32::try_from(version).unwrap_or(i32::MAX))
}

/// The version of CUDA for which cuBLASLt was made.
pub(super) fn cuda_of_cublaslt() -> Version {
    // SAFETY: this gives a number.
    let version = unsafe { cublaslt::sys::cublasLtGetCudartVersion() };
    Version::of_cuda(i32::try_from(version).unwrap_or(i32::MAX))
}

/// A version of cuDNN 9 or cuBLASLt, such as 92600 for 9.26.0.
fn release(number: usize) -> String {
    let [major, minor, patch] = [number / 10_000, number / 100 % 100, number % 100];
    format!("{major}.{minor}.{patch}")
}

/// The files of CUDA's libraries in the memory of this process. Libraries open some of their parts when they are first needed.
pub(super) fn files() -> Vec<String> {
    // The feature `cuda` is for Linux, which has this file.
    files_in(&fs::read_to_string("/proc/self/maps").unwrap_or_default())
}

/// The files of CUDA's libraries that the lines of `/proc/self/maps` name.
fn files_in(maps: &str) -> Vec<String> {
    let is_cuda = |path: &&str| {
        let name = path.rsplit('/').next().unwrap_or_default();
        let libraries = ["libcuda.", "libnvrtc", "libcublas", "libcurand", "libcudnn"];
        libraries.iter().any(|library| name.starts_with(library))
    };
    let paths = maps.lines().filter_map(|line| line.get(line.find('/')?..));
    let mut files: Vec<String> = paths.filter(is_cuda).map(str::to_owned).collect();
    files.sort_unstable();
    files.dedup();
    files
}

/// Logs the versions and files of CUDA's libraries, and warns of a GPU without memory pools. To be called once, when there is
/// a log.
///
/// # Errors
/// When the driver or NVRTC fails.
pub fn log_environment(device: &CudaDevice) -> Result<()> {
    let driver = driver().w()?;
    let nvrtc = nvrtc().map_err(|error| Error::Msg(format!("NVRTC: {error:?}")))?;
    // SAFETY: these give numbers.
    let (cudnn, cublaslt) = unsafe {
        (
            cudnn::sys::cudnnGetVersion(),
            cublaslt::sys::cublasLtGetVersion(),
        )
    };
    let (cudnn, cublaslt) = (release(cudnn), release(cublaslt));
    tracing::info!(%driver, %nvrtc, cudnn, cublaslt, "versions of CUDA's libraries");
    for file in files() {
        tracing::info!(file, "library of CUDA");
    }
    if !device.cuda_stream().context().has_async_alloc() {
        tracing::warn!(
            "the GPU has no memory pools, as some virtual GPUs: every release of memory waits for the GPU, many times a step"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_those_of_cuda() {
        let maps = "\
            7f1 r--p 0 fe:00 1    /usr/lib/libc.so.6\n\
            7f2 r--p 0 fe:00 2    /opt/my wheels/libcudnn_graph.so.9\n\
            7f3 r-xp 0 fe:00 3    /usr/lib/libcuda.so.580.1\n\
            7f4 r--p 0 fe:00 2    /opt/my wheels/libcudnn_graph.so.9\n\
            7f5 rw-p 0 00:00 0    [heap]\n\
            7f6 rw-p 0 00:00 0\n";
        assert_eq!(
            files_in(maps),
            [
                "/opt/my wheels/libcudnn_graph.so.9",
                "/usr/lib/libcuda.so.580.1"
            ]
        );
        assert_eq!(release(92_600), "9.26.0");
        assert_eq!(release(130_102), "13.1.2");
    }
}
