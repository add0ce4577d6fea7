//! One measurement on the GPU, in a process of its own.

use super::arithmetic;
use crate::layers::{LayerTime, profile};
use crate::throughput::{inputs, settings};
use anyhow::bail;
use candle_core::{CudaDevice, DType, Device, Tensor};
use clap::ValueEnum;
use datasets::Dataset;
use engine::{Checkpoints, Event, SpanTimes, Training, TrainingSetup};
use models::{Architecture, Network, initial_parameters};
use ops::{Activation, Tape};
use run::settings::{Precision, WeightInit};
use run::{EvaluationSplit, Overrides, cli};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, Instant};

/// What is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_enum)]
    what: What,
    #[arg(long, default_value = "alexnet")]
    model: Architecture,
    #[arg(long, default_value = "500")]
    batch_size: NonZeroUsize,
    #[arg(long, default_value = "bf16")]
    precision: Precision,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Rows and columns of the products that find the peak.
    #[arg(long, default_value_t = 8192)]
    size: usize,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Whole training steps.
    Training,
    /// Each layer alone.
    Layers,
    /// The most that the GPU does.
    Peaks,
}

impl What {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Layers => "layers",
            Self::Peaks => "peaks",
        }
    }
}

/// Training steps on a GPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Steps {
    pub(crate) images_per_second: f64,
    pub(crate) steps: usize,
    pub(crate) milliseconds_per_step: f64,
    /// What the host needs to hand a step to the GPU. Less than the step takes: the GPU never waits.
    pub(crate) host_milliseconds_per_step: f64,
    /// Memory of the GPU that it took, that of the driver and the libraries' handles excepted.
    pub(crate) device_bytes: usize,
}

/// The most that was reached in one precision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Peaks {
    pub(crate) precision: Precision,
    /// Of square matrix products, in 10^12 operations a second.
    pub(crate) tflops: f64,
    /// Copying on the device, reading and writing counted, in 10^9 bytes a second.
    pub(crate) bandwidth_gb_s: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let device = ops::cuda::open(0)?;
    let Device::Cuda(gpu) = &device else {
        bail!("the device is no GPU");
    };
    let text = match args.what {
        What::Training => serde_json::to_string(&training(args, &device, gpu)?)?,
        What::Layers => serde_json::to_string(&layers(args, &device)?)?,
        What::Peaks => serde_json::to_string(&peaks(args, &device)?)?,
    };
    cli::line(&text);
    Ok(())
}

fn network(args: &Args, device: &Device) -> anyhow::Result<Network> {
    let parameters = initial_parameters(args.model, WeightInit::Pytorch, 0, device)?;
    Ok(Network::new(args.model, parameters)?)
}

/// The engine itself, as the trainer runs it, until the time is over.
fn training(args: &Args, device: &Device, gpu: &CudaDevice) -> anyhow::Result<Steps> {
    /// Steps of an epoch; the GPU is looked at twice in it.
    const STEPS: usize = 64;
    let spans = SpanTimes::install()?;
    let free = ops::cuda::memory(gpu)?.free;
    let batch_size = args.batch_size.get();
    let set = Dataset::synthetic(STEPS * batch_size, 1)?;
    let settings = settings(
        args.model,
        Overrides {
            batch_size: Some(args.batch_size),
            epochs: Some(NonZeroU32::MAX),
            ..Overrides::default()
        },
    )?;
    let folder = tempfile::tempdir()?;
    let inputs = inputs(&settings, &set);
    let setup = TrainingSetup {
        settings,
        train: set.training(),
        test: set.test(),
        split: EvaluationSplit::Test,
        device: device.clone(),
        arithmetic: arithmetic(args.precision),
        evaluation_batch: None,
    };
    let mut training = Training::new(setup, network(args, device)?)?;
    let limit = Duration::from_secs_f64(args.seconds);
    let clock = Cell::new(Clock::default());
    training.run(
        &Checkpoints::new(folder.path(), inputs),
        Duration::MAX,
        &|| clock.get().steps > 0 && clock.get().time >= limit,
        &mut |event| {
            let mut now = clock.get();
            match event {
                // What lies between epochs does not count.
                Event::EpochStarted { .. } => {
                    now.last = Some(Instant::now());
                    now.done = 0;
                }
                Event::Step { done, .. } => {
                    // The first steps, on fresh memory and with algorithms to choose, do not count.
                    match (now.warm, now.last) {
                        (true, Some(last)) => {
                            now.steps += done - now.done;
                            now.time += last.elapsed();
                        }
                        _ => {
                            let _ = spans.take();
                            now.warm = true;
                        }
                    }
                    now.done = *done;
                    now.last = Some(Instant::now());
                }
                _ => (),
            }
            clock.set(now);
            Ok(())
        },
    )?;
    let clock = clock.get();
    if clock.steps == 0 {
        bail!("no step was timed");
    }
    let times = spans.take();
    let host: Duration = ["data", "step"]
        .into_iter()
        .filter_map(|name| times.get(&(name, String::new())))
        .map(|total| total.time)
        .sum();
    let left = ops::cuda::memory(gpu)?.free;
    let seconds = clock.time.as_secs_f64();
    let steps = clock.steps as f64;
    Ok(Steps {
        images_per_second: steps * batch_size as f64 / seconds,
        steps: clock.steps,
        milliseconds_per_step: 1e3 * seconds / steps,
        host_milliseconds_per_step: 1e3 * host.as_secs_f64() / steps,
        device_bytes: free.saturating_sub(left),
    })
}

/// Counts steps and their time.
#[derive(Clone, Copy, Default)]
struct Clock {
    warm: bool,
    last: Option<Instant>,
    done: usize,
    steps: usize,
    time: Duration,
}

/// Each layer's passes, the GPU waited for after each.
fn layers(args: &Args, device: &Device) -> anyhow::Result<Vec<LayerTime>> {
    let network = network(args, device)?;
    let arithmetic = arithmetic(args.precision);
    profile(
        &network,
        arithmetic,
        args.batch_size.get(),
        args.seconds,
        device,
    )
}

/// The best of so many trials counts.
const TRIALS: usize = 10;

fn best(device: &Device, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
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

fn peaks(args: &Args, device: &Device) -> anyhow::Result<Peaks> {
    let size = args.size;
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device);
    let (x, weight, bias) = (
        zeros(&[size, size])?,
        zeros(&[size, size])?,
        zeros(&[size])?,
    );
    let arithmetic = arithmetic(args.precision);
    let x = ops::activations(&x, arithmetic.precision)?;
    // The weight in f32 is narrowed on the way, which the time of the same work without a product takes out.
    let product = best(device, || {
        let mut tape = Tape::no_grad(arithmetic);
        tape.linear("product", Activation::Relu, &x, &weight, &bias)?;
        Ok(())
    })?;
    let narrowing = best(device, || {
        ops::activations(&weight, arithmetic.precision)?;
        Ok(())
    })?;
    let large = zeros(&[16 * size, size])?;
    let copying = best(device, || {
        large.copy()?;
        Ok(())
    })?;
    let operations = 2.0 * (size as f64).powi(3);
    Ok(Peaks {
        precision: args.precision,
        tflops: operations / (product - narrowing).max(f64::MIN_POSITIVE) / 1e12,
        bandwidth_gb_s: 8.0 * large.elem_count() as f64 / copying / 1e9,
    })
}
