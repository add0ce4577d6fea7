//! Vectors of floating-point numbers, on whatever instruction set the machine has.
//!
//! `pulp` picks the instruction set at run time (AVX-512, AVX2 with FMA, NEON, or plain scalars) and
//! hands out a token for it, the type parameter `S` below. Functions that take the token are marked
//! `#[inline(always)]`, so that they are compiled once for each instruction set.

use candle_core::WithDType;
use pulp::{Arch, Simd};
use std::sync::OnceLock;

/// The environment variable that names the instruction set to use instead of the best one: `avx512`, `avx2` or
/// `scalar`. For tests and measurements: the results are the same to the bit.
const ISA: &str = "KERNELS_ISA";

/// The instruction set to use: the best of this machine, unless the environment names another that it has.
pub(crate) fn arch() -> Arch {
    static ARCH: OnceLock<Arch> = OnceLock::new();
    *ARCH.get_or_init(|| named(std::env::var(ISA).as_deref().unwrap_or("")).unwrap_or_default())
}

/// The instruction set of this name, where the machine has it.
fn named(name: &str) -> Option<Arch> {
    match name {
        "scalar" => Some(Arch::Scalar),
        #[cfg(target_arch = "x86_64")]
        "avx2" => pulp::x86::V3::try_new().map(Arch::V3),
        #[cfg(target_arch = "x86_64")]
        "avx512" => pulp::x86::V4::try_new().map(Arch::V4),
        _ => None,
    }
}

/// A floating-point type and the operations on vectors of it.
pub(crate) trait Real: WithDType {
    /// A register full of numbers.
    type Vector<S: Simd>: Copy;

    /// Numbers in a register.
    fn lanes<S: Simd>() -> usize;

    /// A register with the same number in all lanes.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;

    /// `a + b`.
    fn add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;

    /// `a - b`.
    fn sub<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;

    /// `a * b`.
    fn mul<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;

    /// `a * b + c`, rounded once on every machine.
    fn fma<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;

    /// As many numbers as `from` holds, up to a register full, and zeros.
    fn load_some<S: Simd>(simd: S, from: &[Self]) -> Self::Vector<S>;

    /// As many of the lanes as `to` holds, from the first on.
    fn store_some<S: Simd>(simd: S, to: &mut [Self], value: Self::Vector<S>);

    /// A register full of the numbers from `from` on.
    ///
    /// # Safety
    /// `from` must be valid for reads of as many numbers as there are lanes.
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> Self::Vector<S> {
        // SAFETY: the caller's promise; a vector has no invalid bit patterns.
        unsafe { from.cast::<Self::Vector<S>>().read_unaligned() }
    }

    /// Writes all lanes from `to` on.
    ///
    /// # Safety
    /// `to` must be valid for writes of as many numbers as there are lanes.
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, value: Self::Vector<S>) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<Self::Vector<S>>().write_unaligned(value) }
    }
}

macro_rules! real {
    ($number:ty, $vector:ident, $lanes:ident, $splat:ident, $add:ident, $sub:ident, $mul:ident, $fma:ident, $load:ident, $store:ident) => {
        impl Real for $number {
            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$lanes
            }

            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$vector {
                simd.$splat(value)
            }

            #[inline(always)]
            fn add<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$add(a, b)
            }

            #[inline(always)]
            fn sub<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$sub(a, b)
            }

            #[inline(always)]
            fn mul<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$mul(a, b)
            }

            #[inline(always)]
            fn fma<S: Simd>(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$fma(a, b, c)
            }

            #[inline(always)]
            fn load_some<S: Simd>(simd: S, from: &[Self]) -> S::$vector {
                if from.len() >= S::$lanes {
                    // SAFETY: `from` holds as many numbers as there are lanes.
                    return unsafe { Self::load::<S>(from.as_ptr()) };
                }
                simd.$load(from)
            }

            #[inline(always)]
            fn store_some<S: Simd>(simd: S, to: &mut [Self], value: S::$vector) {
                if to.len() >= S::$lanes {
                    // SAFETY: `to` holds as many numbers as there are lanes.
                    return unsafe { Self::store::<S>(to.as_mut_ptr(), value) };
                }
                simd.$store(to, value);
            }
        }
    };
}

real!(
    f32,
    f32s,
    F32_LANES,
    splat_f32s,
    add_f32s,
    sub_f32s,
    mul_f32s,
    mul_add_f32s,
    partial_load_f32s,
    partial_store_f32s
);
real!(
    f64,
    f64s,
    F64_LANES,
    splat_f64s,
    add_f64s,
    sub_f64s,
    mul_f64s,
    mul_add_f64s,
    partial_load_f64s,
    partial_store_f64s
);

#[cfg(test)]
mod tests {
    use super::ISA;
    use std::process::Command;

    /// Runs the other tests of this crate on the instruction sets that this machine would not choose.
    #[test]
    fn all_instruction_sets_give_right_results() {
        for set in ["scalar", "avx2", "avx512"] {
            if super::named(set).is_none() {
                println!("skipped: this machine has no {set}");
                continue;
            }
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--skip", "all_instruction_sets"])
                .env(ISA, set)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{set}: {text}");
            assert!(text.contains("agrees_with_three_loops ... ok"), "{text}");
        }
    }
}
