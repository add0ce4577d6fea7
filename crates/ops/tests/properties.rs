//! Every operation over random shapes: against plain loops, against finite differences in `f64`,
//! and for the same bits on any number of threads.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in the tests' common functions.

use candle_core::{DType, Device, Result, Tensor, Var};
use kernels::InstructionSet;
use ops::{
    Activation, Conv2d, ConvAlgorithm, Dropout, GradientScale, Pool, Sgd, Tape, avg_pool2d,
    cross_entropy, cross_entropy_gradient, max_pool2d, sgd_step,
};
use proptest::prelude::*;
use rng::{Purpose, Stream, unit};
use std::process::Command;

/// The environment variable that selects the kernels' instruction set.
const INSTRUCTION_SET: &str = "KERNELS_ISA";

/// Cases of each property: fewer on an instruction set that is not the machine's best.
fn cases() -> ProptestConfig {
    let selected = std::env::var_os(INSTRUCTION_SET).is_some();
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(if selected { 6 } else { 48 })
    }
}

/// `count` values in `-bound..bound`.
fn uniform(seed: u64, count: usize, bound: f32) -> Vec<f32> {
    let stream = Stream::new(seed, Purpose::Synthetic, 0);
    let words = (0..count.div_ceil(4) as u64).flat_map(|block| stream.words(block));
    let values = words.map(|word| (2.0 * unit(word) - 1.0) * bound);
    values.take(count).collect()
}

fn tensor(seed: u64, shape: &[usize]) -> Tensor {
    let values = uniform(seed, shape.iter().product(), 1.0);
    let values = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    values.to_dtype(DType::F64).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .flatten_all()
        .unwrap()
        .to_dtype(DType::F64)
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    values(tensor).into_iter().map(f64::to_bits).collect()
}

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= tolerance,
            "[{index}]: {found}, not {expected}"
        );
    }
}

fn activation(relu: bool) -> Activation {
    if relu {
        Activation::Relu
    } else {
        Activation::Identity
    }
}

/// What is tested: operations on a tape, the first of them on the first input.
type Function<'a> = &'a (dyn Fn(&mut Tape, &[Tensor]) -> Result<Tensor> + Sync);

fn apply(f: Function<'_>, inputs: &[Tensor], convolution: ConvAlgorithm) -> Tensor {
    f(&mut Tape::no_grad(convolution), inputs).unwrap()
}

/// The gradients of `sum(weights * f(inputs))`, with a different weight for each element.
fn gradients(f: Function<'_>, inputs: &[Tensor], convolution: ConvAlgorithm) -> Vec<Tensor> {
    let variables: Vec<Var> = inputs
        .iter()
        .map(|x| Var::from_tensor(x).unwrap())
        .collect();
    let arguments: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let mut tape = Tape::recording(convolution);
    let y = f(&mut tape, &arguments).unwrap();
    let weights = tensor(99, y.dims()).to_dtype(y.dtype()).unwrap();
    let grads = tape.backward(weights).unwrap();
    variables
        .iter()
        .map(|v| grads.get(v).unwrap().clone())
        .collect()
}

fn check_gradients(f: Function<'_>, inputs: &[Tensor]) {
    let objective = |inputs: &[Tensor]| -> f64 {
        let y = values(&apply(f, inputs, ConvAlgorithm::Direct));
        let weights = uniform(99, y.len(), 1.0);
        y.iter().zip(weights).map(|(y, w)| y * f64::from(w)).sum()
    };
    let found = gradients(f, inputs, ConvAlgorithm::Direct);
    check_slopes(&objective, inputs, &found);
}

/// Compares every gradient with the finite differences on both sides, between which it must be. They are equal except
/// near a kink of the function (ReLU at 0, two equal maxima).
fn check_slopes(objective: &dyn Fn(&[Tensor]) -> f64, inputs: &[Tensor], gradients: &[Tensor]) {
    const STEP: f64 = 1e-6;
    const TOLERANCE: f64 = 1e-6;
    let here = objective(inputs);
    for (number, gradient) in gradients.iter().enumerate() {
        let shape = inputs[number].shape().clone();
        let middle = values(&inputs[number]);
        let gradient = values(gradient);
        assert_eq!(gradient.len(), middle.len());
        for (index, slope) in gradient.into_iter().enumerate() {
            let difference = |step: f64| {
                let mut moved = middle.clone();
                moved[index] += step;
                let mut inputs = inputs.to_vec();
                inputs[number] = Tensor::from_vec(moved, shape.clone(), &Device::Cpu).unwrap();
                (objective(&inputs) - here) / step
            };
            let (a, b) = (difference(STEP), difference(-STEP));
            assert!(
                (a.min(b) - TOLERANCE..=a.max(b) + TOLERANCE).contains(&slope),
                "input {number} [{index}]: {slope}, not {a} or {b}"
            );
        }
    }
}

