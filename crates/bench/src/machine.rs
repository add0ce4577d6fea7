//! What the machine or its GPU can do at most: matrix products and memory traffic.

use crate::device::{self, DeviceKind};
use candle_core::{DType, Device, Tensor, Var};
use ops::{Activation, Arithmetic, ConvAlgorithm, Precision, Tape};
use rayon::prelude::*;
use run::cli;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::time::Instant;

/// The options.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_enum)]
    device: DeviceKind,
    #[arg(long)]
    threads: NonZeroUsize,
}

/// The peaks of the machine, or of its GPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The processor or GPU.
    pub(crate) processor: String,
    pub(crate) threads: NonZeroUsize,
    /// Of square `f32` matrix products, by candle's or by our routine, the fastest of all sizes.
    pub(crate) gemm_gflops: f64,
    /// Of TF32 products on a GPU.
    pub(crate) tf32_gflops: Option<f64>,
    /// Of `bf16` matrix products with sums in `f32`, by our routine, likewise.
    pub(crate) bf16_gflops: f64,
    /// Reading and writing arrays larger than the caches, in 10^9 bytes per second.
    pub(crate) bandwidth_gb_s: f64,
}

impl Machine {
    /// Takes the better of two measurements of one machine: the other one was disturbed by other programs.
    pub(crate) fn improve(&mut self, other: &Self) {
        self.gemm_gflops = self.gemm_gflops.max(other.gemm_gflops);
        self.tf32_gflops = self
            .tf32_gflops
            .zip(other.tf32_gflops)
            .map(|(a, b)| a.max(b));
        self.bf16_gflops = self.bf16_gflops.max(other.bf16_gflops);
        self.bandwidth_gb_s = self.bandwidth_gb_s.max(other.bandwidth_gb_s);
    }
}

/// Rows, columns and depth of the products: from what fits into the caches to what does not.
const SIZES: [usize; 5] = [256, 512, 1024, 2048, 4096];

/// Larger products than one that took this long, in seconds, are no faster.
const LONG: f64 = 0.02;

/// Elements of the arrays.
const LENGTH: usize = 1 << 25;

/// Each is measured so many times, and the best counts.
const TRIALS: usize = 8;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    use_threads(args.threads)?;
    let device = &args.device.open()?;
    let is_gpu = args.device == DeviceKind::Cuda;
    let fastest = |precision| fastest(device, precision);
    let machine = Machine {
        processor: device::model(device)?,
        threads: args.threads,
        gemm_gflops: fastest(Precision::F32)?,
        tf32_gflops: is_gpu.then(|| fastest(Precision::Tf32)).transpose()?,
        bf16_gflops: fastest(Precision::Bf16)?,
        bandwidth_gb_s: match args.device {
            DeviceKind::Cpu => bandwidth()?,
            DeviceKind::Cuda => copying(device)?,
        },
    };
    cli::line(&serde_json::to_string(&machine)?);
    Ok(())
}

/// Sets the threads of ours and of candle's operations.
pub(crate) fn use_threads(threads: NonZeroUsize) -> anyhow::Result<()> {
    Ok(rayon::ThreadPoolBuilder::new()
        .num_threads(threads.get())
        .build_global()?)
}

/// The shortest time of `work` in seconds.
fn best<T>(
    device: &Device,
    mut work: impl FnMut() -> candle_core::Result<T>,
) -> candle_core::Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..TRIALS {
        device.synchronize()?;
        let start = Instant::now();
        work()?;
        device.synchronize()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// 10^9 operations per second of products of random matrices, the fastest of all sizes. On zeros a GPU takes less power and
/// is faster.
fn fastest(device: &Device, precision: Precision) -> candle_core::Result<f64> {
    let mut most = 0.0_f64;
    for size in SIZES {
        // So many rows that the rounding of the weight takes no time to speak of.
        let rows = match precision {
            Precision::Bf16 => 8,
            _ => 1,
        };
        let matrix =
            |rows| Tensor::rand(-1_f32, 1_f32, (rows, size), &Device::Cpu)?.to_device(device);
        let (a, b) = (matrix(rows * size)?, matrix(size)?);
        let x = ops::activations(&a, precision)?;
        let weight = Var::from_tensor(&b)?;
        let bias = Tensor::zeros(size, DType::F32, device)?;
        let arithmetic = Arithmetic {
            conv_algorithm: ConvAlgorithm::Direct,
            precision,
        };
        let mut seconds = best(device, || {
            let mut tape = Tape::no_grad(arithmetic);
            tape.linear("product", Activation::Identity, &x, &weight, &bias)
        })?;
        if device.is_cpu() && precision == Precision::F32 {
            seconds = seconds.min(best(device, || a.matmul(&b))?);
        }
        most = most.max(rows as f64 * 2.0 * (size as f64).powi(3) / seconds / 1e9);
        if seconds > LONG {
            break;
        }
    }
    Ok(most)
}

/// 10^9 bytes per second of a copy on a GPU.
fn copying(device: &Device) -> candle_core::Result<f64> {
    let large = Tensor::zeros(LENGTH, DType::F32, device)?;
    Ok((2 * LENGTH * 4) as f64 / best(device, || large.copy())? / 1e9)
}

/// The same of reading two arrays and writing a third on a CPU.
fn bandwidth() -> candle_core::Result<f64> {
    const PART: usize = 1 << 16;
    let (a, b) = (vec![1_f32; LENGTH], vec![2_f32; LENGTH]);
    let mut c = vec![0_f32; LENGTH];
    let seconds = best(&Device::Cpu, || {
        c.par_chunks_mut(PART)
            .zip(a.par_chunks(PART))
            .zip(b.par_chunks(PART))
            .for_each(|((c, a), b)| {
                for ((c, a), b) in c.iter_mut().zip(a).zip(b) {
                    *c = *a + 3.0 * *b;
                }
            });
        Ok(())
    })?;
    Ok((3 * LENGTH * 4) as f64 / seconds / 1e9)
}
