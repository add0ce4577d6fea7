//! Matrix products by cuBLASLt.

use super::memory::Elements;
use super::per_device::PerDevice;
use super::workspace::with_workspace;
use crate::arithmetic::Precision;
use candle_core::cuda::cudarc::cublaslt::{result, sys};
use candle_core::{CudaDevice, DType, Error, Result};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::rc::Rc;

/// Bytes of working memory: what the library's documentation recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// The layout of a row-major matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stored {
    AsIs,
    Transposed,
}

/// What the choice of an algorithm depends on: rows, columns and depth, the layouts of the factors, the types of factors and
/// result, precision, and the alignment of all memory.
type Key = ([usize; 3], [Stored; 2], [DType; 2], Precision, u32);

/// The largest alignment that the library looks at, in bytes: that of allocations.
const MAX_ALIGNMENT: u32 = 256;

/// cuBLASLt on one device.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    /// The algorithm of each product that was computed before.
    algorithms: RefCell<HashMap<Key, sys::cublasLtMatmulAlgo_t>>,
}

thread_local! {
    static BLAS: PerDevice<Blas> = const { PerDevice::new() };
}

/// cuBLASLt on a device.
///
/// # Errors
/// When it does not start.
pub(super) fn blas(device: &CudaDevice) -> Result<Rc<Blas>> {
    let make = || {
        let handle = result::create_handle().map_err(failed)?;
        let algorithms = RefCell::default();
        Ok(Blas { handle, algorithms })
    };
    BLAS.with(|all| all.get(device, make))
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made by `create_handle`, and destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn failed(error: result::CublasError) -> Error {
    Error::Msg(format!("cuBLASLt: {error:?}"))
}

/// A description of the library, and the function that destroys it.
struct Description<T: Copy>(
    T,
    unsafe fn(T) -> std::result::Result<(), result::CublasError>,
);

impl<T: Copy> Drop for Description<T> {
    fn drop(&mut self) {
        // SAFETY: the description was made by the function's counterpart, and is destroyed once.
        let _ = unsafe { (self.1)(self.0) };
    }
}

/// A row-major matrix of this shape. The library is column-major, in which it is its transpose.
fn matrix(
    dtype: DType,
    rows: usize,
    columns: usize,
) -> Result<Description<sys::cublasLtMatrixLayout_t>> {
    let kind = match dtype {
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        _ => sys::cudaDataType::CUDA_R_32F,
    };
    let made = result::create_matrix_layout(kind, columns as u64, rows as u64, columns as i64);
    Ok(Description(
        made.map_err(failed)?,
        result::destroy_matrix_layout,
    ))
}

/// A product of factors with these layouts.
fn operation(
    precision: Precision,
    layouts: [Stored; 2],
) -> Result<Description<sys::cublasLtMatmulDesc_t>> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    let compute = match precision {
        Precision::Tf32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        Precision::F32 | Precision::Bf16 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
    };
    let made = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F);
    let description = Description(made.map_err(failed)?, result::destroy_matmul_desc);
    let attributes = [
        Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
        Attribute::CUBLASLT_MATMUL_DESC_TRANSB,
    ];
    for (attribute, stored) in attributes.into_iter().zip(layouts) {
        // CUBLAS_OP_N and CUBLAS_OP_T.
        let value = i32::from(stored == Stored::Transposed);
        let (value, size) = ((&raw const value).cast(), size_of::<i32>());
        // SAFETY: the attribute is an integer of 32 bits, which is copied.
        unsafe { result::set_matmul_desc_attribute(description.0, attribute, value, size) }
            .map_err(failed)?;
    }
    Ok(description)
}