/// Runs `f` on pools of 1, 2, 3 and 7 threads; all results must be equal to the bit.
fn same_on_any_threads(f: impl Fn() -> Vec<Vec<u64>> + Sync) {
    let results: Vec<_> = [1, 2, 3, 7]
        .into_iter()
        .map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(&f)
        })
        .collect();
    assert!(results.iter().all(|result| *result == results[0]));
}

#[derive(Debug, Clone, Copy)]
struct Conv {
    batch: usize,
    in_channels: usize,
    out_channels: usize,
    height: usize,
    width: usize,
    kernel: usize,
    padding: usize,
    relu: bool,
    pool: Option<Pool>,
    seed: u64,
}

impl Conv {
    fn inputs(&self) -> [Tensor; 3] {
        let Self {
            batch,
            in_channels,
            out_channels,
            height,
            width,
            kernel,
            seed,
            ..
        } = *self;
        [
            tensor(seed, &[batch, height, width, in_channels]),
            tensor(seed + 1, &[out_channels, in_channels, kernel, kernel]),
            tensor(seed + 2, &[out_channels]),
        ]
    }

    fn run(&self, tape: &mut Tape, inputs: &[Tensor]) -> Result<Tensor> {
        let layer = Conv2d {
            padding: self.padding,
            activation: activation(self.relu),
            pool: self.pool,
        };
        tape.conv2d("conv", layer, &inputs[0], &inputs[1], &inputs[2])
    }

    /// The sum over channels and offsets, written out.
    fn plain(&self) -> Vec<f64> {
        let Self {
            batch,
            in_channels,
            out_channels,
            height,
            width,
            kernel,
            padding,
            relu,
            ..
        } = *self;
        let [x, w, b] = self.inputs().map(|tensor| values(&tensor));
        let (out_height, out_width) = (
            height + 2 * padding + 1 - kernel,
            width + 2 * padding + 1 - kernel,
        );
        let mut y = Vec::new();
        for n in 0..batch {
            for i in 0..out_height {
                for j in 0..out_width {
                    for (o, bias) in b.iter().enumerate().take(out_channels) {
                        let mut sum = *bias;
                        for c in 0..in_channels {
                            for u in 0..kernel {
                                for v in 0..kernel {
                                    let (row, column) = (i + u, j + v);
                                    let inside = (padding..height + padding).contains(&row)
                                        && (padding..width + padding).contains(&column);
                                    if inside {
                                        let row = n * height + row - padding;
                                        let index = row * width + column - padding;
                                        sum += x[index * in_channels + c]
                                            * w[((o * in_channels + c) * kernel + u) * kernel + v];
                                    }
                                }
                            }
                        }
                        y.push(if relu { sum.max(0.0) } else { sum });
                    }
                }
            }
        }
        y
    }
}

