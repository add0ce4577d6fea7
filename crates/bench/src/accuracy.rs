//! The rounding errors of convolutions, on the activations and gradients of real training.

use crate::device::DeviceKind;
use crate::machine::use_threads;
use crate::throughput::{Engine, name, network, settings, sgd};
use anyhow::Context;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Optimizer;
use datasets::{Batch, DataLoader, Dataset, DatasetInfo};
use models::{Architecture, DropoutMasks, Layer, NamedLayer, Network};
use ops::{Activation, Arithmetic, Conv2d, ConvAlgorithm, Pool, Tape, cross_entropy_gradient};
use run::NativePath;
use run::cli;
use std::num::NonZeroUsize;

/// The options.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The networks.
    #[arg(long, value_delimiter = ',', default_values = models::POST)]
    models: Vec<Architecture>,

    /// The data set.
    #[arg(long, default_value = "cifar10")]
    dataset: DatasetInfo,

    /// The folder with `cifar-10-batches-bin`.
    #[arg(long, value_name = "DIR", default_value = "data")]
    data_dir: NativePath,

    /// Training steps before the comparison.
    #[arg(long, default_value_t = 50)]
    steps: usize,

    /// Images per step.
    #[arg(long, default_value = "64")]
    batch_size: NonZeroUsize,

    /// Threads that compute [default: one per core].
    #[arg(long)]
    threads: Option<NonZeroUsize>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(threads) = args.threads {
        use_threads(threads)?;
    }
    let set = args.dataset.load(&args.data_dir, args.dataset.images)?;
    cli::line(&format!(
        "Norm of the difference to a direct convolution in double precision, over that one's norm, after {} \
         steps of {} images.\n\n\
         | network | layer | convolution | result | input gradient | weight gradient |\n\
         |---|---|---|---|---|---|",
        args.steps, args.batch_size
    ));
    for model in &args.models {
        let (network, batch) = trained(*model, &set, args.steps, args.batch_size)?;
        for errors in errors(&network, &batch)? {
            let gradient = errors.input_gradient.map(|error| format!("{error:.1e}"));
            cli::line(&format!(
                "| {model} | {} | {} | {:.1e} | {} | {:.1e} |",
                errors.layer,
                name(errors.engine),
                errors.result,
                gradient.as_deref().unwrap_or("none"),
                errors.weight_gradient
            ));
        }
    }
    Ok(())
}

/// A network after some steps of the reference recipe, and the batch that would be next.
fn trained(
    model: Architecture,
    set: &Dataset,
    steps: usize,
    batch_size: NonZeroUsize,
) -> anyhow::Result<(Network, Batch)> {
    let settings = settings(model, run::Overrides::default())?;
    let network = network(model, &Device::Cpu)?;
    let mut optimiser = sgd(&network)?;
    let loader = DataLoader::new(set.training(), batch_size, (&settings).into());
    let epochs = (0..).map(|epoch| loader.load(loader.training(0, epoch, (&settings).into(), 0)));
    let mut number = 0;
    for batches in epochs {
        for batch in batches? {
            let batch = batch?;
            if number == steps {
                return Ok((network, batch));
            }
            let masks = DropoutMasks {
                probability: 0.5,
                seed: 0,
                step: number as u32,
            };
            let mut tape = Tape::recording(ConvAlgorithm::Winograd);
            let logits = network.forward(&mut tape, &batch.images, Some(masks))?;
            let gradient = cross_entropy_gradient(&logits, &batch.labels, 0.0)?;
            optimiser.step(&tape.backward(gradient)?)?;
            number += 1;
        }
    }
    anyhow::bail!("there are no images")
}

/// Relative errors of one convolution.
struct Errors {
    layer: String,
    engine: Engine,
    result: f64,
    /// `None` for the first layer.
    input_gradient: Option<f64>,
    weight_gradient: f64,
}

/// The forward pass of one layer, on a tape of its own, so that its input and its gradient are known.
struct Forward<'a> {
    name: String,
    layer: Layer,
    tape: Tape,
    x: Var,
    /// Weight and bias, or nothing.
    parameters: &'a [(String, Var)],
}