/// What an algorithm may use: the workspace, and memory of this alignment.
fn preference(alignment: u32) -> Result<Description<sys::cublasLtMatmulPreference_t>> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let made = result::create_matmul_pref().map_err(failed)?;
    let preference = Description(made, result::destroy_matmul_pref);
    let attribute = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    let bytes = WORKSPACE;
    let (value, size) = ((&raw const bytes).cast(), size_of::<usize>());
    // SAFETY: the attribute is a size, which is copied.
    unsafe { result::set_matmul_pref_attribute(preference.0, attribute, value, size) }
        .map_err(failed)?;
    for attribute in [
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    ] {
        let (value, size) = ((&raw const alignment).cast(), size_of::<u32>());
        // SAFETY: the attribute is an integer of 32 bits, which is copied.
        unsafe { result::set_matmul_pref_attribute(preference.0, attribute, value, size) }
            .map_err(failed)?;
    }
    Ok(preference)
}

/// A factor, and how it is stored.
type Factor<'a> = (Elements<'a>, Stored);

/// Computes `c = a b`, with the first algorithm of the library's heuristics. They depend on sizes, types and the device
/// alone, so that it is the same in every run.
///
/// # Errors
/// When the library has no algorithm, or fails.
pub(crate) fn product(
    precision: Precision,
    a: Factor<'_>,
    b: Factor<'_>,
    c: Elements<'_>,
) -> Result<()> {
    gemm(precision, a, b, 0.0, c)
}

/// Computes `c = a b + beta c`, as [`product`] does. With 0 as `beta`, `c` need not be initialised.
///
/// # Errors
/// Those of [`product`].
pub(super) fn gemm(
    precision: Precision,
    (a, a_stored): Factor<'_>,
    (b, b_stored): Factor<'_>,
    beta: f32,
    c: Elements<'_>,
) -> Result<()> {
    let (rows, columns) = c.shape.dims2()?;
    let ((a_rows, a_columns), (b_rows, b_columns)) = (a.shape.dims2()?, b.shape.dims2()?);
    let depth = match a_stored {
        Stored::AsIs => a_columns,
        Stored::Transposed => a_rows,
    };
    assert!(a.count() == rows * depth && b.count() == depth * columns && a.dtype == b.dtype);
    // In the library's order: c' = b' a'.
    let operation = operation(precision, [b_stored, a_stored])?;
    let first = matrix(b.dtype, b_rows, b_columns)?;
    let second = matrix(a.dtype, a_rows, a_columns)?;
    let out = matrix(c.dtype, rows, columns)?;
    let addresses = [a, b, c].map(|memory| memory.address);
    let zeros = addresses
        .iter()
        .fold(0, |all, address| all | address)
        .trailing_zeros();
    let alignment = 1 << zeros.min(MAX_ALIGNMENT.ilog2());
    let key = (
        [rows, columns, depth],
        [a_stored, b_stored],
        [a.dtype, c.dtype],
        precision,
        alignment,
    );
    let blas = blas(c.device)?;
    let known = blas.algorithms.borrow().get(&key).copied();
    let algorithm = match known {
        Some(algorithm) => algorithm,
        None => {
            let preference = preference(alignment)?;
            // SAFETY: all descriptions are alive.
            let found = unsafe {
                result::get_matmul_algo_heuristic(
                    blas.handle,
                    operation.0,
                    first.0,
                    second.0,
                    out.0,
                    out.0,
                    preference.0,
                )
            }
            .map_err(failed)?;
            blas.algorithms.borrow_mut().insert(key, found.algo);
            found.algo
        }
    };
    let stream = c.device.cuda_stream();
    let alpha = 1.0_f32;
    with_workspace(c.device, WORKSPACE, |workspace| {
        let [a, b, c, workspace] =
            [a.address, b.address, c.address, workspace].map(|at| at as *mut c_void);
        // SAFETY: the descriptions are alive and fit the memory, whose lengths were checked; the workspace
        // is as large as the heuristics were told; the work is ordered on the stream of the memory.
        unsafe {
            result::matmul(
                blas.handle,
                operation.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                b,
                first.0,
                a,
                second.0,
                c,
                out.0,
                c,
                out.0,
                &raw const algorithm,
                workspace,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
        .map_err(failed)
    })
}
