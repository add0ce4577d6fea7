//! The layers of the networks, their parameters' names and shapes.

use ops::Pool;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Channels, height and width of an image.
pub const IMAGE: [usize; 3] = [3, 32, 32];

/// Classes that the networks tell apart.
pub const CLASSES: usize = 10;

/// One layer. Convolutions have stride 1; both convolutions and linear layers have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// A convolution.
    Conv2d {
        /// Channels of its input.
        in_channels: usize,
        /// Channels of its output.
        out_channels: usize,
        /// Height and width of the kernel.
        kernel: usize,
        /// Zeros on every side.
        padding: usize,
    },
    /// A rectifier.
    Relu,
    /// The maximum over windows that may overlap.
    MaxPool2d {
        /// Height and width of a window.
        kernel: usize,
        /// Distance between windows.
        stride: usize,
    },
    /// Dropout, while training.
    Dropout,
    /// A fully connected layer; images are flattened in front of it.
    Linear {
        /// Features of its input.
        in_features: usize,
        /// Features of its output.
        out_features: usize,
    },
}

impl Layer {
    /// PyTorch's name of the layer's type.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Conv2d { .. } => "Conv2d",
            Self::Relu => "ReLU",
            Self::MaxPool2d { .. } => "MaxPool2d",
            Self::Dropout => "Dropout",
            Self::Linear { .. } => "Linear",
        }
    }

    /// The shape that comes out, without the batch, where `input` goes in.
    #[must_use]
    pub fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        match (*self, input) {
            (
                Self::Conv2d {
                    out_channels,
                    kernel,
                    padding,
                    ..
                },
                [_, height, width],
            ) => {
                let out = |size: usize| size + 2 * padding + 1 - kernel;
                vec![out_channels, out(*height), out(*width)]
            }
            (Self::MaxPool2d { kernel, stride }, [channels, height, width]) => {
                let out = |size: usize| (size - kernel) / stride + 1;
                vec![*channels, out(*height), out(*width)]
            }
            (Self::Linear { out_features, .. }, _) => vec![out_features],
            // The flattening belongs to the block, and dropout is the first to see it.
            (Self::Dropout, _) => vec![input.iter().product()],
            _ => input.to_vec(),
        }
    }

    /// Multiplications, each with an addition, that make one `output` of that shape.
    #[must_use]
    pub fn multiply_adds(&self, output: &[usize]) -> usize {
        match *self {
            Self::Conv2d {
                in_channels,
                kernel,
                ..
            } => output.iter().product::<usize>() * in_channels * kernel * kernel,
            Self::Linear {
                in_features,
                out_features,
            } => in_features * out_features,
            Self::Relu | Self::MaxPool2d { .. } | Self::Dropout => 0,
        }
    }

    /// Shapes of the weight and the bias, where the layer has them.
    #[must_use]
    pub fn parameter_shapes(&self) -> Option<[Vec<usize>; 2]> {
        match *self {
            Self::Conv2d {
                in_channels,
                out_channels,
                kernel,
                ..
            } => Some([
                vec![out_channels, in_channels, kernel, kernel],
                vec![out_channels],
            ]),
            Self::Linear {
                in_features,
                out_features,
            } => Some([vec![out_features, in_features], vec![out_features]]),
            Self::Relu | Self::MaxPool2d { .. } | Self::Dropout => None,
        }
    }

    /// The pooling windows, where the layer is max-pooling.
    #[must_use]
    pub fn pool(&self) -> Option<Pool> {
        match *self {
            Self::MaxPool2d { kernel, stride } => Some(Pool { kernel, stride }),
            _ => None,
        }
    }

    /// How many numbers the layer learns.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        let shapes = self.parameter_shapes().into_iter().flatten();
        shapes.map(|shape| shape.iter().product::<usize>()).sum()
    }
}

/// Layers under one name, as an `nn.Sequential` of the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The name, with which its parameters' names begin.
    pub name: &'static str,
    /// The layers in order.
    pub layers: &'static [Layer],
}

