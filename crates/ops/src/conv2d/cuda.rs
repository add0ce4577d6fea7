//! Convolution on a GPU: cuDNN for the sums, kernels of our own for what follows them.
//!
//! Images and weights are given to cuDNN channels last. Where channels are no multiple of 16 bytes (three, at
//! the entrance of the first layer), channels of zeros are added.

use super::geometry::Geometry;
use super::{Conv2d, Convolution};
use crate::Activation;
use crate::cuda::{
    Activations, Argument, Libraries, Program, launch, libraries, narrowed, room, slice, tensor,
    with_activations,
};
use crate::max_pool2d::Windows;
use crate::precision::{Arithmetic, Precision};
use crate::tape::ParameterGradients;
use candle_core::cuda::cudarc::cudnn::{
    ConvBackwardData, ConvBackwardFilter, ConvDescriptor, ConvForward, CudnnError,
    FilterDescriptor, TensorDescriptor, sys,
};
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaDevice, Error, Result, Tensor};
use sys::cudnnConvolutionBwdDataAlgo_t as DataAlgorithm;
use sys::cudnnConvolutionBwdFilterAlgo_t as FilterAlgorithm;
use sys::cudnnConvolutionFwdAlgo_t as ForwardAlgorithm;

/// What the gradient needs of a convolution that was computed.
pub(crate) struct Kept {
    /// The images as cuDNN got them.
    x: Tensor,
    /// The weight as cuDNN got it.
    weight: Tensor,
    /// For each result, the place of the maximum in its window, where there is pooling.
    places: Option<CudaSlice<u8>>,
}

/// What decides which algorithm is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Task {
    pass: Pass,
    geometry: Geometry,
    arithmetic: Arithmetic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Pass {
    Forward,
    InputGradient,
    WeightGradient,
}

/// The algorithm that is used, and the bytes that it needs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chosen {
    Forward(ForwardAlgorithm, usize),
    InputGradient(DataAlgorithm, usize),
    WeightGradient(FilterAlgorithm, usize),
}

/// As [`super::Computed::forward`].
pub(super) fn forward(
    layer: Conv2d,
    arithmetic: Arithmetic,
    device: &CudaDevice,
    g: &Geometry,
    (x, weight, bias): (&Tensor, &Tensor, &Tensor),
    windows: Option<Windows>,
) -> Result<(Tensor, Kept)> {
    with_activations!("conv2d", x.dtype(), T => {
        forward_in::<T>(layer, arithmetic, device, g, (x, weight, bias), windows)
    })
}

/// As [`super::Computed::backward`].
pub(super) fn backward(
    kept: &Kept,
    (layer, arithmetic): (Conv2d, Arithmetic),
    device: &CudaDevice,
    g: &Geometry,
    (y, grad_y): (&Tensor, &Tensor),
    windows: Option<Windows>,
    wants_x: bool,
) -> Result<ParameterGradients> {
    with_activations!("conv2d", y.dtype(), T => {
        backward_in::<T>(kept, (layer, arithmetic), device, g, (y, grad_y), windows, wants_x)
    })
}

/// The same convolution with channels of zeros added until their numbers are multiples of 16 bytes.
fn padded<T: Activations>(g: &Geometry) -> Geometry {
    Geometry {
        in_channels: g.in_channels.next_multiple_of(T::PACK),
        out_channels: g.out_channels.next_multiple_of(T::PACK),
        ..*g
    }
}

