//! The operations against PyTorch in float64, in `f32` and in `f64`.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in what the tests share.

use candle_core::{DType, Device, Result, Tensor, Var};
use ops::{Activation, conv2d, max_pool2d};
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

impl Conv2d {
    fn check(&self, dtype: DType) -> Result<()> {
        let x = Var::from_tensor(&tensor(self.seeds.x, &self.x, 1.0, dtype)?)?;
        let w = Var::from_tensor(&tensor(self.seeds.w, &self.w, 0.5, dtype)?)?;
        let b = Var::from_tensor(&tensor(self.seeds.b, &self.w[..1], 0.5, dtype)?)?;
        let y = conv2d(&x, &w, &b, self.padding, Activation::Identity)?;
        assert_agrees("y", &y, &self.y)?;
        let grad_y = tensor(self.seeds.grad_y, y.dims(), 1.0, dtype)?;
        let grads = (y * grad_y)?.sum_all()?.backward()?;
        for (what, variable, expected) in [
            ("x", &x, &self.grad_x),
            ("w", &w, &self.grad_w),
            ("b", &b, &self.grad_b),
        ] {
            assert_agrees(what, grads.get(variable).unwrap(), expected)?;
        }
        Ok(())
    }
}

impl MaxPool2d {
    fn check(&self, dtype: DType) -> Result<()> {
        let x = tensor(self.seeds.x, &self.x, 1.0, dtype)?.relu()?;
        let x = Var::from_tensor(&x)?;
        let y = max_pool2d(&x, self.kernel, self.stride)?;
        assert_agrees("y", &y, &self.y)?;
        let grad_y = tensor(self.seeds.grad_y, y.dims(), 1.0, dtype)?;
        let grads = (y * grad_y)?.sum_all()?.backward()?;
        assert_agrees("grad_x", grads.get(&x).unwrap(), &self.grad_x)
    }
}

#[test]
fn operations_agree_with_pytorch() -> Result<()> {
    let golden: Golden = serde_json::from_str(include_str!("golden/ops.json")).unwrap();
    assert_eq!(golden.cases.len(), 10);
    for case in golden.cases {
        for dtype in [DType::F32, DType::F64] {
            match &case {
                Case::Conv2d(case) => case.check(dtype)?,
                Case::MaxPool2d(case) => case.check(dtype)?,
            }
        }
    }
    Ok(())
}
