//! Both networks against PyTorch in float64: logits, losses, all gradients, three steps of SGD.
//! The values were made by `make_golden.py` beside them.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use candle_core::{DType, Device, Result, Tensor};
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

/// How near a way of computing comes to the reference values, as parts of them.
struct Tolerances {
    /// Of logits and loss before the first step.
    values: f64,
    gradients: f64,
    /// Of all that comes after the first step.
    afterwards: f64,
}

fn check(
    architecture: Architecture,
    dtype: DType,
    convolution: Convolution,
    tolerances: &Tolerances,
    golden: &str,
) -> Result<()> {
    let case: Case = serde_json::from_str(golden).unwrap();
    let device = Device::Cpu;
    let parameters = case
        .params
        .into_iter()
        .map(|(name, parameter)| {
            let count = parameter.shape.iter().product();
            let values = uniform(parameter.seed, count, parameter.bound_f32 as f32);
            let values = Tensor::from_vec(values, parameter.shape, &device)?;
            Ok((name, values.to_dtype(dtype)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let network = Network::new(architecture, parameters).unwrap();
    let batch = case.labels.len();
    let images = uniform(case.input.seed, batch * 3 * 32 * 32, case.input.bound);
    let images = Tensor::from_vec(images, (batch, 3, 32, 32), &device)?.to_dtype(dtype)?;
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

    for (done, step) in case.steps.into_iter().enumerate() {
        let tolerance = match done {
            0 => tolerances.values,
            _ => tolerances.afterwards,
        };
        let mut tape = Tape::recording(convolution);
        let logits = network.forward(&mut tape, &images, None)?;
        let evaluated = network.forward(&mut Tape::forgetting(convolution), &images, None)?;
        let in_doubles = |logits: &Tensor| logits.to_dtype(DType::F64)?.to_vec2::<f64>();
        assert_eq!(in_doubles(&logits)?, in_doubles(&evaluated)?);
        for (row, expected) in in_doubles(&logits)?.iter().zip(&step.logits) {
            for (logit, expected) in row.iter().zip(expected) {
                let error = (logit - expected).abs();
                assert!(
                    error <= 10.0 * tolerance * expected.abs().max(0.1),
                    "{logit}, not {expected}"
                );
            }
        }
        let loss = cross_entropy(&logits, &labels)?;
        let value = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
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
                    tolerances.gradients,
                )?;
            }
            sgd_step(sgd, variable, velocity, gradient)?;
        }
    }
    for (name, variable) in network.variables() {
        assert_agrees(
            name,
            variable,
            &case.params_after[name],
            tolerances.afterwards,
        )?;
    }
    Ok(())
}

fn check_all(architecture: Architecture, golden: &str) -> Result<()> {
    let exact = Tolerances {
        values: 1e-9,
        gradients: 1e-9,
        afterwards: 1e-9,
    };
    for convolution in Convolution::ALL {
        check(architecture, DType::F64, convolution, &exact, golden)?;
    }
    let direct = Tolerances {
        values: 1e-4,
        gradients: 1e-4,
        afterwards: 1e-4,
    };
    check(
        architecture,
        DType::F32,
        Convolution::Direct,
        &direct,
        golden,
    )?;
    // Where two values of a pooling window are nearly equal, or one is nearly zero before ReLU, a rounding
    // error decides which way a gradient goes. In PyTorch in double precision, errors of 1e-5 added to
    // the results of the convolutions move gradients of this batch of eight by up to
    // 2 %, and all that follows goes on from there.
    let fast = Tolerances {
        values: 1e-4,
        gradients: 1e-2,
        afterwards: 1e-2,
    };
    check(architecture, DType::F32, Convolution::Fast, &fast, golden)
}

#[test]
fn alexnet_agrees_with_pytorch() -> Result<()> {
    check_all(Architecture::AlexNet, include_str!("golden/alexnet.json"))
}

#[test]
fn small_alexnet_agrees_with_pytorch() -> Result<()> {
    check_all(
        Architecture::SmallAlexNet,
        include_str!("golden/small_alexnet.json"),
    )
}
