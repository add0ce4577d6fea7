//! A chain of operations with its backward pass.

use crate::arithmetic::Arithmetic;
use crate::avg_pool2d::AvgPool2d;
use crate::conv2d::{Conv2d, ConvLayer};
use crate::dropout::{Dropout, DropoutLayer};
use crate::flatten::Flatten;
use crate::linear::Linear;
use crate::max_pool2d::MaxPool2d;
use crate::operation::{Inputs, Operation, backward, without_graph};
use crate::relu::Relu;
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, bail};
use kernels::{Activation, Pool, Shards};

/// Computes a chain of operations, each on the result of the one before, and saves what their gradients need.
///
/// It replaces candle's automatic differentiation, which fills a gradient with zeros and then adds to it. In a chain each
/// result has one use, so the tape passes its gradient on as it is, and frees what is no longer needed during the backward
/// pass. `PERFORMANCE.md` has the difference in time and memory.
pub struct Tape {
    arithmetic: Arithmetic,
    /// `None` without a backward pass.
    links: Option<Vec<Link>>,
    /// Those of the batch, if there are several.
    shards: Option<Shards>,
    /// Whether a GPU is synchronised after every operation.
    synchronised: bool,
}

/// An operation, its contiguous inputs and its result.
struct Link {
    name: String,
    operation: Box<dyn Operation>,
    inputs: [Tensor; 3],
    y: Tensor,
}

impl Tape {
    /// A tape with a backward pass.
    #[must_use]
    pub fn recording(arithmetic: impl Into<Arithmetic>) -> Self {
        Self {
            links: Some(Vec::new()),
            ..Self::no_grad(arithmetic)
        }
    }

    /// A tape without a backward pass: nothing is saved, and memory is freed from operation to operation.
    #[must_use]
    pub fn no_grad(arithmetic: impl Into<Arithmetic>) -> Self {
        Self {
            arithmetic: arithmetic.into(),
            links: None,
            shards: None,
            synchronised: false,
        }
    }

    /// The same for a batch, or a part of it, in shards, over which the gradients of the parameters are summed, on a CPU.
    #[must_use]
    pub fn sharded(self, shards: Shards) -> Self {
        Self {
            shards: Some(shards),
            ..self
        }
    }

    /// The same, synchronising a GPU after every operation, so that the operation's span in a trace has its duration.
    #[must_use]
    pub fn synchronised(self) -> Self {
        Self {
            synchronised: true,
            ..self
        }
    }

    /// A tape that computes the same without a backward pass.
    #[must_use]
    pub fn without_backward(&self) -> Self {
        Self {
            links: None,
            ..*self
        }
    }

    /// `x` in the element type of this tape's activations: see [`activations`](crate::activations()).
    ///
    /// # Errors
    /// When it cannot be converted.
    pub fn activations(&self, x: &Tensor) -> Result<Tensor> {
        crate::activations(x, self.arithmetic.precision)
    }

    /// See [`conv2d`](crate::conv2d()). `name` is the layer's name in traces.
    ///
    /// # Errors
    /// As there, and when `x` is not the previous result.
    pub fn conv2d(
        &mut self,
        name: &str,
        layer: Conv2d,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
    ) -> Result<Tensor> {
        let operation = ConvLayer::new(layer, self.arithmetic, self.shards);
        self.run(name, operation, [x, weight, bias])
    }

    /// See [`linear`](crate::linear()).
    ///
    /// # Errors
    /// As for [`Tape::conv2d`].
    pub fn linear(
        &mut self,
        name: &str,
        activation: Activation,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
    ) -> Result<Tensor> {
        let operation = Linear::new(activation, self.arithmetic.precision, self.shards);
        self.run(name, operation, [x, weight, bias])
    }

    /// See [`max_pool2d`](crate::max_pool2d()).
    ///
    /// # Errors
    /// As for [`Tape::conv2d`].
    pub fn max_pool2d(&mut self, name: &str, pool: Pool, x: &Tensor) -> Result<Tensor> {
        self.run(name, MaxPool2d::new(pool), [x; 3])
    }