prop_compose! {
    fn convolutions()(
        batch in 1_usize..4, in_channels in 1_usize..4, out_channels in 1_usize..4,
        kernel in 1_usize..6, padding in 0_usize..4, extra_height in 0_usize..4,
        extra_width in 0_usize..4, relu: bool, seed in 0_u64..1000
    ) -> Conv {
        let least = (kernel + 1).saturating_sub(2 * padding).max(1);
        Conv {
            batch, in_channels, out_channels, kernel, padding, relu, seed, pool: None,
            height: least + extra_height,
            width: least + extra_width,
        }
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn conv2d_is_the_plain_sum(conv in convolutions()) {
        let y = apply(&|tape, inputs| conv.run(tape, inputs), &conv.inputs(), ConvAlgorithm::Direct);
        assert_close(&values(&y), &conv.plain(), 1e-12);
    }

    #[test]
    fn conv2d_has_the_gradients_of_finite_differences(conv in convolutions()) {
        check_gradients(&|tape, inputs| conv.run(tape, inputs), &conv.inputs());
    }

    #[test]
    fn pooling_may_be_part_of_a_convolution(
        conv in convolutions(), kernel in 1_usize..4, stride in 1_usize..4
    ) {
        let pool = Pool { kernel, stride };
        let fused = Conv { pool: Some(pool), ..conv };
        let apart = |tape: &mut Tape, inputs: &[Tensor]| {
            let y = conv.run(tape, inputs)?;
            tape.max_pool2d("pool", pool, &y)
        };
        let inputs = conv.inputs();
        let sizes = [conv.height, conv.width].map(|size| size + 2 * conv.padding + 1 - conv.kernel);
        let mut tape = Tape::no_grad(ConvAlgorithm::Direct);
        if sizes.iter().any(|size| *size < kernel) {
            prop_assert!(fused.run(&mut tape, &inputs).is_err());
            return Ok(());
        }
        let y = fused.run(&mut tape, &inputs).unwrap();
        prop_assert_eq!(bits(&y), bits(&apply(&apart, &inputs, ConvAlgorithm::Direct)));
        let found = gradients(&|tape, inputs| fused.run(tape, inputs), &inputs, ConvAlgorithm::Direct);
        let expected = gradients(&apart, &inputs, ConvAlgorithm::Direct);
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(&values(found), &values(expected), 1e-12);
        }
    }

    /// With so many channels that it is worth a transform; edges and tiles of every size.
    #[test]
    fn winograd_convolutions_agree_with_direct_ones(
        batch in 1_usize..4, in_channels in 33_usize..48, out_channels in 33_usize..48,
        kernel in prop_oneof![Just(3_usize), Just(5)], padding in 0_usize..4,
        height in 7_usize..16, width in 7_usize..16, relu: bool, pooled: bool, seed in 0_u64..1000
    ) {
        let pool = pooled.then_some(Pool { kernel: 3, stride: 2 });
        let conv = Conv { batch, in_channels, out_channels, height, width, kernel, padding, relu, pool, seed };
        let inputs = conv.inputs();
        let run = |tape: &mut Tape, inputs: &[Tensor]| conv.run(tape, inputs);
        let [direct, winograd] = ConvAlgorithm::ALL.map(|convolution| {
            let mut all = vec![apply(&run, &inputs, convolution)];
            all.extend(gradients(&run, &inputs, convolution));
            all
        });
        for (direct, winograd) in direct.iter().zip(&winograd) {
            assert_close(&values(winograd), &values(direct), 1e-9);
        }
    }

    #[test]
    fn linear_is_the_plain_product(
        batch in 1_usize..5, inputs in 1_usize..6, outputs in 1_usize..600, relu: bool, seed in 0_u64..1000
    ) {
        let [x, w, b] = [
            tensor(seed, &[batch, inputs]), tensor(seed + 1, &[outputs, inputs]), tensor(seed + 2, &[outputs]),
        ];
        let mut tape = Tape::no_grad(ConvAlgorithm::Direct);
        let y = tape.linear("linear", activation(relu), &x, &w, &b).unwrap();
        let (x, w, b) = (values(&x), values(&w), values(&b));
        let mut expected = Vec::new();
        for row in x.chunks(inputs) {
            for (w, b) in w.chunks(inputs).zip(&b) {
                let sum = b + row.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
                expected.push(if relu { sum.max(0.0) } else { sum });
            }
        }
        assert_close(&values(&y), &expected, 1e-12);
    }

    #[test]
    fn linear_has_the_gradients_of_finite_differences(
        batch in 1_usize..4, inputs in 1_usize..5, outputs in 1_usize..5, relu: bool, seed in 0_u64..1000
    ) {
        let arguments = [
            tensor(seed, &[batch, inputs]), tensor(seed + 1, &[outputs, inputs]), tensor(seed + 2, &[outputs]),
        ];
        check_gradients(&|tape, a| tape.linear("linear", activation(relu), &a[0], &a[1], &a[2]), &arguments);
    }

    #[test]
    fn max_pool2d_is_the_plain_maximum(
        channels in 1_usize..4, kernel in 1_usize..5, stride in 1_usize..4,
        extra_height in 0_usize..8, extra_width in 0_usize..8, seed in 0_u64..1000
    ) {
        let (height, width) = (kernel + extra_height, kernel + extra_width);
        let x = tensor(seed, &[2, height, width, channels]);
        let pool = Pool { kernel, stride };
        let y = max_pool2d(&x, pool).unwrap();
        let x_values = values(&x);
        let mut expected = Vec::new();
        for image in x_values.chunks(height * width * channels) {
            for top in (0..=height - kernel).step_by(stride) {
                for left in (0..=width - kernel).step_by(stride) {
                    for channel in 0..channels {
                        let pixels = (top..top + kernel)
                            .flat_map(|row| (left..left + kernel).map(move |column| row * width + column));
                        let window = pixels.map(|pixel| image[pixel * channels + channel]);
                        expected.push(window.fold(f64::MIN, f64::max));
                    }
                }
            }
        }
        prop_assert_eq!(values(&y), expected);
        check_gradients(&|tape, a| tape.max_pool2d("pool", pool, &a[0]), &[x]);
    }

    #[test]
    fn avg_pool2d_is_the_plain_average(
        channels in 1_usize..20, kernel in 1_usize..5, stride in 1_usize..5,
        extra_height in 0_usize..8, extra_width in 0_usize..8, seed in 0_u64..1000
    ) {
        let (height, width) = (kernel + extra_height, kernel + extra_width);
        let x = tensor(seed, &[2, height, width, channels]);
        let pool = Pool { kernel, stride };
        let y = avg_pool2d(&x, pool).unwrap();
        let x_values = values(&x);
        let mut expected = Vec::new();
        for image in x_values.chunks(height * width * channels) {
            for top in (0..=height - kernel).step_by(stride) {
                for left in (0..=width - kernel).step_by(stride) {
                    for channel in 0..channels {
                        let pixels = (top..top + kernel)
                            .flat_map(|row| (left..left + kernel).map(move |column| row * width + column));
                        let sum: f64 = pixels.map(|pixel| image[pixel * channels + channel]).sum();
                        expected.push(sum / (kernel * kernel) as f64);
                    }
                }
            }
        }
        assert_close(&values(&y), &expected, 1e-15);
        let first = x.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap();
        let theirs = first.avg_pool2d_with_stride(kernel, stride).unwrap();
        assert_close(&values(&y), &values(&theirs.permute((0, 2, 3, 1)).unwrap()), 1e-15);
        check_gradients(&|tape, a| tape.avg_pool2d("pool", pool, &a[0]), std::slice::from_ref(&x));
        // The same by candle's automatic differentiation.
        let variable = Var::from_tensor(&x).unwrap();
        let grad_y = tensor(99, y.dims());
        let loss = (avg_pool2d(&variable, pool).unwrap() * grad_y).unwrap().sum_all().unwrap();
        let theirs = loss.backward().unwrap();
        let ours = gradients(&|tape, a| tape.avg_pool2d("pool", pool, &a[0]), &[x], ConvAlgorithm::Direct);
        prop_assert_eq!(bits(theirs.get(&variable).unwrap()), bits(&ours[0]));
    }

    #[test]
    fn flatten_has_pytorchs_order(
        batch in 1_usize..4, channels in 1_usize..70, height in 1_usize..9, width in 1_usize..9, seed in 0_u64..1000
    ) {
        let x = tensor(seed, &[batch, channels, height, width]);
        let y = x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
        let mut tape = Tape::recording(ConvAlgorithm::Direct);
        let variable = Var::from_tensor(&y).unwrap();
        let flat = tape.flatten("flatten", &variable).unwrap();
        prop_assert_eq!(flat.dims(), [batch, channels * height * width]);
        prop_assert_eq!(values(&flat), values(&x));
        let grads = tape.backward(flat).unwrap();
        prop_assert_eq!(values(grads.get(&variable).unwrap()), values(&y));
    }

    #[test]
    fn cross_entropy_has_the_gradients_of_finite_differences(
        batch in 1_usize..6, classes in 1_usize..6, seed in 0_u64..1000
    ) {
        let labels: Vec<u32> = (0..batch as u32).map(|i| (i * 7 + seed as u32) % classes as u32).collect();
        let labels = Tensor::from_vec(labels, batch, &Device::Cpu).unwrap();
        let logits = tensor(seed, &[batch, classes]);
        let gradient = cross_entropy_gradient(&logits, &labels, 0.0).unwrap();
        let loss = |a: &[Tensor]| cross_entropy(&a[0], &labels).unwrap().to_scalar::<f64>().unwrap();
        check_slopes(&loss, std::slice::from_ref(&logits), std::slice::from_ref(&gradient));
        // The same by candle's automatic differentiation.
        let variable = Var::from_tensor(&logits).unwrap();
        let grads = cross_entropy(&variable, &labels).unwrap().backward().unwrap();
        prop_assert_eq!(bits(grads.get(&variable).unwrap()), bits(&gradient));
        // candle computes the same loss by another route.
        let theirs = candle_nn::loss::cross_entropy(&logits, &labels).unwrap();
        let ours = cross_entropy(&logits, &labels).unwrap();
        assert_close(&values(&ours), &values(&theirs), 1e-12);
    }

    #[test]
    fn dropout_scales_what_it_keeps_and_masks_the_gradient_alike(
        length in 1_usize..200, probability in 0.0_f32..0.95, step in 0_u32..1000, seed: u64
    ) {
        let mask = Dropout { probability, seed, step, layer: 1 };
        let ones = Tensor::ones(length, DType::F64, &Device::Cpu).unwrap();
        let y = Tape::no_grad(ConvAlgorithm::Direct).dropout("dropout", mask, &ones).unwrap();
        let scale = 1.0 / (1.0 - f64::from(probability));
        prop_assert!(values(&y).iter().all(|v| *v == 0.0 || *v == scale));
        check_gradients(&|tape, a| tape.dropout("dropout", mask, &a[0]), &[tensor(seed >> 1, &[length])]);
    }
}

