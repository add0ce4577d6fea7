//! Images per second in training or evaluation.

use crate::device::{DeviceKind, Memory};
use crate::machine::use_threads;
use crate::{candle_graph, candle_network};
use candle_core::{Device, Tensor};
use candle_nn::Optimizer;
use clap::ValueEnum;
use datasets::Dataset;
use engine::{Checkpoints, Event, Inputs, SpanTimes, Training, TrainingSetup};
use models::{Architecture, Network, initial_parameters};
use ops::{Arithmetic, ConvAlgorithm, Tape};
use run::settings::{Precision, Source, WeightInit};
use run::{EvaluationSplit, Overrides, Settings, cli};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, Instant};

/// Training images at least; enough that an epoch is longer than most measurements.
const IMAGES: usize = 20_000;

/// Steps of an epoch are a multiple of this: on a GPU one step in 32 is observed, and the first ones do not count.
const STEPS: usize = 64;

/// Training or evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pass {
    /// Whole training steps: augmented batch in, forward, backward, update.
    Train,
    /// The forward pass.
    Eval,
}

/// The name of a value on the command line.
pub(crate) fn name(value: impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    /// This program in f32.
    Winograd,
    /// This program in f32 with `--conv direct`.
    Direct,
    /// This program with `--precision tf32`, on a GPU.
    Tf32,
    /// This program with `--precision bf16`.
    Bf16,
    /// Our operations on a tape, for one batch again and again, without augmentation and dropout.
    Tape,
    /// The same in candle's graph.
    Graph,
    /// Candle's own convolutions and automatic differentiation, with our pooling.
    Candle,
}

impl Engine {
    /// How this program computes; `None` for the others.
    pub(crate) fn arithmetic(self, device: DeviceKind) -> Option<Arithmetic> {
        let (conv_algorithm, precision) = match (self, device) {
            (Self::Winograd, _) => (ConvAlgorithm::Winograd, ops::Precision::F32),
            (Self::Direct, _) => (ConvAlgorithm::Direct, ops::Precision::F32),
            (Self::Tf32, _) => (ConvAlgorithm::Winograd, ops::Precision::Tf32),
            (Self::Bf16, DeviceKind::Cpu) => (ConvAlgorithm::Direct, ops::Precision::Bf16),
            (Self::Bf16, DeviceKind::Cuda) => (ConvAlgorithm::Winograd, ops::Precision::Bf16),
            (Self::Tape | Self::Graph | Self::Candle, _) => return None,
        };
        Some(Arithmetic {
            conv_algorithm,
            precision,
        })
    }

    /// Whether it computes on a device.
    pub(crate) fn is_for(self, device: DeviceKind) -> bool {
        match device {
            DeviceKind::Cpu => self != Self::Tf32,
            DeviceKind::Cuda => self.arithmetic(device).is_some(),
        }
    }

    /// The precision of products.
    pub(crate) fn precision(self) -> Precision {
        match self {
            Self::Bf16 => Precision::Bf16,
            Self::Tf32 => Precision::Tf32,
            _ => Precision::F32,
        }
    }
}

/// What one process measures.
#[derive(Debug, clap::Args)]
pub(crate) struct Measurement {
    #[arg(long)]
    pub(crate) model: Architecture,
    #[arg(long, value_enum)]
    pub(crate) engine: Engine,
    #[arg(long)]
    pub(crate) batch_size: NonZeroUsize,
    #[arg(long, value_enum)]
    pub(crate) device: DeviceKind,
    #[arg(long)]
    pub(crate) threads: NonZeroUsize,
    #[arg(long)]
    pub(crate) seconds: f64,
}

impl Measurement {
    /// How this program computes; `None` for others.
    pub(crate) fn arithmetic(&self) -> Option<Arithmetic> {
        self.engine.arithmetic(self.device)
    }
}

/// The options.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_enum)]
    pass: Pass,
    #[command(flatten)]
    what: Measurement,
}

