//! The same networks with our operations in candle's graph, to measure what the tape gains.

use candle_core::{Error, Result, Tensor};
use models::{Network, Operation};
use ops::{ConvAlgorithm, Precision};

/// Logits `[batch, classes]` for `images` `[batch, 32, 32, 3]`, without dropout.
pub(crate) fn forward(network: &Network, images: &Tensor) -> Result<Tensor> {
    let mut variables = network.variables().iter().map(|(_, variable)| variable);
    let mut next = || {
        variables
            .next()
            .ok_or_else(|| Error::Msg("a layer without parameters".to_owned()))
    };
    let mut x = images.clone();
    for step in network.architecture().steps() {
        x = match step.operation {
            Operation::Conv2d(layer) => {
                ops::conv2d(ConvAlgorithm::Winograd, layer, &x, next()?, next()?)?
            }
            Operation::Linear(activation) => {
                ops::linear(Precision::F32, activation, &x, next()?, next()?)?
            }
            Operation::Relu => ops::relu(&x)?,
            Operation::MaxPool2d(pool) => ops::max_pool2d(&x, pool)?,
            Operation::AvgPool2d(pool) => ops::avg_pool2d(&x, pool)?,
            Operation::Flatten => ops::flatten(&x)?,
            Operation::Dropout(_) => x,
        };
    }
    Ok(x)
}
