//! Typed views of candle's storage.

use candle_core::{CpuStorage, Layout, Result, Storage, WithDType, bail};

/// The elements of a contiguous tensor on the CPU.
///
/// # Errors
/// When the tensor is not contiguous, has another type or lies on another device.
pub(crate) fn slice<'a, T: WithDType>(
    operation: &str,
    storage: &'a Storage,
    layout: &Layout,
) -> Result<&'a [T]> {
    match storage {
        Storage::Cpu(storage) => contiguous(operation, storage, layout),
        _ => bail!("{operation} computes on the CPU"),
    }
}

/// The elements of a contiguous tensor.
///
/// # Errors
/// When the tensor is not contiguous or has another type.
pub(crate) fn contiguous<'a, T: WithDType>(
    operation: &str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&T::cpu_storage_as_slice(storage)?[start..end]),
        None => bail!("{operation} needs a contiguous tensor, got {layout:?}"),
    }
}

/// Runs `$body` with `$t` standing for the element type `$dtype`.
macro_rules! with_dtype {
    ($operation:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            other => candle_core::bail!("{} computes in f32 and f64, not in {other:?}", $operation),
        }
    };
}
pub(crate) use with_dtype;

/// Runs `$body` with `$t` standing for the element type of `$storage`.
macro_rules! with_float {
    ($operation:expr, $storage:expr, $t:ident => $body:expr) => {
        crate::storage::with_dtype!(
            $operation,
            candle_core::backend::BackendStorage::dtype($storage),
            $t => $body
        )
    };
}
pub(crate) use with_float;