#[test]
fn relu_has_pytorchs_gradient_at_zero() -> Result<()> {
    let x = Var::from_tensor(&Tensor::new(&[-1.0_f64, 0.0, -0.0, 2.0], &Device::Cpu)?)?;
    let mut tape = Tape::recording(ConvAlgorithm::Direct);
    let y = tape.relu("relu", &x)?;
    assert_eq!(values(&y), [0.0, 0.0, 0.0, 2.0]);
    let grads = tape.backward(y.ones_like()?)?;
    assert_eq!(values(grads.get(&x).unwrap()), [0.0, 0.0, 0.0, 1.0]);
    Ok(())
}

#[test]
fn ties_of_max_pool2d_go_to_the_first_in_row_major_order() -> Result<()> {
    let x = Var::zeros((1, 5, 5, 1), DType::F64, &Device::Cpu)?;
    // By candle's automatic differentiation, which knows this operation as well.
    let grads = max_pool2d(
        &x,
        Pool {
            kernel: 3,
            stride: 2,
        },
    )?
    .sum_all()?
    .backward()?;
    let mut expected = [0.0; 25];
    for index in [0, 2, 10, 12] {
        expected[index] = 1.0;
    }
    assert_eq!(values(grads.get(&x).unwrap()), expected);
    Ok(())
}