/// The result of a measurement. PyTorch's script prints the first three.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) images_per_second: f64,
    pub(crate) steps: usize,
    /// The memory that it took: see [`Memory::peak_bytes`].
    pub(crate) peak_bytes: Option<u64>,
    /// The fraction of the time in which the next batch was waited for, on a CPU.
    #[serde(default)]
    pub(crate) waiting_share: Option<f64>,
    /// What the host needs to hand a step to a GPU. If a step takes longer, the GPU never waits.
    #[serde(default)]
    pub(crate) host_milliseconds: Option<f64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let what = &args.what;
    use_threads(what.threads)?;
    let device = what.device.open()?;
    #[cfg(feature = "cuda")]
    if let candle_core::Device::Cuda(gpu) = &device
        && what.engine.precision() != Precision::F32
    {
        let capability = ops::cuda::capability(gpu)?;
        anyhow::ensure!(
            capability.has_tensor_cores_for_bf16(),
            "the GPU has compute capability {capability} ({} takes 8.0)",
            what.engine.precision()
        );
    }
    let measured = match (args.pass, what.arithmetic()) {
        (Pass::Train, Some(arithmetic)) => training(what, arithmetic, &device)?,
        (Pass::Train, None) => one_batch_training(what)?,
        (Pass::Eval, _) => evaluation(what, &device)?,
    };
    cli::line(&serde_json::to_string(&measured)?);
    Ok(())
}

/// The settings of the post's recipe, with changes.
pub(crate) fn settings(architecture: Architecture, changes: Overrides) -> anyhow::Result<Settings> {
    let defaults = Overrides {
        model: Some(architecture.name.to_owned()),
        patience: Some(architecture.patience),
        threads: Some(NonZeroUsize::MIN),
        ..Overrides::default()
    };
    let layers = [(Source::Defaults, defaults), (Source::CommandLine, changes)];
    Ok(Settings::resolve(&layers)?)
}

/// What the checkpoints of a measurement say of their inputs.
pub(crate) fn inputs(settings: &Settings, set: &Dataset) -> Inputs {
    Inputs {
        mean: settings.mean.0,
        std: settings.std.0,
        class_names: set.class_names().to_vec(),
    }
}

pub(crate) fn network(architecture: Architecture, device: &Device) -> anyhow::Result<Network> {
    let parameters = initial_parameters(architecture, WeightInit::Pytorch, 0, device)?;
    Ok(Network::new(architecture, parameters)?)
}

/// The engine itself, as the trainer runs it, until the time is over.
fn training(
    what: &Measurement,
    arithmetic: Arithmetic,
    device: &Device,
) -> anyhow::Result<Measured> {
    let spans = SpanTimes::install()?;
    let memory = Memory::new(device);
    let images = IMAGES.next_multiple_of(STEPS * what.batch_size.get());
    let set = Dataset::synthetic(images, 1)?;
    let changes = Overrides {
        batch_size: Some(what.batch_size),
        epochs: Some(NonZeroU32::MAX),
        ..Overrides::default()
    };
    let settings = settings(what.model, changes)?;
    let folder = tempfile::tempdir()?;
    let checkpoints = Checkpoints::new(folder.path(), inputs(&settings, &set));
    let setup = TrainingSetup {
        settings,
        train: set.training(),
        test: set.test(),
        split: EvaluationSplit::Test,
        device: device.clone(),
        arithmetic,
        evaluation_batch: None,
        cudnn_engines: Default::default(),
        process_group: None,
    };
    let mut training = Training::new(setup, network(what.model, device)?)?;
    let clock = Cell::new(Clock::default());
    let stop = || clock.get().is_over(what.seconds);
    training.run(&checkpoints, Duration::MAX, &stop, &mut |event| {
        let mut now = clock.get();
        let is_first = match event {
            Event::Step { done, .. } => now.step(*done, &memory),
            // The time between epochs does not count.
            Event::EpochStarted { .. } => {
                now.start();
                false
            }
            _ => false,
        };
        if is_first {
            let _ = spans.take();
        }
        clock.set(now);
        Ok(())
    })?;
    let clock = clock.get();
    let times = spans.take();
    let [data, step] = ["data", "step"].map(|name| {
        let total = times.get(&(name, String::new()));
        total.map_or(0.0, |total| total.time.as_secs_f64())
    });
    let mut measured = clock.measured(what.batch_size);
    match what.device {
        DeviceKind::Cpu => measured.waiting_share = Some(data / (data + step)),
        DeviceKind::Cuda => {
            measured.host_milliseconds = Some(1e3 * (data + step) / clock.steps as f64);
        }
    }
    Ok(measured)
}

/// Counts steps and their time.
#[derive(Clone, Copy, Default)]
struct Clock {
    /// The end of the last steps, or the start of the epoch.
    last: Option<Instant>,
    /// Steps of the epoch that were done then.
    done: usize,
    /// Whether there was a step.
    is_warm: bool,
    steps: usize,
    time: Duration,
    peak_bytes: Option<u64>,
}

impl Clock {
    /// An epoch starts.
    fn start(&mut self) {
        self.last = Some(Instant::now());
        self.done = 0;
    }

