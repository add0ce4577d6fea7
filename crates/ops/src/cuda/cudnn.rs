//! Convolutions as cuDNN's graph interface plans them: a graph of one operation, for which the library's
//! heuristics name engines, the fastest first. They look at sizes, types and the device alone, so that the choice
//! is the same in every run; an engine that adds in an order that changes from run to run is passed over.

use super::device::is_out_of_memory;
use super::memory::Elements;
use super::per_device::PerDevice;
use super::workspace::with_workspace;
use crate::arithmetic::Precision;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::cudnn::{result, sys};
use candle_core::cuda::cudarc::driver::CudaStream;
use candle_core::{CudaDevice, DType, Error, Result, bail};
use kernels::conv2d::Geometry;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ptr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use sys::cudnnBackendAttributeName_t as Name;
use sys::cudnnBackendAttributeType_t as Type;
use sys::cudnnBackendDescriptorType_t as Kind;
use sys::cudnnBackendNumericalNote_t as Note;

/// One pass of a convolution, which is what an engine is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Task {
    pub(crate) pass: Pass,
    pub(crate) geometry: Geometry,
    pub(crate) dtype: DType,
    pub(crate) precision: Precision,
}

/// Which of the three tensors is computed from the two others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pass {
    /// The result.
    Forward,
    /// The gradient of the images.
    InputGradient,
    /// The gradient of the weight.
    WeightGradient,
}

impl Task {
    /// Checks that the tensors images, weight and result are those of the task.
    ///
    /// # Errors
    /// When one is not aligned.
    pub(super) fn check(&self, tensors: &[Elements<'_>; 3]) -> Result<()> {
        let g = &self.geometry;
        let counts = [g.batch * g.image(), g.weights(), g.batch * g.out_image()];
        for (tensor, count) in tensors.iter().zip(counts) {
            assert!(tensor.count() == count && tensor.dtype == self.dtype);
            if tensor.address % 16 != 0 {
                bail!("conv2d: a tensor does not begin at a multiple of 16 bytes");
            }
        }
        Ok(())
    }
}

fn failed(error: result::CudnnError) -> Error {
    Error::Msg(format!("cuDNN: {error:?}"))
}

impl fmt::Display for Task {
    /// What a record calls the task: the pass, the images, the channels of the results, the windows and the precision.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pass = match self.pass {
            Pass::Forward => "forward",
            Pass::InputGradient => "input gradient",
            Pass::WeightGradient => "weight gradient",
        };
        let g = &self.geometry;
        let images = [g.batch, g.height, g.width, g.in_channels].map(|size| size.to_string());
        let (images, to) = (images.join("x"), g.out_channels);
        let (kernel, padding) = (g.kernel, g.padding);
        let precision = format!("{:?}", self.precision).to_lowercase();
        write!(
            f,
            "{pass} {images} to {to}, {kernel}x{kernel} padded by {padding}, {precision}"
        )
    }
}

/// The engine of cuDNN that computes each pass of a convolution, both by name.
pub type EngineChoices = BTreeMap<String, String>;

/// How an engine is chosen for a pass: the one of `known`; otherwise the first that works in the order of the heuristics, or
/// with `benchmark` the fastest of the first few that work.
///
/// # Errors
/// When cuDNN does not start.
pub fn choose_engines(device: &CudaDevice, known: EngineChoices, benchmark: bool) -> Result<()> {
    let cudnn = cudnn(device)?;
    cudnn.plans.borrow_mut().clear();
    *cudnn.choices.borrow_mut() = Choices { known, benchmark };
    Ok(())
}

/// The engines that this process chose for what it computed.
///
/// # Errors
/// When cuDNN does not start.
pub fn engine_choices(device: &CudaDevice) -> Result<EngineChoices> {
    let cudnn = cudnn(device)?;
    let plans = cudnn.plans.borrow();
    let chosen = plans
        .iter()
        .map(|(task, plan)| (task.to_string(), plan.engine.clone()));
    Ok(chosen.collect())
}

/// See [`choose_engines`].
#[derive(Default)]
struct Choices {
    known: EngineChoices,
    benchmark: bool,
}

/// cuDNN on one device.
pub(super) struct Cudnn {
    handle: Handle,
    /// The plan of each pass that was computed before.
    plans: RefCell<HashMap<Task, Rc<Plan>>>,
    choices: RefCell<Choices>,
    /// Whether a warning said that recorded engines do not work.
    warned_of_recorded: Cell<bool>,
    /// Whether a warning said that an engine failed.
    warned_of_failure: Cell<bool>,
}