/// Name and shape of one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterShape {
    /// PyTorch's name, such as `conv_layer1.0.weight`.
    pub name: String,
    /// PyTorch's shape: `[out, in, kernel, kernel]`, `[out, in]` or `[out]`.
    pub shape: Vec<usize>,
    /// Inputs that make one output of the layer.
    pub fan_in: usize,
}

/// One of the networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Architecture {
    /// 58,292,074 parameters.
    AlexNet,
    /// 12,417,098 parameters.
    SmallAlexNet,
}

const fn conv(in_channels: usize, out_channels: usize, kernel: usize, padding: usize) -> Layer {
    Layer::Conv2d {
        in_channels,
        out_channels,
        kernel,
        padding,
    }
}

const fn linear(in_features: usize, out_features: usize) -> Layer {
    Layer::Linear {
        in_features,
        out_features,
    }
}

const POOL: Layer = Layer::MaxPool2d {
    kernel: 3,
    stride: 2,
};

const ALEXNET: [Block; 4] = [
    Block {
        name: "conv_layer1",
        layers: &[conv(3, 96, 4, 0), Layer::Relu],
    },
    Block {
        name: "conv_layer2",
        layers: &[conv(96, 256, 5, 2), Layer::Relu, POOL],
    },
    Block {
        name: "conv_layer3",
        layers: &[
            conv(256, 384, 3, 1),
            Layer::Relu,
            conv(384, 384, 3, 1),
            Layer::Relu,
            conv(384, 256, 3, 1),
            Layer::Relu,
            POOL,
        ],
    },
    Block {
        name: "fc_layer1",
        layers: &[
            Layer::Dropout,
            linear(9216, 4096),
            Layer::Relu,
            Layer::Dropout,
            linear(4096, 4096),
            Layer::Relu,
            linear(4096, CLASSES),
        ],
    },
];

const SMALL_ALEXNET: [Block; 4] = [
    Block {
        name: "conv_layer1",
        layers: &[conv(3, 64, 7, 0), Layer::Relu],
    },
    Block {
        name: "conv_layer2",
        layers: &[conv(64, 192, 5, 2), Layer::Relu, POOL],
    },
    Block {
        name: "conv_layer3",
        layers: &[
            conv(192, 256, 3, 1),
            Layer::Relu,
            conv(256, 256, 3, 1),
            Layer::Relu,
            conv(256, 128, 3, 1),
            Layer::Relu,
            POOL,
        ],
    },
    Block {
        name: "fc_layer1",
        layers: &[
            Layer::Dropout,
            linear(3200, 2048),
            Layer::Relu,
            Layer::Dropout,
            linear(2048, 2048),
            Layer::Relu,
            linear(2048, CLASSES),
        ],
    },
];

impl Architecture {
    /// Both networks.
    pub const ALL: [Self; 2] = [Self::AlexNet, Self::SmallAlexNet];

