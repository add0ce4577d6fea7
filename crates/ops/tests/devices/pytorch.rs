//! Convolution, max-pooling and average pooling, forward and backward, against PyTorch in float64.

use candle_core::{DType, Device, Result, Tensor, Var};
use ops::{Activation, Arithmetic, Conv2d, Pool, Precision, Tape};
use reference::{Deviation, OPERATIONS, Statistics, test_device, uniform};
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

test_device!(operations_agree_with_pytorch:
    cpu_f64, cpu_f64_direct, cpu_f32, cpu_f32_direct, cpu_bf16,
    cuda_f32, cuda_tf32, cuda_bf16, cuda_f32_direct, cuda_tf32_direct, cuda_bf16_direct);

fn operations_agree_with_pytorch(
    device: &Device,
    dtype: DType,
    arithmetic: Arithmetic,
) -> Result<()> {
    let tolerance = match (dtype, arithmetic.precision) {
        (DType::F64, _) => 1e-9,
        (_, Precision::F32) => 1e-4,
        (_, Precision::Tf32) => 3e-3,
        (_, Precision::Bf16) => 2e-2,
    };
    let golden: Golden = serde_json::from_str(OPERATIONS).unwrap();
    // Six convolutions and seven poolings.
    assert_eq!(golden.cases.len(), 13);
    for case in &golden.cases {
        for deviation in case.deviations(device, dtype, arithmetic)? {
            assert!(deviation.is_within(tolerance), "{tolerance}: {deviation:?}");
        }
    }
    Ok(())
}

/// From PyTorch's layout to `[batch, height, width, channels]`.
fn channels_last(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()
}

/// From `[batch, height, width, channels]` to PyTorch's layout, on the CPU.
fn channels_first(x: &Tensor) -> Result<Tensor> {
    let x = x.to_device(&Device::Cpu)?;
    x.permute((0, 3, 1, 2))?.contiguous()
}

impl Case {
    fn deviations(
        &self,
        device: &Device,
        dtype: DType,
        arithmetic: Arithmetic,
    ) -> Result<Vec<Deviation>> {
        let Self {
            x: shape, seeds, ..
        } = self;
        let tensor = |seed, shape: &[usize], bound| {
            let values = uniform(seed, shape.iter().product(), bound);
            Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
        };
        let activations = |x: &Tensor| {
            ops::activations(&channels_last(x)?.to_device(device)?, arithmetic.precision)
        };
        let parameter =
            |seed, shape| Var::from_tensor(&tensor(seed, shape, 0.5)?.to_device(device)?);
        let is_max_pool = matches!(self.operation, Operation::MaxPool2d { .. });
        let mut x = tensor(seeds.x, shape, 1.0)?;
        if is_max_pool {
            x = x.relu()?;
        }
        let x = Var::from_tensor(&activations(&x)?)?;
        let mut parameters = Vec::new();
        let mut tape = Tape::recording(arithmetic);
        let (name, y) = match &self.operation {
            Operation::Conv2d {
                w,
                padding,
                grad_w,
                grad_b,
            } => {
                let (weight, bias) = (parameter(seeds.w, w)?, parameter(seeds.b, &w[..1])?);
                let layer = Conv2d {
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
        let gradients = tape.backward(activations(&tensor(seeds.grad_y, y.dims(), 1.0)?)?)?;
        let mut deviations = vec![Deviation::of(&format!("{name}: y"), &y, &self.y)?];
        // Rounded to few bits, values tie that did not, and their gradients go elsewhere.
        if !(is_max_pool && arithmetic.precision == Precision::Bf16) {
            let grad_x = channels_first(gradients.get(&x).unwrap())?;
            let what = format!("{name}: gradient of x");
            deviations.push(Deviation::of(&what, &grad_x, &self.grad_x)?);
        }
        for (part, parameter, expected) in &parameters {
            let what = format!("{name}: gradient of {part}");
            let gradient = gradients.get(parameter).unwrap();
            deviations.push(Deviation::of(&what, gradient, expected)?);
        }
        Ok(deviations)
    }
}
