//! The operations in candle's graph: their gradients are those of the tape, bit for bit, and close to those of candle's
//! own operations.

use candle_core::{DType, Device, Result, Tensor, Var};
use ops::{Activation, Arithmetic, Conv2d, ConvAlgorithm, Dropout, Pool, Tape};
use rng::{Purpose, Stream, unit};

/// Values in `-0.5..0.5`.
fn tensor(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let stream = Stream::new(seed, Purpose::Synthetic, 0);
    let count = shape.iter().product::<usize>();
    let words = (0..count.div_ceil(4) as u64).flat_map(|block| stream.words(block));
    let values: Vec<f32> = words.take(count).map(|word| unit(word) - 0.5).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(DType::F64)
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.flatten_all()?.to_vec1()
}

const POOL: Pool = Pool {
    kernel: 3,
    stride: 2,
};
const MASK: Dropout = Dropout {
    probability: 0.25,
    seed: 1,
    step: 2,
    layer: 3,
};
const FIRST: Conv2d = Conv2d {
    padding: 1,
    activation: Activation::Relu,
    pool: Some(POOL),
};
const SECOND: Conv2d = Conv2d {
    padding: 2,
    activation: Activation::Identity,
    pool: None,
};

/// Images `[2, 13, 13, 3]`, and the weights and biases of the network below.
fn inputs() -> Result<Vec<Var>> {
    let shapes: [&[usize]; 9] = [
        &[2, 13, 13, 3],
        &[34, 3, 3, 3],
        &[34],
        &[35, 34, 5, 5],
        &[35],
        &[20, 35],
        &[20],
        &[4, 20],
        &[4],
    ];
    let seeds = 1..;
    seeds
        .zip(shapes)
        .map(|(seed, shape)| Var::from_tensor(&tensor(seed, shape)?))
        .collect()
}

/// Every operation: convolutions with and without pooling, both kinds of pooling, ReLU, flatten, dropout and linear
/// layers with and without ReLU.
fn in_graph(arithmetic: Arithmetic, a: &[Tensor]) -> Result<Tensor> {
    let x = ops::conv2d(arithmetic, FIRST, &a[0], &a[1], &a[2])?;
    let x = ops::conv2d(arithmetic, SECOND, &x, &a[3], &a[4])?;
    let x = ops::max_pool2d(&ops::relu(&x)?, POOL)?;
    let x = ops::avg_pool2d(&x, Pool { kernel: 2, ..POOL })?;
    let x = ops::dropout(&ops::flatten(&x)?, MASK)?;
    let x = ops::linear(arithmetic.precision, Activation::Relu, &x, &a[5], &a[6])?;
    ops::linear(arithmetic.precision, Activation::Identity, &x, &a[7], &a[8])
}

fn on_tape(tape: &mut Tape, a: &[Tensor]) -> Result<Tensor> {
    let x = tape.conv2d("conv1", FIRST, &a[0], &a[1], &a[2])?;
    let x = tape.conv2d("conv2", SECOND, &x, &a[3], &a[4])?;
    let x = tape.relu("relu", &x)?;
    let x = tape.max_pool2d("max", POOL, &x)?;
    let x = tape.avg_pool2d("avg", Pool { kernel: 2, ..POOL }, &x)?;
    let x = tape.flatten("flatten", &x)?;
    let x = tape.dropout("dropout", MASK, &x)?;
    let x = tape.linear("fc1", Activation::Relu, &x, &a[5], &a[6])?;
    tape.linear("fc2", Activation::Identity, &x, &a[7], &a[8])
}

#[test]
fn gradients_are_those_of_the_tape() -> Result<()> {
    let labels = Tensor::new(&[3_u32, 1], &Device::Cpu)?;
    for algorithm in ConvAlgorithm::ALL {
        let variables = inputs()?;
        let a: Vec<_> = variables.iter().map(|v| v.as_tensor().clone()).collect();
        let logits = in_graph(algorithm.into(), &a)?;
        let found = ops::cross_entropy(&logits, &labels)?.backward()?;

        let mut tape = Tape::recording(algorithm);
        let expected_logits = on_tape(&mut tape, &a)?;
        assert_eq!(values(&logits)?, values(&expected_logits)?);
        let gradient = ops::cross_entropy_gradient(&expected_logits, &labels, 0.0)?;
        let expected = tape.backward(gradient)?;
        for (index, variable) in a.iter().enumerate() {
            let [found, expected] = [&found, &expected].map(|store| store.get(variable).unwrap());
            // Candle adds a gradient to zeros, which turns -0 into 0; they are equal.
            assert_eq!(values(found)?, values(expected)?, "input {index}");
        }
    }
    Ok(())
}