fn forward_in<T: Activations>(
    layer: Conv2d,
    arithmetic: Arithmetic,
    device: &CudaDevice,
    g: &Geometry,
    (x, weight, bias): (&Tensor, &Tensor, &Tensor),
    windows: Option<Windows>,
) -> Result<(Tensor, Kept)> {
    let wide = padded::<T>(g);
    let x = resize_channels::<T>(device, x, wide.in_channels)?;
    let weight = arrange_weight::<T>(device, g, weight, &wide)?;
    let mut sums = room::<T>(device, wide.batch * wide.out_image())?;
    {
        let ((x, x_layout), (weight, weight_layout)) =
            (x.storage_and_layout(), weight.storage_and_layout());
        Cudnn::<T>::new(device, &wide, arithmetic)?.forward(
            &slice("conv2d", &x, x_layout)?,
            &slice("conv2d", &weight, weight_layout)?,
            &mut sums,
        )?;
    }
    if wide.out_channels != g.out_channels {
        let pixels = wide.batch * wide.positions();
        sums = resize(
            device,
            &sums.as_view(),
            pixels,
            wide.out_channels,
            g.out_channels,
        )?;
    }
    let (bias, bias_layout) = bias.storage_and_layout();
    let bias = slice::<f32>("conv2d", &bias, bias_layout)?;
    let relu = layer.activation == Activation::Relu;
    let (y, places) = match windows {
        None => {
            crate::relu::cuda::activate(device, &mut sums, Some(&bias), g.out_channels, relu)?;
            let shape = (g.batch, g.out_height(), g.out_width(), g.out_channels);
            (tensor(sums, shape, device), None)
        }
        Some(windows) => {
            let shape = (g.batch, windows.rows(), windows.columns(), g.out_channels);
            let (y, places) = crate::max_pool2d::cuda::pool(
                device,
                &sums.as_view(),
                Some(&bias),
                (g.batch, windows, g.out_channels),
                relu,
            )?;
            (tensor(y, shape, device), Some(places))
        }
    };
    Ok((y, Kept { x, weight, places }))
}

fn backward_in<T: Activations>(
    kept: &Kept,
    (layer, arithmetic): (Conv2d, Arithmetic),
    device: &CudaDevice,
    g: &Geometry,
    (y, grad_y): (&Tensor, &Tensor),
    windows: Option<Windows>,
    wants_x: bool,
) -> Result<ParameterGradients> {
    let wide = padded::<T>(g);
    let relu = layer.activation == Activation::Relu;
    let grad_y = narrowed_to::<T>(grad_y)?;
    let ((y, y_layout), (grad_y, grad_layout)) =
        (y.storage_and_layout(), grad_y.storage_and_layout());
    let y = slice::<T>("conv2d", &y, y_layout)?;
    let grad_y = slice::<T>("conv2d", &grad_y, grad_layout)?;
    // With respect to the sums.
    let computed = match (windows, &kept.places) {
        (Some(windows), Some(places)) => Some(crate::max_pool2d::cuda::gradient(
            device,
            &grad_y,
            relu.then_some(&y),
            &places.as_view(),
            (g.batch, windows, g.out_channels),
        )?),
        _ if relu => Some(crate::relu::cuda::gradient(device, &y, &grad_y)?),
        _ => None,
    };
    let gradient = computed
        .as_ref()
        .map_or(grad_y, |gradient| gradient.as_view());

    let rows = g.batch * g.positions();
    let bias = crate::linear::cuda::sum_rows(device, &gradient, (rows, g.out_channels))?;

    let widened = if wide.out_channels == g.out_channels {
        None
    } else {
        let (from, to) = (g.out_channels, wide.out_channels);
        Some(resize(device, &gradient, rows, from, to)?)
    };
    let gradient = widened
        .as_ref()
        .map_or(gradient, |gradient| gradient.as_view());
    let ((x, x_layout), (weight, weight_layout)) = (
        kept.x.storage_and_layout(),
        kept.weight.storage_and_layout(),
    );
    let x = slice::<T>("conv2d", &x, x_layout)?;
    let weight = slice::<T>("conv2d", &weight, weight_layout)?;
    let cudnn = Cudnn::<T>::new(device, &wide, arithmetic)?;
    let mut arranged = room::<T>(device, wide.weights())?;
    cudnn.weight_gradient(&x, &gradient, &mut arranged)?;
    let grad_weight = arrange_gradient(device, g, &arranged, wide.in_channels)?;
    let grad_x = wants_x
        .then(|| {
            let mut grad_x = room::<T>(device, wide.batch * wide.image())?;
            cudnn.input_gradient(&weight, &gradient, &mut grad_x)?;
            let shape = (g.batch, g.height, g.width, wide.in_channels);
            resize_channels::<T>(device, &tensor(grad_x, shape, device), g.in_channels)
        })
        .transpose()?;
    Ok(ParameterGradients {
        x: grad_x,
        weight: grad_weight,
        bias,
    })
}

