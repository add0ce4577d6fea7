//! Products of `bf16` values with sums in `f32`, with the bits of Intel's matrix unit (AMX) on every machine.
//!
//! Where the processor has the unit, it computes the products; elsewhere `portable` computes the same bits. So a run may
//! move between machines.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod amx;
pub(crate) mod block;
mod portable;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) use amx::is_available as has_amx;