#[test]
fn every_operation_propagates_nan() -> Result<()> {
    for (convolution, channels) in [(ConvAlgorithm::Direct, 1), (ConvAlgorithm::Winograd, 40)] {
        let nan = Tensor::full(f64::NAN, (1, 9, 9, channels), &Device::Cpu)?;
        let weight = Tensor::ones((channels, channels, 3, 3), DType::F64, &Device::Cpu)?;
        let bias = Tensor::zeros(channels, DType::F64, &Device::Cpu)?;
        let layer = Conv2d {
            padding: 0,
            activation: Activation::Relu,
            pool: Some(Pool {
                kernel: 2,
                stride: 1,
            }),
        };
        let y = Tape::no_grad(convolution).conv2d("conv", layer, &nan, &weight, &bias)?;
        assert!(values(&y).iter().all(|v| v.is_nan()));
        let pool = Pool {
            kernel: 2,
            stride: 1,
        };
        let y = Tape::no_grad(convolution).max_pool2d("pool", pool, &nan)?;
        assert!(values(&y).iter().all(|v| v.is_nan()));
        let y = Tape::no_grad(convolution).avg_pool2d("pool", pool, &nan)?;
        assert!(values(&y).iter().all(|v| v.is_nan()));
    }
    let logits = Tensor::full(f64::NAN, (1, 3), &Device::Cpu)?;
    let loss = cross_entropy(&logits, &Tensor::new(&[0_u32], &Device::Cpu)?)?;
    assert!(loss.to_scalar::<f64>()?.is_nan());
    Ok(())
}

