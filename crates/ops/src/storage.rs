//! Typed slices of candle's storage.

use candle_core::{CpuStorage, Layout, Result, Storage, WithDType, bail};

/// The elements of a contiguous tensor on the CPU.
///
/// # Errors
/// When the tensor is not contiguous, has another type or is on another device.
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

/// A type whose storage can be borrowed mutably.
pub(crate) trait Element: WithDType + kernels::Real {
    /// The elements of a storage of this type.
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Element for f32 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }
}

impl Element for f64 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F64(values) => Some(values),
            _ => None,
        }
    }
}

/// The elements of a contiguous tensor, to be changed.
///
/// # Errors
/// When the tensor is not contiguous or has another type.
pub(crate) fn contiguous_mut<'a, T: Element>(
    operation: &str,
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<&'a mut [T]> {
    match (layout.contiguous_offsets(), T::slice_mut(storage)) {
        (Some((start, end)), Some(values)) => Ok(&mut values[start..end]),
        _ => bail!("{operation} needs contiguous tensors of one type, got {layout:?}"),
    }
}

/// Runs `$body` with `$t` as the element type `$dtype`.
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

/// Runs `$body` with `$t` as the element type of `$storage`.
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
