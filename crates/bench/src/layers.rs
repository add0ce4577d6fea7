//! Where the time of a step goes: each layer, forward and backward.

use crate::device::DeviceKind;
use crate::machine::use_threads;
use crate::throughput::{Measurement, batch, network, sgd};
use anyhow::Context;
use candle_nn::Optimizer;
use engine::SpanTimes;
use models::{Architecture, DropoutMasks, Operation};
use ops::{Arithmetic, ConvAlgorithm, Tape, cross_entropy_gradient};
use run::cli;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// One layer's pass.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerTime {
    pub(crate) layer: String,
    /// `forward`, `backward` or `update`.
    pub(crate) pass: String,
    /// Of a batch.
    pub(crate) milliseconds: f64,
    #[serde(flatten)]
    pub(crate) work: Work,
}

/// The work of a pass on a batch.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Work {
    /// Multiplications with additions of the sums that define the layer.
    pub(crate) multiply_adds: u64,
    /// Those that are left in the matrix products that compute it.
    pub(crate) performed: u64,
    /// What must be read and written at least: operands and results, once each.
    pub(crate) bytes: u64,
}

/// Each layer's passes on a batch. A GPU is waited for after each.
pub(crate) fn run(what: &Measurement) -> anyhow::Result<()> {
    use_threads(what.threads)?;
    let arithmetic = what.arithmetic();
    let arithmetic = arithmetic.context("only this program's own engines have layers")?;
    let device = &what.device.open()?;
    let size = what.batch_size.get();
    let network = &network(what.model, device)?;
    let spans = SpanTimes::install()?;
    let mut optimiser = sgd(network)?;
    let (images, labels) = batch(size)?;
    let images = ops::activations(&images.to_device(device)?, arithmetic.precision)?;
    let labels = labels.to_device(device)?;
    let limit = Duration::from_secs_f64(what.seconds);
    let (mut start, mut steps) = (Instant::now(), 0_u32);
    let mut update = Duration::ZERO;
    // The first step, on fresh memory, does not count.
    for number in 0.. {
        if number == 1 {
            let _ = spans.take();
            (start, update) = (Instant::now(), Duration::ZERO);
        }
        if steps >= 2 && start.elapsed() >= limit {
            break;
        }
        let mut tape = Tape::recording(arithmetic).synchronised();
        let masks = DropoutMasks {
            probability: 0.5,
            seed: 0,
            step: number,
        };
        let logits = network.forward(&mut tape, &images, Some(masks))?;
        let gradients = tape.backward(cross_entropy_gradient(&logits, &labels, 0.0)?)?;
        let before = Instant::now();
        optimiser.step(&gradients)?;
        device.synchronize()?;
        update += before.elapsed();
        steps = number;
    }
    let row = |layer: &str, pass: &str, time: Duration, work: Work| LayerTime {
        layer: layer.to_owned(),
        pass: pass.to_owned(),
        milliseconds: time.as_secs_f64() * 1e3 / f64::from(steps),
        work,
    };
    let times = spans.take();
    let mut rows = Vec::new();
    let counted = match what.device {
        DeviceKind::Cpu => arithmetic,
        // Which algorithms cuDNN takes is not known.
        DeviceKind::Cuda => Arithmetic {
            conv_algorithm: ConvAlgorithm::Direct,
            ..arithmetic
        },
    };
    for (name, [forward, backward]) in works(what.model, counted, size)? {
        for (pass, work) in [("forward", forward), ("backward", backward)] {
            if let Some(total) = times.get(&(pass, name.clone())) {
                rows.push(row(&name, pass, total.time, work));
            }
        }
    }
    // Parameter and momentum buffer are read and written, the gradient is read. On a CPU it is `f32`.
    let gradient = match what.device {
        DeviceKind::Cpu => 4,
        DeviceKind::Cuda => width(arithmetic),
    };
    let bytes = (4 * 4 + gradient) * what.model.parameter_count() as u64;
    let work = Work {
        bytes,
        ..Work::default()
    };
    rows.push(row("all parameters", "update", update, work));
    cli::line(&serde_json::to_string(&rows)?);
    Ok(())
}

/// Bytes of an activation or gradient.
fn width(arithmetic: Arithmetic) -> u64 {
    arithmetic.precision.activations().size_in_bytes() as u64
}

/// The work of each step of the forward pass, forward and backward.
fn works(
    architecture: Architecture,
    arithmetic: Arithmetic,
    batch: usize,
) -> anyhow::Result<Vec<(String, [Work; 2])>> {
    let algorithm = arithmetic.conv_algorithm;
    let width = width(arithmetic);
    let mut works = Vec::new();
    for step in architecture.steps() {
        let bytes = |shape: &[usize]| width * (batch * shape.iter().product::<usize>()) as u64;
        // What fused operations read and write between them is never in memory.
        let (x, y) = (bytes(step.input()), bytes(step.output()));
        let layer = step.layers[0].layer;
        let defined = (batch * layer.multiply_adds(&step.layers[0].output)) as u64;
        let performed = match (step.operation, step.input(), layer.parameter_shapes()) {
            (Operation::Conv2d(conv), &[channels, height, width], Some([weight, _])) => {
                let x = (batch, height, width, channels);
                conv.multiply_adds(algorithm, x, weight.as_slice())?
            }
            _ => defined,
        };
        let parameters = 4 * layer.parameter_count() as u64;
        // Other layers than convolutions and linear layers copy. The gradient of the images is not computed.
        let (products, copies) = match (parameters, works.is_empty()) {
            (0, _) => (1, 1),
            (_, true) => (1, 2),
            (_, false) => (2, 2),
        };
        let work = |products: u64, bytes| Work {
            multiply_adds: products * defined,
            performed: products * performed,
            bytes,
        };
        let forward = work(1, x + y + parameters);
        let backward = work(products, products * (x + parameters) + copies * y);
        works.push((step.name().to_owned(), [forward, backward]));
    }
    Ok(works)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AlexNet and SmallAlexNet take 1,182 and 416 million multiply-adds an image.
    #[test]
    fn multiply_adds_match_the_networks() {
        for (name, millions) in [("alexnet", 1182), ("small-alexnet", 416)] {
            let works = works(name.parse().unwrap(), ConvAlgorithm::Winograd.into(), 1).unwrap();
            let sum = |work: fn(&Work) -> u64, pass: usize| -> u64 {
                works.iter().map(|(_, passes)| work(&passes[pass])).sum()
            };
            let found = sum(|work| work.multiply_adds, 0) as f64 / 1e6;
            assert_eq!(found.round() as u64, millions);
            assert!(sum(|work| work.performed, 0) < sum(|work| work.multiply_adds, 0) / 2);
            assert!(sum(|work| work.multiply_adds, 1) < 2 * sum(|work| work.multiply_adds, 0));
        }
    }
}
