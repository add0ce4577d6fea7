//! The networks: logits, losses, all gradients, three steps of SGD.

use crate::deviation::{Deviation, Statistics};
use crate::{Error, Setting, elements, uniform};
use candle_core::{Device, Tensor};
use models::{Architecture, CLASSES, Network};
use ops::{Sgd, Tape, cross_entropy, cross_entropy_gradient, sgd_step};
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

/// The file with the reference values of a network, which has the network's name.
fn golden(architecture: Architecture) -> Result<String, Error> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");
    let path = PathBuf::from(format!("{folder}/{architecture}.json"));
    fs::read_to_string(&path).map_err(|source| Error::Read { path, source })
}

/// Trains a network for three steps on a batch of eight images.
///
/// # Errors
/// When there are no reference values, an operation fails, or training and evaluation give different logits.
pub fn network(architecture: Architecture, setting: &Setting) -> Result<NetworkDeviations, Error> {
    let case: Case = serde_json::from_str(&golden(architecture)?)?;
    let parameters = case
        .params
        .into_iter()
        .map(|(name, parameter)| {
            let bound = parameter.bound_f32 as f32;
            let values = setting.tensor(parameter.seed, &parameter.shape, bound)?;
            Ok((name, values))
        })
        .collect::<candle_core::Result<Vec<_>>>()?;
    let network = Network::new(architecture, parameters)?;
    let batch = case.labels.len();
    let images = uniform(case.input.seed, batch * 3 * 32 * 32, case.input.bound);
    let images = Tensor::from_vec(images, (batch, 3, 32, 32), &Device::Cpu)?;
    let images = images.permute((0, 2, 3, 1))?.contiguous()?;
    let images = images.to_dtype(setting.dtype)?.to_device(&setting.device)?;
    let images = setting.activations(&images)?;
    let labels = Tensor::from_vec(case.labels, batch, &setting.device)?;
    let sgd = Sgd {
        learning_rate: case.sgd.lr,
        momentum: case.sgd.momentum,
        weight_decay: case.sgd.weight_decay,
        ..Sgd::default()
    };
    let momentum_buffers = network
        .variables()
        .iter()
        .map(|(_, variable)| variable.zeros_like())
        .collect::<candle_core::Result<Vec<_>>>()?;

    let mut found = NetworkDeviations::default();
    for (done, step) in case.steps.into_iter().enumerate() {
        let mut tape = Tape::recording(setting.arithmetic);
        let logits = network.forward(&mut tape, &images, None)?;
        let evaluated = network.forward(&mut Tape::no_grad(setting.arithmetic), &images, None)?;
        if elements(&logits)? != elements(&evaluated)? {
            let text = "training and evaluation give different logits";
            return Err(candle_core::Error::Msg(text.to_owned()).into());
        }
        let loss = cross_entropy(&logits, &labels)?;
        let values = if done == 0 {
            &mut found.values
        } else {
            &mut found.afterwards
        };
        let what = format!("{architecture}, step {}: ", done + 1);
        let expected = step.logits.concat();
        assert_eq!(expected.len(), batch * CLASSES);
        values.push(Deviation::of_values(
            &format!("{what}logits"),
            &elements(&logits)?,
            &expected,
            0.1,
        ));
        values.push(Deviation::of_values(
            &format!("{what}loss"),
            &elements(&loss)?,
            &[step.loss],
            step.loss,
        ));
        let gradients = tape.backward(cross_entropy_gradient(&logits, &labels, 0.0)?)?;
        let mut updates = Vec::new();
        for ((name, variable), momentum_buffer) in network.variables().iter().zip(&momentum_buffers)
        {
            let gradient = gradients
                .get(variable)
                .ok_or_else(|| Error::Missing(name.clone()))?;
            if let Some(expected) = &step.grads {
                let expected = expected
                    .get(name)
                    .ok_or_else(|| Error::Missing(name.clone()))?;
                let what = format!("{architecture}: gradient of {name}");
                found
                    .gradients
                    .push(Deviation::of(&what, gradient, expected)?);
            }
            updates.push([variable.as_tensor(), momentum_buffer, gradient]);
        }
        sgd_step(sgd, &updates)?;
    }
    for (name, variable) in network.variables() {
        let expected = case
            .params_after
            .get(name)
            .ok_or_else(|| Error::Missing(name.clone()))?;
        let what = format!("{architecture}: {name} after three steps");
        found
            .afterwards
            .push(Deviation::of(&what, variable, expected)?);
    }
    Ok(found)
}
