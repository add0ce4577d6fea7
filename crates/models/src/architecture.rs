//! A network's description, and what follows from its layers: names and shapes.

use crate::layer::{Block, Layer};
use run::predictions::SIDE;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// Channels, height and width of an image.
pub const IMAGE: [usize; 3] = [3, SIDE, SIDE];

/// The number of classes of CIFAR-10, for which the networks of the table are.
pub const CIFAR10_CLASSES: usize = 10;

/// A network: an entry of the table, where it is looked up by name with [`str::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// The name on the command line and in files, such as `small-alexnet`.
    pub name: &'static str,
    /// The name in tables and reports, such as `SmallAlexNet`: the class name in the original.
    pub display_name: &'static str,
    /// The blocks in order. Their last layer is the classifier, with the outputs of CIFAR-10.
    pub(crate) blocks: &'static [Block],
    /// The number of classes, which are the outputs of the last layer.
    pub num_classes: usize,
    /// The patience of `ReduceLROnPlateau` where a recipe sets none, in epochs.
    pub patience: u32,
}

/// A layer of a network, with its name and shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedLayer {
    /// PyTorch's name, such as `conv_layer1.0`.
    pub name: String,
    /// The layer.
    pub layer: Layer,
    /// Shape of the input, without the batch: `[channels, height, width]` or `[features]`.
    pub input: Vec<usize>,
    /// Shape of the output, without the batch.
    pub output: Vec<usize>,
}

/// Name and shape of one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterShape {
    /// PyTorch's name, such as `conv_layer1.0.weight`.
    pub name: String,
    /// PyTorch's shape: `[out, in, kernel, kernel]`, `[out, in]` or `[out]`.
    pub shape: Vec<usize>,
    /// The number of inputs of each output element of the layer.
    pub fan_in: usize,
}

/// Tensors that are not the parameters of a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterMismatch {
    /// A parameter of the network is missing.
    #[error("the tensor `{0}` is missing")]
    Missing(String),
    /// A tensor is not a parameter of the network, which is named second.
    #[error("the tensor `{0}` is not a parameter of {1}")]
    Extra(String, &'static str),
    /// A tensor has the wrong shape.
    #[error("the tensor `{name}` has shape {found:?}, but {architecture} expects {expected:?}")]
    Shape {
        /// The parameter.
        name: String,
        /// The network's name.
        architecture: &'static str,
        /// The shape of the tensor.
        found: Vec<usize>,
        /// The shape that the network expects.
        expected: Vec<usize>,
    },
}

impl Architecture {
    /// This network for another number of classes.
    #[must_use]
    pub fn with_classes(self, num_classes: usize) -> Self {
        Self {
            num_classes,
            ..self
        }
    }

    /// The layers in order.
    #[must_use]
    pub fn layers(&self) -> Vec<NamedLayer> {
        let mut shape = IMAGE.to_vec();
        let layers = self.blocks.iter().flat_map(|block| block.named_layers());
        let mut layers: Vec<_> = layers
            .map(|(name, layer)| {
                let input = shape.clone();
                shape = layer.output_shape(&input);
                NamedLayer {
                    name,
                    layer,
                    input,
                    output: shape.clone(),
                }
            })
            .collect();
        // The table has the layers for CIFAR-10.
        if let Some(NamedLayer {
            layer: Layer::Linear { out_features, .. },
            output,
            ..
        }) = layers.last_mut()
        {
            *out_features = self.num_classes;
            *output = vec![self.num_classes];
        }
        layers
    }

    /// The parameters, in the order of PyTorch's `state_dict`.
    #[must_use]
    pub fn parameters(&self) -> Vec<ParameterShape> {
        let mut parameters = Vec::new();
        for NamedLayer { name, layer, .. } in self.layers() {
            let Some([weight, bias]) = layer.parameter_shapes() else {
                continue;
            };
            let fan_in = weight[1..].iter().product();
            for (kind, shape) in [("weight", weight), ("bias", bias)] {
                parameters.push(ParameterShape {
                    name: format!("{name}.{kind}"),
                    shape,
                    fan_in,
                });
            }
        }
        parameters
    }

    /// Puts tensors, whose shapes `shape` returns, into the order of [`Architecture::parameters`].
    ///
    /// # Errors
    /// When a parameter is missing, or a tensor has an unknown name or the wrong shape.
    pub fn in_order<T>(
        &self,
        tensors: impl IntoIterator<Item = (String, T)>,
        shape: impl Fn(&T) -> &[usize],
    ) -> Result<Vec<(String, T)>, ParameterMismatch> {
        let parameters = self.parameters();
        let mut tensors: BTreeMap<_, _> = tensors.into_iter().collect();
        let is_known = |name: &String| parameters.iter().any(|p| p.name == *name);
        if let Some(name) = tensors.keys().find(|name| !is_known(name)) {
            return Err(ParameterMismatch::Extra(name.clone(), self.name));
        }
        let parameters = parameters.into_iter();
        parameters
            .map(|parameter| match tensors.remove(&parameter.name) {
                None => Err(ParameterMismatch::Missing(parameter.name)),
                Some(tensor) if shape(&tensor) != parameter.shape => {
                    Err(ParameterMismatch::Shape {
                        name: parameter.name,
                        architecture: self.name,
                        found: shape(&tensor).to_vec(),
                        expected: parameter.shape,
                    })
                }
                Some(tensor) => Ok((parameter.name, tensor)),
            })
            .collect()
    }

