//! Loss, metrics, optimiser, EMA and norm, whose sums are rounded: against double precision.

use candle_core::{DType, Device, Result, Tensor, Var};
use ops::{
    Arithmetic, GradientNorm, GradientScale, Metrics, MetricsAccumulator, Precision, Sgd,
    cross_entropy, cross_entropy_gradient,
};
use reference::{narrow, relative_error, test_device};

/// The largest relative error.
const LIMIT: f64 = 1e-6;

test_device!(loss_and_metrics_are_as_in_double_precision: cpu_f32, cuda_f32);

fn loss_and_metrics_are_as_in_double_precision(
    device: &Device,
    _: DType,
    _: Arithmetic,
) -> Result<()> {
    let logits = (narrow(21, &[300, 10], 1.0)? * 12.0)?;
    let labels: Vec<u32> = (0..300).map(|row| row * 7 % 10).collect();
    let compute = |on: &Device, dtype| -> Result<([Tensor; 3], Metrics)> {
        let logits = logits.to_dtype(dtype)?.to_device(on)?;
        let labels = Tensor::from_slice(&labels, 300, on)?;
        let mut accumulator = MetricsAccumulator::new(10, on)?;
        accumulator.add(&logits, &labels, 4)?;
        let smoothed = accumulator.add_with_gradient(&logits, &labels, 0.125, None, 5)?;
        let loss = cross_entropy(&logits, &labels)?;
        let gradient = cross_entropy_gradient(&logits, &labels, 0.0)?;
        Ok(([loss, gradient, smoothed], accumulator.take()?))
    };
    let (found, metrics) = compute(device, DType::F32)?;
    let (expected, expected_metrics) = compute(&Device::Cpu, DType::F64)?;
    for (found, expected) in found.iter().zip(&expected) {
        let error = relative_error(found, expected)?;
        assert!(error <= LIMIT, "{error}");
    }
    let error = (metrics.loss_sum - expected_metrics.loss_sum).abs() / expected_metrics.loss_sum;
    assert!(error <= LIMIT, "{error}");
    assert_eq!(metrics.confusion, expected_metrics.confusion);
    assert_eq!(metrics.diverged, None);

    let mut accumulator = MetricsAccumulator::new(10, device)?;
    let nan = (&logits * f64::NAN)?.to_device(device)?;
    accumulator.add(&nan, &Tensor::from_slice(&labels, 300, device)?, 17)?;
    assert_eq!(accumulator.take()?.diverged, Some(17));
    Ok(())
}

test_device!(updates_are_as_in_double_precision: cpu_f32, cuda_f32, cuda_bf16);

/// Three steps of SGD with norms, gradient clipping and EMA, on 43 tensors of all sizes. Gradients of `bf16` are those of a GPU.
fn updates_are_as_in_double_precision(
    device: &Device,
    _: DType,
    arithmetic: Arithmetic,
) -> Result<()> {
    let sgd = Sgd {
        learning_rate: 0.1,
        momentum: 0.9,
        weight_decay: 0.01,
        ..Sgd::default()
    };
    let nesterov = Sgd {
        nesterov: true,
        ..sgd
    };
    for (sgd, max_norm) in [(sgd, None), (nesterov, Some(100.0))] {
        let found = updated(sgd, max_norm, device, DType::F32, arithmetic.precision)?;
        let expected = updated(sgd, max_norm, &Device::Cpu, DType::F64, Precision::F32)?;
        for (found, expected) in found.iter().zip(&expected) {
            let error = relative_error(found, expected)?;
            assert!(error <= LIMIT, "{:?}: {error}", expected.shape());
        }
    }
    Ok(())
}

/// Parameters, momentum buffers and their EMA after three steps, and the norms of the gradients.
fn updated(
    sgd: Sgd,
    max_norm: Option<f64>,
    device: &Device,
    dtype: DType,
    precision: Precision,
) -> Result<Vec<Tensor>> {
    let sizes = (0..40).map(|n| 1 + n * n * 7).chain([2047, 2048, 2049]);
    let sizes: Vec<usize> = sizes.collect();
    let tensors = |first: u64| -> Result<Vec<Var>> {
        let tensors = (first..).zip(&sizes).map(|(seed, size)| {
            let values = narrow(seed, &[*size], 1.0)?.to_dtype(dtype)?;
            Var::from_tensor(&values.to_device(device)?)
        });
        tensors.collect()
    };
    let (parameters, buffers, averages) = (tensors(0)?, tensors(1000)?, tensors(2000)?);
    let mut norms = Vec::new();
    for step in 1..=3 {
        // Gradients of biases are wide everywhere.
        let gradients = (0..).zip(tensors(10_000 * step)?);
        let gradients = gradients.map(|(number, gradient)| match number % 3 {
            0 => Ok(gradient.as_tensor().clone()),
            _ => ops::activations(&gradient, precision),
        });
        let gradients = gradients.collect::<Result<Vec<_>>>()?;
        let updates = parameters.iter().zip(&buffers).zip(&gradients);
        let updates = updates.map(|((parameter, buffer), gradient)| {
            [parameter.as_tensor(), buffer.as_tensor(), gradient]
        });
        let gradients: Vec<&Tensor> = gradients.iter().collect();
        let norm = ops::norm(&gradients)?;
        let scale = match max_norm {
            Some(max_norm) => {
                assert!(norm > max_norm, "nothing is clipped");
                GradientScale::clipping(&gradients, max_norm)?
            }
            None => GradientScale::ONE,
        };
        let mut measured = GradientNorm::new(device)?;
        assert_eq!(measured.get()?, None);
        measured.measure(&gradients)?;
        assert_eq!(measured.get()?, Some(norm));
        norms.push(norm);
        ops::sgd_step(sgd, &scale, &updates.collect::<Vec<_>>())?;
        let pairs = averages.iter().zip(&parameters);
        let pairs = pairs.map(|(average, parameter)| [average.as_tensor(), parameter.as_tensor()]);
        ops::ema_step(0.9, &pairs.collect::<Vec<_>>())?;
    }
    let norms = Tensor::new(norms, &Device::Cpu)?;
    let all = parameters.iter().chain(&buffers).chain(&averages);
    let all = all.map(|variable| variable.as_tensor().clone());
    Ok(all.chain([norms]).collect())
}