    /// See [`avg_pool2d`](crate::avg_pool2d()).
    ///
    /// # Errors
    /// As for [`Tape::conv2d`].
    pub fn avg_pool2d(&mut self, name: &str, pool: Pool, x: &Tensor) -> Result<Tensor> {
        self.run(name, AvgPool2d(pool), [x; 3])
    }

    /// See [`relu`](crate::relu()).
    ///
    /// # Errors
    /// As for [`Tape::conv2d`].
    pub fn relu(&mut self, name: &str, x: &Tensor) -> Result<Tensor> {
        self.run(name, Relu, [x; 3])
    }

    /// See [`dropout`](crate::dropout()).
    ///
    /// # Errors
    /// As for [`Tape::conv2d`], and when the probability is outside `0.0..1.0`.
    pub fn dropout(&mut self, name: &str, mask: Dropout, x: &Tensor) -> Result<Tensor> {
        let first_image = self.shards.map_or(0, |shards| shards.images().start);
        self.run(name, DropoutLayer { mask, first_image }, [x; 3])
    }

    /// See [`flatten`](crate::flatten()).
    ///
    /// # Errors
    /// As for [`Tape::conv2d`].
    pub fn flatten(&mut self, name: &str, x: &Tensor) -> Result<Tensor> {
        self.run(name, Flatten, [x; 3])
    }

    fn run(&mut self, name: &str, operation: impl Operation, inputs: Inputs) -> Result<Tensor> {
        let _span = tracing::debug_span!("forward", layer = name).entered();
        if self.shards.is_some() && !inputs[0].device().is_cpu() {
            bail!("{name}: a batch is computed in shards on a CPU alone");
        }
        let (y, inputs) = without_graph(&operation, inputs)?;
        if self.synchronised {
            y.device().synchronize()?;
        }
        if let Some(links) = &mut self.links {
            let x = inputs[0].id();
            if links.last().is_some_and(|last| last.y.id() != x) {
                bail!("{name}: its input is not the result of the operation before");
            }
            links.push(Link {
                name: name.to_owned(),
                operation: Box::new(operation),
                inputs,
                y: y.clone(),
            });
        }
        Ok(y)
    }

    /// The gradients of all weights and biases, and of the first operation's input if it is a variable, from the gradient of
    /// the last result.
    ///
    /// # Errors
    /// When the tape recorded nothing, the gradient does not fit the last result, or an operation fails.
    pub fn backward(self, gradient: Tensor) -> Result<GradStore> {
        self.backward_with(gradient, |_| Ok(()))
    }

    /// The same. `ready` is called with the gradients of weights and biases as they become ready, those of the last layer
    /// first.
    ///
    /// # Errors
    /// As there, and when `ready` fails.
    pub fn backward_with(
        self,
        gradient: Tensor,
        mut ready: impl FnMut(&Tensor) -> Result<()>,
    ) -> Result<GradStore> {
        let Some(mut links) = self.links.filter(|links| !links.is_empty()) else {
            bail!("a tape that recorded nothing has no backward pass");
        };
        let mut gradients = GradStore::default();
        let mut gradient = gradient.contiguous()?;
        while let Some(link) = links.pop() {
            let (name, y) = (&link.name, &link.y);
            let _span = tracing::debug_span!("backward", layer = name).entered();
            if gradient.shape() != y.shape() {
                let (found, expected) = (gradient.shape(), y.shape());
                bail!("{name}: a gradient of shape {found:?} for a result of shape {expected:?}");
            }
            let first = links.is_empty();
            let [x, weight, bias] = link.inputs.each_ref();
            let wants_x = !first || x.is_variable();
            if !wants_x && weight.id() == x.id() {
                break; // There is nothing else to compute.
            }
            let [grad_x, grad_weight, grad_bias] =
                backward(&*link.operation, [x, weight, bias], [y, &gradient], wants_x)?;
            for (parameter, gradient) in [(weight, grad_weight), (bias, grad_bias)] {
                if let Some(gradient) = gradient {
                    ready(&gradient)?;
                    gradients.insert(parameter, gradient);
                }
            }
            if self.synchronised {
                y.device().synchronize()?;
            }
            match grad_x {
                Some(grad_x) if first => {
                    gradients.insert(x, grad_x);
                    break;
                }
                Some(grad_x) => gradient = grad_x,
                None => break,
            }
        }
        Ok(gradients)
    }
}
