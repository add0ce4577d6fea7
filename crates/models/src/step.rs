//! The steps of a forward pass: layers fused into the operations that compute them.

use crate::architecture::{Architecture, NamedLayer};
use crate::layer::Layer;
use ops::{Activation, Conv2d, Pool};

/// One operation of the forward pass, which computes one or more layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The operation.
    pub operation: Operation,
    /// The layers that it computes, at least one.
    pub layers: Vec<NamedLayer>,
}

/// What a step computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    /// A convolution with its bias, ReLU and max-pooling.
    Conv2d(Conv2d),
    /// A linear layer with its bias and ReLU.
    Linear(Activation),
    /// ReLU on its own.
    Relu,
    /// Max-pooling on its own.
    MaxPool2d(Pool),
    /// Average pooling.
    AvgPool2d(Pool),
    /// Dropout. The index counts the network's dropout layers from 0: each one draws its own mask.
    Dropout(u16),
    /// From `[batch, height, width, channels]` to `[batch, channels * height * width]`.
    Flatten,
}

impl Architecture {
    /// The steps of the forward pass in order.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut dropouts = 0..;
        let mut layers = self.layers().into_iter().peekable();
        while let Some(first) = layers.next() {
            let layer = first.layer;
            let mut fused = vec![first];
            let mut activation = || match layers.next_if(|next| next.layer == Layer::Relu) {
                Some(relu) => {
                    fused.push(relu);
                    Activation::Relu
                }
                None => Activation::Identity,
            };
            let operation = match layer {
                Layer::Conv2d { padding, .. } => {
                    let activation = activation();
                    let pool = match layers.peek().map(|next| next.layer) {
                        Some(Layer::MaxPool2d { kernel, stride }) => {
                            fused.extend(layers.next());
                            Some(Pool { kernel, stride })
                        }
                        _ => None,
                    };
                    Operation::Conv2d(Conv2d {
                        padding,
                        activation,
                        pool,
                    })
                }
                Layer::Linear { .. } => Operation::Linear(activation()),
                Layer::Relu => Operation::Relu,
                Layer::MaxPool2d { kernel, stride } => {
                    Operation::MaxPool2d(Pool { kernel, stride })
                }
                Layer::AvgPool2d { kernel, stride } => {
                    Operation::AvgPool2d(Pool { kernel, stride })
                }
                Layer::Dropout => Operation::Dropout(dropouts.next().unwrap_or(u16::MAX)),
                Layer::Flatten => Operation::Flatten,
            };
            steps.push(Step {
                operation,
                layers: fused,
            });
        }
        steps
    }

    /// How many steps, from the first, are before the first linear layer.
    #[must_use]
    pub fn feature_steps(&self) -> usize {
        let is_feature = |step: &Step| !matches!(step.operation, Operation::Linear(_));
        self.steps().into_iter().take_while(is_feature).count()
    }

    /// The memory that a training step takes for each image at its peak, in elements: the outputs that the backward
    /// pass needs, and the largest output, or its gradient, before pooling.
    #[must_use]
    pub fn training_elements(&self, frozen_features: bool) -> usize {
        let steps = self.steps();
        let trained = match frozen_features {
            // The first step with a backward pass needs its input as well.
            true => &steps[self.feature_steps().saturating_sub(1)..],
            false => &steps,
        };
        let saved: usize = trained.iter().map(Step::saved_elements).sum();
        let largest = steps.iter().map(|step| elements(&step.layers[0].output));
        saved + largest.max().unwrap_or(0)
    }
}

impl Step {
    /// The name of the first layer, which names the operation in traces.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.layers[0].name
    }

    /// Shape of the input, without the batch: `[channels, height, width]` or `[features]`.
    #[must_use]
    pub fn input(&self) -> &[usize] {
        &self.layers[0].input
    }

    /// Shape of the output, without the batch.
    #[must_use]
    pub fn output(&self) -> &[usize] {
        &self.layers[self.layers.len() - 1].output
    }

    /// Elements saved for the backward pass of one image: the output and, with max-pooling, as many indices of maxima.
    fn saved_elements(&self) -> usize {
        let tensors = match self.operation {
            Operation::Flatten => 0,
            Operation::Conv2d(Conv2d { pool: Some(_), .. }) | Operation::MaxPool2d(_) => 2,
            Operation::Conv2d(_)
            | Operation::Linear(_)
            | Operation::Relu
            | Operation::AvgPool2d(_)
            | Operation::Dropout(_) => 1,
        };
        tensors * elements(self.output())
    }
}

fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_fused_into_the_operations_that_compute_them() {
        let alexnet: Architecture = "alexnet".parse().unwrap();
        let steps = alexnet.steps();
        let found: Vec<_> = steps
            .iter()
            .map(|step| (step.name(), step.layers.len(), step.output()))
            .collect();
        assert_eq!(
            found,
            [
                ("conv_layer1.0", 2, &[96, 29, 29][..]),
                ("conv_layer2.0", 3, &[256, 14, 14]),
                ("conv_layer3.0", 2, &[384, 14, 14]),
                ("conv_layer3.2", 2, &[384, 14, 14]),
                ("conv_layer3.4", 3, &[256, 6, 6]),
                ("flatten", 1, &[9216]),
                ("fc_layer1.0", 1, &[9216]),
                ("fc_layer1.1", 2, &[4096]),
                ("fc_layer1.3", 1, &[4096]),
                ("fc_layer1.4", 2, &[4096]),
                ("fc_layer1.6", 1, &[10]),
            ]
        );
        assert_eq!(steps[6].operation, Operation::Dropout(0));
        assert_eq!(steps[8].operation, Operation::Dropout(1));
        assert_eq!(steps[10].operation, Operation::Linear(Activation::Identity));
    }

    #[test]
    fn steps_contain_every_layer_in_order() {
        for architecture in Architecture::ALL {
            let layers = architecture
                .steps()
                .into_iter()
                .flat_map(|step| step.layers);
            assert_eq!(layers.collect::<Vec<_>>(), architecture.layers());
        }
    }

    #[test]
    fn training_memory_counts_saved_outputs_and_the_largest_one() {
        let alexnet: Architecture = "alexnet".parse().unwrap();
        let convolutions = 96 * 29 * 29 + 2 * 256 * 14 * 14 + 2 * 384 * 14 * 14 + 2 * 256 * 6 * 6;
        let linear = 9216 + 3 * 4096 + 10;
        let largest = 256 * 29 * 29;
        assert_eq!(
            alexnet.training_elements(false),
            convolutions + linear + largest
        );
        assert_eq!(alexnet.feature_steps(), 7);
        assert_eq!(alexnet.training_elements(true), linear + largest);
    }
}
