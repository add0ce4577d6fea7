//! Vectors of floating-point values, on the instruction set of the machine.
//!
//! `pulp` represents an instruction set by a token, the type parameter `S` below. Functions that take the token are
//! `#[inline(always)]`, so that they are compiled once for each instruction set.

use pulp::Simd;
use std::ops::{Add, AddAssign, DivAssign, Mul, Sub, SubAssign};

/// A floating-point type, `f32` or `f64`, and the operations on vectors of it.
pub trait Real:
    Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + AddAssign
    + DivAssign
    + SubAssign
    + 'static
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
    ($real:ty, $vector:ident, $lanes:ident, $splat:ident, $add:ident, $sub:ident, $mul:ident, $fma:ident, $load:ident, $store:ident) => {
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