#[test]
fn dropout_masks_differ_by_seed_step_layer_and_element() -> Result<()> {
    let ones = Tensor::ones(40_000, DType::F32, &Device::Cpu)?;
    let base = Dropout {
        probability: 0.25,
        seed: 1,
        step: 2,
        layer: 0,
    };
    let mask = |mask| {
        let y = Tape::no_grad(ConvAlgorithm::Direct).dropout("dropout", mask, &ones)?;
        Ok::<_, candle_core::Error>(values(&y))
    };
    let kept = mask(base)?.iter().filter(|v| **v > 0.0).count();
    // 30,000 with a standard deviation of 87.
    assert!((29_560..30_440).contains(&kept), "{kept}");
    assert_eq!(mask(base)?, mask(base)?);
    for other in [
        Dropout { seed: 2, ..base },
        Dropout { step: 3, ..base },
        Dropout { layer: 1, ..base },
    ] {
        let pairs = mask(base)?.into_iter().zip(mask(other)?);
        let same = pairs.filter(|(a, b)| a == b).count();
        // 0.75^2 + 0.25^2 = 0.625 of them by chance, with a standard deviation of 97.
        assert!((24_500..25_500).contains(&same), "{same}");
    }
    Ok(())
}

/// Values of `torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.01)` after each of two
/// steps from `p = [1, -2]` with gradients `[0.5, 1]` and `[-1, 0.25]`.
#[test]
fn sgd_moves_as_pytorch_does() -> Result<()> {
    let device = &Device::Cpu;
    let sgd = Sgd {
        learning_rate: 0.1,
        momentum: 0.9,
        weight_decay: 0.01,
        ..Sgd::default()
    };
    let parameter = Var::from_tensor(&Tensor::new(&[1.0_f64, -2.0], device)?)?;
    let buffer = parameter.zeros_like()?;
    let mut gradient = Tensor::new(&[0.5_f64, 1.0], device)?;
    sgd_step(
        sgd,
        &GradientScale::ONE,
        &[[parameter.as_tensor(), &buffer, &gradient]],
    )?;
    assert_close(&values(&parameter), &[0.949, -2.098], 1e-12);
    gradient = Tensor::new(&[-1.0_f64, 0.25], device)?;
    sgd_step(
        sgd,
        &GradientScale::ONE,
        &[[parameter.as_tensor(), &buffer, &gradient]],
    )?;
    assert_close(&values(&parameter), &[1.002_151, -2.209_102], 1e-12);
    Ok(())
}

/// Parameters after each step of
/// `torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)` from `p = [1, -2]`, and their
/// average by `AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.75))`, which begins with the first step's.
#[test]
fn nesterov_and_ema_move_as_pytorch_does() -> Result<()> {
    let device = &Device::Cpu;
    let sgd = Sgd {
        learning_rate: 0.1,
        momentum: 0.9,
        weight_decay: 0.01,
        nesterov: true,
    };
    let parameter = Var::from_tensor(&Tensor::new(&[1.0_f64, -2.0], device)?)?;
    let buffer = parameter.zeros_like()?;
    let mut ema: Option<Tensor> = None;
    for (gradient, after, averaged) in [
        ([0.5_f64, 1.0], [0.9031, -2.1862], [0.9031, -2.1862]),
        (
            [-1.0, 0.25],
            [1.050_074_11, -2.308_926_22],
            [0.939_843_527_5, -2.216_881_555],
        ),
        (
            [0.3, -0.2],
            [1.034_168_458_191, -2.356_460_438_182],
            [0.963_424_760_172_75, -2.251_776_275_795_5],
        ),
    ] {
        let gradient = Tensor::new(&gradient, device)?;
        sgd_step(
            sgd,
            &GradientScale::ONE,
            &[[parameter.as_tensor(), &buffer, &gradient]],
        )?;
        assert_close(&values(&parameter), &after, 1e-12);
        match &ema {
            None => ema = Some(parameter.as_tensor().copy()?),
            Some(ema) => ops::ema_step(0.75, &[[ema, parameter.as_tensor()]])?,
        }
        assert_close(
            &ema.iter().flat_map(values).collect::<Vec<_>>(),
            &averaged,
            1e-12,
        );
    }
    Ok(())
}

