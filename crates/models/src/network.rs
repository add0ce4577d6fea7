//! A network with its parameters, and its forward pass.

use crate::architecture::Architecture;
use crate::step::{Operation, Step};
use candle_core::{Error, Result, Tensor, Var};
use ops::{Dropout, Tape};

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

/// A network: an architecture and a variable for each of its parameters.
pub struct Network {
    architecture: Architecture,
    steps: Vec<Step>,
    /// In the architecture's order.
    variables: Vec<(String, Var)>,
    /// How many of the steps, from the first, have no backward pass.
    frozen_steps: usize,
}

impl Network {
    /// A network with the given parameters, in any order.
    ///
    /// # Errors
    /// When the tensors are not the parameters of the network, or cannot be copied.
    pub fn new(architecture: Architecture, parameters: Vec<(String, Tensor)>) -> Result<Self> {
        let parameters = architecture.in_order(parameters, |tensor| tensor.dims());
        let variables = parameters.map_err(Error::wrap)?.into_iter();
        Ok(Self {
            architecture,
            steps: architecture.steps(),
            variables: variables
                .map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor)?)))
                .collect::<Result<_>>()?,
            frozen_steps: 0,
        })
    }

    /// The same, without gradients of the convolutional layers: those before the first linear one.
    #[must_use]
    pub fn with_frozen_features(self) -> Self {
        Self {
            frozen_steps: self.architecture.feature_steps(),
            ..self
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
    /// When the images have another shape, or another type than the variables or the activations.
    pub fn forward(
        &self,
        tape: &mut Tape,
        images: &Tensor,
        dropout: Option<DropoutMasks>,
    ) -> Result<Tensor> {
        let mut variables = self.variables.iter().map(|(_, variable)| variable);
        let mut next = || {
            variables
                .next()
                .ok_or_else(|| Error::Msg("a layer without parameters".to_owned()))
        };
        let mut x = tape.activations(images)?;
        let mut frozen = tape.without_backward();
        for (index, step) in self.steps.iter().enumerate() {
            let name = step.name();
            let tape = match index < self.frozen_steps {
                true => &mut frozen,
                false => &mut *tape,
            };
            x = match step.operation {
                Operation::Conv2d(conv) => tape.conv2d(name, conv, &x, next()?, next()?)?,
                Operation::Linear(activation) => {
                    tape.linear(name, activation, &x, next()?, next()?)?
                }
                Operation::Relu => tape.relu(name, &x)?,
                Operation::MaxPool2d(pool) => tape.max_pool2d(name, pool, &x)?,
                Operation::AvgPool2d(pool) => tape.avg_pool2d(name, pool, &x)?,
                Operation::Flatten => tape.flatten(name, &x)?,
                Operation::Dropout(layer) => match dropout {
                    None => x,
                    Some(DropoutMasks {
                        probability,
                        seed,
                        step,
                    }) => {
                        let mask = Dropout {
                            probability,
                            seed,
                            step,
                            layer,
                        };
                        tape.dropout(name, mask, &x)?
                    }
                },
            };
        }
        Ok(x)
    }
}
