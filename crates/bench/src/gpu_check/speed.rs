//! How fast: throughput by batch size and precision, PyTorch in turn with it, and where the time of a step goes.

use super::measure::{Peaks, Steps, What};
use super::{Args, Report};
use crate::comparison::median;
use crate::layers::LayerTime;
use anyhow::{Context, bail};
use models::Architecture;
use run::cli;
use run::settings::Precision;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
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
    images_per_second: BTreeMap<String, Option<f64>>,
}

impl Speed {
    /// Images a second of ours.
    fn ours(&self) -> f64 {
        let rates = self.ours.iter().map(|steps| steps.images_per_second);
        median(&rates.collect::<Vec<_>>())
    }

    /// Images a second of PyTorch, by the way it was run, where it could be.
    fn theirs(&self) -> BTreeMap<&str, f64> {
        let mut ways = BTreeMap::<&str, Vec<f64>>::new();
        for rival in &self.pytorch {
            for (way, rate) in &rival.images_per_second {
                ways.entry(way).or_default().extend(*rate);
            }
        }
        ways.retain(|_, rates| !rates.is_empty());
        let ways = ways.into_iter();
        ways.map(|(way, rates)| (way, median(&rates))).collect()
    }

    /// How many times as fast ours is, for each way.
    fn ratios(&self) -> String {
        let ours = self.ours();
        let ratios = self.theirs();
        let ratios = ratios.iter().map(|(way, theirs)| {
            format!("{:.2} times PyTorch's {theirs:.0} ({way})", ours / theirs)
        });
        ratios.collect::<Vec<_>>().join(", ")
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

pub(super) fn measure(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let size = if args.quick { 64 } else { 8192 };
    for &precision in &args.precisions {
        let found: Peaks = ours(What::Peaks, precision, &[("--size", size.to_string())])?;
        report.peaks.push(found);
    }
    report.save()?;
    let pytorch = pytorch_version(args);
    match &pytorch {
        Ok(version) => cli::note(&format!("PyTorch {version} in turn with ours")),
        Err(error) => cli::note(&format!(
            "without PyTorch: {}",
            cli::message(error.as_ref())
        )),
    }
    for model in args.architectures() {
        for batch_size in batch_sizes(args) {
            for &precision in &args.precisions {
                let speed = one(args, (model, batch_size, precision), pytorch.is_ok())?;
                let name = format!("{model}, batch {batch_size}, {precision}");
                let found = [format!("{:.0} images/s", speed.ours()), speed.ratios()];
                let found = found.into_iter().filter(|part| !part.is_empty());
                cli::note(&format!("{name}: {}", found.collect::<Vec<_>>().join(", ")));
                report.speeds.push(speed);
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
        .args(["--precision", &precision.to_string()])
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
    crate::rival::ask(
        &args.python,
        model,
        SCRIPT,
        &format!(
            "--precision={precision} --batch-size={batch_size} --seconds={}{}",
            seconds(args),
            if args.compiled { " --compiled" } else { "" }
        ),
    )
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

pub(super) fn write_tables(report: &Report, text: &mut String) {
    for peaks in &report.peaks {
        let _ = writeln!(
            text,
            "| peak, {} | {:.1} TFLOP/s | {:.0} GB/s |",
            peaks.precision, peaks.tflops, peaks.bandwidth_gb_s
        );
    }
    for speed in &report.speeds {
        let Some(steps) = speed.ours.last() else {
            continue;
        };
        let (ours, ratios) = (speed.ours(), speed.ratios());
        let busy = speed
            .utilisation
            .map_or_else(|| "-".to_owned(), |share| format!("{share:.0} %"));
        let _ = writeln!(
            text,
            "| {} | batch {} | {} | {ours:.0} images/s | {ratios} | {:.2} ms a step, host {:.2} ms | busy {busy} | {:.1} GB |",
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
                let operations = 2.0 * row.work.multiply_adds as f64 / (peaks.tflops * 1e12);
                let bytes = row.work.bytes as f64 / (peaks.bandwidth_gb_s * 1e9);
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
