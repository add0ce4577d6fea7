//! CUDA graphs: work that is captured once and replayed by one call, so that the host does not bound a GPU that is faster
//! than it launches kernels.

use super::device::{default_pool, memory};
use super::memory::{Elements, empty};
use super::program::{Argument, Program, launch};
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaGraph, CudaSlice, DevicePtr, result, sys};
use candle_core::{CudaDevice, DType, Device, Error, Result, Tensor, bail};
use std::cell::Cell;

/// What changes from one training step to the next. While work is captured, kernels are told where these values are;
/// [`CapturedStep::replay`] sets them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepValues {
    /// The learning rate of [`sgd_step`](crate::sgd_step).
    pub learning_rate: f32,
    /// The step of [`Dropout`](crate::Dropout), counted over all epochs.
    pub step: u32,
    /// The step of [`MetricsAccumulator`](crate::MetricsAccumulator), counted within the epoch.
    pub step_in_epoch: u64,
}

/// Bytes of `step_values` in the kernels' source.
const STEP_VALUES: usize = 16;

thread_local! {
    /// The address of the step values on the device, while work is captured.
    static CAPTURING: Cell<Option<u64>> = const { Cell::new(None) };
}

impl Argument<'_> {
    /// The memory of the step values; null unless work is captured.
    pub(crate) fn step_values() -> Self {
        Self::Long(CAPTURING.get().unwrap_or(0))
    }
}

/// Whether work is captured at the moment: then nothing is computed.
pub(super) fn is_capturing() -> bool {
    CAPTURING.get().is_some()
}

/// A training step as a CUDA graph. Memory that was allocated in it is the graph's own, and is kept with it.
pub struct CapturedStep<const N: usize> {
    graph: CudaGraph,
    values: CudaSlice<u8>,
    inputs: [Tensor; N],
    device: CudaDevice,
}

impl<const N: usize> CapturedStep<N> {
    /// Captures what `step` puts on the stream for inputs of these shapes and types, which is not computed. `step` frees all
    /// memory that it allocates and does not wait for the GPU. Other memory that it uses must live as long as the result, and
    /// [`choose_engines`](super::choose_engines) is not called meanwhile. The same work was computed at least once before, so
    /// that kernels are loaded and plans are chosen.
    ///
    /// # Errors
    /// When `step` fails, something in it cannot be captured, or the GPU would have less free memory than the graph takes. The
    /// GPU is as before.
    pub fn capture(
        inputs: [&Tensor; N],
        step: impl FnOnce(&[Tensor; N]) -> Result<()>,
    ) -> Result<Self> {
        let Some(Device::Cuda(device)) = inputs.first().map(|input| input.device()) else {
            bail!("only work on a GPU can be captured");
        };
        Self::try_capture(device, inputs, step).or_else(|error| {
            release_graph_memory(device)?;
            Err(error)
        })
    }

    fn try_capture(
        device: &CudaDevice,
        inputs: [&Tensor; N],
        step: impl FnOnce(&[Tensor; N]) -> Result<()>,
    ) -> Result<Self> {
        let stream = device.cuda_stream();
        let copies = inputs.map(|input| Ok(empty(device, input.dtype(), input.shape())?.tensor()));
        let copies: Vec<_> = copies.into_iter().collect::<Result<_>>()?;
        let copies: [Tensor; N] = std::array::from_fn(|index| copies[index].clone());
        // SAFETY: `replay` writes the values before the kernels read them.
        let values = unsafe { device.alloc::<u8>(STEP_VALUES)? };
        let graph = captured(device, values.device_ptr(&stream).0, || step(&copies))?;
        release_unused_memory(device)?;
        let before = memory(device)?.free;
        graph.upload().w()?;
        let free = memory(device)?.free;
        if before - free.min(before) > free {
            bail!("too little memory would be left beside a CUDA graph");
        }
        Ok(Self {
            graph,
            values,
            inputs: copies,
            device: device.clone(),
        })
    }

    /// Waits for its work and gives its memory back to the GPU.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn release(self) -> Result<()> {
        let Self { graph, device, .. } = self;
        drop(graph);
        release_graph_memory(&device)
    }

    /// Puts the captured work on the stream, with these inputs and values.
    ///
    /// # Errors
    /// When the inputs have other shapes or types, or the driver fails.
    pub fn replay(&mut self, inputs: [&Tensor; N], values: StepValues) -> Result<()> {
        for (to, from) in self.inputs.iter().zip(inputs) {
            copy(from, to)?;
        }
        let arguments = [
            Argument::slice(&mut self.values),
            values.step.into(),
            values.learning_rate.into(),
            Argument::Long(values.step_in_epoch),
        ];
        let program = Program::packed(DType::F32, 1);
        launch(&self.device, program, "set_step_values", 1, &arguments)?;
        self.graph.launch().w()
    }
}

/// The graph of what `work` puts on the stream, with the step values at an address.
fn captured(
    device: &CudaDevice,
    values: u64,
    work: impl FnOnce() -> Result<()>,
) -> Result<CudaGraph> {
    /// Ends the capture of this thread.
    struct Capturing;
    impl Drop for Capturing {
        fn drop(&mut self) {
            CAPTURING.set(None);
        }
    }

    let stream = device.cuda_stream();
    if !stream.context().has_async_alloc() {
        bail!("a CUDA graph takes a GPU with memory pools");
    }
    // Relaxed: the libraries may do what other modes forbid, such as load a module.
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    stream.begin_capture(mode).w()?;
    CAPTURING.set(Some(values));
    let capturing = Capturing;
    // Copies between host and device are errors meanwhile: a graph would keep the address on the host.
    let no_copies = device.enable_cuda_graph_htod_cache();
    let worked = work();
    drop((capturing, no_copies));
    // Freeing memory in a capture that failed leaves an error behind, with which `end_capture` would not end the capture.
    let freed = stream.context().check_err().w();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).w();
    worked?;
    freed?;
    let graph = graph?;
    graph.ok_or_else(|| Error::Msg("nothing was captured".to_owned()))
}

/// Gives memory of the driver's pool that is not in use back to the GPU: graphs have a pool of their own.
fn release_unused_memory(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    stream.synchronize().w()?;
    let pool = default_pool(device)?;
    // SAFETY: the pool is the device's, and memory in use stays.
    unsafe { sys::cuMemPoolTrimTo(pool, 0) }.result().w()
}

/// Gives the memory of graphs that are no more back to the GPU, once their work is done.
fn release_graph_memory(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    stream.synchronize().w()?;
    // SAFETY: the device is open, and memory in use stays.
    let trimmed = unsafe { sys::cuDeviceGraphMemTrim(stream.context().cu_device()) };
    trimmed.result().w()
}

/// Copies the elements of `from` into `to`, which has the same shape and type, in place; both are contiguous, on one GPU.
fn copy(from: &Tensor, to: &Tensor) -> Result<()> {
    if to.shape() != from.shape() {
        bail!(
            "copy: the shapes {:?} and {:?} differ",
            from.shape(),
            to.shape()
        );
    }
    let to = Elements::of("copy", to, from.dtype())?;
    let from = Elements::of("copy", from, from.dtype())?;
    let bytes = from.count() * from.dtype.size_in_bytes();
    let stream = to.device.cuda_stream();
    // SAFETY: both have this many bytes on the stream's device, and do not overlap: `to` was allocated for this purpose.
    unsafe { result::memcpy_dtod_async(to.address, from.address, bytes, stream.cu_stream()) }.w()
}