    /// The number of parameters.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        let layers = self.layers().into_iter();
        layers.map(|layer| layer.layer.parameter_count()).sum()
    }

    /// The number of parameters before the first linear layer.
    #[must_use]
    pub fn feature_parameter_count(&self) -> usize {
        let layers = self.layers().into_iter().map(|layer| layer.layer);
        let features = layers.take_while(|layer| !matches!(layer, Layer::Linear { .. }));
        features.map(|layer| layer.parameter_count()).sum()
    }

    /// Whether the network has dropout layers.
    #[must_use]
    pub fn has_dropout(&self) -> bool {
        let mut layers = self.blocks.iter().flat_map(|block| block.layers);
        layers.any(|layer| matches!(layer, Layer::Dropout))
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Serialize for Architecture {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn architecture(name: &str) -> Architecture {
        name.parse().unwrap()
    }

    #[test]
    fn parameter_counts_match_the_post() {
        assert_eq!(architecture("alexnet").parameter_count(), 58_292_074);
        assert_eq!(architecture("small-alexnet").parameter_count(), 12_417_098);
        assert_eq!(architecture("lenet").parameter_count(), 62_006);
    }

    #[test]
    fn parameter_names_match_the_original() {
        let names: Vec<_> = architecture("alexnet")
            .parameters()
            .into_iter()
            .map(|parameter| parameter.name)
            .collect();
        assert_eq!(
            names,
            [
                "conv_layer1.0.weight",
                "conv_layer1.0.bias",
                "conv_layer2.0.weight",
                "conv_layer2.0.bias",
                "conv_layer3.0.weight",
                "conv_layer3.0.bias",
                "conv_layer3.2.weight",
                "conv_layer3.2.bias",
                "conv_layer3.4.weight",
                "conv_layer3.4.bias",
                "fc_layer1.1.weight",
                "fc_layer1.1.bias",
                "fc_layer1.4.weight",
                "fc_layer1.4.bias",
                "fc_layer1.6.weight",
                "fc_layer1.6.bias",
            ]
        );
    }

    #[test]
    fn every_layer_fits_the_output_of_the_one_before() {
        for architecture in Architecture::ALL {
            let layers = architecture.layers();
            for NamedLayer { layer, input, .. } in &layers {
                match layer {
                    Layer::Conv2d { in_channels, .. } => assert_eq!(input[0], *in_channels),
                    Layer::Linear { in_features, .. } => assert_eq!(input, &[*in_features]),
                    _ => {}
                }
            }
            assert_eq!(layers.last().unwrap().output, [CIFAR10_CLASSES]);
        }
    }

    #[test]
    fn only_the_last_layer_depends_on_the_number_of_classes() {
        for architecture in Architecture::ALL {
            let other = architecture.with_classes(3);
            let (ours, others) = (architecture.parameters(), other.parameters());
            let (rest, [weight, bias]) = others.split_last_chunk().unwrap();
            assert_eq!(*rest, ours[..ours.len() - 2]);
            assert_eq!((weight.shape[0], bias.shape.as_slice()), (3, &[3][..]));
            let per_class = weight.fan_in + 1;
            assert_eq!(
                architecture.parameter_count() - other.parameter_count(),
                7 * per_class
            );
        }
    }

    #[test]
    fn layer_names_are_unique() {
        for architecture in Architecture::ALL {
            let mut names: Vec<_> = architecture.layers().into_iter().map(|l| l.name).collect();
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count, "{architecture}");
        }
    }

    #[test]
    fn multiply_adds_are_counted() {
        // AlexNet's second convolution: 256 channels of 29 by 29; each element sums over 96 channels of 5 by 5.
        let layers = architecture("alexnet").layers();
        let multiply_adds = |index: usize| layers[index].layer.multiply_adds(&layers[index].output);
        assert_eq!(multiply_adds(2), 256 * 29 * 29 * 96 * 25);
        assert_eq!(multiply_adds(3), 0);
    }

    #[test]
    fn architectures_are_parsed_by_name() {
        for architecture in Architecture::ALL {
            assert_eq!(architecture.name.parse(), Ok(*architecture));
        }
        assert!("vgg".parse::<Architecture>().is_err());
    }
}
