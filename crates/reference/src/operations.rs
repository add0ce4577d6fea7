//! Convolution, max-pooling and average pooling, forward and backward.

use crate::deviation::{Deviation, Statistics};
use crate::{Error, Setting};
use candle_core::{DType, Device, Result, Tensor, Var};
use ops::{Activation, Pool, Tape};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Case {
    Conv2d(Conv2d),
    MaxPool2d(Pool2d),
    AvgPool2d(Pool2d),
}

#[derive(Deserialize)]
struct Conv2d {
    x: Vec<usize>,
    w: Vec<usize>,
    padding: usize,
    seeds: ConvSeeds,
    y: Statistics,
    grad_x: Statistics,
    grad_w: Statistics,
    grad_b: Statistics,
}

#[derive(Deserialize)]
struct ConvSeeds {
    x: u64,
    w: u64,
    b: u64,
    grad_y: u64,
}

#[derive(Deserialize)]
struct Pool2d {
    x: Vec<usize>,
    kernel: usize,
    stride: usize,
    seeds: PoolSeeds,
    y: Statistics,
    grad_x: Statistics,
}

#[derive(Deserialize)]
struct PoolSeeds {
    x: u64,
    grad_y: u64,
}

/// Deviations of the outputs and gradients of all reference cases.
///
/// # Errors
/// When an operation fails.
pub fn operations(setting: &Setting) -> std::result::Result<Vec<Deviation>, Error> {
    let golden: Golden = serde_json::from_str(include_str!("../golden/ops.json"))?;
    let mut deviations = Vec::new();
    for case in &golden.cases {
        deviations.extend(match case {
            Case::Conv2d(case) => case.deviations(setting)?,
            Case::MaxPool2d(case) => case.maximum(setting)?,
            Case::AvgPool2d(case) => case.average(setting)?,
        });
    }
    Ok(deviations)
}

/// From `[batch, height, width, channels]` to PyTorch's layout, on the CPU.
fn channels_first(x: &Tensor) -> Result<Tensor> {
    x.to_device(&Device::Cpu)?
        .permute((0, 3, 1, 2))?
        .contiguous()
}

/// From PyTorch's layout to `[batch, height, width, channels]`, on the device of `x`.
fn channels_last(x: &Tensor) -> Result<Tensor> {
    x.to_device(&Device::Cpu)?
        .permute((0, 2, 3, 1))?
        .contiguous()?
        .to_device(x.device())
}

/// A variable in the type of activations, from `x` `[batch, channels, height, width]`.
fn input(setting: &Setting, x: &Tensor) -> Result<Var> {
    Var::from_tensor(&setting.activations(&channels_last(x)?)?)
}

fn gradient<'a>(
    gradients: &'a candle_core::backprop::GradStore,
    of: &Tensor,
    what: &str,
) -> std::result::Result<&'a Tensor, Error> {
    gradients
        .get(of)
        .ok_or_else(|| Error::Missing(what.to_owned()))
}

impl Conv2d {
    fn deviations(&self, setting: &Setting) -> std::result::Result<Vec<Deviation>, Error> {
        let x = input(setting, &setting.tensor(self.seeds.x, &self.x, 1.0)?)?;
        let w = Var::from_tensor(&setting.tensor(self.seeds.w, &self.w, 0.5)?)?;
        let b = Var::from_tensor(&setting.tensor(self.seeds.b, &self.w[..1], 0.5)?)?;
        let layer = ops::Conv2d {
            padding: self.padding,
            activation: Activation::Identity,
            pool: None,
        };
        let mut tape = Tape::recording(setting.arithmetic);
        let y = tape.conv2d("conv", layer, &x, &w, &b)?;
        let y = channels_first(&y)?;
        let grad_y = setting.tensor(self.seeds.grad_y, y.dims(), 1.0)?;
        let grad_y = setting.activations(&channels_last(&grad_y)?)?;
        let gradients = tape.backward(grad_y)?;
        let grad_x = channels_first(gradient(&gradients, &x, "x")?)?;
        let name = |part: &str| format!("conv2d {:?} {:?}: {part}", self.x, self.w);
        Ok(vec![
            Deviation::of(&name("y"), &y, &self.y)?,
            Deviation::of(&name("gradient of x"), &grad_x, &self.grad_x)?,
            Deviation::of(
                &name("gradient of weight"),
                gradient(&gradients, &w, "weight")?,
                &self.grad_w,
            )?,
            Deviation::of(
                &name("gradient of bias"),
                gradient(&gradients, &b, "bias")?,
                &self.grad_b,
            )?,
        ])
    }
}

impl Pool2d {
    fn pool(&self) -> Pool {
        Pool {
            kernel: self.kernel,
            stride: self.stride,
        }
    }

    fn maximum(&self, setting: &Setting) -> std::result::Result<Vec<Deviation>, Error> {
        let host = Setting {
            device: Device::Cpu,
            dtype: DType::F32,
            ..setting.clone()
        };
        let x = host.tensor(self.seeds.x, &self.x, 1.0)?.relu()?;
        let x = x.to_dtype(setting.dtype)?.to_device(&setting.device)?;
        let [y, grad_x] = self.deviations(setting, &x, "max_pool2d", |tape, x| {
            tape.max_pool2d("pool", self.pool(), x)
        })?;
        // Rounded to few bits, values tie that did not, and their gradients go elsewhere.
        Ok(if setting.is_narrow() {
            vec![y]
        } else {
            vec![y, grad_x]
        })
    }

    fn average(&self, setting: &Setting) -> std::result::Result<Vec<Deviation>, Error> {
        let x = setting.tensor(self.seeds.x, &self.x, 1.0)?;
        let both = self.deviations(setting, &x, "avg_pool2d", |tape, x| {
            tape.avg_pool2d("pool", self.pool(), x)
        })?;
        Ok(both.into())
    }

    /// Deviations of the output of `pooling` for `x` `[batch, channels, height, width]`, and of its gradient.
    fn deviations(
        &self,
        setting: &Setting,
        x: &Tensor,
        operation: &str,
        pooling: impl FnOnce(&mut Tape, &Tensor) -> Result<Tensor>,
    ) -> std::result::Result<[Deviation; 2], Error> {
        let x = input(setting, x)?;
        let mut tape = Tape::recording(setting.arithmetic);
        let y = channels_first(&pooling(&mut tape, &x)?)?;
        let grad_y = setting.tensor(self.seeds.grad_y, y.dims(), 1.0)?;
        let gradients = tape.backward(setting.activations(&channels_last(&grad_y)?)?)?;
        let grad_x = channels_first(gradient(&gradients, &x, "x")?)?;
        let name = |part: &str| format!("{operation} {:?}: {part}", self.x);
        Ok([
            Deviation::of(&name("y"), &y, &self.y)?,
            Deviation::of(&name("gradient of x"), &grad_x, &self.grad_x)?,
        ])
    }
}
