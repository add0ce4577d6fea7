//! Convolutions as cuDNN's graph interface plans them: a graph of one operation, for which the library's
//! heuristics name engines, the fastest first. They look at sizes, types and the device alone, so that the choice
//! is the same in every run; an engine that adds in an order that changes from run to run is passed over.

use super::per_device::PerDevice;
use crate::arithmetic::{Arithmetic, Precision};
use candle_core::cuda::cudarc::cudnn::{result, sys};
use candle_core::cuda::cudarc::driver::CudaStream;
use candle_core::{CudaDevice, Error, Result, bail};
use kernels::conv2d::{ConvAlgorithm, Geometry};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;
use sys::cudnnBackendAttributeName_t as Name;
use sys::cudnnBackendAttributeType_t as Type;
use sys::cudnnBackendDescriptorType_t as Kind;
use sys::cudnnBackendNumericalNote_t as Note;

/// One pass of a convolution, which is what an engine is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Task {
    pub(crate) pass: Pass,
    pub(crate) geometry: Geometry,
    pub(crate) bf16: bool,
    pub(crate) arithmetic: Arithmetic,
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

fn failed(error: result::CudnnError) -> Error {
    Error::Msg(format!("cuDNN: {error:?}"))
}

/// cuDNN on one device.
pub(crate) struct Cudnn {
    handle: Handle,
    /// The plan of each pass that was computed before.
    plans: RefCell<HashMap<Task, Rc<Plan>>>,
}

thread_local! {
    static CUDNN: PerDevice<Cudnn> = const { PerDevice::new() };
}

/// cuDNN on a device.
///
/// # Errors
/// When it does not start.
pub(crate) fn cudnn(device: &CudaDevice) -> Result<Rc<Cudnn>> {
    let make = || {
        Ok(Cudnn {
            handle: Handle::new(&device.cuda_stream())?,
            plans: RefCell::default(),
        })
    };
    CUDNN.with(|all| all.get(device, make))
}

impl Cudnn {
    /// The plan of a task, made the first time.
    ///
    /// # Errors
    /// When the library has no engine for the task.
    pub(crate) fn plan(&self, task: Task) -> Result<Rc<Plan>> {
        let known = self.plans.borrow().get(&task).cloned();
        if let Some(plan) = known {
            return Ok(plan);
        }
        let plan = Rc::new(Plan::new(&Target::Device(&self.handle), &task)?);
        tracing::debug!(?task, workspace = plan.workspace, "convolution planned");
        self.plans.borrow_mut().insert(task, plan.clone());
        Ok(plan)
    }

    /// Computes one of the three tensors at these addresses from the two others.
    ///
    /// # Safety
    /// The addresses are those of tensors on the handle's device, as large as the task's geometry says, at
    /// multiples of 16 bytes; the workspace has the plan's size; and all of it stays alive until the work
    /// that is put on the stream is done.
    ///
    /// # Errors
    /// When the library fails.
    pub(crate) unsafe fn execute(
        &self,
        plan: &Plan,
        addresses: [u64; 3],
        workspace: u64,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { plan.execute(&self.handle, addresses, workspace) }
    }
}

/// A handle of cuDNN, for the thread that made it.
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

