//! Typed views of candle's storage.

use candle_core::{CpuStorage, Layout, Result, WithDType, bail};

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

/// Runs `$body` with `$t` standing for the element type of `$storage`.
macro_rules! with_float {
    ($operation:expr, $storage:expr, $t:ident => $body:expr) => {
        match $storage {
            candle_core::CpuStorage::F32(_) => {
                type $t = f32;
                $body
            }
            candle_core::CpuStorage::F64(_) => {
                type $t = f64;
                $body
            }
            other => candle_core::bail!(
                "{} computes in f32 and f64, not in {:?}",
                $operation,
                candle_core::backend::BackendStorage::dtype(other)
            ),
        }
    };
}
pub(crate) use with_float;
