//! Whole runs: the processor against the GPU, a run again, a run that is killed and goes on, CIFAR-10.

use super::{Args, Report, SMALL_ALEXNET, arithmetic, has_cifar, trainer, worst};
use crate::throughput::settings;
use anyhow::{Context, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::Optimizer;
use datasets::{Augmentation, Dataset};
use engine::{Content, DataLoader, Weights};
use models::{Architecture, DropoutMasks, Network, initial_parameters};
use ops::{Arithmetic, ConvAlgorithm, Tape, cross_entropy, cross_entropy_gradient};
use run::settings::{Precision, WeightInit};
use serde::Serialize;
use std::fmt::Write;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PART: &str = "runs";

/// A run on the GPU.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Trained {
    model: Architecture,
    precision: Precision,
    dataset: &'static str,
    epochs: usize,
    /// From the start of the process to its end.
    seconds: f64,
    /// The epochs' own time.
    epoch_seconds: f64,
    test_accuracy: f64,
    train_loss: f64,
    folder: PathBuf,
}

/// Ten steps on the processor and on the GPU, with the same images, masks and weights.
pub(super) fn compare_with_processor(
    args: &Args,
    device: &Device,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (steps, batch) = if args.quick { (2, 2) } else { (10, 20) };
    let architecture: Architecture = SMALL_ALEXNET.parse()?;
    let settings = settings(architecture, run::Overrides::default())?;
    let set = Dataset::synthetic(steps * batch, 1)?;
    let batch = NonZeroUsize::new(batch).context("a batch of none")?;
    let losses = |on: &Device, arithmetic: Arithmetic| -> anyhow::Result<Vec<f64>> {
        let network = Network::new(
            architecture,
            initial_parameters(architecture, WeightInit::Pytorch, 0, on)?,
        )?;
        let variables = network.variables().iter();
        let mut optimiser = engine::Sgd::new(
            variables.map(|(_, variable)| variable.clone()).collect(),
            ops::Sgd {
                learning_rate: 0.02,
                momentum: 0.9,
                weight_decay: 5e-4,
                ..ops::Sgd::default()
            },
        )?;
        let precision = arithmetic.precision;
        let loader = DataLoader::new(set.training(), batch, (&settings).into(), on, precision)?;
        let mut losses = Vec::new();
        for (step, images) in (0..).zip(loader.training(0, 0, Augmentation::STANDARD, 0)?) {
            let images = images?;
            let mut tape = Tape::recording(arithmetic);
            let masks = DropoutMasks {
                probability: 0.5,
                seed: 0,
                step,
            };
            let logits = network.forward(&mut tape, &images.images, Some(masks))?;
            let loss = cross_entropy(&logits, &images.labels)?.to_device(&Device::Cpu)?;
            losses.push(f64::from(loss.to_scalar::<f32>()?));
            let gradient = cross_entropy_gradient(&logits, &images.labels, 0.0)?;
            optimiser.step(&tape.backward(gradient)?)?;
        }
        Ok(losses)
    };
    let expected = losses(&Device::Cpu, ConvAlgorithm::Direct.into())?;
    for &precision in &args.precisions {
        let found = losses(device, arithmetic(precision))?;
        let errors = found.iter().zip(&expected);
        let worst = worst(errors.map(|(found, expected)| (found - expected).abs() / expected));
        let limit = match precision {
            Precision::F32 => 1e-4,
            Precision::Tf32 => 1e-3,
            Precision::Bf16 => 1e-2,
        };
        report.check(
            PART,
            format!("{steps} steps as on the processor, {precision}"),
            worst <= limit && found.len() == steps,
            format!("losses within {worst:.1e} (limit {limit:.0e})"),
        )?;
    }
    Ok(())
}

/// The trainer on the synthetic set.
fn small_run(args: &Args, precision: Precision, name: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(trainer(args)?);
    command
        .args(["--model", "small-alexnet", "--dataset", "synthetic"])
        .args(["--device", "cuda", "--precision", &precision.to_string()])
        .args(["--no-progress", "--name", name, "--run-dir"])
        .arg(&args.run_dir);
    let sizes = if args.quick {
        [
            "--limit-train=8",
            "--limit-test=4",
            "--batch-size=2",
            "--epochs=2",
        ]
    } else {
        [
            "--limit-train=4000",
            "--limit-test=500",
            "--batch-size=50",
            "--epochs=3",
        ]
    };
    command.args(sizes);
    Ok(command)
}

fn finish(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("cannot run the trainer")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!(
            "the trainer failed: {}",
            text.lines().last().unwrap_or("it said nothing")
        );
    }
    Ok(())
}

/// Removes a run of an earlier check.
fn clear(args: &Args, name: &str) -> anyhow::Result<PathBuf> {
    let folder = args.run_dir.join(name);
    match fs::remove_dir_all(&folder) {
        Ok(()) => Ok(folder),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(folder),
        Err(error) => {
            Err(error).with_context(|| format!("cannot remove the old `{}`", folder.display()))
        }
    }
}

/// The bits of a run's weights, and what its epochs came to but for the time.
fn outcome(folder: &Path) -> anyhow::Result<(Vec<Vec<u32>>, Vec<serde_json::Value>)> {
    let weights = ["last.safetensors", "best.safetensors"];
    let weights = weights.map(|name| (folder.join(name), Content::Weights));
    let mut files = Vec::from(weights);
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with("momentum-") {
            files.push((path, Content::MomentumBuffers));
        }
    }
    let mut bits = Vec::new();
    for (file, content) in files {
        let weights = Weights::read_content(&file, Some(SMALL_ALEXNET.parse()?), content)?;
        for (_, tensor) in weights.tensors {
            bits.push(bits_of(&tensor)?);
        }
    }
    let metrics = fs::read_to_string(folder.join("metrics.jsonl"))?;
    let epochs = metrics.lines().map(|line| {
        let mut epoch: serde_json::Value = serde_json::from_str(line)?;
        if let Some(epoch) = epoch.as_object_mut() {
            epoch.remove("seconds");
            epoch.remove("images_per_second");
            // Of epochs with a checkpoint alone, which depends on the time as well.
            epoch.remove("weights_sha256");
        }
        Ok(epoch)
    });
    Ok((bits, epochs.collect::<anyhow::Result<_>>()?))
}

