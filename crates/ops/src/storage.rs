//! Typed slices of candle's storage on the CPU.

use crate::operation::{Gradients, Output, tensor};
use candle_core::{
    CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

/// Calls `work` with the elements of contiguous tensors on the CPU.
///
/// # Errors
/// When a tensor is not contiguous, has another type or is on another device.
pub(crate) fn with_slices<T: WithDType, R, const N: usize>(
    operation: &str,
    tensors: [&Tensor; N],
    work: impl FnOnce([&[T]; N]) -> R,
) -> Result<R> {
    let stored = tensors.map(Tensor::storage_and_layout);
    let mut slices = [&[][..]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&stored) {
        let Storage::Cpu(storage) = &**storage else {
            bail!("{operation} computes on the CPU");
        };
        *slice = contiguous(operation, storage, layout)?;
    }
    Ok(work(slices))
}

fn contiguous<'a, T: WithDType>(
    operation: &str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&T::cpu_storage_as_slice(storage)?[start..end]),
        None => bail!("{operation} needs a contiguous tensor, got {layout:?}"),
    }
}

/// The result of an operation on the CPU.
pub(crate) fn output<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>) -> Output {
    (Storage::Cpu(T::to_cpu_storage_owned(values)), shape.into())
}

/// The gradients of the kernels, for inputs of these shapes.
pub(crate) fn gradients<E: kernels::Element<Real: WithDType> + WithDType>(
    found: kernels::ParameterGradients<E>,
    [x, weight, bias]: [&Tensor; 3],
) -> Gradients {
    [
        found.x.map(|values| tensor(output(values, x.shape()))),
        Some(tensor(output(found.weight, weight.shape()))),
        Some(tensor(output(found.bias, bias.shape()))),
    ]
}

/// A type whose storage can be borrowed mutably.
pub(crate) trait InPlaceElement: WithDType + kernels::Real {
    /// The elements of a storage of this type.
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl InPlaceElement for f32 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }
}

impl InPlaceElement for f64 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F64(values) => Some(values),
            _ => None,
        }
    }
}

/// Calls `change` with the elements of `tensor`, which it may change, and those of `other`.
///
/// # Errors
/// Those of `change`; and when a tensor is not contiguous, has another type or is on another device.
pub(crate) fn in_place<T: InPlaceElement>(
    operation: &'static str,
    tensor: &Tensor,
    other: &Tensor,
    change: impl FnOnce(&mut [T], &[T]) -> Result<()>,
) -> Result<()> {
    let change = Mutex::new(Some(change));
    let types = PhantomData;
    tensor.inplace_op2(
        other,
        &InPlace {
            operation,
            change,
            types,
        },
    )
}

struct InPlace<T, F> {
    operation: &'static str,
    /// Candle calls it once, by a shared reference.
    change: Mutex<Option<F>>,
    types: PhantomData<T>,
}

impl<T: InPlaceElement, F: FnOnce(&mut [T], &[T]) -> Result<()>> InplaceOp2 for InPlace<T, F> {
    fn name(&self) -> &'static str {
        self.operation
    }

    fn cpu_fwd(
        &self,
        tensor: &mut CpuStorage,
        layout: &Layout,
        other: &CpuStorage,
        other_layout: &Layout,
    ) -> Result<()> {
        let other = contiguous::<T>(self.operation, other, other_layout)?;
        let change = self
            .change
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match (layout.contiguous_offsets(), T::slice_mut(tensor), change) {
            (Some((start, end)), Some(values), Some(change)) => {
                change(&mut values[start..end], other)
            }
            _ => bail!(
                "{} needs contiguous tensors of one type, got {layout:?}",
                self.operation
            ),
        }
    }
}

/// Calls `change` with the elements of `tensor` in `f32` on a CPU, which it may change. All tensors that share them change.
///
/// # Errors
/// Those of `change`; and when the tensor is not contiguous, has another type or is on another device.
pub fn change_in_place(
    tensor: &Tensor,
    change: impl FnOnce(&mut [f32]) -> Result<()>,
) -> Result<()> {
    let change = Mutex::new(Some(change));
    tensor.inplace_op1(&Change(change))
}

struct Change<F>(Mutex<Option<F>>);

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for Change<F> {
    fn name(&self) -> &'static str {
        "change in place"
    }

    fn cpu_fwd(&self, tensor: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let change = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (layout.contiguous_offsets(), f32::slice_mut(tensor), change) {
            (Some((start, end)), Some(values), Some(change)) => change(&mut values[start..end]),
            _ => bail!("a change in place needs a contiguous tensor in f32, got {layout:?}"),
        }
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

/// Runs `$body` with `$t` as the element type `$dtype`, which may be `bf16`.
macro_rules! with_element {
    ($operation:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            other => crate::storage::with_dtype!($operation, other, $t => $body),
        }
    };
}
pub(crate) use with_element;
