//! One step of training.

use crate::dropout_schedule::DropoutSchedule;
use crate::ema::Ema;
use crate::error::{Error, LOSS};
use crate::evaluation::Evaluator;
use crate::gpu_memory::{self, arbitrary_values, is_out_of_memory};
use crate::optimiser::Sgd;
use crate::process_group::{ProcessGroup, StepSums, all_reduce, any};
use crate::progress::Position;
#[cfg(feature = "cuda")]
use crate::step_graph::{StepGraph, StepKind};
use crate::training_setup::TrainingSetup;
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use candle_nn::Optimizer;
use datasets::Batch;
use models::{DropoutMasks, Network};
#[cfg(feature = "cuda")]
use ops::cuda::StepValues;
use ops::{GradientNorm, MetricsAccumulator, Shards, Tape, change_in_place};
#[cfg(feature = "cuda")]
use std::mem;
use std::panic::resume_unwind;
use std::sync::mpsc::channel;
use std::thread;
use tracing::debug_span;

/// Steps of an interval, after which a GPU is waited for, to read its metrics.
const INTERVAL: usize = 32;

/// A network and everything else that a training step changes.
pub(crate) struct TrainingStep {
    pub(crate) network: Network,
    pub(crate) optimiser: Sgd,
    pub(crate) ema: Option<Ema>,
    pub(crate) setup: TrainingSetup,
    pub(crate) steps_per_epoch: usize,
    /// Whether the run goes on from a checkpoint.
    pub(crate) is_resumed: bool,
    /// The norm of the gradients of the last step of an interval, if it is measured.
    pub(crate) gradient_norm: Option<GradientNorm>,
    /// Metrics of steps that are not added to a position yet.
    metrics: MetricsAccumulator,
    #[cfg(feature = "cuda")]
    graph: StepGraph,
    /// Bytes of a GPU's memory that were free before the first step.
    free: usize,
    /// With several processes: whether this one was asked to stop.
    wants_stop: bool,
    /// With several processes: whether any of them was, before the last step.
    any_wants_stop: bool,
}

impl TrainingStep {
    /// Steps of `optimiser`, which updates the parameters of `network`.
    ///
    /// # Errors
    /// When the device has too little memory.
    pub(crate) fn new(
        setup: TrainingSetup,
        steps_per_epoch: usize,
        network: Network,
        optimiser: Sgd,
        ema: Option<Ema>,
    ) -> candle_core::Result<Self> {
        let classes = network.architecture().num_classes;
        Ok(Self {
            network,
            optimiser,
            ema,
            gradient_norm: None,
            metrics: MetricsAccumulator::new(classes, &setup.device)?,
            #[cfg(feature = "cuda")]
            graph: StepGraph::default(),
            free: gpu_memory::free(&setup.device)?,
            wants_stop: false,
            any_wants_stop: false,
            setup,
            steps_per_epoch,
            is_resumed: false,
        })
    }

    /// The number of a step in the run, the first being 0.
    pub(crate) fn number(&self, position: &Position) -> u64 {
        u64::from(position.epoch) * self.steps_per_epoch as u64 + position.step as u64
    }

    /// Whether to stop before the next step. With several processes: whether `stop` was true in any of them before the last
    /// step; at the first step of an epoch, or after a resume, they ask one another.
    ///
    /// # Errors
    /// When another process cannot be reached.
    pub(crate) fn must_stop(
        &mut self,
        stop: &dyn Fn() -> bool,
        is_first: bool,
    ) -> Result<bool, Error> {
        self.wants_stop = stop();
        match &self.setup.process_group {
            Some(group) if is_first => any(&**group, self.wants_stop).map_err(Error::Exchange),
            Some(_) => Ok(self.any_wants_stop),
            None => Ok(self.wants_stop),
        }
    }

    /// The shards of the batch of step `step` of an epoch that this process computes: the images of `batch`.
    fn shards(&self, batch: &Batch, step: usize) -> Shards {
        let images = match self.setup.process_group {
            // Of the whole batch.
            Some(_) => {
                let batch_size = self.setup.settings.batch_size.get();
                let rest = self.setup.train.len().saturating_sub(step * batch_size);
                batch_size.min(rest)
            }
            None => batch.labels.elem_count(),
        };
        self.setup.own_shards(images)
    }

