//! A network with its parameters, and its forward pass.

use crate::architecture::Architecture;
use crate::step::{Operation, Step};
use candle_core::{Tensor, Var};
use ops::{Dropout, Tape};
use std::fmt;

/// Why a network cannot be built from the given parameters.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A parameter of the network is missing.
    #[error("the tensor `{0}` is missing")]
    Missing(String),
    /// A tensor is not a parameter of the network.
    #[error("the tensor `{0}` is not a parameter of {1}")]
    Extra(String, &'static str),
    /// A parameter has the wrong shape.
    #[error("the tensor `{name}` has shape {found:?}, but {architecture} expects {expected:?}")]
    Shape {
        /// The parameter.
        name: String,
        /// The network's name.
        architecture: &'static str,
        /// The shape of the given tensor.
        found: Vec<usize>,
        /// The shape that the network expects.
        expected: Vec<usize>,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// What the dropout masks of a training step depend on, apart from the layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutMasks {
    /// The probability with which an element is set to 0.
    pub probability: f32,
    /// The run's seed.
    pub seed: u64,
    /// The training step, counted over the whole run.
    pub step: u32,
}

impl DropoutMasks {
    /// The mask of the dropout layer with this index.
    fn of_layer(self, layer: u16) -> Dropout {
        let Self {
            probability,
            seed,
            step,
        } = self;
        Dropout {
            probability,
            seed,
            step,
            layer,
        }
    }
}

/// A network: an architecture and a variable for each of its parameters.
pub struct Network {
    architecture: Architecture,
    steps: Vec<Step>,
    /// In the architecture's order.
    variables: Vec<(String, Var)>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network({})", self.architecture)
    }
}

impl Network {
    /// A network with the given parameters, in any order.
    ///
    /// # Errors
    /// When a parameter is missing, unknown or has the wrong shape.
    pub fn new(
        architecture: Architecture,
        parameters: Vec<(String, Tensor)>,
    ) -> Result<Self, Error> {
        let mut given: std::collections::BTreeMap<_, _> = parameters.into_iter().collect();
        let mut variables = Vec::new();
        for expected in architecture.parameters() {
            let tensor = given
                .remove(&expected.name)
                .ok_or_else(|| Error::Missing(expected.name.clone()))?;
            if tensor.dims() != expected.shape {
                return Err(Error::Shape {
                    name: expected.name,
                    architecture: architecture.name,
                    found: tensor.dims().to_vec(),
                    expected: expected.shape,
                });
            }
            variables.push((expected.name, Var::from_tensor(&tensor)?));
        }
        match given.into_keys().next() {
            Some(name) => Err(Error::Extra(name, architecture.name)),
            None => Ok(Self {
                architecture,
                steps: architecture.steps(),
                variables,
            }),
        }
    }

    /// The network's architecture.
    #[must_use]
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Names and variables, in the order of PyTorch's `state_dict`.
    #[must_use]
    pub fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    /// Logits `[batch, classes]` for images `[batch, 32, 32, 3]`, computed on `tape`. `dropout` is `None` in
    /// evaluation.
    ///
    /// # Errors
    /// When the images have another shape, or another type than the variables. On a GPU they may have the
    /// type of the activations.
    pub fn forward(
        &self,
        tape: &mut Tape,
        images: &Tensor,
        dropout: Option<DropoutMasks>,
    ) -> candle_core::Result<Tensor> {
        let mut variables = self.variables.iter().map(|(_, variable)| variable);
        let mut next = || {
            variables
                .next()
                .ok_or_else(|| candle_core::Error::Msg("a layer without parameters".to_owned()))
        };
        let mut x = tape.activations(images)?;
        for step in &self.steps {
            let name = step.name();
            x = match step.operation {
                Operation::Conv2d(conv) => tape.conv2d(name, conv, &x, next()?, next()?)?,
                Operation::Linear(activation) => {
                    tape.linear(name, activation, &x, next()?, next()?)?
                }
                Operation::Relu => tape.relu(name, &x)?,
                Operation::MaxPool2d(pool) => tape.max_pool2d(name, pool, &x)?,
                Operation::AvgPool2d(pool) => tape.avg_pool2d(name, pool, &x)?,
                Operation::Flatten => tape.flatten(name, &x)?,
                Operation::Dropout(index) => match dropout {
                    Some(masks) => tape.dropout(name, masks.of_layer(index), &x)?,
                    None => x,
                },
            };
        }
        Ok(x)
    }
}
