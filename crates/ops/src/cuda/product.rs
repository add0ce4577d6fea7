//! Matrix products by cuBLASLt.

use super::Activations;
use super::per_device::PerDevice;
use super::workspace::with_workspace;
use crate::arithmetic::Precision;
use candle_core::cuda::cudarc::cublaslt::{result, sys};
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView, DevicePtr};
use candle_core::{CudaDevice, Error, Result};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::size_of;
use std::rc::Rc;

/// Bytes of working memory: what the library's documentation recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// The layout of a row-major matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stored {
    AsIs,
    Transposed,
}

/// `c = a b`, where `a` is `rows` by `depth`, `b` is `depth` by `columns` and `c` is `rows` by `columns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) depth: usize,
    pub(crate) a: Stored,
    pub(crate) b: Stored,
}

/// What the choice of an algorithm depends on: sizes, whether the factors and the result are `f32`, precision.
type Key = (Product, bool, bool, Precision);

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

/// A matrix's description, in column-major order.
struct Matrix(sys::cublasLtMatrixLayout_t);

impl Matrix {
    /// `rows` and `columns` of a row-major matrix, which is its transpose in column-major order.
    fn stored(kind: sys::cudaDataType, rows: usize, columns: usize) -> Result<Self> {
        let made = result::create_matrix_layout(kind, columns as u64, rows as u64, columns as i64);
        made.map(Self).map_err(failed)
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        // SAFETY: made by `create_matrix_layout`, and destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// A product's description.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new(precision: Precision, first: Stored, second: Stored) -> Result<Self> {
        let compute = match precision {
            Precision::Tf32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            Precision::F32 | Precision::Bf16 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let made = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F);
        let description = made.map(Self).map_err(failed)?;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        for (attribute, stored) in [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, first),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, second),
        ] {
            // CUBLAS_OP_N and CUBLAS_OP_T.
            let operation = i32::from(stored == Stored::Transposed);
            // SAFETY: the attribute is an integer of 32 bits, which is copied.
            unsafe {
                result::set_matmul_desc_attribute(
                    description.0,
                    attribute,
                    (&raw const operation).cast(),
                    size_of::<i32>(),
                )
            }
            .map_err(failed)?;
        }
        Ok(description)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by `create_matmul_desc`, and destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// What an algorithm may use.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self> {
        let preference = result::create_matmul_pref().map(Self).map_err(failed)?;
        let bytes = WORKSPACE;
        // SAFETY: the attribute is a size, which is copied.
        unsafe {
            result::set_matmul_pref_attribute(
                preference.0,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const bytes).cast(),
                size_of::<usize>(),
            )
        }
        .map_err(failed)?;
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `create_matmul_pref`, and destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// Computes `c = a b`, with the first algorithm of the library's heuristics. They depend on sizes, types and the device
/// alone, so that it is the same in every run.
///
/// # Errors
/// When the library has no algorithm, or fails.
pub(crate) fn product<T: Activations, R: Activations>(
    device: &CudaDevice,
    precision: Precision,
    product: Product,
    (a, b): (&CudaView<'_, T>, &CudaView<'_, T>),
    c: &mut CudaSlice<R>,
) -> Result<()> {
    let Product {
        rows,
        columns,
        depth,
        ..
    } = product;
    assert!(a.len() == rows * depth && b.len() == depth * columns && c.len() == rows * columns);
    // The library is column-major, in which a row-major matrix is its transpose: so it computes c' = b' a'.
    let stored = |stored, rows, columns| match stored {
        Stored::AsIs => (rows, columns),
        Stored::Transposed => (columns, rows),
    };
    let (b_rows, b_columns) = stored(product.b, depth, columns);
    let (a_rows, a_columns) = stored(product.a, rows, depth);
    let description = Description::new(precision, product.b, product.a)?;
    let first = Matrix::stored(T::CUDA_TYPE, b_rows, b_columns)?;
    let second = Matrix::stored(T::CUDA_TYPE, a_rows, a_columns)?;
    let out = Matrix::stored(R::CUDA_TYPE, rows, columns)?;
    let key = (product, T::PACK == 4, R::PACK == 4, precision);
    let blas = blas(device)?;
    let known = blas.algorithms.borrow().get(&key).copied();
    let algorithm = match known {
        Some(algorithm) => algorithm,
        None => {
            let preference = Preference::new()?;
            // SAFETY: all descriptions are alive.
            let found = unsafe {
                result::get_matmul_algo_heuristic(
                    blas.handle,
                    description.0,
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
    let stream = device.cuda_stream();
    let (one, zero) = (1.0_f32, 0.0_f32);
    with_workspace(device, WORKSPACE, |workspace| {
        let address = |at: u64| at as *const c_void;
        let to = address(c.device_ptr(&stream).0).cast_mut();
        // SAFETY: the descriptions are alive and fit the memory, whose lengths were checked; the workspace
        // is as large as the heuristics were told; the work is ordered on the stream of the memory.
        unsafe {
            result::matmul(
                blas.handle,
                description.0,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                address(b.device_ptr(&stream).0),
                first.0,
                address(a.device_ptr(&stream).0),
                second.0,
                to,
                out.0,
                to,
                out.0,
                &raw const algorithm,
                address(workspace.device_ptr(&stream).0).cast_mut(),
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
        .map_err(failed)
    })
}
