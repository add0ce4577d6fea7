//! A network with its parameters, and its forward pass.

use crate::architecture::{Architecture, Layer};
use candle_core::{Tensor, Var};
use ops::{Activation, Conv2d, Dropout, Pool, Tape};
use std::fmt;

/// What can be wrong with a network's parameters.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A parameter of the network is not among those given.
    #[error("the tensor `{0}` is missing")]
    Missing(String),
    /// A tensor is none of the network's parameters.
    #[error("the tensor `{0}` is not one of {1}'s")]
    Extra(String, Architecture),
    /// A parameter has another shape than the network's.
    #[error("the tensor `{name}` has shape {found:?}, but {architecture}'s has {expected:?}")]
    Shape {
        /// The parameter.
        name: String,
        /// The network.
        architecture: Architecture,
        /// The shape given.
        found: Vec<usize>,
        /// The network's shape.
        expected: Vec<usize>,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The masks of one training step; each dropout layer takes its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutMasks {
    /// The share of features set to 0.
    pub probability: f32,
    /// The run's seed.
    pub seed: u64,
    /// The training step, counted over the whole run.
    pub step: u32,
}

/// A network: an architecture and one variable for each of its parameters.
pub struct Network {
    architecture: Architecture,
    /// In the architecture's order.
    variables: Vec<(String, Var)>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network({})", self.architecture)
    }
}

impl Network {
    /// A network with the given parameters, in any order. They must be exactly the architecture's.
    ///
    /// # Errors
    /// When a parameter is missing, unknown or has another shape.
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
                    architecture,
                    found: tensor.dims().to_vec(),
                    expected: expected.shape,
                });
            }
            variables.push((expected.name, Var::from_tensor(&tensor)?));
        }
        match given.into_keys().next() {
            Some(name) => Err(Error::Extra(name, architecture)),
            None => Ok(Self {
                architecture,
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

    /// Logits `[batch, 10]` for images `[batch, 3, 32, 32]`, computed on `tape`, which then knows how
    /// to differentiate them. `dropout` is `None` where it is switched off.
    ///
    /// # Errors
    /// When the images have another shape, or another type than the variables. On a GPU they may have that
    /// of the activations.
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
        let mut layers = self.architecture.named_layers().peekable();
        let mut masks = 0_u16;
        let mut x = ops::channels_last(&tape.activations(images)?)?;
        while let Some((name, layer)) = layers.next() {
            // What follows in the same operation.
            let mut relu = || match layers.next_if(|(_, layer)| *layer == Layer::Relu) {
                Some(_) => Activation::Relu,
                None => Activation::Identity,
            };
            x = match layer {
                Layer::Conv2d { padding, .. } => {
                    let activation = relu();
                    let pool = layers.peek().and_then(|(_, layer)| layer.pool());
                    if pool.is_some() {
                        layers.next();
                    }
                    let layer = Conv2d {
                        padding,
                        activation,
                        pool,
                    };
                    tape.conv2d(&name, layer, &x, next()?, next()?)?
                }
                Layer::Linear { .. } => tape.linear(&name, relu(), &x, next()?, next()?)?,
                Layer::Relu => tape.relu(&name, &x)?,
                Layer::MaxPool2d { kernel, stride } => {
                    tape.max_pool2d(&name, Pool { kernel, stride }, &x)?
                }
                Layer::Dropout => {
                    if x.rank() > 2 {
                        x = tape.flatten("flatten", &x)?;
                    }
                    let layer = masks;
                    masks += 1;
                    match dropout {
                        None => x,
                        Some(DropoutMasks {
                            probability,
                            seed,
                            step,
                        }) => tape.dropout(
                            &name,
                            Dropout {
                                probability,
                                seed,
                                step,
                                layer,
                            },
                            &x,
                        )?,
                    }
                }
            };
        }
        Ok(x)
    }
}
