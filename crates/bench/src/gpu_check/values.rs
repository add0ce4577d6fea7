//! What the GPU computes, against PyTorch's values and against the processor.

use super::{Args, Report, arithmetic, worst};
use candle_core::{DType, Device, Result, Tensor, Var};
use datasets::{Augmentation, DataLoader, Dataset, Normalisation};
use models::{Architecture, DropoutMasks, Layer, NamedLayer, Network, initial_parameters};
use ops::{
    Activation, Arithmetic, Conv2d, ConvAlgorithm, Dropout, GradientScale, Metrics,
    MetricsAccumulator, Pool, Sgd, Tape, cross_entropy, cross_entropy_gradient, sgd_step,
};
use reference::{Deviation, Setting, relative_error, uniform};
use run::settings::{Flip, PaddingMode, Precision, WeightInit};
use std::num::NonZeroUsize;

const PART: &str = "values";

/// How near results must come, as a share of their norm.
fn limit(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 1e-4,
        Precision::Tf32 => 3e-3,
        Precision::Bf16 => 2e-2,
    }
}

/// The same for the norms of a network's results. In TF32 and bf16 rounding decides where some gradients go: in simulated
/// TF32 (three seeds), the norms of SmallAlexNet's gradients are off by up to 1.2e-2, under PyTorch's autocast to bf16 by
/// 1.9e-2, and LeNet's by 4.3e-2.
fn network_limit(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 1e-4,
        Precision::Tf32 => 3e-2,
        Precision::Bf16 => 1e-1,
    }
}

pub(super) fn check(args: &Args, device: &Device, report: &mut Report) -> anyhow::Result<()> {
    exact(device, report)?;
    for &precision in &args.precisions {
        golden(args, device, precision, report)?;
        layers(args, device, precision, report)?;
        networks(args, device, precision, report)?;
    }
    Ok(())
}

/// PyTorch's values in float64.
fn golden(
    args: &Args,
    device: &Device,
    precision: Precision,
    report: &mut Report,
) -> anyhow::Result<()> {
    let setting = Setting {
        device: device.clone(),
        dtype: DType::F32,
        arithmetic: arithmetic(precision),
    };
    let mut say = |what: String, deviations: &[Deviation], limit: f64| {
        let norm = worst(deviations.iter().map(|deviation| deviation.norm));
        let found = format!("norms within {norm:.1e} (limit {limit:.0e})");
        report.check(PART, what, norm <= limit, found)
    };
    let operations = reference::operations(&setting)?;
    let what = format!("PyTorch's operations, {precision}");
    say(what, &operations, limit(precision))?;
    for architecture in args.architectures() {
        let found = reference::network(architecture, &setting)?;
        for (what, deviations) in [
            ("logits and loss", &found.values),
            ("gradients", &found.gradients),
            ("three steps", &found.afterwards),
        ] {
            let limit = match (precision, what) {
                // Winograd's rounding decides as well.
                (Precision::F32, "gradients" | "three steps") => 1e-2,
                _ => network_limit(precision),
            };
            say(
                format!("PyTorch's {architecture}, {what}, {precision}"),
                deviations,
                limit,
            )?;
        }
    }
    Ok(())
}

/// Numbers that are the same in `bf16`, so that both sides compute with the same.
fn numbers(seed: u64, shape: &[usize], bound: f32, dtype: DType) -> Result<Tensor> {
    let values = uniform(seed, shape.iter().product(), bound);
    let values = Tensor::from_vec(values, shape, &Device::Cpu)?;
    values.to_dtype(DType::BF16)?.to_dtype(dtype)
}

/// The result of a layer, and its gradients with respect to `x`, weight and bias.
fn pass(
    layer: Layer,
    arithmetic: Arithmetic,
    [x, weight, bias]: [&Tensor; 3],
    seed: u64,
) -> anyhow::Result<Vec<Tensor>> {
    let x = Var::from_tensor(&ops::activations(x, arithmetic.precision)?)?;
    let mut tape = Tape::recording(arithmetic);
    let y = match layer {
        Layer::Conv2d { padding, .. } => {
            let layer = Conv2d {
                padding,
                activation: Activation::Identity,
                pool: None,
            };
            tape.conv2d("layer", layer, &x, weight, bias)?
        }
        _ => tape.linear("layer", Activation::Identity, &x, weight, bias)?,
    };
    let grad_y = numbers(seed, y.dims(), 1.0, bias.dtype())?.to_device(y.device())?;
    let grad_y = match layer {
        // The result is in f32.
        Layer::Linear { .. } => grad_y,
        _ => ops::activations(&grad_y, arithmetic.precision)?,
    };
    let gradients = tape.backward(grad_y)?;
    let mut results = vec![y];
    for variable in [x.as_tensor(), weight, bias] {
        let gradient = gradients.get(variable);
        let gradient = gradient.ok_or_else(|| anyhow::anyhow!("a gradient is missing"))?;
        results.push(gradient.clone());
    }
    Ok(results)
}