/// `F.cross_entropy(x, torch.tensor([1, 0]), label_smoothing=0.2)`.
#[test]
fn smoothed_labels_have_pytorchs_gradient() -> Result<()> {
    let device = &Device::Cpu;
    let logits = Tensor::new(&[[1.0_f64, 2.0, -1.0], [0.5, 0.0, 3.0]], device)?;
    let labels = Tensor::new(&[1_u32, 0], device)?;
    let gradient = ops::cross_entropy_gradient(&logits, &labels, 0.2)?;
    let expected = [
        0.096_414_896_837_876_24,
        -0.080_641_076_984_212_75,
        -0.015_773_819_853_663_468,
        -0.397_072_610_492_959_5,
        -0.011_340_093_187_304_41,
        0.408_412_703_680_263_83,
    ];
    assert_close(&values(&gradient), &expected, 1e-12);
    Ok(())
}

#[test]
fn a_norm_is_that_of_all_tensors_on_any_number_of_threads() -> Result<()> {
    let tensors = [tensor(1, &[70_001]), tensor(2, &[3, 5])];
    let all: f64 = tensors
        .iter()
        .flat_map(values)
        .map(|value| value * value)
        .sum();
    let tensors: Vec<&Tensor> = tensors.iter().collect();
    assert!((ops::norm(&tensors)? - all.sqrt()).abs() < 1e-9 * all.sqrt());
    same_on_any_threads(|| vec![vec![ops::norm(&tensors).unwrap().to_bits()]]);
    Ok(())
}

#[test]
fn results_are_the_same_bits_on_any_number_of_threads() {
    let everything = |f: Function<'_>, inputs: &[Tensor], convolution| {
        let mut all = vec![bits(&apply(f, inputs, convolution))];
        all.extend(gradients(f, inputs, convolution).iter().map(bits));
        all
    };
    // Shapes that are cut into several parts, and into parts of unequal size.
    for (in_channels, kernel, padding) in [(3, 7, 0), (40, 5, 2), (50, 3, 1)] {
        let conv = Conv {
            batch: 41,
            in_channels,
            out_channels: 39,
            height: 15,
            width: 13,
            kernel,
            padding,
            relu: true,
            pool: Some(Pool {
                kernel: 3,
                stride: 2,
            }),
            seed: 5,
        };
        let inputs = conv
            .inputs()
            .map(|tensor| tensor.to_dtype(DType::F32).unwrap());
        for convolution in ConvAlgorithm::ALL {
            same_on_any_threads(|| {
                everything(&|tape, inputs| conv.run(tape, inputs), &inputs, convolution)
            });
        }
    }
    let single = |seed, shape: &[usize]| tensor(seed, shape).to_dtype(DType::F32).unwrap();
    let layer = [
        single(1, &[37, 700]),
        single(2, &[530, 700]),
        single(3, &[530]),
    ];
    same_on_any_threads(|| {
        let run = |tape: &mut Tape, a: &[Tensor]| {
            tape.linear("linear", Activation::Relu, &a[0], &a[1], &a[2])
        };
        everything(&run, &layer, ConvAlgorithm::Direct)
    });
    let images = single(4, &[5, 29, 29, 6]);
    let mask = Dropout {
        probability: 0.5,
        seed: 1,
        step: 1,
        layer: 0,
    };
    let pool = Pool {
        kernel: 3,
        stride: 2,
    };
    let unary: [Function<'_>; 5] = [
        &|tape, a| tape.max_pool2d("pool", pool, &a[0]),
        &|tape, a| tape.avg_pool2d("pool", pool, &a[0]),
        &|tape, a| tape.relu("relu", &a[0]),
        &|tape, a| tape.dropout("dropout", mask, &a[0]),
        &|tape, a| tape.flatten("flatten", &a[0]),
    ];
    for f in unary {
        let images = std::slice::from_ref(&images);
        same_on_any_threads(|| everything(f, images, ConvAlgorithm::Direct));
    }
    same_on_any_threads(|| {
        let sgd = Sgd {
            learning_rate: 0.1,
            momentum: 0.9,
            weight_decay: 0.01,
            ..Sgd::default()
        };
        let parameter = Var::from_tensor(&single(7, &[100_003])).unwrap();
        let buffer = single(8, &[100_003]);
        let gradient = single(9, &[100_003]);
        sgd_step(
            sgd,
            &GradientScale::ONE,
            &[[parameter.as_tensor(), &buffer, &gradient]],
        )
        .unwrap();
        vec![bits(&parameter), bits(&buffer)]
    });
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let x = tensor(1, &[1, 4, 4, 2]);
    let bias = tensor(2, &[3]);
    let conv = |weight: &[usize], pool| {
        let layer = Conv2d {
            padding: 0,
            activation: Activation::Identity,
            pool,
        };
        Tape::no_grad(ConvAlgorithm::Winograd).conv2d("conv", layer, &x, &tensor(3, weight), &bias)
    };
    let pool = |kernel, stride| Pool { kernel, stride };
    assert!(conv(&[3, 2, 3, 3], None).is_ok());
    assert!(conv(&[3, 1, 3, 3], None).is_err());
    assert!(conv(&[3, 2, 5, 5], None).is_err());
    assert!(conv(&[4, 2, 3, 3], None).is_err());
    assert!(conv(&[3, 2, 3, 3], Some(pool(3, 1))).is_err());
    assert!(max_pool2d(&x, pool(5, 2)).is_err());
    assert!(max_pool2d(&x, pool(3, 0)).is_err());
    assert!(avg_pool2d(&x, pool(5, 2)).is_err());
    assert!(avg_pool2d(&x, pool(3, 0)).is_err());
    let mut tape = Tape::no_grad(ConvAlgorithm::Winograd);
    let linear = tape.linear(
        "linear",
        Activation::Relu,
        &tensor(1, &[2, 3]),
        &tensor(2, &[4, 5]),
        &tensor(3, &[4]),
    );
    assert!(linear.is_err());
    let labels = |label: u32| Tensor::new(&[label, 0], &Device::Cpu).unwrap();
    assert!(cross_entropy(&tensor(1, &[2, 3]), &labels(3)).is_err());
    assert!(cross_entropy(&tensor(1, &[3, 3]), &labels(0)).is_err());
    let mask = Dropout {
        probability: 1.0,
        seed: 0,
        step: 0,
        layer: 0,
    };
    assert!(tape.dropout("dropout", mask, &x).is_err());
    let integers = Tensor::zeros((1, 3, 3, 1), DType::U8, &Device::Cpu).unwrap();
    assert!(max_pool2d(&integers, pool(2, 1)).is_err());
    assert!(avg_pool2d(&integers, pool(2, 1)).is_err());
}

