//! Convolution on a GPU: cuDNN for the sums, our own kernels for what follows them.
//!
//! cuDNN's images and weights are channels-last. If the channels are not a multiple of 16 bytes (three, in the first
//! layer's input), channels of zeros are added.

use super::Conv2d;
use crate::arithmetic::Arithmetic;
use crate::cuda::{
    Activations, Argument, Cudnn, Pass, Program, Task, contiguous, cudnn, gpu, launch, room, slice,
    sum_rows, tensor, to_activations, with_activations, with_workspace,
};
use crate::parametric::ParameterGradients;
use candle_core::backend::BackendStorage;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView, DevicePtr};
use candle_core::{CudaDevice, CudaStorage, DType, Error, Layout, Result, Tensor, bail};
use kernels::Activation;
use kernels::conv2d::Geometry;
use std::marker::PhantomData;
use std::rc::Rc;

/// What is saved for the backward pass.
pub(super) struct Saved {
    /// The images with padded channels, if those differ from the input's.
    x: Option<Tensor>,
    /// The weight in cuDNN's layout.
    weight: Tensor,
    /// With pooling, for each result the index of the maximum in its window.
    argmax: Option<CudaSlice<u8>>,
}

/// Images, weight and bias.
type Inputs<'a> = [(&'a CudaStorage, &'a Layout); 3];

/// The result, and what is saved for the backward pass.
pub(super) fn forward(
    layer: (Conv2d, Arithmetic),
    g: &Geometry,
    inputs: Inputs<'_>,
) -> Result<(CudaStorage, Saved)> {
    with_activations!("conv2d", inputs[0].0.dtype(), T => forward_in::<T>(layer, g, inputs))
}

/// The gradients, from the input `x`, the result `y` and the gradient of that.
pub(super) fn backward(
    saved: &Saved,
    layer: (Conv2d, Arithmetic),
    g: &Geometry,
    tensors: (&Tensor, &Tensor, &Tensor),
    wants_x: bool,
) -> Result<ParameterGradients> {
    with_activations!("conv2d", tensors.0.dtype(), T => {
        backward_in::<T>(saved, layer, g, tensors, wants_x)
    })
}

/// The same convolution with channels of zeros added up to multiples of 16 bytes.
fn padded<T: Activations>(g: &Geometry) -> Geometry {
    Geometry {
        in_channels: g.in_channels.next_multiple_of(T::PACK),
        out_channels: g.out_channels.next_multiple_of(T::PACK),
        ..*g
    }
}

fn forward_in<T: Activations>(
    (layer, arithmetic): (Conv2d, Arithmetic),
    g: &Geometry,
    [(x, x_layout), (weight, weight_layout), (bias, bias_layout)]: Inputs<'_>,
) -> Result<(CudaStorage, Saved)> {
    let device = x.device();
    let windows = g.windows(layer.pool).map_err(Error::wrap)?;
    let wide = padded::<T>(g);
    let x = contiguous::<T>("conv2d", x, x_layout)?;
    let weight = contiguous::<f32>("conv2d", weight, weight_layout)?;
    let bias = contiguous::<f32>("conv2d", bias, bias_layout)?;
    let pixels = g.batch * g.height * g.width;
    let widened = if wide.in_channels == g.in_channels {
        None
    } else {
        Some(resize(device, &x, pixels, g.in_channels, wide.in_channels)?)
    };
    let x = widened.as_ref().map_or(x, |widened| widened.as_view());
    let weight = arrange_weight::<T>(device, g, &weight, &wide)?;
    let mut sums = room::<T>(device, wide.batch * wide.out_image())?;
    Convolution::<T>::new(device, &wide, arithmetic)?.forward(&x, &weight.as_view(), &mut sums)?;
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
    let relu = layer.activation == Activation::Relu;
    let (y, argmax) = match windows {
        None => {
            crate::relu::cuda::activate(device, &mut sums, Some(&bias), g.out_channels, relu)?;
            (sums, None)
        }
        Some(windows) => {
            let sizes = (g.batch, windows, g.out_channels);
            let sums = sums.as_view();
            let (y, argmax) =
                crate::max_pool2d::cuda::pool(device, &sums, Some(&bias), sizes, relu)?;
            (y, Some(argmax))
        }
    };
    let x_shape = (g.batch, g.height, g.width, wide.in_channels);
    let weight_shape = (wide.out_channels, g.kernel, g.kernel, wide.in_channels);
    let saved = Saved {
        x: widened.map(|x| tensor(x, x_shape, device)),
        weight: tensor(weight, weight_shape, device),
        argmax,
    };
    Ok((CudaStorage::wrap_cuda_slice(y, device.clone()), saved))
}

