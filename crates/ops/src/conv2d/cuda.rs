//! Convolution on a GPU: cuDNN for the sums, or matrix products without cuDNN, and our own kernels for what follows them.
//!
//! For both, images and weights are channels-last. If the channels are not a multiple of 16 bytes (three, in the first
//! layer's input), channels of zeros are added.

use super::Conv2d;
use crate::arithmetic::{Arithmetic, Precision};
use crate::cuda::{
    Buffer, Elements, Pass, Program, Task, activations, convolve, convolve_by_products, empty,
    launch, pack, sum_rows, to_activations,
};
use crate::operation::{Gradients, Output};
use candle_core::{DType, Error, Result, Tensor};
use kernels::Activation;
use kernels::conv2d::{ConvAlgorithm, Geometry};

/// What is saved for the backward pass.
pub(super) struct Saved {
    /// The images with padded channels, if those differ from the input's.
    x: Option<Buffer>,
    /// The weight, channels-last.
    weight: Buffer,
    /// With pooling, for each result the index of the maximum in its window.
    argmax: Option<Buffer>,
}

/// The convolution that is computed: channels of zeros are added up to multiples of 16 bytes.
fn task(pass: Pass, g: &Geometry, dtype: DType, precision: Precision) -> Task {
    Task {
        pass,
        geometry: Geometry {
            in_channels: g.in_channels.next_multiple_of(pack(dtype)),
            out_channels: g.out_channels.next_multiple_of(pack(dtype)),
            ..*g
        },
        dtype,
        precision,
    }
}

