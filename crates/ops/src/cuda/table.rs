//! The tensors of an update, as the kernels read them.

use candle_core::cuda::cudarc::driver::DeviceRepr;

/// Tensors of one launch: `TENSORS` in the kernels' source.
pub(super) const TENSORS: usize = 32;

/// One parameter: `entry` in the kernels' source.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Entry {
    pub(super) parameter: u64,
    pub(super) buffer: u64,
    pub(super) gradient: u64,
    pub(super) count: u32,
    pub(super) chunks_before: u32,
    pub(super) wide: u32,
    pub(super) unused: u32,
}

/// The tensors of one launch: `tensors` in the kernels' source.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Table(pub(super) [Entry; TENSORS]);

// SAFETY: integers in the layout of the kernels' structure.
unsafe impl DeviceRepr for Table {}