    /// Trains on a batch, of which a process has its part, and advances `position` by a step. On a CPU its metrics are added
    /// to `position`; on a GPU, [`TrainingStep::collect`] adds them.
    ///
    /// # Errors
    /// When the loss is not finite, which is known at once on a CPU alone, or a tensor operation fails.
    pub(crate) fn step(
        &mut self,
        batch: &Batch,
        position: &mut Position,
        lr: f64,
    ) -> Result<(), Error> {
        let settings = &self.setup.settings;
        let probability = DropoutSchedule::from(settings).probability(position.epoch) as f32;
        let dropout = (probability > 0.0).then(|| DropoutMasks {
            probability,
            seed: settings.seed,
            step: self.number(position) as u32,
        });
        self.optimiser.set_learning_rate(lr);
        let step = position.step as u64;
        #[cfg(feature = "cuda")]
        if self.setup.device.is_cuda()
            && self.setup.settings.cuda_graphs
            && self.replay(batch, dropout, position)?
        {
            position.step += 1;
            return Ok(());
        }
        let shards = self.shards(batch, position.step);
        let (tape, gradient) = match shards.images().is_empty() {
            true => self.forward_without_images()?,
            false => self.forward(&batch.images, &batch.labels, dropout, shards, step)?,
        };
        if let Some(group) = self.setup.process_group.clone() {
            self.exchange_metrics(&*group, shards.batch(), position)?;
        } else if self.setup.device.is_cpu() {
            // Nothing is waited for here, and a loss that is not finite never reaches the weights.
            self.collect(position)?;
        }
        let ends_interval = self.ends_interval(position.step + 1);
        self.update(tape, gradient, shards.batch(), ends_interval)?;
        position.step += 1;
        Ok(())
    }

    /// The forward pass and the gradient of the loss. `step` of the epoch is named where the loss is not finite.
    fn forward(
        &mut self,
        images: &Tensor,
        labels: &Tensor,
        dropout: Option<DropoutMasks>,
        shards: Shards,
        step: u64,
    ) -> candle_core::Result<(Tape, Tensor)> {
        let shards = (self.setup.settings.gradient_shards.get() > 1).then_some(shards);
        let tape = Tape::recording(self.setup.arithmetic);
        let mut tape = match shards {
            Some(shards) => tape.sharded(shards),
            None => tape,
        };
        let logits = self.network.forward(&mut tape, images, dropout)?;
        let smoothing = self.setup.settings.label_smoothing.get();
        let metrics = &mut self.metrics;
        let gradient = metrics.add_with_gradient(&logits, labels, smoothing, shards, step)?;
        Ok((tape, gradient))
    }

    /// The forward pass of a process without images of the batch: with an image whose gradients do not count, so that the
    /// process has gradients in the order of the others.
    fn forward_without_images(&self) -> candle_core::Result<(Tape, Tensor)> {
        let mut tape = Tape::recording(self.setup.arithmetic);
        let image = Tensor::zeros((1, 32, 32, 3), DType::F32, &self.setup.device)?;
        let logits = self.network.forward(&mut tape, &image, None)?;
        Ok((tape, logits.zeros_like()?))
    }

    /// Adds the metrics of the last batch, of `images` images, over all processes to `position`.
    fn exchange_metrics(
        &mut self,
        group: &dyn ProcessGroup,
        images: usize,
        position: &mut Position,
    ) -> Result<(), Error> {
        let own = self.metrics.take()?;
        // Known at once where a process has all shards.
        if own.diverged.is_some() {
            return Err(not_finite(position, position.step));
        }
        let sums = StepSums {
            loss: own.loss_sum,
            correct: own.correct(),
            stops: self.wants_stop,
        };
        let sums = sums
            .over(group, self.setup.shards(images))
            .map_err(Error::Exchange)?;
        self.any_wants_stop = sums.stops;
        // Rounded as the loss of a batch in one process is.
        let mean = f64::from((sums.loss / images as f64) as f32);
        if !mean.is_finite() {
            return Err(not_finite(position, position.step));
        }
        position.loss_sum += mean * images as f64;
        position.images += images as u64;
        position.correct += sums.correct;
        Ok(())
    }