/// Every layer with weights of both networks, against the processor in double precision.
fn layers(
    args: &Args,
    device: &Device,
    precision: Precision,
    report: &mut Report,
) -> anyhow::Result<()> {
    let batch = if args.quick { 1 } else { 4 };
    for &architecture in Architecture::ALL {
        let mut worst = (0.0, String::new());
        for (number, layer) in (0..).zip(architecture.layers()) {
            let NamedLayer {
                name, layer, input, ..
            } = layer;
            let Some([weight, bias]) = layer.parameter_shapes() else {
                continue;
            };
            // Two layers show that the check works.
            if args.quick && !(name.ends_with("conv_layer1.0") || name.ends_with("fc_layer1.6")) {
                continue;
            }
            let x = match layer {
                Layer::Conv2d { .. } => vec![batch, input[1], input[2], input[0]],
                _ => vec![batch, input[0]],
            };
            let bound = 1.0 / (weight[1..].iter().product::<usize>() as f32).sqrt();
            let compute = |on: &Device, dtype, arithmetic| -> anyhow::Result<Vec<Tensor>> {
                let at = |seed, shape: &[usize], bound| -> anyhow::Result<Tensor> {
                    Ok(numbers(seed, shape, bound, dtype)?.to_device(on)?)
                };
                let (x, weight, bias) = (
                    at(number, &x, 1.0)?,
                    at(number + 100, &weight, bound)?,
                    at(number + 200, &bias, bound)?,
                );
                pass(layer, arithmetic, [&x, &weight, &bias], number + 300)
            };
            let direct = ConvAlgorithm::Direct.into();
            let expected = compute(&Device::Cpu, DType::F64, direct)?;
            let found = compute(device, DType::F32, arithmetic(precision))?;
            for (part, (found, expected)) in ["result", "gradient of x", "of weight", "of bias"]
                .into_iter()
                .zip(found.iter().zip(&expected))
            {
                let error = relative_error(found, expected)?;
                if error.is_nan() || error > worst.0 {
                    worst = (error, format!("{name}, {part}"));
                }
            }
        }
        let limit = limit(precision);
        report.check(
            PART,
            format!("{architecture}'s layers, {precision}"),
            worst.0 <= limit,
            format!("{:.1e} at most, {} (limit {limit:.0e})", worst.0, worst.1),
        )?;
    }
    Ok(())
}

/// Both networks with dropout, against the processor in double precision. Here rounding decides which way some
/// gradients go behind ReLU and pooling, so the limits are wider: PyTorch 2.15's gradients of SmallAlexNet in bf16
/// (autocast on a processor, three seeds, batches of 2 and 8) are 0.18 to 0.23 from those in double precision, and those
/// in simulated TF32 0.05 to 0.09.
fn networks(
    args: &Args,
    device: &Device,
    precision: Precision,
    report: &mut Report,
) -> anyhow::Result<()> {
    let batch = if args.quick { 2 } else { 8 };
    for architecture in args.architectures() {
        let images = numbers(1, &[batch, 32, 32, 3], 2.0, DType::F32)?;
        let labels: Vec<u32> = (0..batch as u32).map(|image| image % 10).collect();
        let masks = DropoutMasks {
            probability: 0.5,
            seed: 7,
            step: 3,
        };
        let compute = |on: &Device, dtype: DType, arithmetic: Arithmetic| {
            let parameters =
                initial_parameters(architecture, WeightInit::Pytorch, 0, &Device::Cpu)?
                    .into_iter()
                    .map(|(name, tensor)| Ok((name, tensor.to_dtype(dtype)?.to_device(on)?)))
                    .collect::<Result<_>>()?;
            let network = Network::new(architecture, parameters)?;
            let images = images.to_dtype(dtype)?.to_device(on)?;
            let labels = Tensor::from_vec(labels.clone(), batch, on)?;
            let mut tape = Tape::recording(arithmetic);
            let logits = network.forward(&mut tape, &images, Some(masks))?;
            let gradients = tape.backward(cross_entropy_gradient(&logits, &labels, 0.0)?)?;
            let mut results = vec![logits];
            for (_, variable) in network.variables() {
                results.extend(gradients.get(variable).cloned());
            }
            anyhow::Ok(results)
        };
        let expected = compute(&Device::Cpu, DType::F64, ConvAlgorithm::Direct.into())?;
        let found = compute(device, DType::F32, arithmetic(precision))?;
        anyhow::ensure!(found.len() == expected.len());
        anyhow::ensure!(found.len() == 1 + architecture.parameters().len());
        let mut errors = Vec::new();
        for (found, expected) in found.iter().zip(&expected) {
            errors.push(relative_error(found, expected)?);
        }
        let worst = worst(errors.iter().copied());
        let limit = match precision {
            Precision::F32 => 1e-2,
            Precision::Tf32 => 2e-1,
            Precision::Bf16 => 4e-1,
        };
        report.check(
            PART,
            format!("{architecture} with dropout, {precision}"),
            worst <= limit,
            format!(
                "logits {:.1e}, gradients {worst:.1e} at most (limit {limit:.0e})",
                errors[0]
            ),
        )?;
    }
    Ok(())
}