#[test]
fn a_tape_is_a_chain() -> Result<()> {
    let x = tensor(1, &[2, 3]);
    let nothing = Tape::recording(ConvAlgorithm::Winograd);
    assert!(nothing.backward(x.clone()).is_err());
    let mut forgotten = Tape::no_grad(ConvAlgorithm::Winograd);
    forgotten.relu("relu", &x)?;
    assert!(forgotten.backward(x.clone()).is_err());
    let mut tape = Tape::recording(ConvAlgorithm::Winograd);
    tape.relu("first", &x)?;
    let error = tape.relu("second", &x).unwrap_err().to_string();
    assert!(error.contains("second"), "{error}");
    let mut tape = Tape::recording(ConvAlgorithm::Winograd);
    tape.relu("relu", &x)?;
    let error = tape.backward(tensor(2, &[3, 2])).unwrap_err().to_string();
    assert!(
        error.contains("[3, 2]") && error.contains("[2, 3]"),
        "{error}"
    );
    Ok(())
}

/// Runs the other tests on the instruction sets of the machine that are not in use, with fewer cases.
#[test]
fn properties_hold_on_all_instruction_sets() {
    for set in InstructionSet::ALL {
        if !set.is_available() {
            println!("skipped: this machine has no {}", set.name());
            continue;
        }
        if set == InstructionSet::current() {
            continue;
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--skip", "properties_hold_on_all_instruction_sets"])
            // The digests hold the bits, and this test takes a minute in scalar code.
            .args([
                "--skip",
                "results_are_the_same_bits_on_any_number_of_threads",
            ])
            .env(INSTRUCTION_SET, set.name())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{set:?}: {text}");
        assert!(text.contains("conv2d_is_the_plain_sum ... ok"), "{text}");
    }
}