    /// The backward pass of a batch, which has `images` images over all processes, and the update. `may_end_interval` says
    /// whether an interval ends with this step or, if it is captured, may end with a replay.
    fn update(
        &mut self,
        tape: Tape,
        gradient: Tensor,
        images: usize,
        may_end_interval: bool,
    ) -> candle_core::Result<()> {
        let gradients = match &self.setup.process_group {
            Some(group) => backward_over_all(tape, gradient, &**group, self.setup.shards(images))?,
            None => tape.backward(gradient)?,
        };
        if let Some(norm) = &mut self.gradient_norm
            && may_end_interval
        {
            let variables = self.network.variables().iter();
            let gradients: Vec<_> = variables
                .filter_map(|(_, variable)| gradients.get(variable))
                .collect();
            norm.measure(&gradients)?;
        }
        debug_span!("update").in_scope(|| {
            self.optimiser.step(&gradients)?;
            self.ema
                .as_mut()
                .map_or(Ok(()), |ema| ema.update(&self.network))
        })
    }

    /// Gives up a CUDA graph that was captured in the last step, if an evaluation of the network does not fit beside it.
    ///
    /// # Errors
    /// When the GPU fails.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables, clippy::unused_self))]
    pub(crate) fn make_room(&mut self, evaluator: &Evaluator) -> candle_core::Result<()> {
        #[cfg(feature = "cuda")]
        if self.graph.is_newly_captured() && !evaluator.fits(&self.network)? {
            tracing::warn!(
                "an evaluation does not fit beside the CUDA graph of a step, so none is used"
            );
            self.graph.release()?;
        }
        Ok(())
    }

    /// Replays the step as a CUDA graph; false if it is to be computed.
    #[cfg(feature = "cuda")]
    fn replay(
        &mut self,
        batch: &Batch,
        dropout: Option<DropoutMasks>,
        position: &Position,
    ) -> candle_core::Result<bool> {
        let kind = StepKind {
            batch_size: batch.labels.elem_count(),
            dropout_probability: dropout.map_or(0.0, |dropout| dropout.probability),
        };
        let values = StepValues {
            learning_rate: self.optimiser.learning_rate() as f32,
            step: self.number(position) as u32,
            step_in_epoch: position.step as u64,
        };
        let mut graph = mem::take(&mut self.graph);
        let replayed = graph.replay(kind, batch, values, |images, labels| {
            let count = labels.elem_count();
            let (shards, step) = (Shards::one(count), values.step_in_epoch);
            let (tape, gradient) = self.forward(images, labels, dropout, shards, step)?;
            self.update(tape, gradient, count, true)
        });
        self.graph = graph;
        replayed
    }

    /// Whether the metrics are collected after the step before `position`: on a CPU after every step, on a GPU, which
    /// this waits for, after some of them and at the end of an epoch.
    pub(crate) fn is_collected(&self, position: &Position) -> bool {
        self.setup.device.is_cpu() || self.ends_interval(position.step)
    }

    /// Whether an interval ends with step `step` of an epoch.
    pub(crate) fn ends_interval(&self, step: usize) -> bool {
        step.is_multiple_of(INTERVAL) || step == self.steps_per_epoch
    }

    /// Adds the metrics of the steps since the last call to `position`, waiting for a GPU.
    ///
    /// # Errors
    /// When the loss of one of them is not finite.
    pub(crate) fn collect(&mut self, position: &mut Position) -> Result<(), Error> {
        let metrics = self.metrics.take()?;
        if let Some(step) = metrics.diverged {
            return Err(not_finite(position, step as usize));
        }
        position.add(&metrics);
        Ok(())
    }

