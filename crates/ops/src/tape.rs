//! A chain of operations: what was computed, so that it can be differentiated.

use crate::conv2d::{Computed, Conv2d};
use crate::dropout::Dropout;
use crate::linear;
use crate::{Activation, Arithmetic, Pool};
use candle_core::backprop::GradStore;
use candle_core::{CustomOp1, Result, Tensor, bail};
use std::sync::Arc;

/// Computes a chain of operations, each on the result of the one before, and remembers what their
/// gradients need.
///
/// In place of candle's own automatic differentiation, which fills a gradient with zeros and then adds
/// to it: here each result has one use, so its gradient is handed on as it is, and what is done with is
/// freed on the way.
pub struct Tape {
    arithmetic: Arithmetic,
    /// `None` where nothing is to be differentiated.
    links: Option<Vec<Link>>,
    /// Whether a GPU is waited for after every operation.
    waits: bool,
}

/// One operation and its result.
struct Link {
    name: String,
    operation: Operation,
    x: Tensor,
    y: Tensor,
}

enum Operation {
    Conv2d {
        computed: Computed,
        weight: Tensor,
        bias: Tensor,
    },
    Linear {
        activation: Activation,
        weight: Tensor,
        /// The weight as it was used.
        used: Tensor,
        bias: Tensor,
    },
    Unary(Unary),
}

/// As candle shares them.
type Unary = Arc<Box<dyn CustomOp1 + Send + Sync>>;

/// The gradients of an operation with parameters.
pub(crate) struct ParameterGradients {
    pub(crate) x: Option<Tensor>,
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
}

impl Tape {
    /// A tape that can be run backward.
    #[must_use]
    pub fn recording(arithmetic: impl Into<Arithmetic>) -> Self {
        Self {
            arithmetic: arithmetic.into(),
            links: Some(Vec::new()),
            waits: false,
        }
    }

    /// A tape that remembers nothing, so that memory is freed from operation to operation.
    #[must_use]
    pub fn forgetting(arithmetic: impl Into<Arithmetic>) -> Self {
        Self {
            arithmetic: arithmetic.into(),
            links: None,
            waits: false,
        }
    }

    /// The same, waiting for a GPU after every operation, so that its span in a trace is as long as it takes.
    #[must_use]
    pub fn waiting(self) -> Self {
        Self {
            waits: true,
            ..self
        }
    }

    /// Numbers in the type in which this tape computes: see [`activations`](crate::activations()).
    ///
    /// # Errors
    /// When they cannot be converted.
    pub fn activations(&self, x: &Tensor) -> Result<Tensor> {
        crate::activations(x, self.arithmetic.precision)
    }

    /// Convolves `x` `[batch, height, width, in_channels]` at stride 1 with `weight`
    /// `[out_channels, in_channels, kernel, kernel]`, adds `bias` `[out_channels]`, applies the activation
    /// and pools. Gives `[batch, height', width', out_channels]`, where `height'` is
    /// `height + 2 padding - kernel + 1` before pooling. `name` names the layer in traces.
    ///
    /// # Errors
    /// When the shapes do not fit one another, the tensors are neither all `f32` nor all `f64`, or `x`
    /// is not the last result. On a GPU: when `x` is neither `f32` nor `bf16`, or weight and bias are not `f32`.
    pub fn conv2d(
        &mut self,
        name: &str,
        layer: Conv2d,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
    ) -> Result<Tensor> {
        let _span = forward_span(name);
        let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
        let (y, computed) = Computed::forward(layer, self.arithmetic, &x, &weight, &bias)?;
        let operation = Operation::Conv2d {
            computed,
            weight,
            bias,
        };
        self.record(name, operation, x, y)
    }

