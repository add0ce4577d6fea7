//! Both networks against PyTorch in float64: logits, losses, all gradients, three steps of SGD.
//! The values were made by `make_golden.py` beside them.

use candle_core::{DType, Device, Result, Tensor};
use models::{Architecture, Network};
use ops::{Sgd, cross_entropy, sgd_step};
use serde::Deserialize;
use std::collections::BTreeMap;

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

#[derive(Deserialize)]
struct Statistics {
    shape: Vec<usize>,
    l2: f64,
    first8: Vec<f64>,
}

/// `splitmix64` and `uniform` of `make_golden.py`.
fn uniform(seed: u64, count: usize, bound: f32) -> Vec<f32> {
    (1..=count as u64)
        .map(|i| {
            let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(i));
            let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            let u = ((z ^ (z >> 31)) >> 40) as f64 / 2_f64.powi(24);
            (2.0 * u - 1.0) as f32 * bound
        })
        .collect()
}

/// Norms agree to 1e-4 of themselves, single values to 1e-3 of themselves, or of the values' root
/// mean square where they are smaller than that.
fn assert_agrees(what: &str, tensor: &Tensor, expected: &Statistics) -> Result<()> {
    assert_eq!(tensor.dims(), expected.shape, "{what}");
    let values = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let l2 = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    assert!(
        (l2 - expected.l2).abs() <= 1e-4 * expected.l2,
        "{what}: norm {l2}, not {}",
        expected.l2
    );
    let typical = expected.l2 / (values.len() as f64).sqrt();
    for (place, (value, expected)) in values.iter().zip(&expected.first8).enumerate() {
        assert!(
            (value - expected).abs() <= 1e-3 * expected.abs().max(typical),
            "{what}[{place}]: {value}, not {expected}"
        );
    }
    Ok(())
}

fn check(architecture: Architecture, golden: &str) -> Result<()> {
    let case: Case = serde_json::from_str(golden).unwrap();
    let device = Device::Cpu;
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
        let logits = network.forward(&images, None)?;
        let evaluated = network.evaluate(&images)?;
        assert_eq!(logits.to_vec2::<f32>()?, evaluated.to_vec2::<f32>()?);
        for (row, expected) in logits.to_vec2::<f32>()?.iter().zip(&step.logits) {
            for (logit, expected) in row.iter().zip(expected) {
                let error = (f64::from(*logit) - expected).abs();
                assert!(error <= 1e-3 * expected.abs().max(0.1), "{logit}, not {expected}");
            }
        }
        let loss = cross_entropy(&logits, &labels)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        assert!((value - step.loss).abs() <= 1e-4 * step.loss, "{value}, not {}", step.loss);
        let gradients = loss.backward()?;
        for ((name, variable), velocity) in network.variables().iter().zip(&velocities) {
            let gradient = gradients.get(variable).unwrap();
            if let Some(expected) = &step.grads {
                assert_agrees(&format!("gradient of {name}"), gradient, &expected[name])?;
            }
            sgd_step(sgd, variable, velocity, gradient)?;
        }
    }
    for (name, variable) in network.variables() {
        assert_agrees(name, variable, &case.params_after[name])?;
    }
    Ok(())
}

#[test]
fn alexnet_agrees_with_pytorch() -> Result<()> {
    check(Architecture::AlexNet, include_str!("golden/alexnet.json"))
}

#[test]
fn small_alexnet_agrees_with_pytorch() -> Result<()> {
    check(
        Architecture::SmallAlexNet,
        include_str!("golden/small_alexnet.json"),
    )
}
