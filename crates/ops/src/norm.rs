//! The norm of gradients, and gradient clipping.

use crate::storage::{with_dtype, with_slices};
use candle_core::{Device, Result, Tensor};

/// What `torch.nn.utils.clip_grad_norm_` adds to the norm before it divides by it.
const EPSILON: f64 = 1e-6;

/// The factor of all gradients in gradient clipping. That of gradients on a GPU stays there.
pub struct GradientScale(pub(crate) Factor);

pub(crate) enum Factor {
    Host(f64),
    /// One element of `f32`.
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::Buffer),
}

impl GradientScale {
    /// No clipping.
    pub const ONE: Self = Self(Factor::Host(1.0));

    /// The factor that `torch.nn.utils.clip_grad_norm_` computes, `min(1, max_norm / (norm + 1e-6))`, with the [`norm`] of
    /// all gradients together; 1 where that is a NaN. A GPU is not waited for.
    ///
    /// # Errors
    /// As for [`norm`].
    pub fn clipping(gradients: &[&Tensor], max_norm: f64) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(squares) = cuda::sum_of_squares(gradients)? {
            return cuda::clip_factor(&squares, max_norm).map(|factor| Self(Factor::Cuda(factor)));
        }
        let factor = max_norm / (norm(gradients)? + EPSILON);
        Ok(Self(Factor::Host(factor.min(1.0))))
    }

    /// The factor, if it is not on a GPU.
    pub(crate) fn on_host(&self) -> Result<f64> {
        match self.0 {
            Factor::Host(factor) => Ok(factor),
            #[cfg(feature = "cuda")]
            Factor::Cuda(_) => candle_core::bail!("the gradient scale is on a GPU"),
        }
    }
}

impl From<f64> for GradientScale {
    /// A factor on the host, for tensors on a CPU.
    fn from(factor: f64) -> Self {
        Self(Factor::Host(factor))
    }
}

/// The norm of gradients, in memory of their device: measuring it does not wait for a GPU and can be captured in a CUDA
/// graph, whose replays measure it again.
pub struct GradientNorm(Measured);

enum Measured {
    Host(Option<f64>),
    /// Its square.
    #[cfg(feature = "cuda")]
    Cuda(cuda::Square),
}

impl GradientNorm {
    /// Not measured yet, for gradients on `device`.
    ///
    /// # Errors
    /// When the device is out of memory.
    #[cfg_attr(not(feature = "cuda"), allow(clippy::unnecessary_wraps))]
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self(match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Measured::Cuda(cuda::Square::new(device)?),
            _ => Measured::Host(None),
        }))
    }

    /// Measures the [`norm`] of all `gradients` together. A GPU is not waited for.
    ///
    /// # Errors
    /// As for [`norm`].
    pub fn measure(&mut self, gradients: &[&Tensor]) -> Result<()> {
        match &mut self.0 {
            Measured::Host(measured) => *measured = Some(norm(gradients)?),
            #[cfg(feature = "cuda")]
            Measured::Cuda(square) => square.measure(gradients)?,
        }
        Ok(())
    }

    /// The norm that was measured last, if there is one. A GPU is synchronised.
    ///
    /// # Errors
    /// When a GPU fails.
    #[cfg_attr(not(feature = "cuda"), allow(clippy::unnecessary_wraps))]
    pub fn get(&self) -> Result<Option<f64>> {
        match &self.0 {
            Measured::Host(measured) => Ok(*measured),
            #[cfg(feature = "cuda")]
            Measured::Cuda(square) => Ok(square.get()?.map(f64::sqrt)),
        }
    }
}

/// The square root of the sum of all squares of all `tensors`, summed in double precision in an order that does not
/// depend on threads. A GPU is synchronised.
///
/// # Errors
/// When a tensor is neither `f32` nor `f64`, or, on a GPU, neither `f32` nor `bf16`.
pub fn norm(tensors: &[&Tensor]) -> Result<f64> {
    #[cfg(feature = "cuda")]
    if let Some(squares) = cuda::sum_of_squares(tensors)? {
        return Ok(squares
            .tensor()
            .to_vec1::<f64>()?
            .iter()
            .sum::<f64>()
            .sqrt());
    }
    let sums = tensors.iter().map(|tensor| {
        let tensor = &tensor.contiguous()?;
        with_dtype!("norm", tensor.dtype(), T => {
            with_slices::<T, _, 1>("norm", [tensor], |[values]| kernels::sgd::sum_of_squares(values))
        })
    });
    Ok(sums.sum::<Result<f64>>()?.sqrt())
}