    /// `activation(x · weight' + bias)` for `x` `[batch, in_features]`, `weight`
    /// `[out_features, in_features]` and `bias` `[out_features]`: gives `[batch, out_features]`.
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
        let _span = forward_span(name);
        let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
        let precision = self.arithmetic.precision;
        let (y, used) = linear::forward(activation, precision, &x, &weight, &bias)?;
        let operation = Operation::Linear {
            activation,
            weight,
            used,
            bias,
        };
        self.record(name, operation, x, y)
    }

    /// The maximum over windows of `x` `[batch, height, width, channels]`: see
    /// [`max_pool2d`](crate::max_pool2d()).
    ///
    /// # Errors
    /// As for [`Tape::conv2d`].
    pub fn max_pool2d(&mut self, name: &str, pool: Pool, x: &Tensor) -> Result<Tensor> {
        let operation = crate::max_pool2d::operation(x, pool)?;
        self.unary(name, operation, x)
    }

    /// The average over windows of `x` `[batch, height, width, channels]`: see
    /// [`avg_pool2d`](crate::avg_pool2d()).
    ///
    /// # Errors
    /// As for [`Tape::conv2d`].
    pub fn avg_pool2d(&mut self, name: &str, pool: Pool, x: &Tensor) -> Result<Tensor> {
        let operation = crate::avg_pool2d::operation(x, pool)?;
        self.unary(name, operation, x)
    }

    /// `max(x, 0)` of a tensor of any shape; its gradient at 0 is 0, as in PyTorch.
    ///
    /// # Errors
    /// As for [`Tape::conv2d`].
    pub fn relu(&mut self, name: &str, x: &Tensor) -> Result<Tensor> {
        self.unary(name, crate::relu::Relu, x)
    }

    /// Sets a share of the elements to 0: see [`Dropout`].
    ///
    /// # Errors
    /// As for [`Tape::conv2d`], and when the probability is outside `0.0..1.0`.
    pub fn dropout(&mut self, name: &str, mask: Dropout, x: &Tensor) -> Result<Tensor> {
        mask.check()?;
        self.unary(name, mask, x)
    }

    /// From images `[batch, height, width, channels]` to rows `[batch, channels * height * width]`, in
    /// PyTorch's order: channel, row, column.
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
        operation: impl CustomOp1 + Send + Sync + 'static,
        x: &Tensor,
    ) -> Result<Tensor> {
        let _span = forward_span(name);
        let x = x.contiguous()?;
        let operation: Unary = Arc::new(Box::new(operation));
        let y = x.detach().apply_op1_arc(operation.clone())?;
        self.record(name, Operation::Unary(operation), x, y)
    }

    fn record(&mut self, name: &str, operation: Operation, x: Tensor, y: Tensor) -> Result<Tensor> {
        if self.waits {
            y.device().synchronize()?;
        }
        if let Some(links) = &mut self.links {
            if links.last().is_some_and(|last| last.y.id() != x.id()) {
                bail!("{name}: its input is not the result of the operation before");
            }
            links.push(Link {
                name: name.to_owned(),
                operation,
                x,
                y: y.clone(),
            });
        }
        Ok(y)
    }

    /// The gradients of all weights and biases, and of the first operation's input where that is a
    /// variable, from the gradient with respect to the last result.
    ///
    /// # Errors
    /// When the tape recorded nothing, the gradient does not fit the last result, or an operation fails.
    pub fn backward(self, gradient: Tensor) -> Result<GradStore> {
        let Some(mut links) = self.links.filter(|links| !links.is_empty()) else {
            bail!("a tape that recorded nothing cannot be run backward");
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
                Operation::Conv2d {
                    computed,
                    weight,
                    bias,
                } => {
                    let found = computed.backward(&x, &weight, &y, &gradient, wants_x)?;
                    gradients.insert(&weight, found.weight);
                    gradients.insert(&bias, found.bias);
                    found.x
                }
                Operation::Linear {
                    activation,
                    weight,
                    used,
                    bias,
                } => {
                    let precision = self.arithmetic.precision;
                    let results = (&y, &gradient);
                    let found =
                        linear::backward(activation, precision, &x, &used, results, wants_x)?;
                    gradients.insert(&weight, found.weight);
                    gradients.insert(&bias, found.bias);
                    found.x
                }
            };
            if self.waits {
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