    /// Computes a step of `images` images without its update, which shows whether it fits into memory, and lets the libraries
    /// choose how to compute it.
    pub(crate) fn dry_run(&self, images: usize) -> candle_core::Result<()> {
        let arithmetic = self.setup.arithmetic;
        let (dtype, device) = (arithmetic.precision.activations(), &self.setup.device);
        let images = arbitrary_values((images, 32, 32, 3), dtype, device)?;
        let dropout = (self.setup.settings.dropout.get() > 0.0).then_some(DropoutMasks {
            probability: 0.5,
            seed: 0,
            step: 0,
        });
        let mut tape = Tape::recording(arithmetic);
        let logits = self.network.forward(&mut tape, &images, dropout)?;
        let gradient = arbitrary_values(logits.shape(), logits.dtype(), device)?;
        tape.backward(gradient).map(drop)
    }

    /// The error of a step. If a GPU has too little memory, it names a batch size that fits.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let Error::Tensor(cause) = &error else {
            return error;
        };
        if !is_out_of_memory(cause) {
            return error;
        }
        let precision = self.setup.arithmetic.precision;
        let width = precision.activations().size_in_bytes();
        let architecture = self.network.architecture();
        // The gradients of the parameters, and everything that is saved for the backward pass.
        let fixed = 4 * architecture.parameter_count();
        let frozen = self.setup.settings.freeze_features;
        let image = width * architecture.training_elements(frozen);
        let batch_size = self.setup.settings.batch_size.get();
        let mut fits = (self.free.saturating_sub(fixed) / image).min(batch_size - 1);
        let device = &self.setup.device;
        // What else a step needs, the workspaces of convolutions above all, is tried, not estimated.
        while fits > 0 && !matches!(gpu_memory::fits(device, || self.dry_run(fits)), Ok(true)) {
            fits = fits * 3 / 4;
        }
        Error::OutOfMemory {
            batch_size,
            fits,
            is_resumed: self.is_resumed,
        }
    }
}

/// The error of step `step` of an epoch, whose loss is not finite.
fn not_finite(position: &Position, step: usize) -> Error {
    match (position.epoch, step) {
        (0, 0) => Error::NotFiniteAtStart,
        (epoch, step) => Error::diverged(LOSS, epoch, step),
    }
}

