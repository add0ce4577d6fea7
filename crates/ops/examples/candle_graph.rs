//! Trains a small network with candle-nn's variables and optimiser and these operations, on noisy images of which one
//! quarter is brighter: `cargo run -p ops --example candle_graph`.

#![allow(clippy::print_stdout)] // A program.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{AdamW, Optimizer, VarBuilder, VarMap, init::DEFAULT_KAIMING_NORMAL as NORMAL};
use ops::{Activation, Conv2d, ConvAlgorithm, Pool, Precision};

/// Images `[64, 16, 16, 1]` and the brighter quarter of each, `[64]`.
fn batch(device: &Device) -> Result<(Tensor, Tensor)> {
    let quarter = |pixel: u32| pixel / 128 * 2 + pixel % 16 / 8;
    let pixel = |i: u32| f32::from(quarter(i % 256) == i / 256 % 4);
    let bright = Tensor::from_iter((0..64 * 256).map(pixel), device)?;
    let images = (bright + Tensor::randn(0_f32, 1.0, 64 * 256, device)?)?;
    let labels = Tensor::from_iter((0..64_u32).map(|i| i % 4), device)?;
    Ok((images.reshape((64, 16, 16, 1))?, labels))
}

fn main() -> Result<()> {
    let device = Device::Cpu;
    let variables = VarMap::new();
    let vb = VarBuilder::from_varmap(&variables, DType::F32, &device);
    let conv_weight = vb.get_with_hints((16, 1, 5, 5), "conv.weight", NORMAL)?;
    let conv_bias = vb.get(16, "conv.bias")?;
    let fc_weight = vb.get_with_hints((4, 16 * 8 * 8), "fc.weight", NORMAL)?;
    let fc_bias = vb.get(4, "fc.bias")?;
    let (kernel, stride) = (2, 2);
    let conv = Conv2d {
        padding: 2,
        activation: Activation::Relu,
        pool: Some(Pool { kernel, stride }),
    };
    let mut optimiser = AdamW::new_lr(variables.all_vars(), 1e-3)?;
    for step in 1..=50 {
        let (images, labels) = batch(&device)?;
        let algorithm = ConvAlgorithm::Winograd;
        let x = ops::conv2d(algorithm, conv, &images, &conv_weight, &conv_bias)?;
        let x = ops::flatten(&x)?;
        let none = Activation::Identity;
        let logits = ops::linear(Precision::F32, none, &x, &fc_weight, &fc_bias)?;
        let loss = ops::cross_entropy(&logits, &labels)?;
        optimiser.backward_step(&loss)?;
        if step % 10 == 0 {
            println!("step {step}: loss {:.3}", loss.to_scalar::<f32>()?);
        }
    }
    Ok(())
}
