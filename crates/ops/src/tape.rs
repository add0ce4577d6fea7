//! A chain of operations with its backward pass.

use crate::arithmetic::Arithmetic;
use crate::conv2d::{self, Conv2d};
use crate::dropout::Dropout;
use crate::linear;
use crate::parametric::Parametric;
use candle_core::backprop::GradStore;
use candle_core::{CustomOp1, Result, Tensor, bail};
use kernels::{Activation, Pool};

/// Computes a chain of operations, each on the result of the one before, and saves what their gradients need.
///
/// It replaces candle's automatic differentiation, which fills a gradient with zeros and then adds to it. In a chain each
/// result has one use, so the tape passes its gradient on as it is, and frees what is no longer needed during the backward
/// pass. `PERFORMANCE.md` has the difference in time and memory.
pub struct Tape {
    arithmetic: Arithmetic,
    /// `None` without a backward pass.
    links: Option<Vec<Link>>,
    /// Whether a GPU is synchronised after every operation.
    synchronised: bool,
}

/// One operation and its result.
struct Link {
    name: String,
    operation: Operation,
    x: Tensor,
    y: Tensor,
}

enum Operation {
    Unary(Box<dyn CustomOp1>),
    Parametric {
        operation: Box<dyn Parametric>,
        weight: Tensor,
        bias: Tensor,
    },
}

impl Tape {
    /// A tape with a backward pass.
    #[must_use]
    pub fn recording(arithmetic: impl Into<Arithmetic>) -> Self {
        Self {
            arithmetic: arithmetic.into(),
            links: Some(Vec::new()),
            synchronised: false,
        }
    }

    /// A tape without a backward pass: nothing is saved, and memory is freed from operation to operation.
    #[must_use]
    pub fn no_grad(arithmetic: impl Into<Arithmetic>) -> Self {
        Self {
            arithmetic: arithmetic.into(),
            links: None,
            synchronised: false,
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
        let operation = conv2d::Operation::new(layer, self.arithmetic);
        self.parametric(name, operation, [x, weight, bias])
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
        let operation = linear::Operation::new(activation, self.arithmetic.precision);
        self.parametric(name, operation, [x, weight, bias])
    }

    /// See [`max_pool2d`](crate::max_pool2d()).
    ///
    /// # Errors
    /// As for [`Tape::conv2d`].
    pub fn max_pool2d(&mut self, name: &str, pool: Pool, x: &Tensor) -> Result<Tensor> {
        let operation = crate::max_pool2d::operation(x, pool)?;
        self.unary(name, operation, x)
    }

    /// See [`avg_pool2d`](crate::avg_pool2d()).
    ///
    /// # Errors
    /// As for [`Tape::conv2d`].
    pub fn avg_pool2d(&mut self, name: &str, pool: Pool, x: &Tensor) -> Result<Tensor> {
        let operation = crate::avg_pool2d::operation(x, pool)?;
        self.unary(name, operation, x)
    }

    /// See [`relu`](crate::relu()).
    ///
    /// # Errors
    /// As for [`Tape::conv2d`].
    pub fn relu(&mut self, name: &str, x: &Tensor) -> Result<Tensor> {
        self.unary(name, crate::relu::Relu, x)
    }

    /// See [`dropout`](crate::dropout()).
    ///
    /// # Errors
    /// As for [`Tape::conv2d`], and when the probability is outside `0.0..1.0`.
    pub fn dropout(&mut self, name: &str, mask: Dropout, x: &Tensor) -> Result<Tensor> {
        mask.check()?;
        self.unary(name, mask, x)
    }

    /// See [`flatten`](crate::flatten()).
    ///
    /// # Errors
    /// As for [`Tape::conv2d`].
    pub fn flatten(&mut self, name: &str, x: &Tensor) -> Result<Tensor> {
        let operation = crate::flatten::operation(x)?;
        self.unary(name, operation, x)
    }

    fn unary(
        &mut self,
        name: &str,
        operation: impl CustomOp1 + 'static,
        x: &Tensor,
    ) -> Result<Tensor> {
        let _span = forward_span(name);
        let x = x.contiguous()?;
        let y = x.apply_op1_no_bwd(&operation)?;
        self.record(name, || Operation::Unary(Box::new(operation)), x, y)
    }

    fn parametric(
        &mut self,
        name: &str,
        operation: impl Parametric + 'static,
        [x, weight, bias]: [&Tensor; 3],
    ) -> Result<Tensor> {
        let _span = forward_span(name);
        let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
        let y = x.apply_op3_no_bwd(&weight, &bias, &operation)?;
        let operation = || Operation::Parametric {
            operation: Box::new(operation),
            weight,
            bias,
        };
        self.record(name, operation, x, y)
    }

    fn record(
        &mut self,
        name: &str,
        operation: impl FnOnce() -> Operation,
        x: Tensor,
        y: Tensor,
    ) -> Result<Tensor> {
        if self.synchronised {
            y.device().synchronize()?;
        }
        if let Some(links) = &mut self.links {
            if links.last().is_some_and(|last| last.y.id() != x.id()) {
                bail!("{name}: its input is not the result of the operation before");
            }
            links.push(Link {
                name: name.to_owned(),
                operation: operation(),
                x,
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
        let Some(mut links) = self.links.filter(|links| !links.is_empty()) else {
            bail!("a tape that recorded nothing has no backward pass");
        };
        let mut gradients = GradStore::default();
        let mut gradient = gradient.contiguous()?;
        while let Some(Link {
            name,
            operation,
            x,
            y,
        }) = links.pop()
        {
            let _span = tracing::debug_span!("backward", layer = name).entered();
            if gradient.shape() != y.shape() {
                bail!(
                    "{name}: a gradient of shape {:?} for a result of shape {:?}",
                    gradient.shape(),
                    y.shape()
                );
            }
            let first = links.is_empty();
            let wants_x = !first || x.is_variable();
            let grad_x = match operation {
                Operation::Unary(operation) => wants_x
                    .then(|| operation.bwd(&x, &y, &gradient))
                    .transpose()?
                    .flatten(),
                Operation::Parametric {
                    operation,
                    weight,
                    bias,
                } => {
                    let found = operation.backward(&x, &weight, &y, &gradient, wants_x)?;
                    gradients.insert(&weight, found.weight);
                    gradients.insert(&bias, found.bias);
                    found.x
                }
            };
            if self.synchronised {
                y.device().synchronize()?;
            }
            match grad_x {
                Some(grad_x) if first => {
                    gradients.insert(&x, grad_x);
                    break;
                }
                Some(grad_x) => gradient = grad_x,
                None => break,
            }
        }
        Ok(gradients)
    }
}

fn forward_span(name: &str) -> tracing::span::EnteredSpan {
    tracing::debug_span!("forward", layer = name).entered()
}