/// The gradients of a batch over all processes. They are exchanged by a thread as they become ready, while this one goes on
/// with the backward pass.
fn backward_over_all(
    tape: Tape,
    gradient: Tensor,
    group: &dyn ProcessGroup,
    shards: Shards,
) -> candle_core::Result<GradStore> {
    thread::scope(|scope| {
        let (sender, receiver) = channel::<Tensor>();
        let exchange = scope.spawn(move || {
            receiver.iter().try_for_each(|gradient| {
                let _span = debug_span!("exchange").entered();
                change_in_place(&gradient, |values| {
                    all_reduce(group, shards, values).map_err(candle_core::Error::wrap)
                })
            })
        });
        let gradients = tape.backward_with(gradient, |gradient| {
            // The thread has ended where an exchange failed, whose error is returned below.
            let _ = sender.send(gradient.clone());
            Ok(())
        });
        drop(sender);
        let exchanged = debug_span!("wait for gradients").in_scope(|| exchange.join());
        exchanged.unwrap_or_else(|panic| resume_unwind(panic))?;
        gradients
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::named_tensors::{NamedTensors, copied_weights};
    use candle_core::Device;
    use datasets::Dataset;
    use models::{Architecture, initial_parameters};
    use ops::ConvAlgorithm;
    use run::settings::{Source, WeightInit};
    use run::{EvaluationSplit, Settings};

    fn training_step(ema: Option<Ema>) -> TrainingStep {
        let architecture: Architecture = "lenet".parse().unwrap();
        let device = Device::Cpu;
        let parameters = initial_parameters(architecture, WeightInit::Kaiming, 0, &device).unwrap();
        let network = Network::new(architecture, parameters).unwrap();
        let variables = network.variables().iter();
        let variables = variables.map(|(_, variable)| variable.clone()).collect();
        let set = Dataset::synthetic(10, 1).unwrap();
        let changes = "model = \"lenet\"\npatience = 1\ndropout = 0.0\nbatch_size = 2";
        let layers = [(Source::Defaults, toml::from_str(changes).unwrap())];
        let setup = TrainingSetup {
            settings: Settings::resolve(&layers).unwrap(),
            train: set.training(),
            test: set.test(),
            split: EvaluationSplit::Test,
            device,
            arithmetic: ConvAlgorithm::Direct.into(),
            evaluation_batch: None,
            cudnn_engines: Default::default(),
            process_group: None,
        };
        let optimiser = Sgd::new(variables, ops::Sgd::default()).unwrap();
        TrainingStep::new(setup, 5, network, optimiser, ema).unwrap()
    }

    fn batch(value: f32) -> Batch {
        let images = Tensor::full(value, (2, 32, 32, 3), &Device::Cpu).unwrap();
        let labels = Tensor::new(&[3_u32, 7], &Device::Cpu).unwrap();
        Batch { images, labels }
    }

    /// The norm of what all weights of the network changed by.
    fn norm_of_changes(step: &TrainingStep, before: &NamedTensors) -> f64 {
        let variables = step.network.variables().iter().zip(before);
        let changes = variables.map(|((_, after), (_, before))| after.as_tensor() - before);
        let changes: Vec<_> = changes.map(Result::unwrap).collect();
        ops::norm(&changes.iter().collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn steps_advance_the_position_and_learn() {
        let mut step = training_step(Some(Ema::new(0.5, None)));
        let mut position = Position::start_of(2);
        assert_eq!(step.number(&position), 10);
        let mut losses = Vec::new();
        for _ in 0..3 {
            let before = position.loss_sum;
            step.step(&batch(0.5), &mut position, 0.01).unwrap();
            losses.push(position.loss_sum - before);
        }
        assert_eq!((position.step, position.images), (3, 6));
        assert_eq!(step.number(&position), 13);
        assert!(losses[2] < losses[0], "{losses:?}");
        assert!(step.is_collected(&position));
        assert!(step.ema.as_ref().unwrap().named(&step.network).is_some());
    }

    #[test]
    fn the_norm_of_the_gradients_is_measured_at_the_end_of_an_interval() {
        let mut step = training_step(None);
        step.gradient_norm = Some(GradientNorm::new(&Device::Cpu).unwrap());
        let measured = |step: &TrainingStep| step.gradient_norm.as_ref().unwrap().get().unwrap();
        let mut position = Position {
            step: 3,
            ..Position::start_of(0)
        };
        step.step(&batch(0.5), &mut position, 0.0).unwrap();
        assert_eq!(measured(&step), None);
        let before = copied_weights(&step.network).unwrap();
        step.step(&batch(0.5), &mut position, 0.5).unwrap();
        // Without momentum and weight decay, half the gradients is what the weights change by.
        let changes = norm_of_changes(&step, &before);
        let norm = measured(&step).unwrap();
        assert!(
            (norm - 2.0 * changes).abs() < 1e-4 * norm,
            "{norm}, {changes}"
        );
    }

    #[test]
    fn the_norm_that_is_clipped_is_that_of_trained_parameters() {
        let mut step = training_step(None);
        step.network = step.network.with_frozen_features();
        step.optimiser.clip_grad_norm = 1e-3;
        let before = copied_weights(&step.network).unwrap();
        let mut position = Position::start_of(0);
        step.step(&batch(0.5), &mut position, 1.0).unwrap();
        let changes = norm_of_changes(&step, &before);
        assert!((changes - 1e-3).abs() < 1e-5, "{changes}");
    }

    #[test]
    fn a_loss_that_is_not_finite_changes_no_weight() {
        let mut step = training_step(None);
        let weights = |step: &TrainingStep| {
            let (_, first) = &step.network.variables()[0];
            first.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let before = weights(&step);
        for epoch in [0, 1] {
            let mut position = Position::start_of(epoch);
            let result = step.step(&batch(f32::INFINITY), &mut position, 0.1);
            let is_expected = match result {
                Err(Error::NotFiniteAtStart) => epoch == 0,
                Err(Error::Diverged { what, epoch, steps }) => {
                    (what, epoch, steps) == ("loss", 2, 0)
                }
                _ => false,
            };
            assert!(is_expected, "{result:?}");
            assert_eq!(position, Position::start_of(epoch));
        }
        assert_eq!(weights(&step), before);
    }
}
