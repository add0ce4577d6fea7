//! Kernels of our own: compiled when they are first needed, and started.

use super::Activations;
use super::per_device::PerDevice;
use super::table::Table;
use candle_core::cuda::cudarc::driver::sys::CUdevice_attribute;
use candle_core::cuda::cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, CudaView, DevicePtr, LaunchArgs, LaunchConfig,
    PushKernelArg,
};
use candle_core::cuda::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::{CudaDevice, DType, Error, Result, bail};
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

/// The kernels' source.
pub(super) const SOURCE: &str = include_str!("kernels.cu");

/// Rows that one thread of the kernel `sum_rows` adds up: `GROUP` in the source.
pub(super) const GROUP: usize = 64;

/// Threads of a block.
const THREADS: usize = 256;

/// The kernels compiled for a type of activations and a width of packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Program {
    bf16: bool,
    pack: usize,
}

impl Program {
    /// All programs.
    #[cfg(test)]
    pub(super) const ALL: [Self; 4] = [
        Self {
            bf16: false,
            pack: 4,
        },
        Self {
            bf16: false,
            pack: 1,
        },
        Self {
            bf16: true,
            pack: 8,
        },
        Self {
            bf16: true,
            pack: 1,
        },
    ];

    /// With the widest packs into which the innermost dimension divides.
    pub(crate) fn packed<T: Activations>(inner: usize) -> Self {
        Self {
            bf16: T::DTYPE == DType::BF16,
            pack: if inner.is_multiple_of(T::PACK) {
                T::PACK
            } else {
                1
            },
        }
    }

    /// How many packs hold `count` elements.
    pub(crate) fn packs(self, count: usize) -> usize {
        count / self.pack
    }

    /// Unique among the programs.
    fn name(self) -> &'static str {
        match (self.bf16, self.pack) {
            (false, 1) => "f32",
            (false, _) => "f32-packed",
            (true, 1) => "bf16",
            (true, _) => "bf16-packed",
        }
    }

    /// What the compiler is told, `architecture` being that of the device or of a virtual one.
    fn options(self, architecture: &str) -> Vec<String> {
        let mut options = vec![
            format!("--gpu-architecture={architecture}"),
            format!("-DPACK={}", self.pack),
        ];
        if self.bf16 {
            options.push("-DBF16".to_owned());
        }
        options
    }

    /// The program as PTX.
    ///
    /// # Errors
    /// When it does not compile.
    pub(super) fn compile(self, architecture: &str) -> Result<String> {
        let options = CompileOptions {
            options: self.options(architecture),
            ..CompileOptions::default()
        };
        let ptx = compile_ptx_with_opts(SOURCE, options).map_err(|error| {
            Error::Msg(format!(
                "NVRTC cannot compile the kernels for {architecture}: {error:?}"
            ))
        })?;
        Ok(ptx.to_src())
    }

    /// Compiles it and hands it to the device, so that what is wrong is found.
    pub(super) fn prepare(self, device: &CudaDevice) -> Result<()> {
        let ptx = self.for_device(device)?;
        device.get_or_load_custom_func("transpose", self.name(), &ptx)?;
        Ok(())
    }

    /// The program for a device, compiled once a process.
    fn for_device(self, device: &CudaDevice) -> Result<Arc<str>> {
        /// By program and architecture.
        type Compiled = HashMap<(Program, String), Arc<str>>;
        static COMPILED: Mutex<Option<Compiled>> = Mutex::new(None);
        let architecture = architecture(device)?;
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled = compiled.get_or_insert_default();
        let key = (self, architecture);
        if let Some(ptx) = compiled.get(&key) {
            return Ok(ptx.clone());
        }
        let ptx: Arc<str> = self.compile(&key.1)?.into();
        compiled.insert(key, ptx.clone());
        Ok(ptx)
    }
}

/// The virtual architecture of a device, such as `compute_90`.
fn architecture(device: &CudaDevice) -> Result<String> {
    let stream = device.cuda_stream();
    let attribute = |attribute| {
        stream
            .context()
            .attribute(attribute)
            .map_err(|error| Error::Cuda(error.into()))
    };
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(format!("compute_{major}{minor}"))
}

/// An argument of a kernel. A pointer borrows its memory until the kernel is started; later uses of the memory are
/// ordered behind the kernel.
#[derive(Clone, Copy)]
pub(crate) struct Argument<'a> {
    value: Value<'a>,
    memory: PhantomData<&'a ()>,
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Address(u64),
    Unsigned(u32),
    TooLarge(usize),
    Long(u64),
    Signed(i32),
    Float(f32),
    Table(&'a Table),
}

impl<'a> Argument<'a> {
    fn new(value: Value<'a>) -> Self {
        Self {
            value,
            memory: PhantomData,
        }
    }

    /// Memory that the kernel reads.
    pub(crate) fn read<T>(device: &CudaDevice, memory: &'a CudaView<'_, T>) -> Self {
        Self::new(Value::Address(memory.device_ptr(&device.cuda_stream()).0))
    }

