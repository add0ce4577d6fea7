//! Values of which a thread keeps one for each device.

use candle_core::cuda::DeviceId;
use candle_core::{CudaDevice, Result};
use std::cell::RefCell;
use std::rc::Rc;

/// A value for each device, for a `thread_local`: the libraries' handles belong to one thread.
pub(super) struct PerDevice<T>(RefCell<Vec<(DeviceId, Rc<T>)>>);

impl<T> PerDevice<T> {
    pub(super) const fn new() -> Self {
        Self(RefCell::new(Vec::new()))
    }

    /// The value of `device`, made the first time.
    ///
    /// # Errors
    /// Those of `make`.
    pub(super) fn get(
        &self,
        device: &CudaDevice,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Rc<T>> {
        let mut all = self.0.borrow_mut();
        if let Some((_, found)) = all.iter().find(|(id, _)| *id == device.id()) {
            return Ok(found.clone());
        }
        let value = Rc::new(make()?);
        all.push((device.id(), value.clone()));
        Ok(value)
    }
}
