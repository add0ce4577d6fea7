//! What the machine can do at most: matrix products and memory traffic.

use candle_core::{DType, Device, Tensor, Var};
use ops::{Activation, ConvAlgorithm, InstructionSet, Tape};
use rayon::prelude::*;
use run::cli;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::time::Instant;

/// The options.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    threads: NonZeroUsize,
}

/// The machine's peaks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) threads: NonZeroUsize,
    /// Of square `f32` matrix products, by candle's or by our routine, the fastest of all sizes.
    pub(crate) gemm_gflops: f64,
    /// Of `bf16` matrix products with sums in `f32`, by our routine, likewise.
    pub(crate) bf16_gflops: f64,
    /// Reading two arrays larger than the caches and writing a third, in 10^9 bytes per second.
    pub(crate) bandwidth_gb_s: f64,
}

impl Machine {
    /// Takes the better of two measurements of one machine: the other one was disturbed by other programs.
    pub(crate) fn improve(&mut self, other: &Self) {
        self.gemm_gflops = self.gemm_gflops.max(other.gemm_gflops);
        self.bf16_gflops = self.bf16_gflops.max(other.bf16_gflops);
        self.bandwidth_gb_s = self.bandwidth_gb_s.max(other.bandwidth_gb_s);
    }
}

/// Rows, columns and depth of the products: from what fits into the caches to what does not.
const SIZES: [usize; 3] = [512, 1024, 2048];

/// The same in `bf16`, where there are more rows.
const BF16_SIZES: [usize; 2] = [512, 1024];

/// Elements of the arrays.
const LENGTH: usize = 1 << 25;

/// Each is measured so many times, and the best counts.
const TRIALS: usize = 8;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    use_threads(args.threads)?;
    let fastest = |gflops: fn(usize) -> candle_core::Result<f64>, sizes: &[usize]| {
        let mut sizes = sizes.iter().copied();
        sizes.try_fold(0.0, |most, size| {
            Ok::<f64, anyhow::Error>(gflops(size)?.max(most))
        })
    };
    let machine = Machine {
        processor: format!(
            "{} ({})",
            ops::processor_name(),
            InstructionSet::current().name()
        ),
        threads: args.threads,
        gemm_gflops: fastest(gemm, &SIZES)?,
        bf16_gflops: fastest(bf16_product, &BF16_SIZES)?,
        bandwidth_gb_s: bandwidth()?,
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
fn best<T>(mut work: impl FnMut() -> candle_core::Result<T>) -> candle_core::Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..TRIALS {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn gemm(size: usize) -> candle_core::Result<f64> {
    let [a, b] = matrices(size)?;
    let theirs = best(|| a.matmul(&b))?;
    Ok(gflops(size, theirs.min(our_product(&a, &b)?)))
}

fn bf16_product(size: usize) -> candle_core::Result<f64> {
    // So many rows that the rounding of the weight takes no time to speak of.
    const ROWS: usize = 8;
    let [a, b] = matrices(size)?;
    let a = a.to_dtype(DType::BF16)?.repeat((ROWS, 1))?;
    Ok(ROWS as f64 * gflops(size, our_product(&a, &b)?))
}

/// Two square matrices.
fn matrices(size: usize) -> candle_core::Result<[Tensor; 2]> {
    let matrix = || Tensor::rand(-1_f32, 1_f32, (size, size), &Device::Cpu);
    Ok([matrix()?, matrix()?])
}

/// The seconds that our product takes.
fn our_product(a: &Tensor, b: &Tensor) -> candle_core::Result<f64> {
    let weight = Var::from_tensor(b)?;
    let bias = Tensor::zeros(b.dim(0)?, DType::F32, &Device::Cpu)?;
    best(|| {
        let mut tape = Tape::no_grad(ConvAlgorithm::Direct);
        tape.linear("product", Activation::Identity, a, &weight, &bias)
    })
}

/// 10^9 operations per second of a product of square matrices.
fn gflops(size: usize, seconds: f64) -> f64 {
    2.0 * (size as f64).powi(3) / seconds / 1e9
}

fn bandwidth() -> candle_core::Result<f64> {
    const PART: usize = 1 << 16;
    let (a, b) = (vec![1_f32; LENGTH], vec![2_f32; LENGTH]);
    let mut c = vec![0_f32; LENGTH];
    let seconds = best(|| {
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
