//! The same networks in candle alone, as a baseline: its own convolutions, products and automatic differentiation.
//! Candle has no backward pass for overlapping pooling, so that is ours.

use candle_core::{Result, Tensor, bail};
use models::{Layer, NamedLayer, Network};
use ops::Pool;

/// Logits `[batch, 10]` for `images` `[batch, 3, 32, 32]`, without dropout.
pub(crate) fn forward(network: &Network, images: &Tensor) -> Result<Tensor> {
    let mut variables = network.variables().iter().map(|(_, variable)| variable);
    let mut x = images.clone();
    for NamedLayer { name, layer, .. } in network.architecture().layers() {
        let mut next = || match variables.next() {
            Some(variable) => Ok(variable.as_tensor().clone()),
            None => bail!("{name} has no parameters"),
        };
        x = match layer {
            Layer::Conv2d { padding, .. } => {
                let (weight, bias) = (next()?, next()?.reshape((1, (), 1, 1))?);
                x.conv2d(&weight, padding, 1, 1, 1)?.broadcast_add(&bias)?
            }
            Layer::Linear { .. } => {
                let (weight, bias) = (next()?, next()?);
                x.matmul(&weight.t()?)?.broadcast_add(&bias)?
            }
            Layer::Relu => x.relu()?,
            Layer::MaxPool2d { kernel, stride } => {
                let channels_last = x.permute((0, 2, 3, 1))?;
                ops::max_pool2d(&channels_last, Pool { kernel, stride })?
                    .permute((0, 3, 1, 2))?
                    .contiguous()?
            }
            Layer::AvgPool2d { kernel, stride } => x.avg_pool2d_with_stride(kernel, stride)?,
            Layer::Flatten => x.flatten_from(1)?,
            Layer::Dropout => x,
        };
    }
    Ok(x)
}