/// The bits of a tensor's numbers.
fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    let values = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    let values = values.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

/// What must be the processor's numbers to the bit, and what comes next to it.
fn exact(device: &Device, report: &mut Report) -> anyhow::Result<()> {
    for precision in [Precision::F32, Precision::Bf16] {
        for channels in [5, 64] {
            let shape = [3, 11, 9, channels];
            // Few bits, so that sums of a few are exact; never 0, whose sign the devices need not share.
            let x = (numbers(11, &shape, 8.0, DType::F32)?.round()? + 0.5)?;
            type Chain = fn(&mut Tape, &Tensor) -> Result<Tensor>;
            let chains: [(&str, Chain); 5] = [
                ("ReLU", |tape, x| tape.relu("relu", x)),
                ("max-pooling", |tape, x| {
                    let pool = Pool {
                        kernel: 3,
                        stride: 2,
                    };
                    tape.max_pool2d("pool", pool, x)
                }),
                ("average pooling", |tape, x| {
                    let pool = Pool {
                        kernel: 2,
                        stride: 2,
                    };
                    tape.avg_pool2d("pool", pool, x)
                }),
                ("flatten", |tape, x| tape.flatten("flatten", x)),
                ("dropout", |tape, x| tape.dropout("dropout", DROPOUT, x)),
            ];
            for (name, chain) in chains {
                let compute = |on: &Device| -> anyhow::Result<[Tensor; 2]> {
                    let arithmetic = arithmetic(precision);
                    let x = ops::activations(&x.to_device(on)?, arithmetic.precision)?;
                    let x = Var::from_tensor(&x)?;
                    let mut tape = Tape::recording(arithmetic);
                    let y = chain(&mut tape, &x)?;
                    let grad_y = (numbers(12, y.dims(), 1.0, DType::F32)? * 8.0)?.round()?;
                    let grad_y = ops::activations(&grad_y.to_device(on)?, arithmetic.precision)?;
                    let gradients = tape.backward(grad_y)?;
                    let gradient = gradients.get(&x);
                    let gradient = gradient.ok_or_else(|| anyhow::anyhow!("no gradient"))?;
                    Ok([y, gradient.clone()])
                };
                let (found, expected) = (compute(device)?, compute(&Device::Cpu)?);
                let mut same = true;
                for (found, expected) in found.iter().zip(&expected) {
                    // The processor's, rounded as the GPU rounds.
                    let expected = match precision {
                        Precision::Bf16 => expected.to_dtype(DType::BF16)?,
                        _ => expected.clone(),
                    };
                    same &= bits(found)? == bits(&expected)?;
                }
                let what = format!("{name}, {channels} channels, {precision}");
                let text = if same {
                    "the processor's bits"
                } else {
                    "other bits than the processor's"
                };
                report.check(PART, what, same, text)?;
            }
        }
    }
    views(device, report)?;
    loss(device, report)?;
    update(device, report)?;
    fused(device, report)
}

const DROPOUT: Dropout = Dropout {
    probability: 0.3,
    seed: 0xDEAD_BEEF_0123_4567,
    step: 9,
    layer: 2,
};

/// Everything that can be done to training images.
const ALL_VIEWS: Augmentation = Augmentation::Standard {
    padding_mode: PaddingMode::Reflect,
    flip: Flip::Alternating,
    cutout: 9,
};