    /// Memory that the kernel reads one element at a time, so that it may begin anywhere.
    pub(crate) fn read_singly<T>(device: &CudaDevice, memory: &'a CudaView<'_, T>) -> Self {
        Self::new(Value::Long(memory.device_ptr(&device.cuda_stream()).0))
    }

    /// Memory that the kernel writes to, or changes.
    pub(crate) fn write<T>(device: &CudaDevice, memory: &'a mut CudaSlice<T>) -> Self {
        Self::new(Value::Address(memory.device_ptr(&device.cuda_stream()).0))
    }

    /// No memory.
    pub(crate) fn null() -> Self {
        Self::new(Value::Address(0))
    }

    /// Memory that the kernel reads, or null.
    pub(crate) fn maybe<T>(device: &CudaDevice, memory: Option<&'a CudaView<'_, T>>) -> Self {
        memory.map_or_else(Self::null, |memory| Self::read(device, memory))
    }

    /// The parameters of a step, by value.
    pub(crate) fn table(table: &'a Table) -> Self {
        Self::new(Value::Table(table))
    }

    /// An integer of 64 bits.
    pub(crate) fn long(value: u64) -> Self {
        Self::new(Value::Long(value))
    }
}

impl From<usize> for Argument<'_> {
    /// A count; [`launch`] refuses one that a kernel cannot take.
    fn from(count: usize) -> Self {
        Self::new(u32::try_from(count).map_or(Value::TooLarge(count), Value::Unsigned))
    }
}

impl From<u32> for Argument<'_> {
    fn from(value: u32) -> Self {
        Self::new(Value::Unsigned(value))
    }
}

impl From<bool> for Argument<'_> {
    fn from(value: bool) -> Self {
        Self::new(Value::Signed(value.into()))
    }
}

impl From<f32> for Argument<'_> {
    fn from(value: f32) -> Self {
        Self::new(Value::Float(value))
    }
}

/// The kernels of a device that were started before, so that starting one costs little.
struct Loaded {
    stream: Arc<CudaStream>,
    functions: RefCell<HashMap<(Program, &'static str), CudaFunction>>,
}

thread_local! {
    static LOADED: PerDevice<Loaded> = const { PerDevice::new() };
}

/// Starts the kernel `name` with at least `threads` threads.
///
/// # Errors
/// When the kernel cannot be compiled or started.
pub(crate) fn launch(
    device: &CudaDevice,
    program: Program,
    name: &'static str,
    threads: usize,
    arguments: &[Argument<'_>],
) -> Result<()> {
    if threads == 0 {
        return Ok(());
    }
    let packed = program.pack > 1;
    let odd =
        |argument: &Argument<'_>| matches!(argument.value, Value::Address(at) if at % 16 != 0);
    if packed && arguments.iter().any(odd) {
        bail!("{name}: a tensor does not begin at a multiple of 16 bytes");
    }
    for argument in arguments {
        if let Value::TooLarge(count) = argument.value {
            bail!("{name}: {count} is more than the GPU's kernels can count");
        }
    }
    let load = || {
        Ok(Loaded {
            stream: device.cuda_stream(),
            functions: RefCell::default(),
        })
    };
    let loaded = LOADED.with(|all| all.get(device, load))?;
    let mut functions = loaded.functions.borrow_mut();
    let kernel = match functions.entry((program, name)) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => {
            let ptx = program.for_device(device)?;
            let kernel = device.get_or_load_custom_func(name, program.name(), &ptx)?;
            entry.insert(kernel.into_cuda_function())
        }
    };
    let mut builder = loaded.stream.launch_builder(kernel);
    for argument in arguments {
        push(&mut builder, argument);
    }
    let blocks = u32::try_from(threads.div_ceil(THREADS)).map_err(Error::wrap)?;
    let config = LaunchConfig {
        grid_dim: (blocks, 1, 1),
        block_dim: (THREADS as u32, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: the arguments are those of the kernel, in order and type (the tests run each kernel through
    // the function that calls this), its memory is as large as the counts say, and every kernel returns at
    // once in threads beyond its count.
    unsafe { builder.launch(config) }.map_err(|error| Error::Cuda(error.into()))?;
    Ok(())
}

fn push<'a>(builder: &mut LaunchArgs<'a>, argument: &'a Argument<'_>) {
    match &argument.value {
        Value::Address(value) | Value::Long(value) => builder.arg(value),
        Value::Unsigned(value) => builder.arg(value),
        // `launch` has refused it.
        Value::TooLarge(_) => builder,
        Value::Signed(value) => builder.arg(value),
        Value::Float(value) => builder.arg(value),
        Value::Table(value) => builder.arg(*value),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs NVRTC, but no GPU"]
    fn the_kernels_compile_to_ptx() {
        for program in Program::ALL {
            for architecture in ["compute_80", "compute_90"] {
                let ptx = program.compile(architecture).unwrap();
                assert!(!ptx.is_empty(), "{program:?}");
            }
        }
    }
}