thread_local! {
    static CUDNN: PerDevice<Cudnn> = const { PerDevice::new() };
}

/// cuDNN on a device.
///
/// # Errors
/// When it does not start.
pub(super) fn cudnn(device: &CudaDevice) -> Result<Rc<Cudnn>> {
    let make = || {
        Ok(Cudnn {
            handle: Handle::new(&device.cuda_stream())?,
            plans: RefCell::default(),
            choices: RefCell::default(),
            warned_of_recorded: Cell::default(),
            warned_of_failure: Cell::default(),
        })
    };
    CUDNN.with(|all| all.get(device, make))
}

impl Cudnn {
    /// Computes a task, with the plan that was chosen the first time.
    ///
    /// # Errors
    /// When the plan fails, or none works.
    fn compute(&self, task: Task, tensors: [Elements<'_>; 3]) -> Result<()> {
        let known = self.plans.borrow().get(&task).cloned();
        if let Some(plan) = known {
            return self.execute(&plan, tensors);
        }
        let plan = self.choose(&task, tensors)?;
        let (engine, workspace) = (&plan.engine, plan.workspace);
        tracing::debug!(%task, engine, workspace, "convolution planned");
        self.plans.borrow_mut().insert(task, Rc::new(plan));
        Ok(())
    }

    /// Computes a task and returns the plan that did.
    fn choose(&self, task: &Task, tensors: [Elements<'_>; 3]) -> Result<Plan> {
        let Choices { known, benchmark } = &*self.choices.borrow();
        if let Some(engine) = known.get(&task.to_string()) {
            match self.working(task, tensors, 1, Some(engine)) {
                Ok(mut plans) => return Ok(plans.swap_remove(0)),
                Err(error) if is_out_of_memory(&error) => return Err(error),
                Err(error) => {
                    tracing::debug!(%task, engine, %error, "the recorded engine does not work");
                    if !self.warned_of_recorded.replace(true) {
                        tracing::warn!(
                            "engines of cuDNN that the run recorded do not work here: the GPU or cuDNN is another one; \
                             others compute, maybe with other bits"
                        );
                    }
                }
            }
        }
        if !benchmark {
            return Ok(self.working(task, tensors, 1, None)?.swap_remove(0));
        }
        let plans = self.working(task, tensors, CANDIDATES, None)?;
        let times = plans.iter().map(|plan| self.time(plan, tensors));
        let times: Vec<Duration> = times.collect::<Result<_>>()?;
        let fastest = plans.into_iter().zip(times).min_by_key(|(_, time)| *time);
        let (plan, _) = fastest.ok_or_else(|| Error::Msg(format!("no engine for {task}")))?;
        self.execute(&plan, tensors)?;
        Ok(plan)
    }

    /// The first plans in the order of the heuristics that work, at least one and at most `max`, or the one with the engine that is
    /// wanted. Each has computed the task, the last one last.
    ///
    /// # Errors
    /// When none works; with `max` 1, also when the GPU is out of memory for the first, because how much is free must not decide
    /// which engine computes.
    fn working(
        &self,
        task: &Task,
        tensors: [Elements<'_>; 3],
        max: usize,
        wanted: Option<&str>,
    ) -> Result<Vec<Plan>> {
        let (mut working, mut no_plan, mut failure) = (Vec::new(), None, None);
        for plan in plans(&Target::Device(&self.handle), task, wanted)? {
            let plan = match plan {
                Ok(plan) => plan,
                Err(error) => {
                    tracing::debug!(%task, %error, "no plan");
                    no_plan = Some(error);
                    continue;
                }
            };
            match self.execute(&plan, tensors) {
                Ok(()) => working.push(plan),
                Err(error) if is_out_of_memory(&error) && max == 1 => return Err(error),
                Err(error) => {
                    let engine = &plan.engine;
                    if self.warned_of_failure.replace(true) {
                        tracing::debug!(%task, engine, %error, "an engine of cuDNN failed");
                    } else {
                        tracing::warn!(
                            %task, engine, %error,
                            "an engine of cuDNN failed; the next one is tried; more failures are logged at level debug"
                        );
                    }
                    failure = failure.or(Some(error));
                }
            }
            if working.len() == max {
                break;
            }
        }
        if working.is_empty() {
            let reason = failure.or(no_plan).map_or_else(
                || "its heuristics name none".to_owned(),
                |error| error.to_string(),
            );
            bail!(
                "cuDNN has no engine that works for {task}: {reason}; the algorithm `direct` computes convolutions without \
                 cuDNN"
            );
        }
        Ok(working)
    }

    /// The time that a plan takes.
    fn time(&self, plan: &Plan, tensors: [Elements<'_>; 3]) -> Result<Duration> {
        let stream = tensors[0].device.cuda_stream();
        stream.synchronize().w()?;
        let start = Instant::now();
        for _ in 0..REPETITIONS {
            self.execute(plan, tensors)?;
        }
        stream.synchronize().w()?;
        Ok(start.elapsed())
    }

    /// Puts a plan's work on the stream.
    fn execute(&self, plan: &Plan, tensors: [Elements<'_>; 3]) -> Result<()> {
        with_workspace(tensors[0].device, plan.workspace, |workspace| {
            let addresses = tensors.map(|tensor| tensor.address);
            let pack = Descriptor::new(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?
                .set(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &[X, WEIGHT, Y])?
                .set(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &addresses)?
                .set(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, &[workspace])?
                .finalized()?;
            // SAFETY: the plan and the pack are complete. The tensors are on the handle's device; their counts, types and
            // alignment were checked by `convolve`, and the workspace has the plan's size. Freeing the memory is ordered
            // behind the work, on the same stream.
            unsafe { sys::cudnnBackendExecute(self.handle.0, plan.plan.0, pack.0) }
                .result()
                .map_err(failed)
        })
    }
}

/// Computes one of the three tensors images, weight and result from the two others.
///
/// # Errors
/// When the library has no engine for the task, or fails.
pub(crate) fn convolve(task: Task, tensors: [Elements<'_>; 3]) -> Result<()> {
    task.check(&tensors)?;
    cudnn(tensors[0].device)?.compute(task, tensors)
}

/// A handle of cuDNN, for the thread that made it.
#[repr(transparent)]
struct Handle(sys::cudnnHandle_t);

impl Handle {
    /// A handle that puts its work on `stream`.
    fn new(stream: &CudaStream) -> Result<Self> {
        let handle = result::create_handle().map(Self).map_err(failed)?;
        // SAFETY: both are alive. The stream is the device's own, which is never destroyed.
        unsafe { result::set_stream(handle.0, stream.cu_stream().cast()) }.map_err(failed)?;
        Ok(handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `create_handle`, and destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

/// The device for which plans are made.
enum Target<'a> {
    /// The device of a handle.
    Device(&'a Handle),
    /// A device that is described, not there.
    #[cfg(test)]
    Described(&'a Descriptor),
}

/// A description in cuDNN.
struct Descriptor(sys::cudnnBackendDescriptor_t);

/// A kind of knob, `cudnnBackendKnobType_t`, of which later versions of the library may know more.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct KnobType(i32);

/// A type of attributes.
///
/// # Safety
/// The type must have the layout of `KIND`.
unsafe trait Attribute {
    const KIND: Type;
}

// SAFETY: of all of these: the layouts are those in cuDNN's documentation of the kinds.
unsafe impl Attribute for i64 {
    const KIND: Type = Type::CUDNN_TYPE_INT64;
}
unsafe impl Attribute for f32 {
    const KIND: Type = Type::CUDNN_TYPE_FLOAT;
}
unsafe impl Attribute for u64 {
    const KIND: Type = Type::CUDNN_TYPE_VOID_PTR;
}
unsafe impl Attribute for sys::cudnnDataType_t {
    const KIND: Type = Type::CUDNN_TYPE_DATA_TYPE;
}
unsafe impl Attribute for sys::cudnnConvolutionMode_t {
    const KIND: Type = Type::CUDNN_TYPE_CONVOLUTION_MODE;
}
unsafe impl Attribute for sys::cudnnBackendHeurMode_t {
    const KIND: Type = Type::CUDNN_TYPE_HEUR_MODE;
}
unsafe impl Attribute for Handle {
    const KIND: Type = Type::CUDNN_TYPE_HANDLE;
}
unsafe impl Attribute for sys::cudnnBackendDescriptor_t {
    const KIND: Type = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
}
/// A note on an engine's arithmetic, `cudnnBackendNumericalNote_t`, of which later versions of the library may know more.
unsafe impl Attribute for i32 {
    const KIND: Type = Type::CUDNN_TYPE_NUMERICAL_NOTE;
}
unsafe impl Attribute for KnobType {
    const KIND: Type = Type::CUDNN_TYPE_KNOB_TYPE;
}
#[cfg(test)]
unsafe impl Attribute for u8 {
    const KIND: Type = Type::CUDNN_TYPE_CHAR;
}

impl Descriptor {
    fn new(kind: Kind) -> Result<Self> {
        let mut descriptor = ptr::null_mut();
        // SAFETY: the library writes a pointer.
        let made = unsafe { sys::cudnnBackendCreateDescriptor(kind, &raw mut descriptor) };
        made.result().map_err(failed)?;
        Ok(Self(descriptor))
    }

    /// Sets an attribute.
    fn set<T: Attribute>(self, name: Name, values: &[T]) -> Result<Self> {
        let (count, start) = (values.len() as i64, values.as_ptr().cast());
        // SAFETY: `start` points to `count` values of the kind, which the library copies.
        unsafe { sys::cudnnBackendSetAttribute(self.0, name, T::KIND, count, start) }
            .result()
            .map_err(failed)?;
        Ok(self)
    }

    /// Completes the description, which checks it.
    fn finalized(self) -> Result<Self> {
        // SAFETY: the description is alive.
        unsafe { sys::cudnnBackendFinalize(self.0) }
            .result()
            .map_err(failed)?;
        Ok(self)
    }

    /// Reads an attribute into `values`; gives how many values there were, at most as many as fit.
    ///
    /// # Safety
    /// All bits must be valid values of `T`.
    unsafe fn get<T: Attribute>(&self, name: Name, values: &mut [T]) -> Result<usize> {
        let (most, mut count) = (values.len() as i64, 0);
        let to = values.as_mut_ptr().cast();
        // SAFETY: there is memory for `most` values of the kind.
        unsafe { sys::cudnnBackendGetAttribute(self.0, name, T::KIND, most, &raw mut count, to) }
            .result()
            .map_err(failed)?;
        Ok((count.max(0) as usize).min(values.len()))
    }

    /// Lets the library fill `parts`; gives how many it filled.
    fn fill(&self, name: Name, parts: &[Self]) -> Result<usize> {
        let mut pointers: Vec<_> = parts.iter().map(|part| part.0).collect();
        // SAFETY: a pointer may be anything. The descriptions are alive, and stay ours.
        unsafe { self.get(name, &mut pointers) }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made by the library, and destroyed once. A failure leaves nothing to do.
        let _ = unsafe { sys::cudnnBackendDestroyDescriptor(self.0) };
    }
}

// What the tensors are called in a graph.
const X: i64 = 1;
const WEIGHT: i64 = 2;
const Y: i64 = 3;

/// Engines that are asked for.
const ENGINES: usize = 64;

/// Knobs of an engine that are asked for.
const KNOBS: usize = 64;

/// The largest workspace of a plan, in bytes: a constant, so that equal GPUs choose alike. AlexNet's first plans in `f32` take up to
/// 1.1 GiB for a batch of 1000.
const MAX_WORKSPACE: usize = 2 << 30;

/// Plans that are timed for `benchmark`. Each has to be built first, and the heuristics expect the fastest among the first.
const CANDIDATES: usize = 8;

/// Executions that are timed together.
const REPETITIONS: usize = 5;

/// A convolution that is ready to be computed.
struct Plan {
    plan: Descriptor,
    /// What a record calls the engine.
    engine: String,
    /// What the plan was made of.
    _configuration: Descriptor,
    _graph: Rc<Graph>,
    /// Bytes that it needs.
    workspace: usize,
}

/// The plans of a task, in the order of the heuristics: those that give the same bits in every run at the precision asked
/// for, or the one with the engine that is wanted. An engine without such a plan is an error.
///
/// # Errors
/// When the library cannot describe the task.
fn plans<'a>(
    target: &'a Target<'_>,
    task: &'a Task,
    wanted: Option<&'a str>,
) -> Result<impl Iterator<Item = Result<Plan>> + 'a> {
    let graph = Rc::new(Graph::new(target, task)?);
    // The first mode names fast engines, the second those that can do most.
    let modes = [
        sys::cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_A,
        sys::cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_FALLBACK,
    ];
    Ok(modes.into_iter().flat_map(move |mode| {
        let graph = graph.clone();
        let engines: Vec<Result<Descriptor>> = match engines(target, &graph.graph, mode) {
            Ok(engines) => engines.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        let plans = engines.into_iter();
        plans.filter_map(move |configuration| {
            let plan = configuration
                .and_then(|configuration| Plan::new(target, task, configuration, &graph, wanted));
            plan.transpose()
        })
    }))
}

impl Plan {
    /// The plan of a configuration; `None` if another engine is wanted.
    ///
    /// # Errors
    /// When the engine is not allowed or does not support the task, or its workspace is too large.
    fn new(
        target: &Target<'_>,
        task: &Task,
        configuration: Descriptor,
        graph: &Rc<Graph>,
        wanted: Option<&str>,
    ) -> Result<Option<Self>> {
        let engine = engine(&configuration)?;
        let name = name(&configuration, &engine)?;
        // Before the plan is built.
        if wanted.is_some_and(|wanted| wanted != name) {
            return Ok(None);
        }
        let notes = notes(&engine)?;
        if !is_allowed(&notes, task.precision) {
            bail!("an engine with the notes {notes:?} is not used");
        }
        let plan = Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?.set(
            Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
            &[configuration.0],
        )?;
        let plan = match target {
            Target::Device(handle) => {
                let name = Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE;
                plan.set(name, std::slice::from_ref(*handle))?
            }
            #[cfg(test)]
            Target::Described(device) => {
                let name = Name::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP;
                plan.set(name, &[device.0])?
            }
        };
        let plan = plan.finalized()?;
        let mut bytes = [0_i64];
        // SAFETY: an integer may be anything.
        unsafe { plan.get(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, &mut bytes)? };
        let workspace = bytes[0].max(0) as usize;
        if workspace > MAX_WORKSPACE {
            bail!("an engine needs a workspace of {workspace} bytes");
        }
        Ok(Some(Self {
            plan,
            engine: name,
            _configuration: configuration,
            _graph: graph.clone(),
            workspace,
        }))
    }
}

/// Images, weights or results, channels last; `sizes` are in the order of channels first.
fn tensor(id: i64, dtype: DType, sizes: [usize; 4]) -> Result<Descriptor> {
    let [batch, channels, height, width] = sizes.map(|size| size as i64);
    let dtype = match dtype {
        DType::BF16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        _ => sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
    };
    let strides = [height * width * channels, 1, width * channels, channels];
    Descriptor::new(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?
        .set(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, &[dtype])?
        .set(
            Name::CUDNN_ATTR_TENSOR_DIMENSIONS,
            &[batch, channels, height, width],
        )?
        .set(Name::CUDNN_ATTR_TENSOR_STRIDES, &strides)?
        .set(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[id])?
        .set(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[16_i64])?
        .finalized()
}

/// The graph of one convolution.
struct Graph {
    graph: Descriptor,
    /// What it is made of.
    _parts: [Descriptor; 5],
}

impl Graph {
    fn new(target: &Target<'_>, task: &Task) -> Result<Self> {
        let g = &task.geometry;
        let x = tensor(X, task.dtype, [g.batch, g.in_channels, g.height, g.width])?;
        let sizes = [g.out_channels, g.in_channels, g.kernel, g.kernel];
        let weight = tensor(WEIGHT, task.dtype, sizes)?;
        let sizes = [g.batch, g.out_channels, g.out_height(), g.out_width()];
        let y = tensor(Y, task.dtype, sizes)?;
        let padding = [g.padding as i64; 2];
        let compute = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
        let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let convolution = Descriptor::new(Kind::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?
            .set(Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE, &[compute])?
            .set(Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE, &[mode])?
            .set(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, &[2_i64])?
            .set(Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, &[1_i64, 1])?
            .set(Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, &[1_i64, 1])?
            .set(Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, &padding)?
            .set(Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, &padding)?
            .finalized()?;
        let (kind, [alpha, beta, of, first, second, third]) = match task.pass {
            Pass::Forward => (
                Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                [
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                ],
            ),
            Pass::InputGradient => (
                Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                [
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                ],
            ),
            Pass::WeightGradient => (
                Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
                [
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
                ],
            ),
        };
        let operation = Descriptor::new(kind)?
            .set(alpha, &[1.0_f32])?
            .set(beta, &[0.0_f32])?
            .set(of, &[convolution.0])?
            .set(first, &[x.0])?
            .set(second, &[weight.0])?
            .set(third, &[y.0])?
            .finalized()?;
        let graph = Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?
            .set(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &[operation.0])?;
        let graph = match target {
            Target::Device(handle) => {
                let name = Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE;
                graph.set(name, std::slice::from_ref(*handle))?
            }
            #[cfg(test)]
            Target::Described(_) => graph,
        };
        Ok(Self {
            graph: graph.finalized()?,
            _parts: [operation, convolution, x, weight, y],
        })
    }
}

/// The engines that the heuristics name, the fastest first.
fn engines(
    target: &Target<'_>,
    graph: &Descriptor,
    mode: sys::cudnnBackendHeurMode_t,
) -> Result<Vec<Descriptor>> {
    let heuristics = Descriptor::new(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?
        .set(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &[graph.0])?
        .set(Name::CUDNN_ATTR_ENGINEHEUR_MODE, &[mode])?;
    let heuristics = match target {
        Target::Device(_) => heuristics,
        #[cfg(test)]
        Target::Described(device) => {
            heuristics.set(Name::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, &[device.0])?
        }
    };
    let heuristics = heuristics.finalized()?;
    let mut engines = (0..ENGINES)
        .map(|_| Descriptor::new(Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR))
        .collect::<Result<Vec<_>>>()?;
    let count = heuristics.fill(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, &engines)?;
    engines.truncate(count);
    Ok(engines)
}

/// The engine of a configuration.
fn engine(configuration: &Descriptor) -> Result<Descriptor> {
    let engine = [Descriptor::new(Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?];
    configuration.fill(Name::CUDNN_ATTR_ENGINECFG_ENGINE, &engine)?;
    let [engine] = engine;
    Ok(engine)
}

/// The library's notes on an engine's arithmetic.
fn notes(engine: &Descriptor) -> Result<Vec<i32>> {
    let mut notes = vec![0; 32];
    let name = Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE;
    // SAFETY: an integer may be anything.
    let count = unsafe { engine.get(name, &mut notes)? };
    notes.truncate(count);
    Ok(notes)
}

/// The name of a configuration as NVIDIA's cudnn-frontend writes it: the number of the engine, and each of its knobs with its
/// value, such as `eng34_k2=5_k13=1`.
fn name(configuration: &Descriptor, engine: &Descriptor) -> Result<String> {
    let mut index = [0_i64];
    // SAFETY: an integer may be anything.
    unsafe { engine.get(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX, &mut index)? };
    let knobs = (0..KNOBS).map(|_| Descriptor::new(Kind::CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR));
    let knobs = knobs.collect::<Result<Vec<_>>>()?;
    let count = configuration.fill(Name::CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, &knobs)?;
    let mut text = format!("eng{}", index[0]);
    for knob in knobs.iter().take(count) {
        let (mut kind, mut value) = ([KnobType(0)], [0_i64]);
        // SAFETY: integers may be anything.
        unsafe {
            knob.get(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, &mut kind)?;
            knob.get(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, &mut value)?;
        }
        text += &format!("_k{}={}", kind[0].0, value[0]);
    }
    Ok(text)
}

/// Whether an engine with these notes gives the same bits in every run, and the precision asked for.
fn is_allowed(notes: &[i32], precision: Precision) -> bool {
    let has = |note: Note| notes.contains(&(note as i32));
    let full = precision == Precision::F32;
    !(has(Note::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)
        || has(Note::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION)
        // On f32, tensor cores compute in TF32.
        || full && has(Note::CUDNN_NUMERICAL_NOTE_TENSOR_CORE)
        || full && has(Note::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn engines_without_a_fixed_order_are_passed_over() {
        let nondeterministic = Note::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC as i32;
        for precision in Precision::ALL {
            assert!(!is_allowed(&[nondeterministic], precision));
            assert!(is_allowed(&[], precision));
        }
    }

    #[test]
    fn f32_stays_f32() {
        let tensor_core = [Note::CUDNN_NUMERICAL_NOTE_TENSOR_CORE as i32];
        assert!(!is_allowed(&tensor_core, Precision::F32));
        assert!(is_allowed(&tensor_core, Precision::Tf32));
        assert!(is_allowed(&tensor_core, Precision::Bf16));
    }

    /// A GPU as cuDNN 9.26 describes a device, from its data sheet and CUDA's tables of compute capabilities: multiprocessors, MHz
    /// of these and of the memory, MiB of the L2 cache; GB of memory; shared memory of a block, threads and blocks of a
    /// multiprocessor.
    fn described(
        name: &str,
        capability: u32,
        [multiprocessors, clock, memory_clock, l2]: [u32; 4],
        memory: u64,
        [shared, threads, blocks]: [u32; 3],
    ) -> Descriptor {
        let json = serde_json::json!({
            "deviceVer": capability, "driverVer": 13000, "cudaDeviceId": 0,
            "maxGridSize": [i32::MAX, 65_535, 65_535], "maxBlockSize": [1024, 1024, 64],
            "regsPerBlock": 65_536, "multiProcessorCount": multiprocessors,
            "smClockRateKHz": 1000 * clock, "memClockRateKHz": 1000 * memory_clock,
            "l2CacheSize": l2 << 20, "warpSize": 32, "maxSharedMemoryPerBlock": 49_152,
            "maxSharedMemoryPerBlockOptin": shared, "reservedSharedMemoryPerBlock": 1024,
            "maxRegistersPerSM": 65_536, "pciDeviceId": 0, "maxCtasPerSM": blocks,
            "maxThreadsPerBlock": 1024, "maxThreadsPerSM": threads, "isTccDriver": 0,
            "supportCoopLaunch": 1, "oversizedSharedMemoryPerBlock": 0,
            "totalGlobalMem": 1_000_000_000 * memory, "deviceName": name,
        });
        let device = Descriptor::new(Kind::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR).unwrap();
        let name = Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION;
        let device = device.set(name, json.to_string().as_bytes()).unwrap();
        device.finalized().unwrap()
    }

    /// cuDNN plans every convolution of AlexNet and SmallAlexNet for GPUs that the machine need not have.
    #[test]
    #[ignore = "needs cuDNN 9.26 or later, but no GPU"]
    fn every_convolution_of_the_networks_has_a_plan() {
        let hopper = [232_448, 2048, 32];
        for device in [
            described("NVIDIA H200", 900, [132, 1980, 2619, 50], 150, hopper),
            described("NVIDIA H100", 900, [132, 1980, 2619, 50], 85, hopper),
            described(
                "NVIDIA GeForce RTX 4090",
                890,
                [128, 2520, 10_501, 72],
                25,
                [101_376, 1536, 24],
            ),
            described(
                "NVIDIA GeForce RTX 3080",
                860,
                [68, 1710, 9501, 5],
                10,
                [101_376, 1536, 16],
            ),
        ] {
            every_convolution_has_a_plan(&device);
        }
    }

    fn every_convolution_has_a_plan(device: &Descriptor) {
        // Height, channels in and out, kernel and padding.
        let layers = [
            [32, 3, 96, 4, 0],
            [29, 96, 256, 5, 2],
            [14, 256, 384, 3, 1],
            [14, 384, 384, 3, 1],
            [14, 384, 256, 3, 1],
            [32, 3, 64, 7, 0],
            [26, 64, 192, 5, 2],
            [12, 192, 256, 3, 1],
            [12, 256, 256, 3, 1],
            [12, 256, 128, 3, 1],
        ];
        for [height, in_channels, out_channels, kernel, padding] in layers {
            for batch in [1, 20, 128, 500, 1000] {
                for precision in Precision::ALL {
                    let dtype = precision.activations();
                    let geometry = Geometry {
                        batch,
                        height,
                        width: height,
                        in_channels: in_channels.next_multiple_of(16 / dtype.size_in_bytes()),
                        out_channels,
                        kernel,
                        padding,
                    };
                    for pass in [Pass::Forward, Pass::InputGradient, Pass::WeightGradient] {
                        let task = Task {
                            pass,
                            geometry,
                            dtype,
                            precision,
                        };
                        let target = Target::Described(device);
                        let plans = plans(&target, &task, None).unwrap();
                        // Two of them tell whether names differ; there may be 40.
                        let plans: Vec<_> = plans.flatten().take(2).collect();
                        assert!(!plans.is_empty(), "{task}");
                        let names: HashSet<_> = plans.iter().map(|plan| &plan.engine).collect();
                        assert_eq!(names.len(), plans.len(), "{task}: {names:?}");
                    }
                }
            }
        }
    }
}
