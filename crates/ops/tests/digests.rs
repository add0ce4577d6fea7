//! Single operations give the same bits on every instruction set, and the bits of the fixture: digests of results
//! and gradients in `f32`, for shapes with incomplete tiles, blocks and vectors.
//!
//! Where a change of the bits is intended, the test prints the lines that replace `fixtures/digests.txt`.

use candle_core::{Device, Result, Tensor, Var};
use kernels::InstructionSet;
use ops::{Activation, Arithmetic, Conv2d, ConvAlgorithm, Dropout, Pool, Precision, Sgd, Tape};
use rng::{Purpose, Stream, unit};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::process::Command;

const EXPECTED: &str = include_str!("fixtures/digests.txt");

/// Values in `-0.5..0.5`.
fn tensor(seed: u64, shape: &[usize]) -> Result<Tensor> {
    let stream = Stream::new(seed, Purpose::Synthetic, 0);
    let count = shape.iter().product::<usize>();
    let words = (0..count.div_ceil(4) as u64).flat_map(|block| stream.words(block));
    let values: Vec<f32> = words.take(count).map(|word| unit(word) - 0.5).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// The first 16 hexadecimal digits of the SHA-256 digest of all values, little-endian.
fn digest(tensors: &[&Tensor]) -> Result<String> {
    let mut sha = Sha256::new();
    for tensor in tensors {
        for value in tensor.flatten_all()?.to_vec1::<f32>()? {
            sha.update(value.to_le_bytes());
        }
    }
    Ok(sha.finalize()[..8]
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }))
}

/// The digests of the result of `run` and of the gradients of its inputs.
fn both_passes(
    convolution: ConvAlgorithm,
    inputs: &[Tensor],
    run: impl Fn(&mut Tape, &[Tensor]) -> Result<Tensor>,
) -> Result<[String; 2]> {
    let variables = inputs
        .iter()
        .map(Var::from_tensor)
        .collect::<Result<Vec<_>>>()?;
    let arguments: Vec<_> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let mut tape = Tape::recording(convolution);
    let y = run(&mut tape, &arguments)?;
    let gradients = tape.backward(tensor(9, y.dims())?)?;
    let gradients: Vec<_> = arguments.iter().filter_map(|x| gradients.get(x)).collect();
    assert_eq!(gradients.len(), inputs.len());
    Ok([digest(&[&y])?, digest(&gradients)?])
}

/// A network in `bf16`: the digests of its logits, and of the gradients of its parameters.
fn network_in_bf16() -> Result<[String; 2]> {
    let shapes: [&[usize]; 8] = [
        &[37, 3, 5, 5],
        &[37],
        &[50, 37, 3, 3],
        &[50],
        &[70, 50 * 7 * 7],
        &[70],
        &[10, 70],
        &[10],
    ];
    let parameters = (1..).zip(shapes);
    let parameters =
        parameters.map(|(seed, shape)| Var::from_tensor(&(tensor(seed, shape)? * 0.2)?));
    let parameters = parameters.collect::<Result<Vec<_>>>()?;
    let [w1, b1, w2, b2, w3, b3, w4, b4] = [0, 1, 2, 3, 4, 5, 6, 7].map(|n| &parameters[n]);
    let layer = |padding, pool| Conv2d {
        padding,
        activation: Activation::Relu,
        pool,
    };
    let pool = Pool {
        kernel: 3,
        stride: 2,
    };
    let mut tape = Tape::recording(Arithmetic {
        conv_algorithm: ConvAlgorithm::Direct,
        precision: Precision::Bf16,
    });
    let x = tape.activations(&tensor(0, &[5, 17, 17, 3])?)?;
    let x = tape.conv2d("conv1", layer(1, Some(pool)), &x, w1, b1)?;
    let x = tape.conv2d("conv2", layer(1, None), &x, w2, b2)?;
    let x = tape.flatten("flatten", &x)?;
    let x = tape.linear("linear1", Activation::Relu, &x, w3, b3)?;
    let y = tape.linear("linear2", Activation::Identity, &x, w4, b4)?;
    let gradients = tape.backward(tensor(9, y.dims())?)?;
    let gradients: Vec<_> = parameters.iter().filter_map(|x| gradients.get(x)).collect();
    assert_eq!(gradients.len(), parameters.len());
    Ok([digest(&[&y])?, digest(&gradients)?])
}

