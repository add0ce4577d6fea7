//! Operations whose results have the same bits on each device.

use candle_core::{DType, Device, Result, Tensor, Var};
use half::bf16;
use ops::{Activation, Arithmetic, Conv2d, Dropout, Pool, Precision, Tape};
use reference::{bits, narrow, test_device};
use rng::{Purpose, Stream, unit};

const POOL: Pool = Pool {
    kernel: 3,
    stride: 2,
};

/// What is tested: an operation on a tape.
type Operation = fn(&mut Tape, &Tensor) -> Result<Tensor>;

/// The result of an operation on `x`, and the gradient of `x`. Gradients of the result have few bits, too.
fn both_passes(operation: Operation, x: &Tensor, arithmetic: Arithmetic) -> Result<[Tensor; 2]> {
    let x = Var::from_tensor(&ops::activations(x, arithmetic.precision)?)?;
    let mut tape = Tape::recording(arithmetic);
    let y = operation(&mut tape, &x)?;
    let grad_y = (narrow(12, y.dims(), 1.0)? * 8.0)?.round()?;
    let grad_y = grad_y.to_device(x.device())?;
    let grad_y = match x.dtype() {
        DType::F64 => grad_y.to_dtype(DType::F64)?,
        _ => ops::activations(&grad_y, arithmetic.precision)?,
    };
    let gradients = tape.backward(grad_y)?;
    Ok([y, gradients.get(&x).unwrap().clone()])
}

test_device!(what_is_exact_is_as_in_double_precision:
    cpu_f32, cpu_bf16, cuda_f32, cuda_bf16);

/// On values of so few bits that no operation rounds.
fn what_is_exact_is_as_in_double_precision(
    device: &Device,
    _: DType,
    arithmetic: Arithmetic,
) -> Result<()> {
    let operations: [(&str, Operation); 4] = [
        ("ReLU", |tape, x| tape.relu("relu", x)),
        ("max-pooling", |tape, x| tape.max_pool2d("pool", POOL, x)),
        ("average pooling", |tape, x| {
            tape.avg_pool2d("pool", Pool { kernel: 2, ..POOL }, x)
        }),
        ("flatten", |tape, x| tape.flatten("flatten", x)),
    ];
    for channels in [5, 64] {
        // Never 0, whose sign is not defined.
        let x = (narrow(11, &[3, 11, 9, channels], 8.0)?.round()? + 0.5)?;
        for (name, operation) in operations {
            let exact = x.to_dtype(DType::F64)?;
            let expected = both_passes(operation, &exact, Arithmetic::default())?;
            let found = both_passes(operation, &x.to_device(device)?, arithmetic)?;
            for (found, expected) in found.iter().zip(&expected) {
                let same = bits(found)? == bits(expected)?;
                assert!(same, "{name}, {channels} channels");
            }
        }
    }
    Ok(())
}

const DROPOUT: Dropout = Dropout {
    probability: 0.3,
    seed: 0xDEAD_BEEF_0123_4567,
    step: 9,
    layer: 2,
};

test_device!(dropout_is_a_function_of_seed_step_layer_and_element:
    cpu_f32, cpu_bf16, cuda_f32, cuda_bf16);

fn dropout_is_a_function_of_seed_step_layer_and_element(
    device: &Device,
    _: DType,
    arithmetic: Arithmetic,
) -> Result<()> {
    let stream = Stream::new(DROPOUT.seed, Purpose::Dropout, DROPOUT.step);
    let first = u64::from(DROPOUT.layer) << 48;
    let scale = (1.0 / (1.0 - f64::from(DROPOUT.probability))) as f32;
    let masked = |x: &Tensor| -> Result<Vec<u32>> {
        let x = x.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let words = (first..).flat_map(|block| stream.words(block));
        let masked = x.into_iter().zip(words).map(|(x, word)| {
            let y = match unit(word) < DROPOUT.probability {
                true => 0.0,
                false => x * scale,
            };
            match arithmetic.precision {
                Precision::Bf16 => bf16::from_f32(y).to_f32().to_bits(),
                _ => y.to_bits(),
            }
        });
        Ok(masked.collect())
    };
    for channels in [5, 64] {
        let x = narrow(11, &[3, 11, 9, channels], 8.0)?;
        let grad_y = (narrow(12, x.dims(), 1.0)? * 8.0)?.round()?;
        let found = both_passes(
            |tape, x| tape.dropout("dropout", DROPOUT, x),
            &x.to_device(device)?,
            arithmetic,
        )?;
        for (found, before) in found.iter().zip([x, grad_y]) {
            assert!(bits(found)? == masked(&before)?, "{channels} channels");
        }
    }
    Ok(())
}

test_device!(fused_layers_have_the_bits_of_separate_ones: cpu_f32_direct, cuda_f32);

/// Convolution, ReLU and pooling.
fn fused_layers_have_the_bits_of_separate_ones(
    device: &Device,
    _: DType,
    arithmetic: Arithmetic,
) -> Result<()> {
    let at = |seed, shape: &[usize]| narrow(seed, shape, 0.5)?.to_device(device);
    let (weight, bias) = (at(32, &[12, 7, 3, 3])?, at(33, &[12])?);
    let compute = |together: bool| -> Result<Vec<Vec<u32>>> {
        let x = Var::from_tensor(&at(31, &[2, 13, 10, 7])?)?;
        let mut tape = Tape::recording(arithmetic);
        let layer = |activation, pool| Conv2d {
            padding: 1,
            activation,
            pool,
        };
        let y = if together {
            let layer = layer(Activation::Relu, Some(POOL));
            tape.conv2d("conv", layer, &x, &weight, &bias)?
        } else {
            let layer = layer(Activation::Identity, None);
            let y = tape.conv2d("conv", layer, &x, &weight, &bias)?;
            let y = tape.relu("relu", &y)?;
            tape.max_pool2d("pool", POOL, &y)?
        };
        let gradients = tape.backward(at(34, y.dims())?)?;
        let gradients = [x.as_tensor(), &weight, &bias].map(|of| gradients.get(of).unwrap());
        [&y].into_iter().chain(gradients).map(bits).collect()
    };
    assert!(compute(true)? == compute(false)?);
    Ok(())
}