/// A gradient in the type of activations; it comes in `f32` where the layer's result was the last.
pub(crate) fn narrowed_to<T: Activations>(gradient: &Tensor) -> Result<Tensor> {
    if gradient.dtype() == T::DTYPE {
        Ok(gradient.clone())
    } else {
        narrowed::<T>(gradient)
    }
}

/// `x` `[batch, height, width, channels]` with `to` channels.
fn resize_channels<T: Activations>(device: &CudaDevice, x: &Tensor, to: usize) -> Result<Tensor> {
    let (batch, height, width, from) = x.dims4()?;
    if from == to {
        return Ok(x.clone());
    }
    let (x, layout) = x.storage_and_layout();
    let x = slice::<T>("conv2d", &x, layout)?;
    let y = resize(device, &x, batch * height * width, from, to)?;
    Ok(tensor(y, (batch, height, width, to), device))
}

/// `x` `[pixels, from]` with `to` channels: what is too much is dropped, what lacks is 0.
fn resize<T: Activations>(
    device: &CudaDevice,
    x: &CudaView<'_, T>,
    pixels: usize,
    from: usize,
    to: usize,
) -> Result<CudaSlice<T>> {
    assert_eq!(x.len(), pixels * from);
    let mut y = room::<T>(device, pixels * to)?;
    launch(
        device,
        Program::packed::<T>(1),
        "resize_channels",
        pixels * to,
        &[
            Argument::read(device, x),
            Argument::write(device, &mut y),
            (pixels * to).into(),
            from.into(),
            to.into(),
        ],
    )?;
    Ok(y)
}

/// The weight `[out, in, kernel, kernel]` of `f32` as `[out, kernel, kernel, in]`, with the channels of `wide`.
fn arrange_weight<T: Activations>(
    device: &CudaDevice,
    g: &Geometry,
    weight: &Tensor,
    wide: &Geometry,
) -> Result<Tensor> {
    let count = wide.weights();
    let mut arranged = room::<T>(device, count)?;
    let (weight, layout) = weight.storage_and_layout();
    let weight = slice::<f32>("conv2d", &weight, layout)?;
    launch(
        device,
        Program::packed::<T>(1),
        "arrange_weight",
        count,
        &[
            Argument::read(device, &weight),
            Argument::write(device, &mut arranged),
            count.into(),
            g.out_channels.into(),
            g.in_channels.into(),
            g.taps().into(),
            wide.in_channels.into(),
        ],
    )?;
    let shape = (wide.out_channels, g.kernel, g.kernel, wide.in_channels);
    Ok(tensor(arranged, shape, device))
}

/// The way back, for the weight's gradient.
fn arrange_gradient<T: Activations>(
    device: &CudaDevice,
    g: &Geometry,
    arranged: &CudaSlice<T>,
    padded: usize,
) -> Result<Tensor> {
    let count = g.weights();
    let mut gradient = room::<T>(device, count)?;
    launch(
        device,
        Program::packed::<T>(1),
        "arrange_gradient",
        count,
        &[
            Argument::read(device, &arranged.as_view()),
            Argument::write(device, &mut gradient),
            count.into(),
            g.in_channels.into(),
            g.taps().into(),
            padded.into(),
        ],
    )?;
    let shape = (g.out_channels, g.in_channels, g.kernel, g.kernel);
    Ok(tensor(gradient, shape, device))
}

/// One convolution as cuDNN knows it.
struct Cudnn<'a, T> {
    device: &'a CudaDevice,
    libraries: std::rc::Rc<Libraries>,
    geometry: Geometry,
    arithmetic: Arithmetic,
    convolution: ConvDescriptor<f32>,
    x: TensorDescriptor<T>,
    weight: FilterDescriptor<T>,
    y: TensorDescriptor<T>,
}

fn failed(error: CudnnError) -> Error {
    crate::cuda::failed(error)
}

