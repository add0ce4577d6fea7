//! Both networks against PyTorch in float64: logits, losses, all gradients, three steps of SGD.
//! The values were made by `make_golden.py` beside them.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use candle_core::{Device, Result, Tensor};
use models::{Architecture, Network};
use ops::{Convolution, Sgd, Tape, cross_entropy, cross_entropy_gradient, sgd_step};
use serde::Deserialize;
use std::collections::BTreeMap;

#[path = "../../ops/tests/reference/mod.rs"]
mod reference;
use reference::{Statistics, assert_agrees, uniform};

#[derive(Deserialize)]
struct Case {
    input: Input,
    labels: Vec<u32>,
    params: BTreeMap<String, Parameter>,
    sgd: Factors,
    steps: Vec<Step>,
    params_after: BTreeMap<String, Statistics>,
}

#[derive(Deserialize)]
struct Input {
    seed: u64,
    bound: f32,
}

#[derive(Deserialize)]
struct Parameter {
    shape: Vec<usize>,
    seed: u64,
    bound_f32: f64,
}

#[derive(Deserialize)]
struct Factors {
    lr: f64,
    momentum: f64,
    weight_decay: f64,
}

#[derive(Deserialize)]
struct Step {
    loss: f64,
    logits: Vec<Vec<f64>>,
    grads: Option<BTreeMap<String, Statistics>>,
}

fn check(architecture: Architecture, convolution: Convolution, golden: &str) -> Result<()> {
    let case: Case = serde_json::from_str(golden).unwrap();
    let device = Device::Cpu;
    // A rounding error can make another value the maximum of a pooling window, and single gradients of so
    // small a batch then differ by more than the rounding errors themselves.
    let tolerance = match convolution {
        Convolution::Direct => 1e-4,
        Convolution::Fast => 1e-3,
    };
    let parameters = case
        .params
        .into_iter()
        .map(|(name, parameter)| {
            let count = parameter.shape.iter().product();
            let values = uniform(parameter.seed, count, parameter.bound_f32 as f32);
            Ok((name, Tensor::from_vec(values, parameter.shape, &device)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let network = Network::new(architecture, parameters).unwrap();
    let batch = case.labels.len();
    let images = uniform(case.input.seed, batch * 3 * 32 * 32, case.input.bound);
    let images = Tensor::from_vec(images, (batch, 3, 32, 32), &device)?;
    let labels = Tensor::from_vec(case.labels, batch, &device)?;
    let sgd = Sgd {
        learning_rate: case.sgd.lr,
        momentum: case.sgd.momentum,
        weight_decay: case.sgd.weight_decay,
    };
    let velocities = network
        .variables()
        .iter()
        .map(|(_, variable)| variable.zeros_like())
        .collect::<Result<Vec<_>>>()?;

    for step in case.steps {
        let mut tape = Tape::recording(convolution);
        let logits = network.forward(&mut tape, &images, None)?;
        let evaluated = network.forward(&mut Tape::forgetting(convolution), &images, None)?;
        assert_eq!(logits.to_vec2::<f32>()?, evaluated.to_vec2::<f32>()?);
        for (row, expected) in logits.to_vec2::<f32>()?.iter().zip(&step.logits) {
            for (logit, expected) in row.iter().zip(expected) {
                let error = (f64::from(*logit) - expected).abs();
                assert!(
                    error <= 10.0 * tolerance * expected.abs().max(0.1),
                    "{logit}, not {expected}"
                );
            }
        }
        let loss = cross_entropy(&logits, &labels)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        assert!(
            (value - step.loss).abs() <= tolerance * step.loss,
            "{value}, not {}",
            step.loss
        );
        let gradients = tape.backward(cross_entropy_gradient(&logits, &labels)?)?;
        for ((name, variable), velocity) in network.variables().iter().zip(&velocities) {
            let gradient = gradients.get(variable).unwrap();
            if let Some(expected) = &step.grads {
                assert_agrees(
                    &format!("gradient of {name}"),
                    gradient,
                    &expected[name],
                    tolerance,
                )?;
            }
            sgd_step(sgd, variable, velocity, gradient)?;
        }
    }
    for (name, variable) in network.variables() {
        assert_agrees(name, variable, &case.params_after[name], tolerance)?;
    }
    Ok(())
}

#[test]
fn alexnet_agrees_with_pytorch() -> Result<()> {
    let golden = include_str!("golden/alexnet.json");
    check(Architecture::AlexNet, Convolution::Direct, golden)?;
    check(Architecture::AlexNet, Convolution::Fast, golden)
}

#[test]
fn small_alexnet_agrees_with_pytorch() -> Result<()> {
    let golden = include_str!("golden/small_alexnet.json");
    check(Architecture::SmallAlexNet, Convolution::Direct, golden)?;
    check(Architecture::SmallAlexNet, Convolution::Fast, golden)
}