/// Crops, flips, cutout and normalisation of an epoch.
fn views(device: &Device, report: &mut Report) -> anyhow::Result<()> {
    let set = Dataset::synthetic(70, 1)?;
    let normalisation = Normalisation::new([0.49, 0.48, 0.45], [0.25, 0.24, 0.26]);
    let batch = NonZeroUsize::MIN.saturating_add(31);
    let loader = DataLoader::new(set.training(), batch, normalisation.clone());
    for (precision, augmentation) in [
        (Precision::F32, Augmentation::STANDARD),
        (Precision::F32, ALL_VIEWS),
        (Precision::Bf16, ALL_VIEWS),
    ] {
        let on_device = engine::DataLoader::new(
            set.training(),
            batch,
            normalisation.clone(),
            device,
            arithmetic(precision).precision,
        )?;
        let ours = on_device.training(5, 3, augmentation, 0)?;
        let theirs = loader.load(loader.training(5, 3, augmentation, 0))?;
        let mut same = true;
        let mut images = 0;
        for (ours, theirs) in ours.zip(theirs) {
            let (ours, theirs) = (ours?, theirs?);
            let expected = match precision {
                Precision::Bf16 => theirs.images.to_dtype(DType::BF16)?,
                _ => theirs.images.clone(),
            };
            same &= bits(&ours.images)? == bits(&expected)?;
            same &= ours.labels.to_vec1::<u32>()? == theirs.labels.to_vec1::<u32>()?;
            images += theirs.labels.elem_count();
        }
        let what = match augmentation {
            ALL_VIEWS => "reflections, cutout, flips",
            _ => "crops, flips",
        };
        let name = format!("{what} and normalisation, {precision}");
        let text = format!(
            "{images} images, {}",
            if same {
                "the processor's bits"
            } else {
                "other bits"
            }
        );
        report.check(PART, name, same && images == 70, text)?;
    }
    Ok(())
}

/// Cross-entropy, its gradient, and the sums over a batch.
fn loss(device: &Device, report: &mut Report) -> anyhow::Result<()> {
    let logits = (numbers(21, &[300, 10], 1.0, DType::F32)? * 12.0)?;
    let labels: Vec<u32> = (0..300).map(|row| row * 7 % 10).collect();
    let compute = |on: &Device| -> anyhow::Result<(f64, Tensor, Metrics)> {
        let logits = logits.to_device(on)?;
        let labels = Tensor::from_vec(labels.clone(), 300, on)?;
        let loss = cross_entropy(&logits, &labels)?.to_device(&Device::Cpu)?;
        let mut accumulator = MetricsAccumulator::new(10, on)?;
        accumulator.add(&logits, &labels, 4)?;
        let smoothed = accumulator.add_with_gradient(&logits, &labels, 0.125, 5)?;
        let gradients = Tensor::cat(
            &[
                cross_entropy_gradient(&logits, &labels, 0.0)?.to_device(&Device::Cpu)?,
                smoothed.to_device(&Device::Cpu)?,
            ],
            0,
        )?;
        Ok((
            f64::from(loss.to_scalar::<f32>()?),
            gradients,
            accumulator.take()?,
        ))
    };
    let (found, expected) = (compute(device)?, compute(&Device::Cpu)?);
    let gradient = relative_error(&found.1, &expected.1)?;
    let loss = (found.0 - expected.0).abs() / expected.0;
    let total = (found.2.loss_sum - expected.2.loss_sum).abs() / expected.2.loss_sum;
    let worst = worst([gradient, loss, total]);
    let same = found.2.confusion == expected.2.confusion && found.2.diverged.is_none();
    report.check(
        PART,
        "cross-entropy and sums",
        worst <= 1e-6 && same,
        format!(
            "{worst:.1e} at most (limit 1e-6), confusion matrices {}",
            if same { "equal" } else { "differ" }
        ),
    )?;
    let mut accumulator = MetricsAccumulator::new(10, device)?;
    let nan = (&logits * f64::NAN)?.to_device(device)?;
    accumulator.add(&nan, &Tensor::from_vec(labels, 300, device)?, 17)?;
    let diverged = accumulator.take()?.diverged;
    report.check(
        PART,
        "a loss that is no number",
        diverged == Some(17),
        format!("{diverged:?} (step 17)"),
    )
}

