//! The convolutions and linear layers of the networks, in their shapes, against a direct computation in double precision.

use candle_core::{DType, Device, Result, Tensor, Var};
use models::{Layer, NamedLayer};
use ops::{Activation, Arithmetic, Conv2d, ConvAlgorithm, Precision, Tape};
use reference::{narrow, relative_error, test_device};

/// Images of a batch.
const BATCH: usize = 2;

test_device!(layers_of_alexnet:
    cpu_f32, cuda_f32, cuda_tf32, cuda_bf16, cuda_bf16_direct);
test_device!(layers_of_small_alexnet:
    cpu_f32, cpu_bf16, cuda_f32, cuda_tf32, cuda_bf16, cuda_bf16_direct);
test_device!(layers_of_lenet);

fn layers_of_alexnet(device: &Device, dtype: DType, arithmetic: Arithmetic) -> Result<()> {
    check("alexnet", device, dtype, arithmetic)
}

fn layers_of_small_alexnet(device: &Device, dtype: DType, arithmetic: Arithmetic) -> Result<()> {
    check("small-alexnet", device, dtype, arithmetic)
}

fn layers_of_lenet(device: &Device, dtype: DType, arithmetic: Arithmetic) -> Result<()> {
    check("lenet", device, dtype, arithmetic)
}

fn check(network: &str, device: &Device, dtype: DType, arithmetic: Arithmetic) -> Result<()> {
    let limit = match arithmetic.precision {
        Precision::F32 => 1e-4,
        Precision::Tf32 => 3e-3,
        Precision::Bf16 => 2e-2,
    };
    let architecture: models::Architecture = network.parse().unwrap();
    for (seed, layer) in (0..).zip(architecture.layers()) {
        if layer.layer.parameter_shapes().is_none() {
            continue;
        }
        let expected = passes(
            &layer,
            seed,
            &Device::Cpu,
            DType::F64,
            ConvAlgorithm::Direct.into(),
        )?;
        let found = passes(&layer, seed, device, dtype, arithmetic)?;
        let parts = ["result", "gradient of x", "of weight", "of bias"];
        for ((part, found), expected) in parts.iter().zip(&found).zip(&expected) {
            let error = relative_error(found, expected)?;
            assert!(error <= limit, "{}, {part}: {error} ({limit})", layer.name);
        }
    }
    Ok(())
}

/// The result of a layer, and its gradients with respect to its input, weight and bias.
fn passes(
    layer: &NamedLayer,
    seed: u64,
    device: &Device,
    dtype: DType,
    arithmetic: Arithmetic,
) -> Result<[Tensor; 4]> {
    let at = |seed, shape: &[usize], bound| {
        let values = narrow(seed, shape, bound)?.to_dtype(dtype)?;
        values.to_device(device)
    };
    // Of f64 the tensors decide.
    let activations = |x: Tensor| match dtype {
        DType::F64 => Ok(x),
        _ => ops::activations(&x, arithmetic.precision),
    };
    let [weight, bias] = layer.layer.parameter_shapes().unwrap();
    let bound = 1.0 / (weight[1..].iter().product::<usize>() as f32).sqrt();
    let (weight, bias) = (
        at(seed + 100, &weight, bound)?,
        at(seed + 200, &bias, bound)?,
    );
    let mut shape = vec![BATCH];
    shape.extend(match layer.input[..] {
        [channels, height, width] => vec![height, width, channels],
        _ => layer.input.to_vec(),
    });
    let x = Var::from_tensor(&activations(at(seed, &shape, 1.0)?)?)?;
    let mut tape = Tape::recording(arithmetic);
    let y = match layer.layer {
        Layer::Conv2d { padding, .. } => {
            let layer = Conv2d {
                padding,
                activation: Activation::Identity,
                pool: None,
            };
            tape.conv2d("layer", layer, &x, &weight, &bias)?
        }
        _ => tape.linear("layer", Activation::Identity, &x, &weight, &bias)?,
    };
    let grad_y = at(seed + 300, y.dims(), 1.0)?;
    let grad_y = match layer.layer {
        // The result is in f32.
        Layer::Linear { .. } => grad_y,
        _ => activations(grad_y)?,
    };
    let gradients = tape.backward(grad_y)?;
    let [grad_x, grad_weight, grad_bias] =
        [x.as_tensor(), &weight, &bias].map(|of| gradients.get(of).unwrap().clone());
    Ok([y, grad_x, grad_weight, grad_bias])
}