/// The errors of all convolutions, with both algorithms, on one batch.
fn errors(network: &Network, batch: &Batch) -> anyhow::Result<Vec<Errors>> {
    let mut variables = network.variables();
    let mut layers = Vec::new();
    let mut y = batch.images.clone();
    for NamedLayer { name, layer, .. } in network.architecture().layers() {
        let mut tape = Tape::recording(ConvAlgorithm::Direct);
        let x = Var::from_tensor(&y)?;
        let parameters;
        let count = layer.parameter_shapes().map_or(0, |shapes| shapes.len());
        (parameters, variables) = variables.split_at_checked(count).context("no parameters")?;
        y = match (layer, parameters) {
            (Layer::Conv2d { padding, .. }, [(_, weight), (_, bias)]) => {
                tape.conv2d(&name, alone(padding), &x, weight, bias)?
            }
            (Layer::Linear { .. }, [(_, weight), (_, bias)]) => {
                tape.linear(&name, Activation::Identity, &x, weight, bias)?
            }
            (Layer::MaxPool2d { kernel, stride }, _) => {
                tape.max_pool2d(&name, Pool { kernel, stride }, &x)?
            }
            (Layer::AvgPool2d { kernel, stride }, _) => {
                tape.avg_pool2d(&name, Pool { kernel, stride }, &x)?
            }
            (Layer::Flatten, _) => tape.flatten(&name, &x)?,
            (Layer::Relu, _) => tape.relu(&name, &x)?,
            _ => continue,
        };
        layers.push(Forward {
            name,
            layer,
            tape,
            x,
            parameters,
        });
    }
    let mut grad_y = cross_entropy_gradient(&y, &batch.labels, 0.0)?;
    let mut all = Vec::new();
    while let Some(forward) = layers.pop() {
        let Forward { name, layer, x, .. } = forward;
        let gradients = forward.tape.backward(grad_y.clone())?;
        let grad_x = gradients.get(&x).context("no gradient")?.clone();
        if let (Layer::Conv2d { padding, .. }, [(_, weight), (_, bias)]) =
            (layer, forward.parameters)
        {
            let run = |arithmetic: Arithmetic, dtype| -> anyhow::Result<[Tensor; 3]> {
                let cast = |tensor: &Tensor| Var::from_tensor(&tensor.to_dtype(dtype)?);
                let (x, weight, bias) = (cast(&x)?, cast(weight)?, cast(bias)?);
                let mut tape = Tape::recording(arithmetic);
                let y = tape.conv2d(&name, alone(padding), &x, &weight, &bias)?;
                let gradients = tape.backward(grad_y.to_dtype(dtype)?)?;
                let gradient = |of: &Var| gradients.get(of).cloned().context("no gradient");
                Ok([y, gradient(&x)?, gradient(&weight)?])
            };
            let exact = run(ConvAlgorithm::Direct.into(), DType::F64)?;
            for engine in [Engine::Winograd, Engine::Direct] {
                let found = run(
                    engine.arithmetic(DeviceKind::Cpu).unwrap_or_default(),
                    DType::F32,
                )?;
                let error = |index: usize| relative(&found[index], &exact[index]);
                let is_first = layers.is_empty();
                all.push(Errors {
                    layer: name.clone(),
                    engine,
                    result: error(0)?,
                    input_gradient: (!is_first).then(|| error(1)).transpose()?,
                    weight_gradient: error(2)?,
                });
            }
        }
        grad_y = grad_x;
    }
    all.reverse();
    Ok(all)
}

/// A convolution and its bias, without the layers after it.
fn alone(padding: usize) -> Conv2d {
    Conv2d {
        padding,
        activation: Activation::Identity,
        pool: None,
    }
}

/// The norm of the difference, divided by the norm of `exact`.
fn relative(found: &Tensor, exact: &Tensor) -> candle_core::Result<f64> {
    let norm = |tensor: &Tensor| tensor.sqr()?.sum_all()?.to_scalar::<f64>().map(f64::sqrt);
    Ok(norm(&(found.to_dtype(DType::F64)? - exact)?)? / norm(exact)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn winograd_convolutions_are_accurate_enough_to_train_with() {
        let set = Dataset::synthetic(200, 1).unwrap();
        for &model in Architecture::ALL {
            let size = NonZeroUsize::new(8).unwrap();
            let (network, batch) = trained(model, &set, 3, size).unwrap();
            let errors = errors(&network, &batch).unwrap();
            let layers = model.layers();
            let convolutions = layers
                .iter()
                .filter(|l| matches!(l.layer, Layer::Conv2d { .. }));
            assert_eq!(errors.len(), 2 * convolutions.count());
            for error in errors {
                let what = format!("{model} {} {}", error.layer, name(error.engine));
                assert!(error.result < 1e-4, "{what}: {}", error.result);
                let weight = error.weight_gradient;
                assert!(weight < 5e-4, "{what}: {weight}");
                let input = error.input_gradient.unwrap_or(0.0);
                assert!(input < 5e-4, "{what}: {input}");
            }
        }
    }
}