impl<'a, T: Activations> Cudnn<'a, T> {
    fn new(device: &'a CudaDevice, g: &Geometry, arithmetic: Arithmetic) -> Result<Self> {
        let libraries = libraries(device)?;
        let cudnn = &libraries.cudnn;
        let number = |value: usize| i32::try_from(value).map_err(Error::wrap);
        let padding = number(g.padding)?;
        let mut convolution = cudnn
            .create_conv2d::<f32>(
                [padding; 2],
                [1; 2],
                [1; 2],
                sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
            )
            .map_err(failed)?;
        convolution
            .set_math_type(match arithmetic.precision {
                // The default would compute in TF32 where the device can.
                Precision::F32 => sys::cudnnMathType_t::CUDNN_FMA_MATH,
                Precision::Tf32 | Precision::Bf16 => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
            })
            .map_err(failed)?;
        let last = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let [batch, in_channels, out_channels, kernel] =
            [g.batch, g.in_channels, g.out_channels, g.kernel].map(number);
        let (batch, in_channels, out_channels, kernel) =
            (batch?, in_channels?, out_channels?, kernel?);
        // The order of the numbers is that of channels first, whatever the format.
        let x = [batch, in_channels, number(g.height)?, number(g.width)?];
        let y = [
            batch,
            out_channels,
            number(g.out_height())?,
            number(g.out_width())?,
        ];
        let weight = [out_channels, in_channels, kernel, kernel];
        Ok(Self {
            device,
            x: cudnn.create_4d_tensor(last, x).map_err(failed)?,
            y: cudnn.create_4d_tensor(last, y).map_err(failed)?,
            weight: cudnn.create_4d_filter(last, weight).map_err(failed)?,
            libraries,
            geometry: *g,
            arithmetic,
            convolution,
        })
    }

    /// What was chosen for this shape before, or what `choose` chooses now.
    fn chosen(
        &self,
        pass: Pass,
        choose: impl FnOnce() -> std::result::Result<Chosen, CudnnError>,
    ) -> Result<Chosen> {
        let task = Task {
            pass,
            geometry: self.geometry,
            arithmetic: self.arithmetic,
        };
        let known = self.libraries.convolutions.borrow().get(&task).copied();
        if let Some(chosen) = known {
            return Ok(chosen);
        }
        let chosen = choose().map_err(failed)?;
        tracing::debug!(?task, ?chosen, "convolution");
        self.libraries
            .convolutions
            .borrow_mut()
            .insert(task, chosen);
        Ok(chosen)
    }

    fn forward(
        &self,
        x: &CudaView<'_, T>,
        weight: &CudaView<'_, T>,
        y: &mut CudaSlice<T>,
    ) -> Result<()> {
        let operation = ConvForward {
            conv: &self.convolution,
            x: &self.x,
            w: &self.weight,
            y: &self.y,
        };
        let chosen = self.chosen(Pass::Forward, || {
            let picked = operation.pick_algorithm()?;
            let algorithm = forward_algorithm(picked, self.arithmetic.convolution);
            Ok(Chosen::Forward(
                algorithm,
                operation.get_workspace_size(algorithm)?,
            ))
        })?;
        let Chosen::Forward(algorithm, bytes) = chosen else {
            candle_core::bail!("conv2d: no algorithm for the forward pass");
        };
        self.libraries
            .with_workspace(self.device, bytes, |workspace| {
                let factors = (T::ONE, T::ZERO);
                // SAFETY: the memory is as large as the descriptors say, which `Geometry` and `room` made from
                // the same sizes; the workspace is as large as was asked for.
                unsafe { operation.launch(algorithm, Some(workspace), factors, x, weight, y) }
                    .map_err(failed)
            })
    }

    fn input_gradient(
        &self,
        weight: &CudaView<'_, T>,
        grad_y: &CudaView<'_, T>,
        grad_x: &mut CudaSlice<T>,
    ) -> Result<()> {
        let operation = ConvBackwardData {
            conv: &self.convolution,
            dx: &self.x,
            w: &self.weight,
            dy: &self.y,
        };
        let chosen = self.chosen(Pass::InputGradient, || {
            let picked = operation.pick_algorithm()?;
            let algorithm = data_algorithm(picked, self.arithmetic.convolution);
            Ok(Chosen::InputGradient(
                algorithm,
                operation.get_workspace_size(algorithm)?,
            ))
        })?;
        let Chosen::InputGradient(algorithm, bytes) = chosen else {
            candle_core::bail!("conv2d: no algorithm for the gradient of the input");
        };
        self.libraries
            .with_workspace(self.device, bytes, |workspace| {
                let factors = (T::ONE, T::ZERO);
                // SAFETY: as in `forward`.
                unsafe {
                    operation.launch(algorithm, Some(workspace), factors, grad_x, weight, grad_y)
                }
                .map_err(failed)
            })
    }