#[cfg(feature = "cuda")]
mod cuda {
    use crate::cuda::{
        Argument, Buffer, CREW, GROUP, Program, Update, activations, empty, launch, launch_tables,
    };
    use candle_core::cuda::cudarc::driver::CudaSlice;
    use candle_core::{CudaDevice, DType, Device, Result, Tensor, bail};

    /// Elements of a group of threads: `NORM_CHUNK` in the kernels' source.
    const CHUNK: usize = 16_384;

    /// The sum of the squares of all tensors, one element of `f64`, in an order that depends on their sizes alone; `None`
    /// where they are not on a GPU.
    pub(super) fn sum_of_squares(tensors: &[&Tensor]) -> Result<Option<Buffer>> {
        let Some(Device::Cuda(device)) = tensors.first().map(|tensor| tensor.device()) else {
            return Ok(None);
        };
        let tensors = tensors.iter().map(|tensor| {
            Ok(Update {
                parameter: None,
                buffer: None,
                gradient: activations("norm", tensor)?,
            })
        });
        let tensors: Vec<_> = tensors.collect::<Result<_>>()?;
        let chunks = tensors
            .iter()
            .map(|tensor| tensor.gradient.count().div_ceil(CHUNK));
        let mut count = chunks.sum::<usize>() * CREW;
        let mut sums = empty(device, DType::F64, count)?;
        launch_tables(device, "squares", &tensors, CHUNK, |launched| {
            vec![Argument::element(&sums, launched * CREW)]
        })?;
        while count > 1 {
            let groups = count.div_ceil(GROUP);
            let left = empty(device, DType::F64, groups)?;
            let arguments = [(&sums).into(), (&left).into(), groups.into(), count.into()];
            let program = Program::packed(DType::F32, 1);
            launch(device, program, "sum_groups", groups, &arguments)?;
            (sums, count) = (left, groups);
        }
        Ok(Some(sums))
    }

    /// The square of a norm, in memory that outlives a CUDA graph.
    pub(super) struct Square {
        device: CudaDevice,
        element: CudaSlice<f64>,
    }

    /// The square of a norm that was not measured yet.
    const UNMEASURED: f64 = -1.0;

    impl Square {
        pub(super) fn new(device: &CudaDevice) -> Result<Self> {
            Ok(Self {
                device: device.clone(),
                element: device.clone_htod(&[UNMEASURED])?,
            })
        }

        pub(super) fn measure(&mut self, gradients: &[&Tensor]) -> Result<()> {
            let Some(sum) = sum_of_squares(gradients)? else {
                bail!("norm: the gradients must be on the GPU");
            };
            // A copy, as the sum of one element.
            let element = Argument::slice(&mut self.element);
            let arguments = [(&sum).into(), element, 1_usize.into(), 1_usize.into()];
            let program = Program::packed(DType::F32, 1);
            launch(&self.device, program, "sum_groups", 1, &arguments)
        }

        pub(super) fn get(&self) -> Result<Option<f64>> {
            let square = self.device.clone_dtoh(&self.element)?[0];
            Ok((square != UNMEASURED).then_some(square))
        }
    }

    /// The factor of gradients with this sum of squares: see [`super::GradientScale::clipping`].
    pub(super) fn clip_factor(squares: &Buffer, max_norm: f64) -> Result<Buffer> {
        let device = squares.elements().device;
        let factor = empty(device, DType::F32, 1)?;
        let arguments = [squares.into(), (&factor).into(), Argument::Double(max_norm)];
        let program = Program::packed(DType::F32, 1);
        launch(device, program, "clip_factor", 1, &arguments)?;
        Ok(factor)
    }
}
