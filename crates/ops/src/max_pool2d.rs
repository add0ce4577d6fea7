//! Max-pooling.

use crate::operation::{Gradients, Inputs, Operation, Output, in_graph, only};
use crate::storage::{output, with_dtype, with_slices};
use candle_core::{Error, Result, Tensor, bail};
use kernels::{Pool, Windows};
use std::sync::OnceLock;

/// The maximum over the windows of `x` `[batch, height, width, channels]`; windows that do not fit
/// are omitted. Gives
/// `[batch, (height - kernel) / stride + 1, (width - kernel) / stride + 1, channels]`.
///
/// Of equal values the first in row-major order is the maximum, and a NaN is larger than any value, as in PyTorch.
///
/// # Errors
/// When no window fits, or the tensor is not `f32`, `bf16` or, on a CPU, `f64`.
pub fn max_pool2d(x: &Tensor, pool: Pool) -> Result<Tensor> {
    in_graph(MaxPool2d::new(pool), [x; 3])
}

/// Batch size, windows and channels of `x` `[batch, height, width, channels]`.
///
/// # Errors
/// When no window fits.
pub(crate) fn windows(x: &Tensor, pool: Pool) -> Result<(usize, Windows, usize)> {
    let (batch, height, width, channels) = x.dims4()?;
    let windows = Windows::new(pool, height, width).map_err(Error::wrap)?;
    Ok((batch, windows, channels))
}

pub(crate) struct MaxPool2d {
    pool: Pool,
    saved: OnceLock<Argmax>,
}

/// For each output, the index of the maximum in its window.
pub(crate) enum Argmax {
    Cpu(Vec<u8>),
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::Buffer),
}

impl MaxPool2d {
    pub(crate) fn new(pool: Pool) -> Self {
        let saved = OnceLock::new();
        Self { pool, saved }
    }
}

impl Operation for MaxPool2d {
    fn name(&self) -> &'static str {
        "max-pool2d"
    }

    fn forward(&self, [x, ..]: Inputs) -> Result<Output> {
        let (batch, windows, channels) = windows(x, self.pool)?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let x = crate::cuda::activations("max-pool2d", x)?;
            let (y, argmax) = cuda::pool(x, None, windows, false)?;
            let _ = self.saved.set(Argmax::Cuda(argmax));
            return Ok(y.output());
        }
        with_dtype!("max-pool2d", x.dtype(), T => {
            let (y, argmax) = with_slices::<T, _, 1>("max-pool2d", [x], |[x]| {
                kernels::max_pool2d::forward(&windows, (batch, channels), x)
            })?;
            let _ = self.saved.set(Argmax::Cpu(argmax));
            Ok(output(y, (batch, windows.rows(), windows.columns(), channels)))
        })
    }

    fn backward(&self, [x, ..]: Inputs, [_, grad_y]: [&Tensor; 2], _: bool) -> Result<Gradients> {
        let (batch, windows, channels) = windows(x, self.pool)?;
        let argmax = match self.saved.get() {
            Some(Argmax::Cpu(argmax)) => argmax,
            #[cfg(feature = "cuda")]
            Some(Argmax::Cuda(argmax)) => {
                let grad_y = crate::cuda::Elements::of("max-pool2d", grad_y, x.dtype())?;
                let grad_x = cuda::gradient(grad_y, None, argmax.elements(), windows)?;
                return only(grad_x.tensor());
            }
            None => bail!("max-pool2d: backward before forward"),
        };
        with_dtype!("max-pool2d", x.dtype(), T => {
            let grad_x = with_slices::<T, _, 1>("max-pool2d", [grad_y], |[grad_y]| {
                kernels::max_pool2d::backward(&windows, (batch, channels), grad_y, argmax)
            })?;
            only(Tensor::from_vec(grad_x, x.shape(), x.device())?)
        })
    }
}

#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    use crate::cuda::{Argument, Buffer, Elements, Program, empty, launch};
    use candle_core::{DType, Result};
    use kernels::Windows;

    /// The maxima of the activations `x` `[batch, height, width, channels]`, with bias and ReLU, and the index of each in
    /// its window.
    pub(crate) fn pool(
        x: Elements<'_>,
        bias: Option<Elements<'_>>,
        windows: Windows,
        relu: bool,
    ) -> Result<(Buffer, Buffer)> {
        let (batch, _, _, channels) = x.shape.dims4()?;
        assert_eq!(x.count(), batch * windows.pixels() * channels);
        let shape = (batch, windows.rows(), windows.columns(), channels);
        let y = empty(x.device, x.dtype, shape)?;
        let argmax = empty(x.device, DType::U8, shape)?;
        let program = Program::packed(x.dtype, channels);
        let packs = program.packs(y.elements().count());
        let memory = [
            x.into(),
            Argument::maybe(bias),
            (&y).into(),
            (&argmax).into(),
        ];
        let arguments = [
            &memory[..],
            &[packs.into(), channels.into()],
            &Argument::windows(windows),
            &[relu.into()],
        ];
        launch(x.device, program, "pool", packs, &arguments.concat())?;
        Ok((y, argmax))
    }

    /// The gradient of [`pool`] with respect to `x`; `y` is its result if it had a ReLU.
    pub(crate) fn gradient(
        grad_y: Elements<'_>,
        y: Option<Elements<'_>>,
        argmax: Elements<'_>,
        windows: Windows,
    ) -> Result<Buffer> {
        let (batch, _, _, channels) = grad_y.shape.dims4()?;
        let pooled = batch * windows.count() * channels;
        assert!(grad_y.count() == pooled && argmax.count() == pooled);
        assert!(y.is_none_or(|y| y.count() == pooled));
        let shape = (batch, windows.height, windows.width, channels);
        let grad_x = empty(grad_y.device, grad_y.dtype, shape)?;
        let program = Program::packed(grad_y.dtype, channels);
        let packs = program.packs(grad_x.elements().count());
        let memory = [
            grad_y.into(),
            Argument::maybe(y),
            argmax.into(),
            (&grad_x).into(),
        ];
        let arguments = [
            &memory[..],
            &[packs.into(), channels.into()],
            &Argument::windows(windows),
        ];
        launch(
            grad_y.device,
            program,
            "pool_gradient",
            packs,
            &arguments.concat(),
        )?;
        Ok(grad_x)
    }
}