    fn weight_gradient(
        &self,
        x: &CudaView<'_, T>,
        grad_y: &CudaView<'_, T>,
        gradient: &mut CudaSlice<T>,
    ) -> Result<()> {
        let operation = ConvBackwardFilter {
            conv: &self.convolution,
            x: &self.x,
            dw: &self.weight,
            dy: &self.y,
        };
        let chosen = self.chosen(Pass::WeightGradient, || {
            let picked = operation.pick_algorithm()?;
            let algorithm = filter_algorithm(picked, self.arithmetic.convolution);
            Ok(Chosen::WeightGradient(
                algorithm,
                operation.get_workspace_size(algorithm)?,
            ))
        })?;
        let Chosen::WeightGradient(algorithm, bytes) = chosen else {
            candle_core::bail!("conv2d: no algorithm for the gradient of the weight");
        };
        self.libraries
            .with_workspace(self.device, bytes, |workspace| {
                let factors = (T::ONE, T::ZERO);
                // SAFETY: as in `forward`.
                unsafe {
                    operation.launch(algorithm, Some(workspace), factors, x, gradient, grad_y)
                }
                .map_err(failed)
            })
    }
}

// cuDNN's heuristics look at the sizes and the device alone, so that their choice is the same in every
// run. It is overruled where it adds in an order that changes from run to run (the reference of
// `cudnnConvolutionBackwardFilter` and `...Data` names those algorithms), and, for
// `Convolution::Direct`, where it computes in a transform domain.

fn forward_algorithm(picked: ForwardAlgorithm, convolution: Convolution) -> ForwardAlgorithm {
    use ForwardAlgorithm as A;
    match picked {
        A::CUDNN_CONVOLUTION_FWD_ALGO_FFT
        | A::CUDNN_CONVOLUTION_FWD_ALGO_FFT_TILING
        | A::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD
        | A::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED
            if convolution == Convolution::Direct =>
        {
            A::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM
        }
        picked => picked,
    }
}

fn data_algorithm(picked: DataAlgorithm, convolution: Convolution) -> DataAlgorithm {
    use DataAlgorithm as A;
    match picked {
        A::CUDNN_CONVOLUTION_BWD_DATA_ALGO_0 => A::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1,
        A::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1 => picked,
        _ if convolution == Convolution::Direct => A::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1,
        picked => picked,
    }
}

fn filter_algorithm(picked: FilterAlgorithm, convolution: Convolution) -> FilterAlgorithm {
    use FilterAlgorithm as A;
    match picked {
        A::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0 | A::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_3 => {
            A::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1
        }
        A::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1 => picked,
        _ if convolution == Convolution::Direct => A::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1,
        picked => picked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_algorithms_that_add_in_a_fixed_order_are_used() {
        let zero = DataAlgorithm::CUDNN_CONVOLUTION_BWD_DATA_ALGO_0;
        for way in Convolution::ALL {
            assert_ne!(data_algorithm(zero, way), zero);
            for picked in [
                FilterAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0,
                FilterAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_3,
            ] {
                assert_eq!(
                    filter_algorithm(picked, way),
                    FilterAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1
                );
            }
        }
    }

    #[test]
    fn direct_convolutions_stay_out_of_transform_domains() {
        let picked = ForwardAlgorithm::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED;
        assert_eq!(forward_algorithm(picked, Convolution::Fast), picked);
        assert_eq!(
            forward_algorithm(picked, Convolution::Direct),
            ForwardAlgorithm::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM
        );
        assert_eq!(
            filter_algorithm(
                FilterAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_FFT,
                Convolution::Direct
            ),
            FilterAlgorithm::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1
        );
    }
}
