//! The multiply-add of scalar code, rounded once, for Windows with the C library of MinGW, which rounds it twice.
//!
//! `mul_add` calls these functions of C where it is not an instruction. Defined here, they replace the library's in every
//! program with this crate.

/// `x * y + z` in `f32`.
// SAFETY: the name and the types are those of C.
#[unsafe(no_mangle)]
extern "C" fn fmaf(x: f32, y: f32, z: f32) -> f32 {
    libm::fmaf(x, y, z)
}

/// `x * y + z` in `f64`.
// SAFETY: as above.
#[unsafe(no_mangle)]
extern "C" fn fma(x: f64, y: f64, z: f64) -> f64 {
    libm::fma(x, y, z)
}
