//! The operations against PyTorch in float64, in `f32` and in `f64`.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use candle_core::{DType, Device, Result, Tensor, Var};
use ops::{Activation, Convolution, Pool, Tape, channels_last};
use serde::Deserialize;

mod reference;
use reference::{Statistics, assert_agrees, uniform};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Case {
    Conv2d(Conv2d),
    MaxPool2d(MaxPool2d),
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
struct MaxPool2d {
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

fn tensor(seed: u64, shape: &[usize], bound: f32, dtype: DType) -> Result<Tensor> {
    let values = uniform(seed, shape.iter().product(), bound);
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
}

/// From `[batch, height, width, channels]` to PyTorch's order.
fn channels_first(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 3, 1, 2))?.contiguous()
}

impl Conv2d {
    fn check(&self, dtype: DType, convolution: Convolution) -> Result<()> {
        let x = channels_last(&tensor(self.seeds.x, &self.x, 1.0, dtype)?)?;
        let x = Var::from_tensor(&x)?;
        let w = Var::from_tensor(&tensor(self.seeds.w, &self.w, 0.5, dtype)?)?;
        let b = Var::from_tensor(&tensor(self.seeds.b, &self.w[..1], 0.5, dtype)?)?;
        let layer = ops::Conv2d {
            padding: self.padding,
            activation: Activation::Identity,
            pool: None,
        };
        let mut tape = Tape::recording(convolution);
        let y = channels_first(&tape.conv2d("conv", layer, &x, &w, &b)?)?;
        assert_agrees("y", &y, &self.y, 1e-4)?;
        let grad_y = tensor(self.seeds.grad_y, y.dims(), 1.0, dtype)?;
        let grads = tape.backward(channels_last(&grad_y)?)?;
        let grad_x = channels_first(grads.get(&x).unwrap())?;
        assert_agrees("x", &grad_x, &self.grad_x, 1e-4)?;
        assert_agrees("w", grads.get(&w).unwrap(), &self.grad_w, 1e-4)?;
        assert_agrees("b", grads.get(&b).unwrap(), &self.grad_b, 1e-4)
    }
}

impl MaxPool2d {
    fn check(&self, dtype: DType) -> Result<()> {
        let x = tensor(self.seeds.x, &self.x, 1.0, dtype)?.relu()?;
        let x = Var::from_tensor(&channels_last(&x)?)?;
        let pool = Pool {
            kernel: self.kernel,
            stride: self.stride,
        };
        let mut tape = Tape::recording(Convolution::Direct);
        let y = channels_first(&tape.max_pool2d("pool", pool, &x)?)?;
        assert_agrees("y", &y, &self.y, 1e-4)?;
        let grad_y = tensor(self.seeds.grad_y, y.dims(), 1.0, dtype)?;
        let grads = tape.backward(channels_last(&grad_y)?)?;
        let grad_x = channels_first(grads.get(&x).unwrap())?;
        assert_agrees("grad_x", &grad_x, &self.grad_x, 1e-4)
    }
}

#[test]
fn operations_agree_with_pytorch() -> Result<()> {
    let golden: Golden = serde_json::from_str(include_str!("golden/ops.json")).unwrap();
    assert_eq!(golden.cases.len(), 10);
    for case in golden.cases {
        for dtype in [DType::F32, DType::F64] {
            match &case {
                Case::Conv2d(case) => {
                    for convolution in Convolution::ALL {
                        case.check(dtype, convolution)?;
                    }
                }
                Case::MaxPool2d(case) => case.check(dtype)?,
            }
        }
    }
    Ok(())
}