    /// `done` steps of the epoch are done. Returns whether these are the first ones, which do not count: they are on fresh
    /// memory, and algorithms are chosen.
    fn step(&mut self, done: usize, memory: &Memory) -> bool {
        let now = Instant::now();
        let is_first = !self.is_warm;
        if let (true, Some(last)) = (self.is_warm, self.last) {
            self.steps += done - self.done;
            self.time += now - last;
        }
        // Here, so that what comes after the last step is not in it.
        self.peak_bytes = memory.peak_bytes();
        self.is_warm = true;
        self.done = done;
        self.last = Some(Instant::now());
        is_first
    }

    /// Whether at least two steps have taken this long.
    fn is_over(&self, seconds: f64) -> bool {
        self.steps >= 2 && self.time.as_secs_f64() >= seconds
    }

    fn measured(&self, batch_size: NonZeroUsize) -> Measured {
        Measured {
            images_per_second: (self.steps * batch_size.get()) as f64 / self.time.as_secs_f64(),
            steps: self.steps,
            peak_bytes: self.peak_bytes,
            ..Measured::default()
        }
    }
}

/// A batch of normalised noise `[size, 32, 32, 3]`, and labels `[size]`.
pub(crate) fn batch(size: usize) -> candle_core::Result<(Tensor, Tensor)> {
    let images = Tensor::randn(0_f32, 1_f32, (size, 32, 32, 3), &Device::Cpu)?;
    let labels: Vec<u32> = (0..size as u32).map(|image| image % 10).collect();
    Ok((images, Tensor::from_vec(labels, size, &Device::Cpu)?))
}

/// The forward pass and the loss on one batch, again and again.
fn evaluation(what: &Measurement, device: &Device) -> anyhow::Result<Measured> {
    let memory = Memory::new(device);
    let network = network(what.model, device)?;
    let (images, labels) = batch(what.batch_size.get())?;
    let channels_first = images.permute((0, 3, 1, 2))?.contiguous()?;
    let arithmetic = what.arithmetic().unwrap_or_default();
    let images = ops::activations(&images.to_device(device)?, arithmetic.precision)?;
    let labels = labels.to_device(device)?;
    repeat(what, &memory, || {
        let logits = match what.engine {
            Engine::Graph => candle_graph::forward(&network, &images)?,
            Engine::Candle => candle_network::forward(&network, &channels_first)?,
            _ => network.forward(&mut Tape::no_grad(arithmetic), &images, None)?,
        };
        loss(&logits, &labels)?;
        Ok(())
    })
}

/// Steps on one batch on a CPU, without augmentation and dropout.
fn one_batch_training(what: &Measurement) -> anyhow::Result<Measured> {
    let network = network(what.model, &Device::Cpu)?;
    let (images, labels) = batch(what.batch_size.get())?;
    let channels_first = images.permute((0, 3, 1, 2))?.contiguous()?;
    let mut optimiser = sgd(&network)?;
    repeat(what, &Memory::new(&Device::Cpu), || {
        let backward = |logits: Tensor| loss(&logits, &labels)?.backward();
        let gradients = match what.engine {
            Engine::Candle => backward(candle_network::forward(&network, &channels_first)?)?,
            Engine::Graph => backward(candle_graph::forward(&network, &images)?)?,
            _ => {
                let mut tape = Tape::recording(ConvAlgorithm::Winograd);
                let logits = network.forward(&mut tape, &images, None)?;
                loss(&logits, &labels)?;
                tape.backward(ops::cross_entropy_gradient(&logits, &labels, 0.0)?)?
            }
        };
        optimiser.step(&gradients)?;
        Ok(())
    })
}

/// The loss, whose value is read as in training.
fn loss(logits: &Tensor, labels: &Tensor) -> candle_core::Result<Tensor> {
    let loss = ops::cross_entropy(logits, labels)?;
    loss.to_scalar::<f32>()?;
    Ok(loss)
}

/// The recipe's optimiser.
pub(crate) fn sgd(network: &Network) -> candle_core::Result<engine::Sgd> {
    let variables = network.variables().iter();
    engine::Sgd::new(
        variables.map(|(_, variable)| variable.clone()).collect(),
        ops::Sgd {
            learning_rate: 0.01,
            momentum: 0.9,
            weight_decay: 5e-4,
            ..ops::Sgd::default()
        },
    )
}

fn repeat(
    what: &Measurement,
    memory: &Memory,
    mut step: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Measured> {
    let mut clock = Clock::default();
    for done in 1.. {
        step()?;
        clock.step(done, memory);
        if clock.is_over(what.seconds) {
            break;
        }
    }
    Ok(clock.measured(what.batch_size))
}