/// Computes one of the three tensors images, weight and result from the two others.
fn compute(algorithm: ConvAlgorithm, task: Task, tensors: [Elements<'_>; 3]) -> Result<()> {
    match algorithm {
        ConvAlgorithm::Winograd => convolve(task, tensors),
        ConvAlgorithm::Direct => convolve_by_products(task, tensors),
    }
}

/// The result, and what is saved for the backward pass.
pub(super) fn forward(
    (layer, arithmetic): (Conv2d, Arithmetic),
    g: &Geometry,
    [x, weight, bias]: [&Tensor; 3],
) -> Result<(Output, Saved)> {
    let x = activations("conv2d", x)?;
    let weight = Elements::of("conv2d", weight, DType::F32)?;
    let bias = Elements::of("conv2d", bias, DType::F32)?;
    let task = task(Pass::Forward, g, x.dtype, arithmetic.precision);
    let wide = &task.geometry;
    let widened = resized(x, wide.in_channels)?;
    let weight = arrange_weight(g, weight, wide, x.dtype)?;
    let shape = (g.batch, g.out_height(), g.out_width(), wide.out_channels);
    let mut sums = empty(x.device, x.dtype, shape)?;
    let images = widened.as_ref().map_or(x, Buffer::elements);
    let tensors = [images, weight.elements(), sums.elements()];
    compute(arithmetic.conv_algorithm, task, tensors)?;
    if let Some(narrow) = resized(sums.elements(), g.out_channels)? {
        sums = narrow;
    }
    let relu = layer.activation == Activation::Relu;
    let (y, argmax) = match g.windows(layer.pool).map_err(Error::wrap)? {
        None => {
            let values = sums.elements();
            crate::relu::cuda::activate(values, Some(bias), &sums, g.out_channels, relu)?;
            (sums, None)
        }
        Some(windows) => {
            let sums = sums.elements();
            let (y, argmax) = crate::max_pool2d::cuda::pool(sums, Some(bias), windows, relu)?;
            (y, Some(argmax))
        }
    };
    let saved = Saved {
        x: widened,
        weight,
        argmax,
    };
    Ok((y.output(), saved))
}

/// The gradients, from the input `x`, the result `y` and the gradient of that.
pub(super) fn backward(
    saved: &Saved,
    (layer, arithmetic): (Conv2d, Arithmetic),
    g: &Geometry,
    (x, y, grad_y): (&Tensor, &Tensor, &Tensor),
    wants_x: bool,
) -> Result<Gradients> {
    let x = activations("conv2d", x)?;
    let grad_y = to_activations(grad_y, x.dtype)?;
    let grad_y = Elements::of("conv2d", &grad_y, x.dtype)?;
    let y = Elements::of("conv2d", y, x.dtype)?;
    let relu = layer.activation == Activation::Relu;
    let windows = g.windows(layer.pool).map_err(Error::wrap)?;
    // With respect to the sums.
    let computed = match (windows, &saved.argmax) {
        (Some(windows), Some(argmax)) => {
            let (y, argmax) = (relu.then_some(y), argmax.elements());
            Some(crate::max_pool2d::cuda::gradient(
                grad_y, y, argmax, windows,
            )?)
        }
        _ if relu => Some(crate::relu::cuda::gradient(y, grad_y)?),
        _ => None,
    };
    let gradient = computed.as_ref().map_or(grad_y, Buffer::elements);
    let bias = sum_rows(gradient, (g.batch * g.positions(), g.out_channels))?;

    let task = |pass| task(pass, g, x.dtype, arithmetic.precision);
    let algorithm = arithmetic.conv_algorithm;
    let wide = task(Pass::WeightGradient).geometry;
    let widened = resized(gradient, wide.out_channels)?;
    let gradient = widened.as_ref().map_or(gradient, Buffer::elements);
    let images = saved.x.as_ref().map_or(x, Buffer::elements);
    let arranged = empty(x.device, x.dtype, wide.weights())?;
    let tensors = [images, arranged.elements(), gradient];
    compute(algorithm, task(Pass::WeightGradient), tensors)?;
    let grad_weight = arrange_gradient(g, arranged.elements(), wide.in_channels)?;
    let grad_x = wants_x.then(|| {
        let shape = (g.batch, g.height, g.width, wide.in_channels);
        let grad_x = empty(x.device, x.dtype, shape)?;
        let tensors = [grad_x.elements(), saved.weight.elements(), gradient];
        compute(algorithm, task(Pass::InputGradient), tensors)?;
        let narrow = resized(grad_x.elements(), g.in_channels)?;
        Ok::<_, Error>(narrow.unwrap_or(grad_x).tensor())
    });
    Ok([grad_x.transpose()?, Some(grad_weight.tensor()), Some(bias)])
}

/// `x` `[batch, height, width, channels]` with `channels` channels: the last ones are dropped, or zeros
/// are added. `None` if `x` has them.
fn resized(x: Elements<'_>, channels: usize) -> Result<Option<Buffer>> {
    let (batch, height, width, from) = x.shape.dims4()?;
    if from == channels {
        return Ok(None);
    }
    let y = empty(x.device, x.dtype, (batch, height, width, channels))?;
    let count = y.elements().count();
    let sizes = [count, from, channels].map(Into::into);
    let arguments = [&[x.into(), (&y).into()], &sizes[..]].concat();
    let program = Program::packed(x.dtype, 1);
    launch(x.device, program, "resize_channels", count, &arguments)?;
    Ok(Some(y))
}

/// The weight `[out, in, kernel, kernel]` of `f32` as `[out, kernel, kernel, in]`, with the channels of `wide`.
fn arrange_weight(
    g: &Geometry,
    weight: Elements<'_>,
    wide: &Geometry,
    dtype: DType,
) -> Result<Buffer> {
    let count = wide.weights();
    let arranged = empty(weight.device, dtype, count)?;
    let sizes = [
        count,
        g.out_channels,
        g.in_channels,
        g.taps(),
        wide.in_channels,
    ];
    let memory = [weight.into(), (&arranged).into()];
    let arguments = [&memory[..], &sizes.map(Into::into)].concat();
    let program = Program::packed(dtype, 1);
    launch(weight.device, program, "arrange_weight", count, &arguments)?;
    Ok(arranged)
}

/// The inverse of [`arrange_weight`], for the gradient.
fn arrange_gradient(g: &Geometry, arranged: Elements<'_>, padded: usize) -> Result<Buffer> {
    let Elements { device, dtype, .. } = arranged;
    let shape = (g.out_channels, g.in_channels, g.kernel, g.kernel);
    let gradient = empty(device, dtype, shape)?;
    let sizes = [g.weights(), g.in_channels, g.taps(), padded];
    let memory = [arranged.into(), (&gradient).into()];
    let arguments = [&memory[..], &sizes.map(Into::into)].concat();
    let program = Program::packed(dtype, 1);
    launch(device, program, "arrange_gradient", g.weights(), &arguments)?;
    Ok(gradient)
}
