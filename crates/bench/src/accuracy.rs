//! The rounding errors of convolutions, on the activations and gradients of real training.

use crate::machine::use_threads;
use crate::throughput::{Engine, network, settings, sgd};
use anyhow::Context;
use candle_core::{DType, Tensor, Var};
use candle_nn::Optimizer;
use datasets::{Batch, DataLoader, Dataset, DatasetInfo};
use models::{Architecture, DropoutMasks, Layer, NamedLayer, Network};
use ops::{Activation, Conv2d, ConvAlgorithm, Pool, Tape, cross_entropy_gradient};
use run::cli;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// What is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The networks.
    #[arg(long, value_delimiter = ',', default_value = "alexnet,small-alexnet")]
    models: Vec<Architecture>,

    /// The images.
    #[arg(long, default_value = "cifar10")]
    dataset: DatasetInfo,

    /// The folder that holds `cifar-10-batches-bin`.
    #[arg(long, value_name = "DIR", default_value = "data")]
    data_dir: PathBuf,

    /// Training steps before the comparison.
    #[arg(long, default_value_t = 50)]
    steps: usize,

    /// Images a step.
    #[arg(long, default_value = "64")]
    batch_size: NonZeroUsize,

    /// Threads that compute [default: one a core].
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
            let gradient = errors
                .input_gradient
                .map_or_else(|| "none".to_owned(), |error| format!("{error:.1e}"));
            cli::line(&format!(
                "| {model} | {} | {} | {:.1e} | {gradient} | {:.1e} |",
                errors.layer,
                errors.engine.name(),
                errors.result,
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
    let network = network(model)?;
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
    /// None for the first layer.
    input_gradient: Option<f64>,
    weight_gradient: f64,
}

/// A layer with what it is given and what comes back to it.
struct Seen {
    name: String,
    layer: Layer,
    tape: Tape,
    x: Var,
    parameters: Option<[Tensor; 2]>,
}

/// The errors of all convolutions, each way, on one batch.
fn errors(network: &Network, batch: &Batch) -> anyhow::Result<Vec<Errors>> {
    // Each layer on a tape of its own, so that its input and its gradient are seen.
    let mut variables = network.variables().iter().map(|(_, variable)| variable);
    let mut seen = Vec::new();
    let mut x = batch.images.clone();
    for NamedLayer { name, layer, .. } in network.architecture().layers() {
        let mut tape = Tape::recording(ConvAlgorithm::Direct);
        let input = Var::from_tensor(&x)?;
        let parameters = match layer.parameter_shapes() {
            None => None,
            Some(_) => {
                let mut next = || {
                    variables
                        .next()
                        .map(|variable| variable.as_tensor().clone())
                };
                Some([next().context("no weight")?, next().context("no bias")?])
            }
        };
        x = match (layer, &parameters) {
            (Layer::Conv2d { padding, .. }, Some([weight, bias])) => {
                tape.conv2d(&name, alone(padding), &input, weight, bias)?
            }
            (Layer::Linear { .. }, Some([weight, bias])) => {
                tape.linear(&name, Activation::Identity, &input, weight, bias)?
            }
            (Layer::MaxPool2d { kernel, stride }, _) => {
                tape.max_pool2d(&name, Pool { kernel, stride }, &input)?
            }
            (Layer::AvgPool2d { kernel, stride }, _) => {
                tape.avg_pool2d(&name, Pool { kernel, stride }, &input)?
            }
            (Layer::Flatten, _) => tape.flatten(&name, &input)?,
            (Layer::Relu, _) => tape.relu(&name, &input)?,
            _ => continue,
        };
        seen.push(Seen {
            name,
            layer,
            tape,
            x: input,
            parameters,
        });
    }
    let mut gradient = cross_entropy_gradient(&x, &batch.labels, 0.0)?;
    let mut all = Vec::new();
    while let Some(Seen {
        name,
        layer,
        tape,
        x,
        parameters,
    }) = seen.pop()
    {
        let grad_y = gradient;
        gradient = tape
            .backward(grad_y.clone())?
            .get(&x)
            .context("no gradient")?
            .clone();
        let (Layer::Conv2d { padding, .. }, Some([weight, bias])) = (layer, parameters) else {
            continue;
        };
        let run = |algorithm, dtype| -> anyhow::Result<[Tensor; 3]> {
            let cast = |tensor: &Tensor| Var::from_tensor(&tensor.to_dtype(dtype)?);
            let (x, weight, bias) = (cast(&x)?, cast(&weight)?, cast(&bias)?);
            let mut tape = Tape::recording(algorithm);
            let y = tape.conv2d(&name, alone(padding), &x, &weight, &bias)?;
            let gradients = tape.backward(grad_y.to_dtype(dtype)?)?;
            let gradient = |of: &Var| gradients.get(of).cloned().context("no gradient");
            Ok([y, gradient(&x)?, gradient(&weight)?])
        };
        let exact = run(ConvAlgorithm::Direct, DType::F64)?;
        for engine in [Engine::Winograd, Engine::Direct] {
            let found = run(engine.algorithm().unwrap_or_default(), DType::F32)?;
            let error = |number: usize| relative(&found[number], &exact[number]);
            all.push(Errors {
                layer: name.clone(),
                engine,
                result: error(0)?,
                input_gradient: if seen.is_empty() {
                    None
                } else {
                    Some(error(1)?)
                },
                weight_gradient: error(2)?,
            });
        }
    }
    all.reverse();
    Ok(all)
}

/// A convolution and its bias, and nothing behind them.
fn alone(padding: usize) -> Conv2d {
    Conv2d {
        padding,
        activation: Activation::Identity,
        pool: None,
    }
}

fn relative(found: &Tensor, exact: &Tensor) -> anyhow::Result<f64> {
    let norm = |tensor: &Tensor| -> candle_core::Result<f64> {
        Ok(tensor.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt())
    };
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
                let what = format!("{model} {} {}", error.layer, error.engine.name());
                assert!(error.result < 1e-4, "{what}: {}", error.result);
                let weight = error.weight_gradient;
                assert!(weight < 5e-4, "{what}: {weight}");
                let input = error.input_gradient.unwrap_or(0.0);
                assert!(input < 5e-4, "{what}: {input}");
            }
        }
    }
}
