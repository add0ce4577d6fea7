//! What all operations have in common: how the tape and candle's graph run them.

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, Error, Layout};
use candle_core::{Result, Shape, Storage, Tensor, bail};
use kernels::Shards;
use std::sync::{Mutex, PoisonError};

/// The elements of a result, and its shape.
pub(crate) type Output = (Storage, Shape);

/// The inputs of an operation.
pub(crate) type Inputs<'a> = [&'a Tensor; 3];

/// The gradients of the inputs.
pub(crate) type Gradients = [Option<Tensor>; 3];

/// The gradients of an operation with one input.
pub(crate) fn only(gradient: Tensor) -> Result<Gradients> {
    Ok([Some(gradient), None, None])
}

/// The shards of a batch, of which an input has `images` images: one, if there are not several.
pub(crate) fn shards(name: &str, shards: Option<Shards>, images: usize) -> Result<Shards> {
    let shards = shards.unwrap_or(Shards::one(images));
    let expected = shards.images().len();
    match images == expected {
        true => Ok(shards),
        false => bail!("{name}: an input of {images} images for shards of {expected}"),
    }
}

/// A tensor that candle's graph does not know.
pub(crate) fn tensor((storage, shape): Output) -> Tensor {
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}

/// An operation on an input, a weight and a bias. One with fewer inputs ignores the others, in whose place the first one is
/// repeated. All inputs are contiguous and on one device.
pub(crate) trait Operation: Send + Sync + 'static {
    /// The name in error messages.
    fn name(&self) -> &'static str;

    /// Whether it computes activations of `bf16` on a CPU itself. Otherwise they are converted to `f32` for it.
    fn computes_bf16(&self) -> bool {
        false
    }

    /// The result. It is computed once, and what the gradients need is saved.
    fn forward(&self, inputs: Inputs) -> Result<Output>;

    /// The gradients, from the result `y` and its gradient; that of the first input only if `wants_x`.
    fn backward(&self, inputs: Inputs, results: [&Tensor; 2], wants_x: bool) -> Result<Gradients>;
}

/// The result of an operation, and its contiguous inputs.
fn run(operation: &impl Operation, inputs: Inputs) -> Result<(Output, [Tensor; 3])> {
    let [x, weight, bias] = inputs;
    let contiguous = x.contiguous()?;
    let other = |tensor: &Tensor| match tensor.id() == x.id() {
        true => Ok(contiguous.clone()),
        false => tensor.contiguous(),
    };
    let inputs = [contiguous.clone(), other(weight)?, other(bias)?];
    let device = x.device();
    if let Some(other) = inputs.iter().find(|x| !x.device().same_device(device)) {
        return Err(Error::DeviceMismatchBinaryOp {
            lhs: device.location(),
            rhs: other.device().location(),
            op: operation.name(),
        });
    }
    Ok((forward(operation, inputs.each_ref())?, inputs))
}

/// Whether the inputs are converted to `f32` for the operation.
fn converts(operation: &dyn Operation, inputs: Inputs) -> bool {
    let x = inputs[0];
    x.dtype() == DType::BF16 && x.device().is_cpu() && !operation.computes_bf16()
}

/// The tensors, those of `bf16` in `f32`.
fn widened<const N: usize>(tensors: [&Tensor; N]) -> Result<[Tensor; N]> {
    let mut widened = tensors.map(Tensor::clone);
    for index in 0..N {
        let tensor = tensors[index];
        if tensor.dtype() == DType::BF16 {
            let same = tensors[..index].iter().position(|t| t.id() == tensor.id());
            widened[index] = match same {
                Some(same) => widened[same].clone(),
                None => tensor.to_dtype(DType::F32)?,
            };
        }
    }
    Ok(widened)
}

fn forward(operation: &dyn Operation, inputs: Inputs) -> Result<Output> {
    if !converts(operation, inputs) {
        return operation.forward(inputs);
    }
    let inputs = widened(inputs)?;
    let y = tensor(operation.forward(inputs.each_ref())?).to_dtype(DType::BF16)?;
    let (storage, _) = y.storage_and_layout();
    Ok((storage.try_clone(y.layout())?, y.shape().clone()))
}

/// The gradients of an operation's inputs: see [`Operation::backward`].
pub(crate) fn backward(
    operation: &dyn Operation,
    inputs: Inputs,
    results: [&Tensor; 2],
    wants_x: bool,
) -> Result<Gradients> {
    if !converts(operation, inputs) {
        return operation.backward(inputs, results, wants_x);
    }
    let (inputs, results) = (widened(inputs)?, widened(results)?);
    let [x, weight, bias] = operation.backward(inputs.each_ref(), results.each_ref(), wants_x)?;
    let x = x.map(|x| x.to_dtype(DType::BF16)).transpose()?;
    Ok([x, weight, bias])
}

/// The result, which candle's graph does not know, and the contiguous inputs.
pub(crate) fn without_graph(
    operation: &impl Operation,
    inputs: Inputs,
) -> Result<(Tensor, [Tensor; 3])> {
    let (output, inputs) = run(operation, inputs)?;
    Ok((tensor(output), inputs))
}

/// The result, which candle's graph can differentiate.
pub(crate) fn in_graph(operation: impl Operation, inputs: Inputs) -> Result<Tensor> {
    let (output, [x, weight, bias]) = run(&operation, inputs)?;
    let output = Mutex::new(Some(output));
    x.apply_op3(&weight, &bias, Node { operation, output })
}

/// An operation in candle's graph, whose result has been computed.
struct Node<O> {
    operation: O,
    /// `None` once the graph has it.
    output: Mutex<Option<Output>>,
}

impl<O> Node<O> {
    fn take(&self) -> Result<Output> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        match output.take() {
            Some(output) => Ok(output),
            None => bail!("an operation of the graph runs once"),
        }
    }
}

impl<O: Operation> CustomOp3 for Node<O> {
    fn name(&self) -> &'static str {
        self.operation.name()
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(y), shape) => Ok((y, shape)),
            _ => bail!("{}: the result is not on the CPU", self.name()),
        }
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(y), shape) => Ok((y, shape)),
            _ => bail!("{}: the result is not on the GPU", self.name()),
        }
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        grad_y: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let inputs = [x, weight, bias];
        let grad_y = grad_y.contiguous()?;
        let [x, weight, bias] = backward(&self.operation, inputs, [y, &grad_y], x.track_op())?;
        // The graph adds each gradient to one of its input's type.
        let typed = |gradient: Option<Tensor>, input: &Tensor| {
            gradient
                .map(|gradient| gradient.to_dtype(input.dtype()))
                .transpose()
        };
        Ok((
            typed(x, inputs[0])?,
            typed(weight, inputs[1])?,
            typed(bias, inputs[2])?,
        ))
    }
}
