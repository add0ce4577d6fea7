//! Images per second in training or evaluation.

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

/// The name of a value on the command line.
pub(crate) fn name(value: impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    /// This program, as it trains by default.
    Winograd,
    /// This program with `--conv direct`.
    Direct,
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
    pub(crate) fn arithmetic(self) -> Option<Arithmetic> {
        match self {
            Self::Winograd => Some(ConvAlgorithm::Winograd.into()),
            Self::Direct => Some(ConvAlgorithm::Direct.into()),
            Self::Bf16 => Some(Arithmetic {
                conv_algorithm: ConvAlgorithm::Direct,
                precision: ops::Precision::Bf16,
            }),
            Self::Tape | Self::Graph | Self::Candle => None,
        }
    }

    /// The precision of products.
    pub(crate) fn precision(self) -> Precision {
        match self {
            Self::Bf16 => Precision::Bf16,
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
    #[arg(long)]
    pub(crate) threads: NonZeroUsize,
    #[arg(long)]
    pub(crate) seconds: f64,
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
    /// The process's largest resident memory, where the system reports it.
    pub(crate) peak_bytes: Option<u64>,
    /// The fraction of the time in which the next batch was waited for.
    #[serde(default)]
    pub(crate) waiting_share: Option<f64>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    use_threads(args.what.threads)?;
    let measured = match (args.pass, args.what.engine.arithmetic()) {
        (Pass::Train, Some(arithmetic)) => training(&args.what, arithmetic)?,
        (Pass::Train, None) => one_batch_training(&args.what)?,
        (Pass::Eval, _) => evaluation(&args.what)?,
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
fn training(what: &Measurement, arithmetic: Arithmetic) -> anyhow::Result<Measured> {
    let spans = SpanTimes::install()?;
    let images = IMAGES.next_multiple_of(what.batch_size.get());
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
        device: Device::Cpu,
        arithmetic,
        evaluation_batch: None,
    };
    let mut training = Training::new(setup, network(what.model)?)?;
    let clock = Cell::new(Clock::default());
    let stop = || clock.get().is_over(what.seconds);
    training.run(&checkpoints, Duration::MAX, &stop, &mut |event| {
        let mut now = clock.get();
        match event {
            Event::Step { .. } => {
                now.step();
                // The first step, on fresh memory, does not count.
                if now.steps == 0 {
                    let _ = spans.take();
                }
            }
            // The time between epochs does not count either.
            Event::EpochStarted { .. } => now.last = now.last.map(|_| Instant::now()),
            _ => (),
        }
        clock.set(now);
        Ok(())
    })?;
    let times = spans.take();
    let [waiting, step] = ["data", "step"].map(|name| {
        let total = times.get(&(name, String::new()));
        total.map_or(0.0, |total| total.time.as_secs_f64())
    });
    Ok(Measured {
        waiting_share: Some(waiting / (waiting + step)),
        ..clock.get().measured(what.batch_size)
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

    /// Whether at least two steps have taken this long.
    fn is_over(&self, seconds: f64) -> bool {
        self.steps >= 2 && self.time.as_secs_f64() >= seconds
    }

    fn measured(&self, batch_size: NonZeroUsize) -> Measured {
        Measured {
            images_per_second: (self.steps * batch_size.get()) as f64 / self.time.as_secs_f64(),
            steps: self.steps,
            peak_bytes: self.peak_bytes,
            waiting_share: None,
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
fn evaluation(what: &Measurement) -> anyhow::Result<Measured> {
    let network = network(what.model)?;
    let (images, labels) = batch(what.batch_size.get())?;
    let channels_first = images.permute((0, 3, 1, 2))?.contiguous()?;
    let arithmetic = what.engine.arithmetic().unwrap_or_default();
    let images = ops::activations(&images, arithmetic.precision)?;
    repeat(what, || {
        let logits = match what.engine {
            Engine::Winograd | Engine::Direct | Engine::Bf16 | Engine::Tape => {
                network.forward(&mut Tape::no_grad(arithmetic), &images, None)?
            }
            Engine::Graph => candle_graph::forward(&network, &images)?,
            Engine::Candle => candle_network::forward(&network, &channels_first)?,
        };
        loss(&logits, &labels)?;
        Ok(())
    })
}

/// Steps on one batch, without augmentation and dropout.
fn one_batch_training(what: &Measurement) -> anyhow::Result<Measured> {
    let network = network(what.model)?;
    let (images, labels) = batch(what.batch_size.get())?;
    let channels_first = images.permute((0, 3, 1, 2))?.contiguous()?;
    let mut optimiser = sgd(&network)?;
    repeat(what, || {
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
    mut step: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Measured> {
    let mut clock = Clock::default();
    while !clock.is_over(what.seconds) {
        step()?;
        clock.step();
    }
    Ok(clock.measured(what.batch_size))
}

fn peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
