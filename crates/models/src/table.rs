//! The table of networks. An entry is all that the program needs to know of a network.

use crate::architecture::{Architecture, CIFAR10_CLASSES};
use crate::layer::Block;
use crate::layer::Layer::{self, Dropout, Relu};
use std::str::FromStr;

impl Architecture {
    /// All networks.
    pub const ALL: &'static [Self] = &[
        // AlexNet for 32 x 32 images, as in the post, and its variant with fewer channels and features.
        // Source: models/ of <https://github.com/gratus907/Pytorch-Cifar10>.
        Architecture {
            name: "alexnet",
            display_name: "AlexNet",
            patience: 5,
            num_classes: CIFAR10_CLASSES,
            blocks: &[
                block("conv_layer1", &[conv(3, 96, 4, 0), Relu]),
                block("conv_layer2", &[conv(96, 256, 5, 2), Relu, max_pool(3, 2)]),
                block(
                    "conv_layer3",
                    &[
                        conv(256, 384, 3, 1),
                        Relu,
                        conv(384, 384, 3, 1),
                        Relu,
                        conv(384, 256, 3, 1),
                        Relu,
                        max_pool(3, 2),
                    ],
                ),
                Block::FLATTEN,
                block(
                    "fc_layer1",
                    &[
                        Dropout,
                        linear(9216, 4096),
                        Relu,
                        Dropout,
                        linear(4096, 4096),
                        Relu,
                        linear(4096, CIFAR10_CLASSES),
                    ],
                ),
            ],
        },
        Architecture {
            name: "small-alexnet",
            display_name: "SmallAlexNet",
            patience: 2,
            num_classes: CIFAR10_CLASSES,
            blocks: &[
                block("conv_layer1", &[conv(3, 64, 7, 0), Relu]),
                block("conv_layer2", &[conv(64, 192, 5, 2), Relu, max_pool(3, 2)]),
                block(
                    "conv_layer3",
                    &[
                        conv(192, 256, 3, 1),
                        Relu,
                        conv(256, 256, 3, 1),
                        Relu,
                        conv(256, 128, 3, 1),
                        Relu,
                        max_pool(3, 2),
                    ],
                ),
                Block::FLATTEN,
                block(
                    "fc_layer1",
                    &[
                        Dropout,
                        linear(3200, 2048),
                        Relu,
                        Dropout,
                        linear(2048, 2048),
                        Relu,
                        linear(2048, CIFAR10_CLASSES),
                    ],
                ),
            ],
        },
        // LeNet-5 as the post's series trains it: three channels in, average pooling, ReLU.
        // Its default patience is that of AlexNet.
        Architecture {
            name: "lenet",
            display_name: "LeNet",
            patience: 5,
            num_classes: CIFAR10_CLASSES,
            blocks: &[
                block("conv_layer1", &[conv(3, 6, 5, 0), Relu]),
                block("pool_layer1", &[avg_pool(2, 2), Relu]),
                block("conv_layer2", &[conv(6, 16, 5, 0), Relu]),
                block("pool_layer2", &[avg_pool(2, 2), Relu]),
                Block::FLATTEN,
                block("C5_layer", &[linear(400, 120), Relu]),
                block("fc_layer1", &[linear(120, 84), Relu]),
                block("fc_layer2", &[linear(84, CIFAR10_CLASSES)]),
            ],
        },
    ];
}

/// The names of the networks that the post compares, in its order.
pub const POST: [&str; 2] = ["alexnet", "small-alexnet"];

const fn block(name: &'static str, layers: &'static [Layer]) -> Block {
    Block { name, layers }
}

const fn conv(in_channels: usize, out_channels: usize, kernel: usize, padding: usize) -> Layer {
    Layer::Conv2d {
        in_channels,
        out_channels,
        kernel,
        padding,
    }
}

const fn max_pool(kernel: usize, stride: usize) -> Layer {
    Layer::MaxPool2d { kernel, stride }
}

const fn avg_pool(kernel: usize, stride: usize) -> Layer {
    Layer::AvgPool2d { kernel, stride }
}

const fn linear(in_features: usize, out_features: usize) -> Layer {
    Layer::Linear {
        in_features,
        out_features,
    }
}

/// A name that is not of a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a model: use {names}", names = names())]
pub struct UnknownArchitecture(String);

/// The names of all networks for a message: "`alexnet` or `small-alexnet`".
fn names() -> String {
    let names: Vec<_> = Architecture::ALL.iter().map(|a| format!("`{a}`")).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

impl FromStr for Architecture {
    type Err = UnknownArchitecture;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.iter();
        all.find(|architecture| architecture.name == name)
            .copied()
            .ok_or_else(|| UnknownArchitecture(name.to_owned()))
    }
}