fn backward_in<T: Activations>(
    saved: &Saved,
    (layer, arithmetic): (Conv2d, Arithmetic),
    g: &Geometry,
    (x, y, grad_y): (&Tensor, &Tensor, &Tensor),
    wants_x: bool,
) -> Result<ParameterGradients> {
    let Some(device) = gpu(x) else {
        bail!("conv2d: forward and backward on different devices");
    };
    let windows = g.windows(layer.pool).map_err(Error::wrap)?;
    let wide = padded::<T>(g);
    let relu = layer.activation == Activation::Relu;
    let grad_y = to_activations::<T>(grad_y)?;
    let ((y, y_layout), (grad_y, grad_layout)) =
        (y.storage_and_layout(), grad_y.storage_and_layout());
    let y = slice::<T>("conv2d", &y, y_layout)?;
    let grad_y = slice::<T>("conv2d", &grad_y, grad_layout)?;
    // With respect to the sums.
    let computed = match (windows, &saved.argmax) {
        (Some(windows), Some(argmax)) => Some(crate::max_pool2d::cuda::gradient(
            device,
            &grad_y,
            relu.then_some(&y),
            &argmax.as_view(),
            (g.batch, windows, g.out_channels),
        )?),
        _ if relu => Some(crate::relu::cuda::gradient(device, &y, &grad_y)?),
        _ => None,
    };
    let gradient = computed
        .as_ref()
        .map_or(grad_y, |gradient| gradient.as_view());

    let rows = g.batch * g.positions();
    let bias = sum_rows(device, &gradient, (rows, g.out_channels))?;

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
        saved.x.as_ref().unwrap_or(x).storage_and_layout(),
        saved.weight.storage_and_layout(),
    );
    let x = slice::<T>("conv2d", &x, x_layout)?;
    let weight = slice::<T>("conv2d", &weight, weight_layout)?;
    let convolution = Convolution::<T>::new(device, &wide, arithmetic)?;
    let mut arranged = room::<T>(device, wide.weights())?;
    convolution.weight_gradient(&x, &gradient, &mut arranged)?;
    let grad_weight = arrange_gradient(device, g, &arranged, wide.in_channels)?;
    let grad_x = wants_x
        .then(|| {
            let mut grad_x = room::<T>(device, wide.batch * wide.image())?;
            convolution.input_gradient(&weight, &gradient, &mut grad_x)?;
            if wide.in_channels != g.in_channels {
                let pixels = g.batch * g.height * g.width;
                let from = wide.in_channels;
                grad_x = resize(device, &grad_x.as_view(), pixels, from, g.in_channels)?;
            }
            let shape = (g.batch, g.height, g.width, g.in_channels);
            Ok::<_, Error>(tensor(grad_x, shape, device))
        })
        .transpose()?;
    Ok(ParameterGradients {
        x: grad_x,
        weight: grad_weight,
        bias,
    })
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
    weight: &CudaView<'_, f32>,
    wide: &Geometry,
) -> Result<CudaSlice<T>> {
    let count = wide.weights();
    let mut arranged = room::<T>(device, count)?;
    launch(
        device,
        Program::packed::<T>(1),
        "arrange_weight",
        count,
        &[
            Argument::read(device, weight),
            Argument::write(device, &mut arranged),
            count.into(),
            g.out_channels.into(),
            g.in_channels.into(),
            g.taps().into(),
            wide.in_channels.into(),
        ],
    )?;
    Ok(arranged)
}

/// The inverse of [`arrange_weight`], for the gradient.
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

/// One convolution by cuDNN.
struct Convolution<'a, T> {
    device: &'a CudaDevice,
    cudnn: Rc<Cudnn>,
    geometry: Geometry,
    arithmetic: Arithmetic,
    activations: PhantomData<T>,
}

impl<'a, T: Activations> Convolution<'a, T> {
    fn new(device: &'a CudaDevice, g: &Geometry, arithmetic: Arithmetic) -> Result<Self> {
        Ok(Self {
            device,
            cudnn: cudnn(device)?,
            geometry: *g,
            arithmetic,
            activations: PhantomData,
        })
    }

    /// Computes one of the three tensors from the two others.
    fn compute(
        &self,
        pass: Pass,
        x: &CudaView<'_, T>,
        weight: &CudaView<'_, T>,
        y: &CudaView<'_, T>,
    ) -> Result<()> {
        let g = &self.geometry;
        assert!(x.len() == g.batch * g.image() && weight.len() == g.weights());
        assert_eq!(y.len(), g.batch * g.out_image());
        let plan = self.cudnn.plan(Task {
            pass,
            geometry: self.geometry,
            bf16: T::DTYPE == DType::BF16,
            arithmetic: self.arithmetic,
        })?;
        let stream = self.device.cuda_stream();
        let addresses = [x, weight, y].map(|view| view.device_ptr(&stream).0);
        if addresses.iter().any(|address| address % 16 != 0) {
            bail!("conv2d: a tensor does not begin at a multiple of 16 bytes");
        }
        let bytes = plan.workspace;
        with_workspace(self.device, bytes, |workspace| {
            let workspace = workspace.device_ptr(&stream).0;
            // SAFETY: the lengths and the alignment were checked, the workspace has at least the plan's size, and
            // freeing the memory is ordered behind the work, on the same stream.
            unsafe { self.cudnn.execute(&plan, addresses, workspace) }
        })
    }

    fn forward(
        &self,
        x: &CudaView<'_, T>,
        weight: &CudaView<'_, T>,
        y: &mut CudaSlice<T>,
    ) -> Result<()> {
        self.compute(Pass::Forward, x, weight, &y.as_view())
    }

    fn input_gradient(
        &self,
        weight: &CudaView<'_, T>,
        grad_y: &CudaView<'_, T>,
        grad_x: &mut CudaSlice<T>,
    ) -> Result<()> {
        self.compute(Pass::InputGradient, &grad_x.as_view(), weight, grad_y)
    }

    fn weight_gradient(
        &self,
        x: &CudaView<'_, T>,
        grad_y: &CudaView<'_, T>,
        gradient: &mut CudaSlice<T>,
    ) -> Result<()> {
        self.compute(Pass::WeightGradient, x, &gradient.as_view(), grad_y)
    }
}
