//! A network with its parameters, and its forward pass.

use crate::architecture::{Architecture, Layer};
use candle_core::{Tensor, Var};
use ops::{Activation, Dropout};

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

    /// Logits `[batch, 10]` for images `[batch, 3, 32, 32]`, to be differentiated. `dropout` is
    /// `None` where it is switched off.
    ///
    /// # Errors
    /// When the images have another shape, or another type than the variables.
    pub fn forward(
        &self,
        images: &Tensor,
        dropout: Option<DropoutMasks>,
    ) -> candle_core::Result<Tensor> {
        self.forward_with(images, dropout, |variable| variable.as_tensor().clone())
    }

    /// As [`Network::forward`] without dropout, for evaluation: nothing is kept for a backward
    /// pass, so memory is freed from layer to layer.
    ///
    /// # Errors
    /// As for [`Network::forward`].
    pub fn evaluate(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        self.forward_with(images, None, |variable| variable.as_detached_tensor())
    }

    /// Walks the layers. A rectifier behind a convolution or linear layer is part of its operation.
    fn forward_with(
        &self,
        images: &Tensor,
        dropout: Option<DropoutMasks>,
        parameter: impl Fn(&Var) -> Tensor,
    ) -> candle_core::Result<Tensor> {
        let mut variables = self
            .variables
            .iter()
            .map(|(_, variable)| parameter(variable));
        let mut next = || {
            variables
                .next()
                .ok_or_else(|| candle_core::Error::Msg("a layer without parameters".to_owned()))
        };
        let mut layers = self.architecture.layers().peekable();
        let mut masks = 0_u16;
        let mut x = images.clone();
        while let Some(layer) = layers.next() {
            let mut activation = || match layers.next_if_eq(&Layer::Relu) {
                Some(_) => Activation::Relu,
                None => Activation::Identity,
            };
            x = match layer {
                Layer::Conv2d { padding, .. } => {
                    ops::conv2d(&x, &next()?, &next()?, padding, activation())?
                }
                Layer::Linear { .. } => ops::linear(&x, &next()?, &next()?, activation())?,
                Layer::Relu => ops::relu(&x)?,
                Layer::MaxPool2d { kernel, stride } => ops::max_pool2d(&x, kernel, stride)?,
                Layer::Dropout => {
                    let x = x.flatten_from(1)?;
                    let layer = masks;
                    masks += 1;
                    match dropout {
                        None => x,
                        Some(DropoutMasks {
                            probability,
                            seed,
                            step,
                        }) => ops::dropout(
                            &x,
                            Dropout {
                                probability,
                                seed,
                                step,
                                layer,
                            },
                        )?,
                    }
                }
            };
        }
        Ok(x)
    }
}