fn bits_of(tensor: &Tensor) -> candle_core::Result<Vec<u32>> {
    let values = tensor
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

/// The same run twice.
pub(super) fn repeat(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    for &precision in &args.precisions {
        let names = ["first", "again"].map(|name| format!("{name}-{precision}"));
        let mut outcomes = Vec::new();
        for name in &names {
            let folder = clear(args, name)?;
            finish(&mut small_run(args, precision, name)?)?;
            outcomes.push(outcome(&folder)?);
        }
        let same = outcomes[0] == outcomes[1];
        let text = if same { "the same bits" } else { "other bits" };
        report.check(PART, format!("a run again, {precision}"), same, text)?;
    }
    Ok(())
}

/// A run that is killed in the middle and resumed, against the one that was not.
pub(super) fn kill_and_resume(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let Some(&precision) = args.precisions.last() else {
        return Ok(());
    };
    let name = format!("killed-{precision}");
    let folder = clear(args, &name)?;
    let mut command = small_run(args, precision, &name)?;
    // A checkpoint after every step.
    command.args(["--checkpoint-minutes", "0"]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run the trainer")?;
    let start = Instant::now();
    // Killed in its second epoch.
    let second = |path: &Path| {
        let text = fs::read_dir(path).into_iter().flatten().flatten();
        text.into_iter().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with("momentum-1-") && !name.starts_with("momentum-1-0.")
        })
    };
    while !second(&folder) {
        if child.try_wait()?.is_some() {
            bail!("the run that was to be killed ended by itself");
        }
        if start.elapsed() > Duration::from_secs(300) {
            child.kill()?;
            bail!("the run that was to be killed wrote no checkpoint");
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    child.wait()?;
    let mut command = Command::new(trainer(args)?);
    command
        .args(["--device", "cuda", "--no-progress", "--resume"])
        .arg(&folder);
    finish(&mut command)?;
    let same = outcome(&folder)? == outcome(&args.run_dir.join(format!("first-{precision}")))?;
    let text = if same {
        "the bits of the run that was not killed"
    } else {
        "other bits"
    };
    report.check(PART, format!("killed and resumed, {precision}"), same, text)
}

/// Both networks with the reference recipe.
pub(super) fn train_both(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let real = has_cifar(&args.data_dir);
    let epochs = if args.full { 50 } else { 2 };
    for model in args.architectures() {
        for &precision in &args.precisions {
            let name = format!("{model}-{precision}-{epochs}");
            let folder = clear(args, &name)?;
            let mut command = Command::new(trainer(args)?);
            command
                .args(["--model", model.name, "--device", "cuda"])
                .args(["--precision", &precision.to_string(), "--no-progress"])
                .args(["--epochs", &epochs.to_string(), "--name", &name])
                .arg("--run-dir")
                .arg(&args.run_dir);
            if args.quick {
                command.args(["--dataset", "synthetic", "--limit-train=4"]);
                command.args(["--limit-test=2", "--batch-size=2"]);
            } else if real {
                command.arg("--data-dir").arg(&args.data_dir);
            } else {
                command.args(["--dataset", "synthetic"]);
            }
            let start = Instant::now();
            finish(&mut command)?;
            let seconds = start.elapsed().as_secs_f64();
            let trained = trained((model, precision), real && !args.quick, seconds, &folder)?;
            report.check(
                "training",
                format!("{model}, {epochs} epochs, {precision}"),
                trained.epochs == epochs,
                format!(
                    "{seconds:.1} s, {:.2} % on {}",
                    100.0 * trained.test_accuracy,
                    trained.dataset
                ),
            )?;
            report.training.push(trained);
            report.save()?;
        }
    }
    Ok(())
}

fn trained(
    (model, precision): (Architecture, Precision),
    real: bool,
    seconds: f64,
    folder: &Path,
) -> anyhow::Result<Trained> {
    let metrics = fs::read_to_string(folder.join("metrics.jsonl"))?;
    let epochs = metrics
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<Vec<serde_json::Value>, _>>()?;
    let last = epochs.last().context("the run has no epoch")?;
    let number = |epoch: &serde_json::Value, key: &str| epoch[key].as_f64().unwrap_or(f64::NAN);
    Ok(Trained {
        model,
        precision,
        dataset: if real {
            "CIFAR-10"
        } else {
            "the synthetic set"
        },
        epochs: epochs.len(),
        seconds,
        epoch_seconds: epochs.iter().map(|epoch| number(epoch, "seconds")).sum(),
        test_accuracy: number(last, "test_accuracy"),
        train_loss: number(last, "train_loss"),
        folder: folder.to_owned(),
    })
}

pub(super) fn write_table(report: &Report, text: &mut String) {
    for run in &report.training {
        let _ = writeln!(
            text,
            "| {} | {} | {} epochs of {} | {:.1} s, of which epochs {:.1} s | {:.2} % |",
            run.model,
            run.precision,
            run.epochs,
            run.dataset,
            run.seconds,
            run.epoch_seconds,
            100.0 * run.test_accuracy
        );
    }
}
