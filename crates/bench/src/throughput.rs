//! Images a second of training or evaluation.

use crate::candle_graph;
use crate::candle_network;
use crate::machine::use_threads;
use candle_core::{Device, Tensor};
use candle_nn::Optimizer;
use clap::ValueEnum;
use datasets::Dataset;
use engine::{Checkpoints, Event, Inputs, SpanTimes, Training, TrainingSetup};
use models::{Architecture, Network, initial_parameters};
use ops::{ConvAlgorithm, Tape};
use run::settings::Source;
use run::settings::WeightInit;
use run::{EvaluationSplit, Overrides, Settings, cli};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::fs;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, Instant};

/// Training images; enough that an epoch is longer than most measurements.
const IMAGES: usize = 20_000;

/// Training or evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pass {
    /// Whole training steps: augmented batch in, forward, backward, update.
    Train,
    /// The forward pass.
    Eval,
}

impl Pass {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Eval => "eval",
        }
    }
}

/// Who computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    /// This program, as it trains by default.
    Winograd,
    /// This program with `--conv direct`.
    Direct,
    /// Our operations on a tape, for one batch again and again, without augmentation and dropout.
    Tape,
    /// The same in candle's graph.
    Graph,
    /// Candle's own convolutions and automatic differentiation, with our pooling.
    Candle,
}

impl Engine {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Winograd => "winograd",
            Self::Direct => "direct",
            Self::Tape => "tape",
            Self::Graph => "graph",
            Self::Candle => "candle",
        }
    }

    /// The algorithm of this program's convolutions; `None` for the others.
    pub(crate) fn algorithm(self) -> Option<ConvAlgorithm> {
        match self {
            Self::Winograd => Some(ConvAlgorithm::Winograd),
            Self::Direct => Some(ConvAlgorithm::Direct),
            Self::Tape | Self::Graph | Self::Candle => None,
        }
    }
}

/// What is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    model: Architecture,
    #[arg(long = "pass", value_enum)]
    which: Pass,
    #[arg(long, value_enum)]
    engine: Engine,
    #[arg(long)]
    batch_size: NonZeroUsize,
    #[arg(long)]
    threads: NonZeroUsize,
    #[arg(long)]
    seconds: f64,
}

/// What one measurement found. PyTorch's script prints the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) images_per_second: f64,
    pub(crate) steps: usize,
    /// The process's largest resident memory, where the system tells it.
    pub(crate) peak_bytes: Option<u64>,
    /// The share of the time in which the next batch was waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) waiting_share: Option<f64>,
    /// Of PyTorch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    use_threads(args.threads)?;
    let measured = match (args.which, args.engine.algorithm()) {
        (Pass::Train, Some(algorithm)) => training(args, algorithm)?,
        (Pass::Train, None) => one_batch_training(args)?,
        (Pass::Eval, _) => evaluation(args)?,
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
        class_names: set.class_names().map(str::to_owned),
    }
}

pub(crate) fn network(architecture: Architecture) -> anyhow::Result<Network> {
    let parameters = initial_parameters(architecture, WeightInit::Pytorch, 0, &Device::Cpu)?;
    Ok(Network::new(architecture, parameters)?)
}

/// The engine itself, as the trainer runs it, until the time is over.
fn training(args: &Args, algorithm: ConvAlgorithm) -> anyhow::Result<Measured> {
    let spans = SpanTimes::install()?;
    let images = IMAGES.next_multiple_of(args.batch_size.get());
    let set = Dataset::synthetic(images, 1)?;
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
        device: Device::Cpu,
        arithmetic: algorithm.into(),
    };
    let mut training = Training::new(setup, network(args.model)?)?;
    let clock = Cell::new(Clock::default());
    let limit = Duration::from_secs_f64(args.seconds);
    training.run(
        &Checkpoints::new(folder.path(), inputs),
        Duration::MAX,
        &|| clock.get().enough(limit),
        &mut |event| {
            match event {
                Event::Step { .. } => {
                    let mut now = clock.get();
                    now.step();
                    // The first step, on fresh memory, does not count.
                    if now.steps == 0 {
                        let _ = spans.take();
                    }
                    clock.set(now);
                }
                // What lies between epochs does not count either.
                Event::EpochStarted { .. } => clock.set(Clock {
                    last: clock.get().last.map(|_| Instant::now()),
                    ..clock.get()
                }),
                _ => (),
            }
            Ok(())
        },
    )?;
    let times = spans.take();
    let time = |name| {
        times
            .get(&(name, String::new()))
            .copied()
            .unwrap_or_default()
            .time
    };
    let (waiting, step) = (time("data").as_secs_f64(), time("step").as_secs_f64());
    Ok(Measured {
        waiting_share: Some(waiting / (waiting + step)),
        ..clock.get().measured(args.batch_size)
    })
}

/// Counts steps and their time.
#[derive(Clone, Copy, Default)]
struct Clock {
    /// The end of the last step, none before the first.
    last: Option<Instant>,
    steps: usize,
    time: Duration,
    peak_bytes: Option<u64>,
}

impl Clock {
    fn step(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last {
            self.steps += 1;
            self.time += now - last;
        }
        // Here, so that what comes after the last step is not in it.
        self.peak_bytes = peak_bytes();
        self.last = Some(Instant::now());
    }

    /// At least two steps are timed.
    fn enough(&self, limit: Duration) -> bool {
        self.steps >= 2 && self.time >= limit
    }

    fn measured(&self, batch_size: NonZeroUsize) -> Measured {
        Measured {
            images_per_second: (self.steps * batch_size.get()) as f64 / self.time.as_secs_f64(),
            steps: self.steps,
            peak_bytes: self.peak_bytes,
            waiting_share: None,
            version: None,
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
fn evaluation(args: &Args) -> anyhow::Result<Measured> {
    let network = network(args.model)?;
    let (images, labels) = batch(args.batch_size.get())?;
    let channels_first = images.permute((0, 3, 1, 2))?.contiguous()?;
    repeat(args, || {
        let on_tape = |algorithm| network.forward(&mut Tape::no_grad(algorithm), &images, None);
        let logits = match args.engine {
            Engine::Winograd | Engine::Tape => on_tape(ConvAlgorithm::Winograd)?,
            Engine::Direct => on_tape(ConvAlgorithm::Direct)?,
            Engine::Graph => candle_graph::forward(&network, &images)?,
            Engine::Candle => candle_network::forward(&network, &channels_first)?,
        };
        ops::cross_entropy(&logits, &labels)?.to_scalar::<f32>()?;
        Ok(())
    })
}

/// Steps on one batch, without augmentation and dropout.
fn one_batch_training(args: &Args) -> anyhow::Result<Measured> {
    let network = network(args.model)?;
    let (images, labels) = batch(args.batch_size.get())?;
    let channels_first = images.permute((0, 3, 1, 2))?.contiguous()?;
    let mut optimiser = sgd(&network)?;
    repeat(args, || {
        let gradients = match args.engine {
            Engine::Candle => loss(
                &candle_network::forward(&network, &channels_first)?,
                &labels,
            )?
            .backward()?,
            Engine::Graph => {
                loss(&candle_graph::forward(&network, &images)?, &labels)?.backward()?
            }
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

fn repeat(args: &Args, mut step: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Measured> {
    let limit = Duration::from_secs_f64(args.seconds);
    let mut clock = Clock::default();
    while !clock.enough(limit) {
        step()?;
        clock.step();
    }
    Ok(clock.measured(args.batch_size))
}

fn peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
