//! Kernels of our own: compiled when they are first needed, and started.

use super::device::architecture;
use super::memory::{Buffer, Elements};
use super::per_device::PerDevice;
use super::table::Table;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda::cudarc::nvrtc::{Ptx, result, sys};
use candle_core::{CudaDevice, DType, Error, Result, bail};
use kernels::Windows;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CString;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

/// The kernels' source.
pub(super) const SOURCE: &str = include_str!("kernels.cu");

/// Rows or elements that one thread adds up: `GROUP` in the source.
pub(crate) const GROUP: usize = 64;

/// Threads of a block.
const THREADS: usize = 256;

/// Elements of 16 bytes.
pub(crate) fn pack(dtype: DType) -> usize {
    16 / dtype.size_in_bytes()
}

/// The kernels compiled for a type of activations and a width of packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Program {
    bf16: bool,
    pack: usize,
}

impl Program {
    /// With the widest packs into which the innermost dimension divides.
    pub(crate) fn packed(dtype: DType, inner: usize) -> Self {
        let pack = pack(dtype);
        Self {
            bf16: dtype == DType::BF16,
            pack: if inner.is_multiple_of(pack) { pack } else { 1 },
        }
    }

    /// Packs of `count` elements.
    pub(crate) fn packs(self, count: usize) -> usize {
        count / self.pack
    }

    /// The program as a cubin for a real architecture, such as `sm_90`. Unlike PTX, it does not need a driver as new as NVRTC.
    ///
    /// # Errors
    /// When it does not compile.
    pub(super) fn compile(self, architecture: &str) -> Result<Vec<u8>> {
        let mut options = vec![
            format!("--gpu-architecture={architecture}"),
            format!("-DPACK={}", self.pack),
        ];
        options.extend(self.bf16.then(|| "-DBF16".to_owned()));
        compile(SOURCE, &options)
            .map_err(|error| error.context(format!("for {architecture} and {self:?}")))
    }

    /// Compiles and loads the program, so that an error is found at once.
    pub(super) fn prepare(self, device: &CudaDevice) -> Result<()> {
        self.load(device)?.load_function("transpose").w()?;
        Ok(())
    }

    /// Loads the program, which is compiled once a process.
    fn load(self, device: &CudaDevice) -> Result<Arc<CudaModule>> {
        /// By program and architecture.
        type Compiled = HashMap<(Program, String), Vec<u8>>;
        static COMPILED: Mutex<Option<Compiled>> = Mutex::new(None);
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled = compiled.get_or_insert_default();
        let cubin = match compiled.entry((self, architecture(device)?)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let cubin = self.compile(&entry.key().1)?;
                entry.insert(cubin)
            }
        };
        let stream = device.cuda_stream();
        let module = stream
            .context()
            .load_module(Ptx::from_binary(cubin.clone()));
        module.w()
    }
}

/// A program of NVRTC, which is destroyed at the end.
struct Source(sys::nvrtcProgram);

impl Drop for Source {
    fn drop(&mut self) {
        // SAFETY: made by `create_program`, and destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// `source` as a cubin.
fn compile(source: &str, options: &[String]) -> Result<Vec<u8>> {
    let failed = |error: result::NvrtcError| Error::Msg(format!("NVRTC: {error:?}"));
    let source = CString::new(source).map_err(Error::wrap)?;
    let program = Source(result::create_program(&source, None).map_err(failed)?);
    // SAFETY: the program and its source are alive.
    if let Err(error) = unsafe { result::compile_program(program.0, options) } {
        // SAFETY: as before.
        let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
        let log: Vec<u8> = log.into_iter().map(|byte| byte as u8).collect();
        let log = String::from_utf8_lossy(&log)
            .trim_end_matches('\0')
            .trim()
            .to_owned();
        bail!("NVRTC cannot compile the kernels: {error:?}: {log}");
    }
    let mut bytes = 0;
    // SAFETY: the library writes the size.
    let size = unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut bytes) };
    size.result().map_err(failed)?;
    let mut cubin = vec![0_u8; bytes];
    // SAFETY: the library writes as many bytes as it said.
    let written = unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) };
    written.result().map_err(failed)?;
    Ok(cubin)
}

