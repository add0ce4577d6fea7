//! Convolution, max-pooling and average pooling, forward and backward.

use crate::deviation::{Deviation, Statistics};
use crate::{Error, Setting, channels_last};
use candle_core::{Device, Result, Tensor, Var};
use ops::{Activation, Pool, Tape};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    /// The shape of the input.
    x: Vec<usize>,
    seeds: Seeds,
    y: Statistics,
    grad_x: Statistics,
    #[serde(flatten)]
    operation: Operation,
}

/// Seeds of the tensors; poolings have no `w` and `b`.
#[derive(Deserialize)]
struct Seeds {
    x: u64,
    grad_y: u64,
    #[serde(default)]
    w: u64,
    #[serde(default)]
    b: u64,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Operation {
    Conv2d {
        /// The shape of the weight.
        w: Vec<usize>,
        padding: usize,
        grad_w: Statistics,
        grad_b: Statistics,
    },
    MaxPool2d {
        kernel: usize,
        stride: usize,
    },
    AvgPool2d {
        kernel: usize,
        stride: usize,
    },
}

/// Deviations of the outputs and gradients of all reference cases.
///
/// # Errors
/// When an operation fails.
pub fn operations(setting: &Setting) -> std::result::Result<Vec<Deviation>, Error> {
    let golden: Golden = serde_json::from_str(include_str!("../golden/ops.json"))?;
    let mut deviations = Vec::new();
    for case in &golden.cases {
        deviations.extend(case.deviations(setting)?);
    }
    Ok(deviations)
}

/// From `[batch, height, width, channels]` to PyTorch's layout, on the CPU.
fn channels_first(x: &Tensor) -> Result<Tensor> {
    let x = x.to_device(&Device::Cpu)?;
    x.permute((0, 3, 1, 2))?.contiguous()
}

impl Case {
    fn deviations(&self, setting: &Setting) -> std::result::Result<Vec<Deviation>, Error> {
        let Self {
            x: shape, seeds, ..
        } = self;
        let is_max_pool = matches!(self.operation, Operation::MaxPool2d { .. });
        let mut x = setting.tensor(seeds.x, shape, 1.0)?;
        if is_max_pool {
            let relu = x.to_device(&Device::Cpu)?.relu()?;
            x = relu.to_device(&setting.device)?;
        }
        let x = Var::from_tensor(&setting.activations(&channels_last(&x)?)?)?;
        let mut parameters = Vec::new();
        let mut tape = Tape::recording(setting.arithmetic);
        let (name, y) = match &self.operation {
            Operation::Conv2d {
                w,
                padding,
                grad_w,
                grad_b,
            } => {
                let weight = Var::from_tensor(&setting.tensor(seeds.w, w, 0.5)?)?;
                let bias = Var::from_tensor(&setting.tensor(seeds.b, &w[..1], 0.5)?)?;
                let layer = ops::Conv2d {
                    padding: *padding,
                    activation: Activation::Identity,
                    pool: None,
                };
                let y = tape.conv2d("conv", layer, &x, &weight, &bias)?;
                parameters.push(("weight", weight, grad_w));
                parameters.push(("bias", bias, grad_b));
                (format!("conv2d {shape:?} {w:?}"), y)
            }
            &Operation::MaxPool2d { kernel, stride } => {
                let y = tape.max_pool2d("pool", Pool { kernel, stride }, &x)?;
                (format!("max_pool2d {shape:?}"), y)
            }
            &Operation::AvgPool2d { kernel, stride } => {
                let y = tape.avg_pool2d("pool", Pool { kernel, stride }, &x)?;
                (format!("avg_pool2d {shape:?}"), y)
            }
        };
        let y = channels_first(&y)?;
        let grad_y = setting.tensor(seeds.grad_y, y.dims(), 1.0)?;
        let gradients = tape.backward(setting.activations(&channels_last(&grad_y)?)?)?;
        let gradient = |of: &Var, what: &str| {
            let gradient = gradients.get(of);
            gradient.ok_or_else(|| Error::Missing(format!("{name}: gradient of {what}")))
        };
        let mut deviations = vec![Deviation::of(&format!("{name}: y"), &y, &self.y)?];
        // Rounded to few bits, values tie that did not, and their gradients go elsewhere.
        if !(is_max_pool && setting.is_narrow()) {
            let (what, grad_x) = (format!("{name}: gradient of x"), gradient(&x, "x")?);
            let grad_x = channels_first(grad_x)?;
            deviations.push(Deviation::of(&what, &grad_x, &self.grad_x)?);
        }
        for (part, parameter, expected) in &parameters {
            let what = format!("{name}: gradient of {part}");
            deviations.push(Deviation::of(&what, gradient(parameter, part)?, expected)?);
        }
        Ok(deviations)
    }
}
