//! The layers that networks consist of, with their shapes and costs.

/// One layer. Convolutions have stride 1; convolutions and linear layers have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// A two-dimensional convolution.
    Conv2d {
        /// Channels of the input.
        in_channels: usize,
        /// Channels of the output.
        out_channels: usize,
        /// Height and width of the kernel.
        kernel: usize,
        /// Width of the zero padding on every side.
        padding: usize,
    },
    /// `max(x, 0)`.
    Relu,
    /// The maximum over windows, which may overlap.
    MaxPool2d {
        /// Height and width of a window.
        kernel: usize,
        /// Distance between windows.
        stride: usize,
    },
    /// The average over windows.
    AvgPool2d {
        /// Height and width of a window.
        kernel: usize,
        /// Distance between windows.
        stride: usize,
    },
    /// Dropout, in training only. The recipe sets the probability.
    Dropout,
    /// From `[channels, height, width]` to `[channels * height * width]`, as `torch.flatten(x, 1)`.
    Flatten,
    /// A fully connected layer. Its input is flat.
    Linear {
        /// Features of the input.
        in_features: usize,
        /// Features of the output.
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
            Self::AvgPool2d { .. } => "AvgPool2d",
            Self::Dropout => "Dropout",
            Self::Flatten => "Flatten",
            Self::Linear { .. } => "Linear",
        }
    }

    /// The output shape, without the batch, for an input of shape `[channels, height, width]` or `[features]`.
    #[must_use]
    pub fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        let mut output = input.to_vec();
        let (kernel, stride, padding) = match *self {
            Self::Conv2d {
                out_channels,
                kernel,
                padding,
                ..
            } => {
                output[0] = out_channels;
                (kernel, 1, padding)
            }
            Self::MaxPool2d { kernel, stride } | Self::AvgPool2d { kernel, stride } => {
                (kernel, stride, 0)
            }
            Self::Flatten => return vec![input.iter().product()],
            Self::Linear { out_features, .. } => return vec![out_features],
            Self::Relu | Self::Dropout => return output,
        };
        for size in &mut output[1..] {
            *size = (*size + 2 * padding - kernel) / stride + 1;
        }
        output
    }

    /// Multiply-add operations of the forward pass of one image whose output has the shape `output`.
    #[must_use]
    pub fn multiply_adds(&self, output: &[usize]) -> usize {
        let sum = self
            .parameter_shapes()
            .map(|[weight, _]| weight[1..].iter().product());
        sum.map_or(0, |length: usize| output.iter().product::<usize>() * length)
    }

    /// PyTorch's shapes of weight and bias: `[out, in, kernel, kernel]` or `[out, in]`, and `[out]`. `None` where the
    /// layer has no parameters.
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
            Self::Relu
            | Self::MaxPool2d { .. }
            | Self::AvgPool2d { .. }
            | Self::Dropout
            | Self::Flatten => None,
        }
    }

    /// The number of parameters.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        let shapes = self.parameter_shapes().into_iter().flatten();
        shapes.map(|shape| shape.iter().product::<usize>()).sum()
    }
}

/// Layers under one name, as an `nn.Sequential` of the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The prefix of the layers' names.
    pub name: &'static str,
    /// The layers in order.
    pub layers: &'static [Layer],
}

impl Block {
    /// [`Layer::Flatten`] between two blocks. In PyTorch it is a function in `forward`, not a module, so it has a name
    /// without an index and shifts no other layer's index.
    pub const FLATTEN: Self = Self {
        name: "flatten",
        layers: &[Layer::Flatten],
    };

    /// The layers with their names in PyTorch, such as `conv_layer1.0`.
    pub(crate) fn named_layers(self) -> impl Iterator<Item = (String, Layer)> {
        let layers = self.layers.iter().enumerate();
        layers.map(move |(index, layer)| match layer {
            Layer::Flatten => (self.name.to_owned(), *layer),
            _ => (format!("{}.{index}", self.name), *layer),
        })
    }
}