    /// The name on the command line and in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AlexNet => "alexnet",
            Self::SmallAlexNet => "small-alexnet",
        }
    }

    /// The name of the class in the original.
    #[must_use]
    pub fn class_name(self) -> &'static str {
        match self {
            Self::AlexNet => "AlexNet",
            Self::SmallAlexNet => "SmallAlexNet",
        }
    }

    /// The network's blocks in order.
    #[must_use]
    pub fn blocks(self) -> &'static [Block; 4] {
        match self {
            Self::AlexNet => &ALEXNET,
            Self::SmallAlexNet => &SMALL_ALEXNET,
        }
    }

    /// All layers in order.
    pub fn layers(self) -> impl Iterator<Item = Layer> {
        let blocks = self.blocks().iter();
        blocks.flat_map(|block| block.layers.iter().copied())
    }

    /// All layers in order, with their names in PyTorch, such as `conv_layer1.0`.
    pub fn named_layers(self) -> impl Iterator<Item = (String, Layer)> {
        self.blocks().iter().flat_map(|block| {
            let layers = block.layers.iter().enumerate();
            layers.map(|(number, layer)| (format!("{}.{number}", block.name), *layer))
        })
    }

    /// All parameters, in the order of PyTorch's `state_dict`.
    #[must_use]
    pub fn parameters(self) -> Vec<ParameterShape> {
        let mut parameters = Vec::new();
        for block in self.blocks() {
            for (number, layer) in block.layers.iter().enumerate() {
                let Some([weight, bias]) = layer.parameter_shapes() else {
                    continue;
                };
                let fan_in = weight[1..].iter().product();
                for (kind, shape) in [("weight", weight), ("bias", bias)] {
                    parameters.push(ParameterShape {
                        name: format!("{}.{number}.{kind}", block.name),
                        shape,
                        fan_in,
                    });
                }
            }
        }
        parameters
    }

    /// Numbers that a training step holds for each image when it holds most: the results that the gradients
    /// need, and the largest result, or its gradient, before it is pooled.
    #[must_use]
    pub fn training_numbers(self) -> usize {
        let (mut kept, mut largest) = (0, 0);
        let mut shape = IMAGE.to_vec();
        let mut layers = self.layers().peekable();
        while let Some(layer) = layers.next() {
            shape = layer.output_shape(&shape);
            largest = largest.max(shape.iter().product());
            // What follows in the same operation leaves one result, and pooling the places of the maxima.
            let mut results = 1;
            while let Some(fused) =
                layers.next_if(|layer| matches!(layer, Layer::Relu | Layer::MaxPool2d { .. }))
            {
                shape = fused.output_shape(&shape);
                results += usize::from(fused != Layer::Relu);
            }
            kept += results * shape.iter().product::<usize>();
        }
        kept + largest
    }

    /// How many numbers the network learns.
    #[must_use]
    pub fn parameter_count(self) -> usize {
        self.layers().map(|layer| layer.parameter_count()).sum()
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Architecture> for &'static str {
    fn from(architecture: Architecture) -> Self {
        architecture.name()
    }
}

impl TryFrom<String> for Architecture {
    type Error = UnknownArchitecture;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

/// A name that is no network's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a model: use `alexnet` or `small-alexnet`")]
pub struct UnknownArchitecture(String);

impl FromStr for Architecture {
    type Err = UnknownArchitecture;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|architecture| architecture.name() == name)
            .ok_or_else(|| UnknownArchitecture(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_the_posts() {
        assert_eq!(Architecture::AlexNet.parameter_count(), 58_292_074);
        assert_eq!(Architecture::SmallAlexNet.parameter_count(), 12_417_098);
    }

    #[test]
    fn names_are_pytorchs() {
        let names: Vec<_> = Architecture::AlexNet
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
    fn every_layer_fits_the_one_before() {
        for architecture in Architecture::ALL {
            let mut shape = IMAGE.to_vec();
            for layer in architecture.layers() {
                match layer {
                    Layer::Conv2d { in_channels, .. } => assert_eq!(shape[0], in_channels),
                    Layer::Linear { in_features, .. } => assert_eq!(shape, [in_features]),
                    _ => {}
                }
                shape = layer.output_shape(&shape);
            }
            assert_eq!(shape, [CLASSES]);
        }
    }

    #[test]
    fn multiplications_are_counted() {
        // AlexNet's second layer: 256 maps of 29 by 29, each number from 96 maps of 5 by 5.
        let layer = Architecture::AlexNet.layers().nth(2).unwrap();
        assert_eq!(layer.multiply_adds(&[256, 29, 29]), 256 * 29 * 29 * 96 * 25);
        assert_eq!(Layer::Relu.multiply_adds(&[256, 29, 29]), 0);
    }

    #[test]
    fn names_are_read_back() {
        for architecture in Architecture::ALL {
            assert_eq!(architecture.name().parse(), Ok(architecture));
        }
        assert!("vgg".parse::<Architecture>().is_err());
    }
}
