//! The networks: logits, losses, all gradients, three steps of SGD.

use crate::deviation::{Deviation, Statistics};
use crate::{Error, Setting, channels_last, elements};
use candle_core::Tensor;
use models::{Architecture, CLASSES, Network};
use ops::{GradientScale, Sgd, Tape, cross_entropy, cross_entropy_gradient, sgd_step};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

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

/// A network's deviations.
#[derive(Clone, Debug, Default)]
pub struct NetworkDeviations {
    /// Logits and loss of the first step.
    pub values: Vec<Deviation>,
    /// Gradients of all parameters in the first step.
    pub gradients: Vec<Deviation>,
    /// Logits and losses of the later steps, and the parameters after the last step.
    pub afterwards: Vec<Deviation>,
}

/// The file with reference values of this name, which those of a network share with it.
fn golden(name: &str) -> Result<String, Error> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");
    let path = PathBuf::from(format!("{folder}/{name}.json"));
    fs::read_to_string(&path).map_err(|reason| Error::Read { path, reason })
}

/// The reference value of a parameter.
fn get<'a, T>(values: &'a BTreeMap<String, T>, name: &str) -> Result<&'a T, Error> {
    values
        .get(name)
        .ok_or_else(|| Error::Missing(name.to_owned()))
}

/// The network with the weights of its case, the batch of images, and its labels.
fn inputs(
    architecture: Architecture,
    case: &Case,
    setting: &Setting,
) -> Result<(Network, Tensor, Tensor), Error> {
    let parameters = case.params.iter().map(|(name, parameter)| {
        let bound = parameter.bound_f32 as f32;
        let values = setting.tensor(parameter.seed, &parameter.shape, bound)?;
        Ok((name.clone(), values))
    });
    let parameters = parameters.collect::<candle_core::Result<_>>()?;
    let network = Network::new(architecture, parameters)?;
    let batch = case.labels.len();
    let images = setting.tensor(case.input.seed, &[batch, 3, 32, 32], case.input.bound)?;
    let images = setting.activations(&channels_last(&images)?)?;
    let labels = Tensor::from_slice(&case.labels, batch, &setting.device)?;
    Ok((network, images, labels))
}

/// The gradients of all parameters for the batch of eight images.
///
/// # Errors
/// When there are no reference values, or an operation fails.
pub fn gradients(
    architecture: Architecture,
    setting: &Setting,
) -> Result<Vec<(String, Tensor)>, Error> {
    let case: Case = serde_json::from_str(&golden(architecture.name)?)?;
    let (network, images, labels) = inputs(architecture, &case, setting)?;
    let mut tape = Tape::recording(setting.arithmetic);
    let logits = network.forward(&mut tape, &images, None)?;
    let gradients = tape.backward(cross_entropy_gradient(&logits, &labels, 0.0)?)?;
    let all = network.variables().iter().map(|(name, variable)| {
        let gradient = gradients.get(variable);
        let gradient = gradient.ok_or_else(|| Error::Missing(name.clone()))?;
        Ok((name.clone(), gradient.clone()))
    });
    all.collect()
}

/// The relative errors of these gradients in PyTorch under autocast to `bf16` on a CPU.
///
/// # Errors
/// When there are no such values.
pub fn autocast_errors(architecture: Architecture) -> Result<BTreeMap<String, f64>, Error> {
    let networks: BTreeMap<String, serde_json::Value> = serde_json::from_str(&golden("bf16")?)?;
    let errors = get(&networks, architecture.name)?;
    Ok(serde_json::from_value(errors.clone())?)
}

/// Trains a network for three steps on a batch of eight images.
///
/// # Errors
/// When there are no reference values, an operation fails, or training and evaluation give different logits.
pub fn network(architecture: Architecture, setting: &Setting) -> Result<NetworkDeviations, Error> {
    let case: Case = serde_json::from_str(&golden(architecture.name)?)?;
    let (network, images, labels) = inputs(architecture, &case, setting)?;
    let batch = case.labels.len();
    let sgd = Sgd {
        learning_rate: case.sgd.lr,
        momentum: case.sgd.momentum,
        weight_decay: case.sgd.weight_decay,
        ..Sgd::default()
    };
    let variables = network.variables();
    let zeros = variables.iter().map(|(_, variable)| variable.zeros_like());
    let momentum_buffers = zeros.collect::<candle_core::Result<Vec<_>>>()?;

    let mut found = NetworkDeviations::default();
    for (number, step) in (1..).zip(case.steps) {
        let mut tape = Tape::recording(setting.arithmetic);
        let logits = network.forward(&mut tape, &images, None)?;
        let evaluated = network.forward(&mut Tape::no_grad(setting.arithmetic), &images, None)?;
        let values = elements(&logits)?;
        if values != elements(&evaluated)? {
            let text = "training and evaluation give different logits";
            return Err(candle_core::Error::Msg(text.to_owned()).into());
        }
        let loss = elements(&cross_entropy(&logits, &labels)?)?;
        let expected = step.logits.concat();
        assert_eq!(expected.len(), batch * CLASSES);
        let what = format!("{architecture}, step {number}");
        let deviations = match number {
            1 => &mut found.values,
            _ => &mut found.afterwards,
        };
        deviations.extend([
            Deviation::of_values(&format!("{what}: logits"), &values, &expected, 0.1),
            Deviation::of_values(&format!("{what}: loss"), &loss, &[step.loss], step.loss),
        ]);
        let gradients = tape.backward(cross_entropy_gradient(&logits, &labels, 0.0)?)?;
        let mut updates = Vec::new();
        for ((name, variable), momentum_buffer) in variables.iter().zip(&momentum_buffers) {
            let gradient = gradients.get(variable);
            let gradient = gradient.ok_or_else(|| Error::Missing(name.clone()))?;
            if let Some(expected) = &step.grads {
                let what = format!("{architecture}: gradient of {name}");
                let deviation = Deviation::of(&what, gradient, get(expected, name)?)?;
                found.gradients.push(deviation);
            }
            updates.push([variable.as_tensor(), momentum_buffer, gradient]);
        }
        sgd_step(sgd, &GradientScale::ONE, &updates)?;
    }
    for (name, variable) in variables {
        let expected = get(&case.params_after, name)?;
        let what = format!("{architecture}: {name} after three steps");
        found
            .afterwards
            .push(Deviation::of(&what, variable, expected)?);
    }
    Ok(found)
}
