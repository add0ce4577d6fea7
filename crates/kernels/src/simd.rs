//! Vectors of floating-point values, on the instruction set of the machine.
//!
//! `pulp` represents an instruction set by a token, the type parameter `S` below. Functions that take the token are
//! `#[inline(always)]`, so that they are compiled once for each instruction set.

use crate::element::Element;
use pulp::Simd;
use std::ops::{Add, AddAssign, DivAssign, Mul, Sub, SubAssign};

/// A floating-point type, `f32` or `f64`, and the operations on vectors of it.
pub trait Real:
    Element<Real = Self>
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + AddAssign
    + DivAssign
    + SubAssign
{
    /// 0.
    fn zero() -> Self;

    /// The nearest value of this type.
    fn from_f64(value: f64) -> Self;

    /// The same value in double precision.
    fn to_f64(self) -> f64;

    /// A register of values.
    type Vector<S: Simd>: Copy;

    /// Values in a register.
    fn lanes<S: Simd>() -> usize;

    /// Whether a fused multiply-add takes one lane of a register as a factor (NEON's `FMLA` by element), so that values
    /// need not be broadcast one by one.
    fn multiplies_by_lane<S: Simd>() -> bool {
        cfg!(target_arch = "aarch64") && Self::lanes::<S>() > 1
    }

    /// `a[lane] * b + c`, rounded once.
    fn fma_lane<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        lane: usize,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;

    /// A register with the same value in all lanes.
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

    /// The first values of `from`, as many as there are lanes; missing ones are 0.
    fn load_some<S: Simd>(simd: S, from: &[Self]) -> Self::Vector<S>;

    /// Writes the first lanes to `to`, as many as it has elements.
    fn store_some<S: Simd>(simd: S, to: &mut [Self], value: Self::Vector<S>);

    /// The values that start at `from`, one for each lane.
    ///
    /// # Safety
    /// `from` must be valid for reads of one value for each lane.
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> Self::Vector<S> {
        // SAFETY: the caller's promise; a vector has no invalid bit patterns.
        unsafe { from.cast::<Self::Vector<S>>().read_unaligned() }
    }

    /// Writes all lanes to the values that start at `to`.
    ///
    /// # Safety
    /// `to` must be valid for writes of one value for each lane.
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, value: Self::Vector<S>) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<Self::Vector<S>>().write_unaligned(value) }
    }
}

macro_rules! real {
    ($real:ty, $vector:ident, $lanes:ident, $splat:ident, $add:ident, $sub:ident, $mul:ident, $fma:ident, $load:ident, $store:ident, $neon:ident) => {
        impl Real for $real {
            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            fn zero() -> Self {
                0.0
            }

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as Self
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.into()
            }

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
            fn fma_lane<S: Simd>(
                simd: S,
                a: S::$vector,
                lane: usize,
                b: S::$vector,
                c: S::$vector,
            ) -> S::$vector {
                #[cfg(target_arch = "aarch64")]
                if Self::multiplies_by_lane::<S>() {
                    return neon::$neon(a, lane, b, c);
                }
                assert!(lane < S::$lanes);
                // SAFETY: a vector is its lanes, one behind the other.
                let a = unsafe { (&raw const a).cast::<Self>().add(lane).read() };
                simd.$fma(simd.$splat(a), b, c)
            }

            #[inline(always)]
            fn load_some<S: Simd>(simd: S, from: &[Self]) -> S::$vector {
                if from.len() >= S::$lanes {
                    // SAFETY: `from` has at least one element for each lane.
                    return unsafe { Self::load::<S>(from.as_ptr()) };
                }
                simd.$load(from)
            }

            #[inline(always)]
            fn store_some<S: Simd>(simd: S, to: &mut [Self], value: S::$vector) {
                if to.len() >= S::$lanes {
                    // SAFETY: `to` has at least one element for each lane.
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
    partial_store_f32s,
    fma_lane_f32
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
    partial_store_f64s,
    fma_lane_f64
);

/// NEON's multiply-add by element, which `pulp` has no generic function for.
#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::{float32x4_t, float64x2_t, vfmaq_laneq_f32, vfmaq_laneq_f64};
    use std::mem::{size_of, transmute_copy};

    macro_rules! fma_lane {
        ($name:ident, $vector:ty, $fma:ident, $($lane:literal)*) => {
            /// `a[lane] * b + c` for vectors `V` of NEON.
            #[inline(always)]
            pub(super) fn $name<V: Copy>(a: V, lane: usize, b: V, c: V) -> V {
                assert!(size_of::<V>() == size_of::<$vector>());
                // SAFETY: vectors of one size, of which every bit pattern is valid; all 64-bit ARM processors have NEON.
                unsafe {
                    let [a, b, c] = [a, b, c].map(|vector| transmute_copy::<V, $vector>(&vector));
                    let sum = match lane {
                        $($lane => $fma::<$lane>(c, b, a),)*
                        _ => unreachable!("a register has fewer lanes"),
                    };
                    transmute_copy::<$vector, V>(&sum)
                }
            }
        };
    }

    fma_lane!(fma_lane_f32, float32x4_t, vfmaq_laneq_f32, 0 1 2 3);
    fma_lane!(fma_lane_f64, float64x2_t, vfmaq_laneq_f64, 0 1);
}