/// A line for each operation: its name, the digest of its result and that of its gradients or updated tensors.
fn found() -> Result<String> {
    let mut lines = String::new();
    let mut line = |name: &str, [forward, backward]: [String; 2]| {
        let _ = writeln!(lines, "{name} {forward} {backward}");
    };
    let pool = Pool {
        kernel: 3,
        stride: 2,
    };
    for (in_channels, out_channels, size, kernel, padding, pool) in [
        (3, 20, 17, 7, 0, None),
        (34, 37, 13, 5, 2, Some(pool)),
        (37, 50, 11, 3, 1, None),
    ] {
        let inputs = [
            tensor(1, &[5, size, size, in_channels])?,
            tensor(2, &[out_channels, in_channels, kernel, kernel])?,
            tensor(3, &[out_channels])?,
        ];
        let layer = Conv2d {
            padding,
            activation: Activation::Relu,
            pool,
        };
        for convolution in ConvAlgorithm::ALL {
            let digests = both_passes(convolution, &inputs, |tape, a| {
                tape.conv2d("conv2d", layer, &a[0], &a[1], &a[2])
            })?;
            line(
                &format!("conv2d-{kernel}x{kernel}-{convolution:?}").to_lowercase(),
                digests,
            );
        }
    }
    let inputs = [
        tensor(1, &[37, 530])?,
        tensor(2, &[130, 530])?,
        tensor(3, &[130])?,
    ];
    let digests = both_passes(ConvAlgorithm::Direct, &inputs, |tape, a| {
        tape.linear("linear", Activation::Relu, &a[0], &a[1], &a[2])
    })?;
    line("linear", digests);
    line("network-bf16", network_in_bf16()?);

    let images = [tensor(4, &[3, 13, 11, 19])?];
    let unary = |run: &dyn Fn(&mut Tape, &Tensor) -> Result<Tensor>| {
        both_passes(ConvAlgorithm::Direct, &images, |tape, a| run(tape, &a[0]))
    };
    line(
        "max_pool2d",
        unary(&|tape, x| tape.max_pool2d("pool", pool, x))?,
    );
    line(
        "avg_pool2d",
        unary(&|tape, x| tape.avg_pool2d("pool", pool, x))?,
    );
    line("relu", unary(&|tape, x| tape.relu("relu", x))?);
    line("flatten", unary(&|tape, x| tape.flatten("flatten", x))?);
    let mask = Dropout {
        probability: 0.3,
        seed: 5,
        step: 6,
        layer: 7,
    };
    line(
        "dropout",
        unary(&|tape, x| tape.dropout("dropout", mask, x))?,
    );

    let logits = (tensor(5, &[33, 10])? * 8.0)?;
    let labels: Vec<u32> = (0..33).map(|image| image * 7 % 10).collect();
    let labels = Tensor::from_vec(labels, 33, &Device::Cpu)?;
    let loss = ops::cross_entropy(&logits, &labels)?;
    let gradient = ops::cross_entropy_gradient(&logits, &labels, 0.1)?;
    line("cross_entropy", [digest(&[&loss])?, digest(&[&gradient])?]);

    for nesterov in [false, true] {
        let sgd = Sgd {
            learning_rate: 0.1,
            momentum: 0.9,
            weight_decay: 0.01,
            nesterov,
        };
        let [parameter, buffer, ema] =
            [6, 7, 8].map(|seed| Var::from_tensor(&tensor(seed, &[40_003])?));
        let (parameter, buffer, ema) = (parameter?, buffer?, ema?);
        ops::sgd_step(
            sgd,
            &0.7.into(),
            &[[&parameter, &buffer, &tensor(9, &[40_003])?]],
        )?;
        ops::ema_step(0.99, &[[&ema, &parameter]])?;
        let name = if nesterov { "sgd-nesterov" } else { "sgd" };
        line(name, [digest(&[&parameter, &buffer])?, digest(&[&ema])?]);
    }
    Ok(lines)
}

/// In the instruction set that `KERNELS_ISA` selects.
#[test]
fn digests_are_those_of_the_fixture() -> Result<()> {
    let found = found()?;
    assert!(found == EXPECTED, "found:\n{found}");
    Ok(())
}

#[test]
fn digests_are_the_same_on_all_instruction_sets() {
    for set in InstructionSet::ALL {
        if !set.is_available() {
            println!("skipped: this machine has no {}", set.name());
            continue;
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "digests_are_those_of_the_fixture"])
            .env("KERNELS_ISA", set.name())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{set:?}: {text}");
        assert!(text.contains("1 passed"), "{text}");
    }
}