fn assert_close(found: &Tensor, expected: &Tensor) -> Result<()> {
    assert_eq!(found.dims(), expected.dims());
    let difference = (found - expected)?.abs()?.flatten_all()?.max(0)?;
    let difference = difference.to_scalar::<f64>()?;
    assert!(difference < 1e-11, "{difference}");
    Ok(())
}

/// A network of what candle differentiates as well: a convolution, ReLU, flatten, a linear layer and cross-entropy.
#[test]
fn gradients_are_those_of_candles_own_operations() -> Result<()> {
    let labels = Tensor::new(&[1_u32, 0], &Device::Cpu)?;
    let shapes: [&[usize]; 5] = [
        &[2, 9, 8, 34],
        &[33, 34, 3, 3],
        &[33],
        &[4, 33 * 9 * 8],
        &[4],
    ];
    let variables = (1..)
        .zip(shapes)
        .map(|(seed, shape)| Var::from_tensor(&tensor(seed, shape)?))
        .collect::<Result<Vec<_>>>()?;
    let a: Vec<_> = variables.iter().map(|v| v.as_tensor().clone()).collect();

    let x = a[0].permute((0, 3, 1, 2))?.contiguous()?;
    let x = x.conv2d(&a[1], 1, 1, 1, 1)?;
    let x = x.broadcast_add(&a[2].reshape((1, (), 1, 1))?)?.relu()?;
    let x = x.flatten_from(1)?;
    let logits = x.matmul(&a[3].t()?)?.broadcast_add(&a[4])?;
    let expected = candle_nn::loss::cross_entropy(&logits, &labels)?.backward()?;

    let layer = Conv2d {
        padding: 1,
        activation: Activation::Relu,
        pool: None,
    };
    for algorithm in ConvAlgorithm::ALL {
        let arithmetic = Arithmetic::from(algorithm);
        let x = ops::conv2d(arithmetic, layer, &a[0], &a[1], &a[2])?;
        let x = ops::flatten(&x)?;
        let ours = ops::linear(arithmetic.precision, Activation::Identity, &x, &a[3], &a[4])?;
        assert_close(&ours, &logits)?;
        let found = ops::cross_entropy(&ours, &labels)?.backward()?;
        for variable in &a {
            let [found, expected] = [&found, &expected].map(|store| store.get(variable).unwrap());
            assert_close(found, expected)?;
        }
    }
    Ok(())
}

/// A result that is used twice: its gradients add up.
#[test]
fn a_graph_may_branch() -> Result<()> {
    let x = Var::from_tensor(&tensor(1, &[3, 4])?)?;
    let y = ops::relu(&x)?;
    let sum = ((&y * &y)? + &y)?.sum_all()?;
    let found = sum.backward()?;
    let expected: Vec<f64> = values(&x)?
        .into_iter()
        .map(|x| if x > 0.0 { 2.0 * x + 1.0 } else { 0.0 })
        .collect();
    assert_eq!(values(found.get(&x).unwrap())?, expected);
    Ok(())
}

#[test]
fn constants_have_no_gradient() -> Result<()> {
    let images = tensor(1, &[1, 5, 5, 2])?;
    let weight = Var::from_tensor(&tensor(2, &[3, 2, 3, 3])?)?;
    let bias = Var::from_tensor(&tensor(3, &[3])?)?;
    let y = ops::conv2d(ConvAlgorithm::Direct, SECOND, &images, &weight, &bias)?;
    let found = y.sum_all()?.backward()?;
    assert!(found.get(&images).is_none());
    assert!(found.get(&weight).is_some() && found.get(&bias).is_some());
    Ok(())
}