/// An argument of a kernel. A pointer borrows its memory until the kernel is started; later uses of the memory are
/// ordered behind the kernel.
#[derive(Clone, Copy)]
pub(crate) enum Argument<'a> {
    /// Memory that begins at a multiple of 16 bytes where a kernel reads packs; or 0 for none.
    Address(u64, PhantomData<&'a ()>),
    Unsigned(u32),
    /// A count that no kernel can take.
    TooLarge(usize),
    Long(u64),
    Signed(i32),
    Float(f32),
    Double(f64),
    Table(&'a Table),
}

impl<'a> Argument<'a> {
    /// Memory that the kernel reads one element at a time, so that it may begin anywhere.
    pub(crate) fn singly(memory: Elements<'a>) -> Self {
        Self::Long(memory.address)
    }

    /// Memory that the kernel writes from an element on.
    pub(crate) fn element(memory: &'a Buffer, index: usize) -> Self {
        let memory = memory.elements();
        assert!(index < memory.count());
        Self::Long(memory.address + (index * memory.dtype.size_in_bytes()) as u64)
    }

    /// Memory that the kernel changes.
    pub(crate) fn slice<T>(memory: &'a mut CudaSlice<T>) -> Self {
        let stream = memory.stream().clone();
        Self::Address(memory.device_ptr(&stream).0, PhantomData)
    }

    /// Memory that the kernel reads, or null.
    pub(crate) fn maybe(memory: Option<Elements<'a>>) -> Self {
        memory.map_or(Self::Address(0, PhantomData), Self::from)
    }

    /// Height and width of images, rows and columns of their windows, and the windows' size and stride.
    pub(crate) fn windows(windows: Windows) -> [Self; 6] {
        let Windows {
            pool,
            height,
            width,
        } = windows;
        let (rows, columns) = (windows.rows(), windows.columns());
        [height, width, rows, columns, pool.kernel, pool.stride].map(Self::from)
    }
}

/// Memory that the kernel reads.
impl<'a> From<Elements<'a>> for Argument<'a> {
    fn from(memory: Elements<'a>) -> Self {
        Self::Address(memory.address, PhantomData)
    }
}

/// Memory that the kernel writes.
impl<'a> From<&'a Buffer> for Argument<'a> {
    fn from(memory: &'a Buffer) -> Self {
        memory.elements().into()
    }
}

impl From<usize> for Argument<'_> {
    /// A count; [`launch`] refuses one that a kernel cannot take.
    fn from(count: usize) -> Self {
        u32::try_from(count).map_or(Self::TooLarge(count), Self::Unsigned)
    }
}

impl From<u32> for Argument<'_> {
    fn from(value: u32) -> Self {
        Self::Unsigned(value)
    }
}

impl From<bool> for Argument<'_> {
    fn from(value: bool) -> Self {
        Self::Signed(value.into())
    }
}

impl From<f32> for Argument<'_> {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}

/// The programs of a device that were loaded and the kernels that were started before, so that starting one costs little.
struct Loaded {
    stream: Arc<CudaStream>,
    programs: RefCell<HashMap<Program, Arc<CudaModule>>>,
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
    let load = || {
        Ok(Loaded {
            stream: device.cuda_stream(),
            programs: RefCell::default(),
            functions: RefCell::default(),
        })
    };
    let loaded = LOADED.with(|all| all.get(device, load))?;
    let mut functions = loaded.functions.borrow_mut();
    let kernel = match functions.entry((program, name)) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => {
            let mut programs = loaded.programs.borrow_mut();
            let module = match programs.entry(program) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(program.load(device)?),
            };
            entry.insert(module.load_function(name).w()?)
        }
    };
    let mut builder = loaded.stream.launch_builder(kernel);
    for argument in arguments {
        match argument {
            Argument::Address(address, _) if program.pack > 1 && address % 16 != 0 => {
                bail!("{name}: a tensor does not begin at a multiple of 16 bytes")
            }
            Argument::TooLarge(count) => {
                bail!("{name}: {count} is more than the GPU's kernels can count")
            }
            Argument::Address(value, _) | Argument::Long(value) => builder.arg(value),
            Argument::Unsigned(value) => builder.arg(value),
            Argument::Signed(value) => builder.arg(value),
            Argument::Float(value) => builder.arg(value),
            Argument::Double(value) => builder.arg(value),
            Argument::Table(value) => builder.arg(*value),
        };
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
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs NVRTC, but no GPU"]
    fn the_kernels_compile_for_all_architectures() {
        let programs = [DType::F32, DType::BF16]
            .into_iter()
            .flat_map(|dtype| [0, 1].map(|inner| Program::packed(dtype, inner)));
        for program in programs {
            for architecture in ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120"] {
                let cubin = program.compile(architecture).unwrap();
                assert!(cubin.starts_with(b"\x7fELF"), "{program:?}");
            }
        }
    }
}
