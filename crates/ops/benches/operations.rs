//! Each operation and pass at the two networks' shapes: `cargo bench -p ops`, or, say,
//! `cargo bench -p ops -- "small-alexnet/conv_layer2.0 winograd"` for some of them.
//!
//! Throughput is in multiply-adds of the sums that define an operation, or in bytes
//! where it has none. Whole steps, and other programs beside them, are measured by `cargo xtask bench`.

#![allow(missing_docs, clippy::unwrap_used)] // The macros' functions; a panic is how a benchmark fails.

use candle_core::{DType, Device, Shape, Tensor, Var};
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, measurement::WallTime,
};
use ops::{Activation, Conv2d, ConvAlgorithm, Dropout, Pool, Sgd, Tape};
use std::time::Duration;

const BATCH: usize = 64;

const POOL: Pool = Pool {
    kernel: 3,
    stride: 2,
};

/// A convolution layer: height and width of its images, channels in and out, kernel, padding, and whether
/// pooling follows.
type ConvLayer = (&'static str, usize, usize, usize, usize, usize, bool);

const CONVOLUTIONS: [ConvLayer; 10] = [
    ("alexnet/conv_layer1.0", 32, 3, 96, 4, 0, false),
    ("alexnet/conv_layer2.0", 29, 96, 256, 5, 2, true),
    ("alexnet/conv_layer3.0", 14, 256, 384, 3, 1, false),
    ("alexnet/conv_layer3.2", 14, 384, 384, 3, 1, false),
    ("alexnet/conv_layer3.4", 14, 384, 256, 3, 1, true),
    ("small-alexnet/conv_layer1.0", 32, 3, 64, 7, 0, false),
    ("small-alexnet/conv_layer2.0", 26, 64, 192, 5, 2, true),
    ("small-alexnet/conv_layer3.0", 12, 192, 256, 3, 1, false),
    ("small-alexnet/conv_layer3.2", 12, 256, 256, 3, 1, false),
    ("small-alexnet/conv_layer3.4", 12, 256, 128, 3, 1, true),
];

/// A fully connected layer: features in and out, and what follows.
const LINEAR: [(&str, usize, usize, Activation); 6] = [
    ("alexnet/fc_layer1.1", 9216, 4096, Activation::Relu),
    ("alexnet/fc_layer1.4", 4096, 4096, Activation::Relu),
    ("alexnet/fc_layer1.6", 4096, 10, Activation::Identity),
    ("small-alexnet/fc_layer1.1", 3200, 2048, Activation::Relu),
    ("small-alexnet/fc_layer1.4", 2048, 2048, Activation::Relu),
    ("small-alexnet/fc_layer1.6", 2048, 10, Activation::Identity),
];

fn noise(shape: impl Into<Shape>) -> Tensor {
    Tensor::randn(0_f32, 1_f32, shape.into(), &Device::Cpu).unwrap()
}

fn elements(group: &mut BenchmarkGroup<'_, WallTime>, count: usize) {
    group.throughput(Throughput::Elements(count as u64));
}

/// Reading and writing a tensor.
fn copying(group: &mut BenchmarkGroup<'_, WallTime>, x: &Tensor) {
    group.throughput(Throughput::Bytes(8 * x.elem_count() as u64));
}

/// The forward pass without saving for a backward pass, and the backward pass alone.
fn both_passes(
    group: &mut BenchmarkGroup<'_, WallTime>,
    convolution: ConvAlgorithm,
    run: impl Fn(&mut Tape) -> Tensor,
    between: impl FnOnce(&mut BenchmarkGroup<'_, WallTime>),
) {
    group.bench_function("forward", |bencher| {
        bencher.iter(|| run(&mut Tape::no_grad(convolution)));
    });
    between(group);
    group.bench_function("backward", |bencher| {
        bencher.iter_batched(
            || {
                let mut tape = Tape::recording(convolution);
                let y = run(&mut tape);
                let gradient = noise(y.shape());
                (tape, gradient)
            },
            |(tape, gradient)| tape.backward(gradient).unwrap(),
            BatchSize::PerIteration,
        );
    });
}

fn convolutions(criterion: &mut Criterion) {
    for (name, side, in_channels, out_channels, kernel, padding, pooled) in CONVOLUTIONS {
        let layer = Conv2d {
            padding,
            activation: Activation::Relu,
            pool: pooled.then_some(POOL),
        };
        let images = noise((BATCH, side, side, in_channels));
        // Nobody wants the gradient of the network's images.
        let x = match in_channels {
            3 => images,
            _ => Var::from_tensor(&images).unwrap().as_tensor().clone(),
        };
        let weight = noise((out_channels, in_channels, kernel, kernel));
        let bias = noise(out_channels);
        let sums = layer
            .multiply_adds(ConvAlgorithm::Direct, x.shape(), weight.shape())
            .unwrap() as usize;
        for convolution in ConvAlgorithm::ALL {
            let mut group =
                criterion.benchmark_group(format!("{name} {convolution:?}").to_lowercase());
            elements(&mut group, sums);
            let run = |tape: &mut Tape| tape.conv2d(name, layer, &x, &weight, &bias).unwrap();
            let gradients = if in_channels == 3 { 1 } else { 2 };
            both_passes(&mut group, convolution, run, |group| {
                elements(group, gradients * sums);
            });
        }
    }
}

fn linear(criterion: &mut Criterion) {
    for (name, inputs, outputs, activation) in LINEAR {
        let x = Var::from_tensor(&noise((BATCH, inputs))).unwrap();
        let (weight, bias) = (noise((outputs, inputs)), noise(outputs));
        let mut group = criterion.benchmark_group(name);
        let sums = BATCH * inputs * outputs;
        elements(&mut group, sums);
        let run = |tape: &mut Tape| tape.linear(name, activation, &x, &weight, &bias).unwrap();
        both_passes(&mut group, ConvAlgorithm::Winograd, run, |group| {
            elements(group, 2 * sums);
        });
    }
}

/// What follows a convolution inside its operation, alone, and the layers between the linear ones.
fn elementwise(criterion: &mut Criterion) {
    for (name, pooled, features) in [
        ("alexnet", (29, 256), (6_usize, 256)),
        ("small-alexnet", (26, 192), (5, 128)),
    ] {
        let variable = |shape: Shape| Var::from_tensor(&noise(shape)).unwrap();
        let (side, channels) = pooled;
        let x = variable((BATCH, side, side, channels).into());
        let (side, channels) = features;
        let last = variable((BATCH, side, side, channels).into());
        let rows = variable((BATCH, side * side * channels).into());
        let mask = Dropout {
            probability: 0.5,
            seed: 0,
            step: 0,
            layer: 0,
        };
        type Run<'a> = Box<dyn Fn(&mut Tape) -> Tensor + 'a>;
        let operations: [(&str, &Tensor, Run<'_>); 4] = [
            (
                "max_pool2d",
                &x,
                Box::new(|tape| tape.max_pool2d("", POOL, &x).unwrap()),
            ),
            ("relu", &x, Box::new(|tape| tape.relu("", &x).unwrap())),
            (
                "flatten",
                &last,
                Box::new(|tape| tape.flatten("", &last).unwrap()),
            ),
            (
                "dropout",
                &rows,
                Box::new(|tape| tape.dropout("", mask, &rows).unwrap()),
            ),
        ];
        for (operation, x, run) in operations {
            let mut group = criterion.benchmark_group(format!("{name}/{operation}"));
            copying(&mut group, x);
            both_passes(&mut group, ConvAlgorithm::Winograd, run, |_| ());
        }
    }
}

/// The end of a step: loss and update.
fn ends(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("both");
    let logits = noise((BATCH, 10));
    let labels = Tensor::zeros(BATCH, DType::U32, &Device::Cpu).unwrap();
    copying(&mut group, &logits);
    group.bench_function("cross_entropy", |bencher| {
        bencher.iter(|| ops::cross_entropy(&logits, &labels).unwrap());
    });
    group.bench_function("cross_entropy_gradient", |bencher| {
        bencher.iter(|| ops::cross_entropy_gradient(&logits, &labels, 0.0).unwrap());
    });
    group.finish();

    let factors = Sgd {
        learning_rate: 1e-6,
        momentum: 0.9,
        weight_decay: 5e-4,
        ..Sgd::default()
    };
    for (name, inputs, outputs, _) in LINEAR {
        let [parameter, buffer, gradient] = [(); 3].map(|()| noise((outputs, inputs)));
        let mut group = criterion.benchmark_group(name);
        // Two are read and written, the gradient is read.
        group.throughput(Throughput::Bytes(20 * parameter.elem_count() as u64));
        group.bench_function("update", |bencher| {
            bencher.iter(|| {
                ops::sgd_step(
                    factors,
                    &ops::GradientScale::ONE,
                    &[[&parameter, &buffer, &gradient]],
                )
                .unwrap()
            });
        });
    }
}

criterion_group! {
    name = operations;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2));
    targets = convolutions, linear, elementwise, ends
}

fn main() {
    // As in the trainer: what is measured is what people run.
    ops::keep_freed_memory();
    operations();
    Criterion::default().configure_from_args().final_summary();
}
