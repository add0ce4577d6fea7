//! How fast: throughput by batch size and precision, PyTorch in turn with it, and where the time of a step goes.

use super::measure::{Peaks, Steps, What};
use super::{Args, Report};
use crate::layers::LayerTime;
use crate::printer;
use anyhow::{Context, bail};
use models::Architecture;
use ops::Precision;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::process::{Command, Stdio};
use std::{env, thread, time::Duration};

/// The script, handed to Python on its standard input.
const SCRIPT: &str = include_str!("../pytorch_gpu.py");

/// Training steps of one network, ours and PyTorch's in turn.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Speed {
    model: Architecture,
    precision: Precision,
    batch_size: usize,
    ours: Vec<Steps>,
    /// The GPU's own count of the share of time in which it computed, in percent, while ours ran.
    utilisation: Option<f64>,
    pytorch: Vec<Rival>,
}

/// What PyTorch's script prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Rival {
    version: String,
    /// By the way it was run: as it is, and compiled.
    images_per_second: std::collections::BTreeMap<String, Option<f64>>,
}

impl Rival {
    /// The better way.
    fn best(&self) -> Option<(&str, f64)> {
        let ways = self.images_per_second.iter();
        ways.filter_map(|(way, rate)| Some((way.as_str(), (*rate)?)))
            .max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// The layers of one network.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Layers {
    model: Architecture,
    precision: Precision,
    batch_size: usize,
    rows: Vec<LayerTime>,
}

/// Less than this share of one of ours against PyTorch is a failure; without a GPU's own goal, an aim.
const LEAST: f64 = 1.0;

pub(super) fn measure(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let size = if args.quick { 64 } else { 8192 };
    for &precision in &args.precisions {
        let found: Peaks = ours(What::Peaks, precision, &[("--size", size.to_string())])?;
        report.peaks.push(found);
    }
    report.save()?;
    let pytorch = pytorch_version(args);
    match &pytorch {
        Ok(version) => printer::note(&format!("PyTorch {version} in turn with ours")),
        Err(error) => printer::note(&format!("without PyTorch: {error:#}")),
    }
    let architectures = if args.quick {
        &Architecture::ALL[1..]
    } else {
        &Architecture::ALL[..]
    };
    for &model in architectures {
        for batch_size in batch_sizes(args) {
            for &precision in &args.precisions {
                let speed = one(args, (model, batch_size, precision), pytorch.is_ok())?;
                let ours = median(speed.ours.iter().map(|steps| steps.images_per_second));
                let theirs = median(
                    speed
                        .pytorch
                        .iter()
                        .filter_map(|rival| Some(rival.best()?.1)),
                );
                let name = format!("{model}, batch {batch_size}, {precision}");
                report.speeds.push(speed);
                match (ours, theirs) {
                    (Some(ours), Some(theirs)) => report.check(
                        "speed",
                        name,
                        ours >= LEAST * theirs,
                        format!(
                            "{ours:.0} images/s, {:.2} times PyTorch's {theirs:.0}",
                            ours / theirs
                        ),
                    )?,
                    (Some(ours), None) => printer::note(&format!("{name}: {ours:.0} images/s")),
                    (None, _) => bail!("{name}: nothing was measured"),
                }
                report.save()?;
            }
        }
        let batch_size = if args.quick { 2 } else { 500 };
        for &precision in &args.precisions {
            let rows = ours(
                What::Layers,
                precision,
                &[
                    ("--model", model.to_string()),
                    ("--batch-size", batch_size.to_string()),
                    ("--seconds", seconds(args).to_string()),
                ],
            )?;
            report.layers.push(Layers {
                model,
                precision,
                batch_size,
                rows,
            });
            report.save()?;
        }
    }
    Ok(())
}

fn batch_sizes(args: &Args) -> Vec<NonZeroUsize> {
    if args.quick {
        vec![NonZeroUsize::MIN]
    } else {
        args.batch_sizes.clone()
    }
}

fn seconds(args: &Args) -> f64 {
    if args.quick { 0.0 } else { args.seconds }
}

/// All rounds of one measurement.
fn one(
    args: &Args,
    (model, batch_size, precision): (Architecture, NonZeroUsize, Precision),
    pytorch: bool,
) -> anyhow::Result<Speed> {
    let mut speed = Speed {
        model,
        precision,
        batch_size: batch_size.get(),
        ours: Vec::new(),
        utilisation: None,
        pytorch: Vec::new(),
    };
    for _ in 0..args.rounds.get() {
        let watch = Watch::start();
        speed.ours.push(ours(
            What::Training,
            precision,
            &[
                ("--model", model.to_string()),
                ("--batch-size", batch_size.to_string()),
                ("--seconds", seconds(args).to_string()),
            ],
        )?);
        speed.utilisation = watch.stop().or(speed.utilisation);
        if pytorch {
            speed
                .pytorch
                .push(theirs(args, (model, batch_size, precision))?);
        }
        if args.quick {
            break;
        }
    }
    Ok(speed)
}

/// One measurement by this program, in a process of its own.
fn ours<T: DeserializeOwned>(
    what: What,
    precision: Precision,
    arguments: &[(&str, String)],
) -> anyhow::Result<T> {
    let output = Command::new(env::current_exe()?)
        .args(["gpu-measure", "--what", what.name()])
        .args(["--precision", precision.name()])
        .args(
            arguments
                .iter()
                .flat_map(|(flag, value)| [*flag, value.as_str()]),
        )
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run this program again")?;
    if !output.status.success() {
        bail!(
            "the measurement of {} failed ({})",
            what.name(),
            output.status
        );
    }
    serde_json::from_slice(&output.stdout).context("the measurement is not understood")
}

fn pytorch_version(args: &Args) -> anyhow::Result<String> {
    let version = crate::rival::version(&args.python)?;
    let output = Command::new(&args.python)
        .args(["-c", "import torch; print(torch.cuda.is_available())"])
        .output()?;
    if !String::from_utf8_lossy(&output.stdout).contains("True") {
        bail!("PyTorch {version} sees no GPU");
    }
    Ok(version)
}

fn theirs(
    args: &Args,
    (model, batch_size, precision): (Architecture, NonZeroUsize, Precision),
) -> anyhow::Result<Rival> {
    let mut child = Command::new(&args.python)
        .arg("-")
        .args(["--model", model.name(), "--precision", precision.name()])
        .args(["--batch-size", &batch_size.to_string()])
        .args(["--seconds", &seconds(args).to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run Python")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(SCRIPT.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!(
            "PyTorch failed: {}",
            text.lines().last().unwrap_or("it said nothing")
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).context("PyTorch's answer is not understood")
}

/// `nvidia-smi`, watching how busy the GPU is.
struct Watch(Option<std::process::Child>);

impl Watch {
    fn start() -> Self {
        let child = Command::new("nvidia-smi")
            .args([
                "--query-gpu=utilization.gpu",
                "--format=csv,noheader,nounits",
            ])
            .args(["-i", "0", "-lms", "200"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        Self(child.ok())
    }

    /// The median of the upper half, which leaves out the time in which the process began; `None` where there is no
    /// such program.
    fn stop(self) -> Option<f64> {
        let mut child = self.0?;
        thread::sleep(Duration::from_millis(50));
        child.kill().ok()?;
        let output = child.wait_with_output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut shares: Vec<f64> = text
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect();
        shares.sort_by(f64::total_cmp);
        shares.get(shares.len() * 3 / 4).copied()
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => values.get(middle).copied(),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

pub(super) fn write_tables(report: &Report, text: &mut String) {
    for peaks in &report.peaks {
        let _ = writeln!(
            text,
            "| peak, {} | {:.1} TFLOP/s | {:.0} GB/s |",
            peaks.precision, peaks.tflops, peaks.bandwidth_gb_s
        );
    }
    for speed in &report.speeds {
        let ours = median(speed.ours.iter().map(|steps| steps.images_per_second));
        let theirs = median(
            speed
                .pytorch
                .iter()
                .filter_map(|rival| Some(rival.best()?.1)),
        );
        let (Some(ours), Some(steps)) = (ours, speed.ours.last()) else {
            continue;
        };
        let ratio = theirs.map_or_else(|| "-".to_owned(), |theirs| format!("{:.2}", ours / theirs));
        let busy = speed
            .utilisation
            .map_or_else(|| "-".to_owned(), |share| format!("{share:.0} %"));
        let _ = writeln!(
            text,
            "| {} | batch {} | {} | {ours:.0} images/s | {ratio} of PyTorch | {:.2} ms a step, host {:.2} ms | busy {busy} | {:.1} GB |",
            speed.model,
            speed.batch_size,
            speed.precision,
            steps.milliseconds_per_step,
            steps.host_milliseconds_per_step,
            steps.device_bytes as f64 / 1e9,
        );
    }
    for layers in &report.layers {
        let peaks = report
            .peaks
            .iter()
            .find(|peaks| peaks.precision == layers.precision);
        for row in &layers.rows {
            let floor = peaks.map(|peaks| {
                let operations = 2.0 * row.multiply_adds as f64 / (peaks.tflops * 1e12);
                let bytes = row.bytes as f64 / (peaks.bandwidth_gb_s * 1e9);
                1e3 * operations.max(bytes)
            });
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {:.3} ms | floor {:.3} ms |",
                layers.model,
                layers.precision,
                row.layer,
                row.pass,
                row.milliseconds,
                floor.unwrap_or(f64::NAN)
            );
        }
    }
}