/// Three steps of gradient descent on tensors of all sizes.
fn update(device: &Device, report: &mut Report) -> anyhow::Result<()> {
    let sgd = Sgd {
        learning_rate: 0.1,
        momentum: 0.9,
        weight_decay: 0.01,
        ..Sgd::default()
    };
    let mut errors = Vec::new();
    let nesterov = Sgd {
        nesterov: true,
        ..sgd
    };
    for (precision, sgd, clips) in [
        (Precision::F32, sgd, false),
        (Precision::Bf16, sgd, true),
        (Precision::F32, nesterov, true),
    ] {
        let sizes: Vec<usize> = (0..40)
            .map(|n| 1 + n * n * 7)
            .chain([2047, 2048, 2049])
            .collect();
        let compute = |on: &Device| -> anyhow::Result<Vec<Tensor>> {
            let at = |seed: u64, size: usize| -> anyhow::Result<Tensor> {
                Ok(numbers(seed, &[size], 1.0, DType::F32)?.to_device(on)?)
            };
            let mut parameters = Vec::new();
            let mut momentum_buffers = Vec::new();
            let mut averages = Vec::new();
            for (seed, size) in (0..).zip(&sizes) {
                parameters.push(Var::from_tensor(&at(seed, *size)?)?);
                momentum_buffers.push(at(seed + 1000, *size)?);
                averages.push(at(seed + 2000, *size)?);
            }
            let mut norms = Vec::new();
            for step in 1..=3 {
                let mut gradients = Vec::new();
                for (seed, size) in (0..).zip(&sizes) {
                    let gradient = at(seed + 10_000 * step, *size)?;
                    // Gradients stay wide on a CPU, and those of biases everywhere.
                    let narrow = seed % 3 != 0 && !on.is_cpu();
                    let precision = if narrow { precision } else { Precision::F32 };
                    gradients.push(ops::activations(
                        &gradient,
                        arithmetic(precision).precision,
                    )?);
                }
                let updates: Vec<[&Tensor; 3]> = parameters
                    .iter()
                    .zip(&momentum_buffers)
                    .zip(&gradients)
                    .map(|((parameter, momentum_buffer), gradient)| {
                        [parameter.as_tensor(), momentum_buffer, gradient]
                    })
                    .collect();
                let gradients: Vec<&Tensor> = gradients.iter().collect();
                norms.push(ops::norm(&gradients)? as f32);
                let scale = match clips {
                    true => GradientScale::clipping(&gradients, 100.0)?,
                    false => GradientScale::ONE,
                };
                sgd_step(sgd, &scale, &updates)?;
                let pairs: Vec<[&Tensor; 2]> = averages
                    .iter()
                    .zip(&parameters)
                    .map(|(average, parameter)| [average, parameter.as_tensor()])
                    .collect();
                ops::ema_step(0.9, &pairs)?;
            }
            let norms = Tensor::new(norms, &Device::Cpu)?;
            let parameters = parameters
                .iter()
                .map(|parameter| parameter.as_tensor().clone());
            let all = parameters.chain(momentum_buffers).chain(averages);
            Ok(all.chain([norms]).collect())
        };
        for (found, expected) in compute(device)?.iter().zip(compute(&Device::Cpu)?) {
            errors.push(relative_error(found, &expected)?);
        }
    }
    let worst = worst(errors);
    report.check(
        PART,
        "gradient descent on 43 tensors, with averages and norms",
        worst <= 1e-6,
        format!("{worst:.1e} at most (limit 1e-6)"),
    )
}

/// Convolution, ReLU and pooling as one operation and one by one, on the GPU.
fn fused(device: &Device, report: &mut Report) -> anyhow::Result<()> {
    let at = |seed, shape: &[usize]| -> anyhow::Result<Tensor> {
        Ok(numbers(seed, shape, 0.5, DType::F32)?.to_device(device)?)
    };
    let (weight, bias) = (at(32, &[12, 7, 3, 3])?, at(33, &[12])?);
    let pool = Pool {
        kernel: 3,
        stride: 2,
    };
    let compute = |together: bool| -> anyhow::Result<Vec<Vec<u32>>> {
        let x = Var::from_tensor(&at(31, &[2, 13, 10, 7])?)?;
        let mut tape = Tape::recording(arithmetic(Precision::F32));
        let layer = |activation, pool| Conv2d {
            padding: 1,
            activation,
            pool,
        };
        let y = if together {
            let layer = layer(Activation::Relu, Some(pool));
            tape.conv2d("conv", layer, &x, &weight, &bias)?
        } else {
            let layer = layer(Activation::Identity, None);
            let y = tape.conv2d("conv", layer, &x, &weight, &bias)?;
            let y = tape.relu("relu", &y)?;
            tape.max_pool2d("pool", pool, &y)?
        };
        let gradients = tape.backward(at(34, y.dims())?)?;
        let mut results = vec![bits(&y)?];
        for variable in [x.as_tensor(), &weight, &bias] {
            let gradient = gradients.get(variable);
            results.push(bits(
                gradient.ok_or_else(|| anyhow::anyhow!("no gradient"))?,
            )?);
        }
        Ok(results)
    };
    let same = compute(true)? == compute(false)?;
    let text = if same { "the same bits" } else { "other bits" };
    report.check(PART, "convolution, ReLU and pooling in one", same, text)
}