/// What an attribute of a description is set to.
enum Value<'a> {
    Integers(&'a [i64]),
    Factor(f32),
    DataType(sys::cudnnDataType_t),
    Mode(sys::cudnnConvolutionMode_t),
    Heuristics(sys::cudnnBackendHeurMode_t),
    Parts(&'a [&'a Descriptor]),
    Handle(&'a Handle),
    Addresses(&'a [u64]),
    #[cfg(test)]
    Text(&'a [u8]),
}

impl Descriptor {
    fn new(kind: Kind) -> Result<Self> {
        let mut descriptor = ptr::null_mut();
        // SAFETY: the library writes a pointer.
        let made = unsafe { sys::cudnnBackendCreateDescriptor(kind, &raw mut descriptor) };
        made.result().map_err(failed)?;
        Ok(Self(descriptor))
    }

    fn set(&self, name: Name, value: &Value<'_>) -> Result<()> {
        let pointers: Vec<sys::cudnnBackendDescriptor_t>;
        let (kind, count, start): (Type, usize, *const c_void) = match value {
            Value::Integers(values) => {
                (Type::CUDNN_TYPE_INT64, values.len(), values.as_ptr().cast())
            }
            Value::Factor(value) => (Type::CUDNN_TYPE_FLOAT, 1, ptr::from_ref(value).cast()),
            Value::DataType(value) => (Type::CUDNN_TYPE_DATA_TYPE, 1, ptr::from_ref(value).cast()),
            Value::Mode(value) => {
                let kind = Type::CUDNN_TYPE_CONVOLUTION_MODE;
                (kind, 1, ptr::from_ref(value).cast())
            }
            Value::Heuristics(value) => {
                (Type::CUDNN_TYPE_HEUR_MODE, 1, ptr::from_ref(value).cast())
            }
            Value::Parts(parts) => {
                pointers = parts.iter().map(|part| part.0).collect();
                let kind = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
                (kind, pointers.len(), pointers.as_ptr().cast())
            }
            Value::Handle(handle) => (Type::CUDNN_TYPE_HANDLE, 1, (&raw const handle.0).cast()),
            Value::Addresses(values) => (
                Type::CUDNN_TYPE_VOID_PTR,
                values.len(),
                values.as_ptr().cast(),
            ),
            #[cfg(test)]
            Value::Text(text) => (Type::CUDNN_TYPE_CHAR, text.len(), text.as_ptr().cast()),
        };
        // SAFETY: `start` points to `count` values of `kind`, which the library copies.
        let set = unsafe { sys::cudnnBackendSetAttribute(self.0, name, kind, count as i64, start) };
        set.result().map_err(failed)
    }

    /// Completes the description, which checks it.
    fn finalized(self) -> Result<Self> {
        // SAFETY: the description is alive.
        unsafe { sys::cudnnBackendFinalize(self.0) }
            .result()
            .map_err(failed)?;
        Ok(self)
    }

    fn with(kind: Kind, attributes: &[(Name, Value<'_>)]) -> Result<Self> {
        let descriptor = Self::new(kind)?;
        for (name, value) in attributes {
            descriptor.set(*name, value)?;
        }
        descriptor.finalized()
    }

    /// Reads integers or enumerations, at most `N`.
    fn get<T: Copy + Default, const N: usize>(&self, name: Name, kind: Type) -> Result<Vec<T>> {
        let mut values = [T::default(); N];
        let mut count = 0;
        // SAFETY: there is room for `N` values; callers ask for the type that `kind` says.
        let got = unsafe {
            sys::cudnnBackendGetAttribute(
                self.0,
                name,
                kind,
                N as i64,
                &raw mut count,
                values.as_mut_ptr().cast(),
            )
        };
        got.result().map_err(failed)?;
        Ok(values[..(count.max(0) as usize).min(N)].to_vec())
    }

    /// Has the library fill `parts`; gives how many it filled, of which there may be fewer.
    fn fill(&self, name: Name, parts: &[Self]) -> Result<usize> {
        let mut pointers: Vec<_> = parts.iter().map(|part| part.0).collect();
        let mut count = 0;
        // SAFETY: there are as many descriptions as is said, which stay ours.
        let got = unsafe {
            sys::cudnnBackendGetAttribute(
                self.0,
                name,
                Type::CUDNN_TYPE_BACKEND_DESCRIPTOR,
                pointers.len() as i64,
                &raw mut count,
                pointers.as_mut_ptr().cast(),
            )
        };
        got.result().map_err(failed)?;
        Ok((count.max(0) as usize).min(parts.len()))
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

/// A convolution that is ready to be computed.
pub(crate) struct Plan {
    plan: Descriptor,
    /// What the plan was made of.
    _parts: Vec<Descriptor>,
    /// Bytes that it needs.
    pub(crate) workspace: usize,
}

impl Plan {
    /// # Errors
    /// When the library has no engine for the task.
    fn new(target: &Target<'_>, task: &Task) -> Result<Self> {
        let (graph, mut parts) = graph(target, task)?;
        // The first mode names fast engines, the second those that can do most.
        for mode in [
            sys::cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_A,
            sys::cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_FALLBACK,
        ] {
            let Ok(engines) = engines(target, &graph, mode) else {
                continue;
            };
            for engine in engines {
                if !is_allowed(&notes(&engine)?, task.arithmetic) {
                    continue;
                }
                let configuration = [&engine];
                let of_target = match target {
                    Target::Device(handle) => (
                        Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE,
                        Value::Handle(handle),
                    ),
                    #[cfg(test)]
                    Target::Described(device) => (
                        Name::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP,
                        Value::Parts(std::slice::from_ref(device)),
                    ),
                };
                let attributes = [
                    (
                        Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
                        Value::Parts(&configuration),
                    ),
                    of_target,
                ];
                // Some engines turn out not to support the sizes.
                let kind = Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR;
                let Ok(plan) = Descriptor::with(kind, &attributes) else {
                    continue;
                };
                let name = Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE;
                let bytes = plan.get::<i64, 1>(name, Type::CUDNN_TYPE_INT64)?;
                parts.push(engine);
                parts.push(graph);
                return Ok(Self {
                    plan,
                    _parts: parts,
                    workspace: bytes.first().map_or(0, |bytes| (*bytes).max(0) as usize),
                });
            }
        }
        bail!("cuDNN has no engine for {task:?}")
    }

    /// # Safety
    /// As for [`Cudnn::execute`].
    unsafe fn execute(
        &self,
        handle: &Handle,
        [x, weight, y]: [u64; 3],
        workspace: u64,
    ) -> Result<()> {
        let pack = Descriptor::with(
            Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR,
            &[
                (
                    Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS,
                    Value::Integers(&[X, WEIGHT, Y]),
                ),
                (
                    Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
                    Value::Addresses(&[x, weight, y]),
                ),
                (
                    Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE,
                    Value::Addresses(&[workspace]),
                ),
            ],
        )?;
        // SAFETY: the plan and the pack are complete; the rest is the caller's promise.
        unsafe { sys::cudnnBackendExecute(handle.0, self.plan.0, pack.0) }
            .result()
            .map_err(failed)
    }
}

/// Images, weights or results, channels last; `sizes` are in the order of channels first.
fn tensor(id: i64, bf16: bool, sizes: [usize; 4]) -> Result<Descriptor> {
    let [batch, channels, height, width] = sizes.map(|size| size as i64);
    Descriptor::with(
        Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR,
        &[
            (
                Name::CUDNN_ATTR_TENSOR_DATA_TYPE,
                Value::DataType(if bf16 {
                    sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16
                } else {
                    sys::cudnnDataType_t::CUDNN_DATA_FLOAT
                }),
            ),
            (
                Name::CUDNN_ATTR_TENSOR_DIMENSIONS,
                Value::Integers(&[batch, channels, height, width]),
            ),
            (
                Name::CUDNN_ATTR_TENSOR_STRIDES,
                Value::Integers(&[height * width * channels, 1, width * channels, channels]),
            ),
            (Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, Value::Integers(&[id])),
            (
                Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT,
                Value::Integers(&[16]),
            ),
        ],
    )
}

/// The graph of one convolution, and what it is made of.
fn graph(target: &Target<'_>, task: &Task) -> Result<(Descriptor, Vec<Descriptor>)> {
    let g = &task.geometry;
    let x = tensor(X, task.bf16, [g.batch, g.in_channels, g.height, g.width])?;
    let sizes = [g.out_channels, g.in_channels, g.kernel, g.kernel];
    let weight = tensor(WEIGHT, task.bf16, sizes)?;
    let sizes = [g.batch, g.out_channels, g.out_height(), g.out_width()];
    let y = tensor(Y, task.bf16, sizes)?;
    let padding = [g.padding as i64; 2];
    let convolution = Descriptor::with(
        Kind::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR,
        &[
            (
                Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE,
                Value::DataType(sys::cudnnDataType_t::CUDNN_DATA_FLOAT),
            ),
            (
                Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE,
                Value::Mode(sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION),
            ),
            (
                Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS,
                Value::Integers(&[2]),
            ),
            (
                Name::CUDNN_ATTR_CONVOLUTION_DILATIONS,
                Value::Integers(&[1, 1]),
            ),
            (
                Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES,
                Value::Integers(&[1, 1]),
            ),
            (
                Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS,
                Value::Integers(&padding),
            ),
            (
                Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS,
                Value::Integers(&padding),
            ),
        ],
    )?;
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
    let operation = Descriptor::with(
        kind,
        &[
            (alpha, Value::Factor(1.0)),
            (beta, Value::Factor(0.0)),
            (of, Value::Parts(&[&convolution])),
            (first, Value::Parts(&[&x])),
            (second, Value::Parts(&[&weight])),
            (third, Value::Parts(&[&y])),
        ],
    )?;
    let graph = Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
    let operations = [&operation];
    graph.set(
        Name::CUDNN_ATTR_OPERATIONGRAPH_OPS,
        &Value::Parts(&operations),
    )?;
    match target {
        Target::Device(handle) => graph.set(
            Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE,
            &Value::Handle(handle),
        )?,
        #[cfg(test)]
        Target::Described(_) => {}
    }
    Ok((
        graph.finalized()?,
        vec![operation, convolution, x, weight, y],
    ))
}

/// The engines that the heuristics name, the fastest first.
fn engines(
    target: &Target<'_>,
    graph: &Descriptor,
    mode: sys::cudnnBackendHeurMode_t,
) -> Result<Vec<Descriptor>> {
    let heuristics = Descriptor::new(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
    heuristics.set(
        Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
        &Value::Parts(&[graph]),
    )?;
    heuristics.set(Name::CUDNN_ATTR_ENGINEHEUR_MODE, &Value::Heuristics(mode))?;
    match target {
        Target::Device(_) => {}
        #[cfg(test)]
        Target::Described(device) => heuristics.set(
            Name::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP,
            &Value::Parts(&[device]),
        )?,
    }
    let heuristics = heuristics.finalized()?;
    let mut engines = (0..ENGINES)
        .map(|_| Descriptor::new(Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR))
        .collect::<Result<Vec<_>>>()?;
    let count = heuristics.fill(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, &engines)?;
    engines.truncate(count);
    Ok(engines)
}

/// The library's notes on an engine's arithmetic; of the type `cudnnBackendNumericalNote_t`, of which later versions
/// of the library may know more.
fn notes(engine: &Descriptor) -> Result<Vec<i32>> {
    let inner = [Descriptor::new(Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?];
    engine.fill(Name::CUDNN_ATTR_ENGINECFG_ENGINE, &inner)?;
    inner[0].get::<i32, 32>(
        Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
        Type::CUDNN_TYPE_NUMERICAL_NOTE,
    )
}

/// Whether an engine with these notes gives the same bits in every run, and the precision asked for.
fn is_allowed(notes: &[i32], arithmetic: Arithmetic) -> bool {
    let has = |note: Note| notes.contains(&(note as i32));
    let full = arithmetic.precision == Precision::F32;
    let direct = arithmetic.conv_algorithm == ConvAlgorithm::Direct;
    !(has(Note::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)
        || has(Note::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION)
        // On f32, tensor cores compute in TF32.
        || full && has(Note::CUDNN_NUMERICAL_NOTE_TENSOR_CORE)
        || full && has(Note::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS)
        || direct && has(Note::CUDNN_NUMERICAL_NOTE_FFT)
        || direct && has(Note::CUDNN_NUMERICAL_NOTE_WINOGRAD))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arithmetic(conv_algorithm: ConvAlgorithm, precision: Precision) -> Arithmetic {
        Arithmetic {
            conv_algorithm,
            precision,
        }
    }

    #[test]
    fn engines_without_a_fixed_order_are_passed_over() {
        let nondeterministic = Note::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC as i32;
        for precision in Precision::ALL {
            for convolution in ConvAlgorithm::ALL {
                let arithmetic = arithmetic(convolution, precision);
                assert!(!is_allowed(&[nondeterministic], arithmetic));
                assert!(is_allowed(&[], arithmetic));
            }
        }
    }

    #[test]
    fn f32_stays_f32_and_direct_stays_direct() {
        let tensor_core = [Note::CUDNN_NUMERICAL_NOTE_TENSOR_CORE as i32];
        let winograd = [Note::CUDNN_NUMERICAL_NOTE_WINOGRAD as i32];
        let allowed = |notes: &[i32], convolution, precision| {
            is_allowed(notes, arithmetic(convolution, precision))
        };
        assert!(!allowed(
            &tensor_core,
            ConvAlgorithm::Winograd,
            Precision::F32
        ));
        assert!(allowed(
            &tensor_core,
            ConvAlgorithm::Winograd,
            Precision::Tf32
        ));
        assert!(allowed(
            &tensor_core,
            ConvAlgorithm::Direct,
            Precision::Bf16
        ));
        assert!(!allowed(&winograd, ConvAlgorithm::Direct, Precision::F32));
        assert!(allowed(&winograd, ConvAlgorithm::Winograd, Precision::F32));
    }

    /// An H200 as cuDNN 9.26 describes a device, from its data sheet and CUDA's table of compute capability 9.0.
    const H200: &str = r#"{"deviceVer":900,"driverVer":13000,"cudaDeviceId":0,"maxGridSize":[2147483647,65535,65535],
        "maxBlockSize":[1024,1024,64],"regsPerBlock":65536,"multiProcessorCount":132,"smClockRateKHz":1980000,
        "memClockRateKHz":2619000,"l2CacheSize":52428800,"warpSize":32,"maxSharedMemoryPerBlock":49152,
        "maxSharedMemoryPerBlockOptin":232448,"reservedSharedMemoryPerBlock":1024,"maxRegistersPerSM":65536,
        "pciDeviceId":0,"maxCtasPerSM":32,"maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,"isTccDriver":0,
        "supportCoopLaunch":1,"oversizedSharedMemoryPerBlock":0,"totalGlobalMem":150000000000,
        "deviceName":"NVIDIA H200"}"#;

    /// cuDNN plans every convolution of AlexNet and SmallAlexNet for a GPU that the machine need not have.
    #[test]
    #[ignore = "needs cuDNN 9.26 or later, but no GPU"]
    fn every_convolution_of_the_networks_has_a_plan() {
        let device = Descriptor::with(
            Kind::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR,
            &[(
                Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
                Value::Text(H200.as_bytes()),
            )],
        )
        .unwrap();
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
                    let bf16 = precision == Precision::Bf16;
                    let geometry = Geometry {
                        batch,
                        height,
                        width: height,
                        in_channels: in_channels.next_multiple_of(if bf16 { 8 } else { 4 }),
                        out_channels,
                        kernel,
                        padding,
                    };
                    for pass in [Pass::Forward, Pass::InputGradient, Pass::WeightGradient] {
                        let task = Task {
                            pass,
                            geometry,
                            bf16,
                            arithmetic: arithmetic(ConvAlgorithm::Winograd, precision),
                        };
                        let plan = Plan::new(&Target::Described(&device), &task).unwrap();
                        assert!(plan.workspace < 4 << 30, "{task:?}: {}", plan.workspace);
                    }
                }
            }
        }
    }
}
