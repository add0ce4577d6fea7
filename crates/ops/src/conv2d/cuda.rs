//! Convolution on a GPU: cuDNN for the sums, kernels of our own for what follows them.
//!
//! Images and weights are given to cuDNN channels last. Where channels are no multiple of 16 bytes (three, at
//! the entrance of the first layer), channels of zeros are added.

use super::Conv2d;
use super::geometry::Geometry;
use crate::Activation;
use crate::cuda::{
    Activations, Argument, Libraries, Pass, Plan, Program, Target, Task, launch, libraries,
    narrowed, room, slice, tensor, with_activations,
};
use crate::max_pool2d::Windows;
use crate::precision::Arithmetic;
use crate::tape::ParameterGradients;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView, DevicePtr};
use candle_core::{CudaDevice, DType, Result, Tensor, bail};
use std::marker::PhantomData;
use std::rc::Rc;

/// What the gradient needs of a convolution that was computed.
pub(crate) struct Kept {
    /// The images as cuDNN got them.
    x: Tensor,
    /// The weight as cuDNN got it.
    weight: Tensor,
    /// For each result, the place of the maximum in its window, where there is pooling.
    places: Option<CudaSlice<u8>>,
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

/// One convolution on cuDNN.
struct Cudnn<'a, T> {
    device: &'a CudaDevice,
    libraries: Rc<Libraries>,
    geometry: Geometry,
    arithmetic: Arithmetic,
    activations: PhantomData<T>,
}

impl<'a, T: Activations> Cudnn<'a, T> {
    fn new(device: &'a CudaDevice, g: &Geometry, arithmetic: Arithmetic) -> Result<Self> {
        Ok(Self {
            device,
            libraries: libraries(device)?,
            geometry: *g,
            arithmetic,
            activations: PhantomData,
        })
    }

    /// The plan that was made for this shape before, or that is made now.
    fn plan(&self, pass: Pass) -> Result<Rc<Plan>> {
        let task = Task {
            pass,
            geometry: self.geometry,
            bf16: T::DTYPE == DType::BF16,
            arithmetic: self.arithmetic,
        };
        let known = self.libraries.convolutions.borrow().get(&task).cloned();
        if let Some(plan) = known {
            return Ok(plan);
        }
        let plan = Rc::new(Plan::new(&Target::Device(&self.libraries.cudnn), &task)?);
        tracing::debug!(?task, workspace = plan.workspace, "convolution planned");
        let mut plans = self.libraries.convolutions.borrow_mut();
        plans.insert(task, plan.clone());
        Ok(plan)
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
        let plan = self.plan(pass)?;
        let stream = self.device.cuda_stream();
        let addresses = [x, weight, y].map(|view| view.device_ptr(&stream).0);
        if addresses.iter().any(|address| address % 16 != 0) {
            bail!("conv2d: a tensor does not begin at a multiple of 16 bytes");
        }
        let bytes = plan.workspace;
        self.libraries
            .with_workspace(self.device, bytes, |workspace| {
                let workspace = workspace.device_ptr(&stream).0;
                // SAFETY: the lengths and the alignment were checked, the workspace has at least the size asked for,
                // and whatever gives the memory back is ordered behind the work, on the same stream.
                unsafe { plan.execute(&self.libraries.cudnn, addresses, workspace) }
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
