//! cuDNN and cuBLASLt: their handles, their workspace and the algorithms that they chose.

use super::Program;
use super::graph::{Handle, Plan, Task};
use super::product::{self, Blas};
use candle_core::cuda::DeviceId;
use candle_core::cuda::cudarc::driver::{CudaFunction, CudaSlice, CudaStream};
use candle_core::{CudaDevice, Result};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// The libraries as this thread uses them on one device.
pub(crate) struct Libraries {
    pub(crate) cudnn: Handle,
    pub(super) blas: Blas,
    /// Memory that every call may use. All calls are ordered on one stream, so one is enough.
    workspace: RefCell<Option<CudaSlice<u8>>>,
    /// The stream on which everything is put.
    pub(super) stream: Arc<CudaStream>,
    /// The kernels of our own that have been used, so that starting one costs little.
    pub(super) kernels: RefCell<HashMap<(Program, &'static str), CudaFunction>>,
    /// How each pass of a convolution is computed, planned once a shape.
    pub(crate) convolutions: RefCell<HashMap<Task, Rc<Plan>>>,
    /// What was chosen for a product, once a shape.
    pub(super) products: RefCell<HashMap<product::Key, product::Chosen>>,
}

thread_local! {
    // A handle of cuDNN belongs to one thread.
    static ALL: RefCell<Vec<(DeviceId, Rc<Libraries>)>> = const { RefCell::new(Vec::new()) };
}

/// The libraries on a device.
///
/// # Errors
/// When one of them does not start.
pub(crate) fn libraries(device: &CudaDevice) -> Result<Rc<Libraries>> {
    ALL.with(|all| {
        let mut all = all.borrow_mut();
        if let Some((_, found)) = all.iter().find(|(id, _)| *id == device.id()) {
            return Ok(found.clone());
        }
        let libraries = Rc::new(Libraries {
            cudnn: Handle::new(&device.cuda_stream())?,
            blas: Blas::new()?,
            workspace: RefCell::new(None),
            stream: device.cuda_stream(),
            kernels: RefCell::default(),
            convolutions: RefCell::default(),
            products: RefCell::default(),
        });
        all.push((device.id(), libraries.clone()));
        Ok(libraries)
    })
}

impl Libraries {
    /// Runs `work` with at least `bytes` of memory whose content does not matter.
    ///
    /// # Errors
    /// When there is no memory, or `work` fails.
    pub(crate) fn with_workspace<R>(
        &self,
        device: &CudaDevice,
        bytes: usize,
        work: impl FnOnce(&mut CudaSlice<u8>) -> Result<R>,
    ) -> Result<R> {
        let mut workspace = self.workspace.borrow_mut();
        let fits = workspace.as_ref().is_some_and(|slice| slice.len() >= bytes);
        if !fits {
            // The old one is given back first.
            *workspace = None;
            // SAFETY: the libraries read of it only what they wrote.
            *workspace = Some(unsafe { device.alloc::<u8>(bytes.max(1))? });
        }
        match workspace.as_mut() {
            Some(slice) => work(slice),
            None => candle_core::bail!("there is no workspace"),
        }
    }
}
