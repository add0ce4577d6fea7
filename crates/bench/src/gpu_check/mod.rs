//! `cargo xtask gpu-check`: whether an NVIDIA GPU computes what it should, the same every time, and how fast.

pub(crate) mod measure;
mod runs;
mod speed;
mod values;

use anyhow::{Context, bail};
use clap::ValueEnum;
use models::Architecture;
use ops::{Arithmetic, ConvAlgorithm};
use run::NativePath;
use run::cli;
use run::settings::Precision;
use serde::Serialize;
use std::fmt::Write;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The GPU's arithmetic at a precision.
fn arithmetic(precision: Precision) -> Arithmetic {
    Arithmetic {
        conv_algorithm: ConvAlgorithm::Winograd,
        precision: match precision {
            Precision::F32 => ops::Precision::F32,
            Precision::Tf32 => ops::Precision::Tf32,
            Precision::Bf16 => ops::Precision::Bf16,
        },
    }
}

/// What is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The parts to do [default: all of them].
    #[arg(
        long,
        value_delimiter = ',',
        value_enum,
        default_value = "values,runs,speed,training"
    )]
    only: Vec<Part>,

    /// The least of everything: to see that the check itself works.
    #[arg(long, conflicts_with = "full")]
    quick: bool,

    /// Train for 50 epochs instead of 2.
    #[arg(long)]
    full: bool,

    /// The folder that holds `cifar-10-batches-bin`; without it, training is on the synthetic set.
    #[arg(long, value_name = "DIR", default_value = "data")]
    data_dir: NativePath,

    /// A Python with PyTorch, which is measured in turn with ours where it is there.
    #[arg(long, value_name = "PYTHON", default_value = "python3")]
    python: NativePath,

    /// Measure PyTorch compiled as well, which takes a minute for each network, batch size and precision.
    #[arg(long)]
    compiled: bool,

    /// The trainer, built with the feature `cuda` [default: beside this program].
    #[arg(long, value_name = "FILE")]
    trainer: Option<NativePath>,

    /// Images a batch.
    #[arg(long, value_delimiter = ',', default_value = "128,500,1024")]
    batch_sizes: Vec<NonZeroUsize>,

    /// The precisions.
    #[arg(long, value_delimiter = ',', default_value = "f32,tf32,bf16")]
    precisions: Vec<Precision>,

    /// How often each speed is measured, in turn.
    #[arg(long, default_value = "2")]
    rounds: NonZeroU32,

    /// The time of one measurement, in seconds, warm-up not counted.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,

    /// The folder for the runs that are trained; kept.
    #[arg(long, value_name = "DIR", default_value = "runs/gpu-check")]
    run_dir: NativePath,

    /// Write everything to this file, as JSON, as it is found.
    #[arg(long, value_name = "FILE", default_value = "gpu-check.json")]
    out: NativePath,
}

impl Args {
    /// The networks that are checked: with `--quick`, SmallAlexNet only.
    fn architectures(&self) -> impl Iterator<Item = Architecture> {
        let all = Architecture::ALL.iter().copied();
        all.filter(|architecture| !self.quick || architecture.name == SMALL_ALEXNET)
    }
}

/// The largest error; infinite where one is no number.
fn worst(errors: impl IntoIterator<Item = f64>) -> f64 {
    errors.into_iter().fold(0.0, |worst, error| {
        if error.is_nan() {
            f64::INFINITY
        } else {
            worst.max(error)
        }
    })
}

/// The network of the checks that take only one.
const SMALL_ALEXNET: &str = "small-alexnet";

/// A part of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Reference values and gradients.
    Values,
    /// The processor against the GPU, two runs, a run that is killed and goes on.
    Runs,
    /// Throughput, PyTorch, where the time goes.
    Speed,
    /// Both networks on CIFAR-10.
    Training,
}

/// Something that holds or does not.
#[derive(Clone, Debug, Serialize)]
struct Check {
    part: &'static str,
    name: String,
    passed: bool,
    /// What was found, and what it is held against.
    found: String,
}

/// Everything that was found.
#[derive(Debug, Default, Serialize)]
struct Report {
    version: &'static str,
    commit: &'static str,
    command: Vec<String>,
    gpu: String,
    memory_bytes: usize,
    checks: Vec<Check>,
    peaks: Vec<measure::Peaks>,
    speeds: Vec<speed::Speed>,
    layers: Vec<speed::Layers>,
    training: Vec<runs::Trained>,
    #[serde(skip)]
    out: PathBuf,
}

impl Report {
    /// Takes a check in and says it.
    fn check(
        &mut self,
        part: &'static str,
        name: impl Into<String>,
        passed: bool,
        found: impl Into<String>,
    ) -> anyhow::Result<()> {
        let check = Check {
            part,
            name: name.into(),
            passed,
            found: found.into(),
        };
        let verdict = if passed { "ok    " } else { "FAILED" };
        cli::note(&format!("{verdict} {}: {}", check.name, check.found));
        self.checks.push(check);
        self.save()
    }

    fn save(&self) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        atomic_file::write(&self.out, &text)
            .with_context(|| format!("cannot write `{}`", self.out.display()))
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let device = ops::cuda::open(0)?;
    let candle_core::Device::Cuda(gpu) = &device else {
        bail!("the device is no GPU");
    };
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        commit: env!("BUILT_FROM"),
        command: env::args().skip(1).collect(),
        gpu: ops::cuda::name(gpu)?,
        memory_bytes: ops::cuda::memory(gpu)?.total,
        out: args.out.to_path_buf(),
        ..Report::default()
    };
    report.save()?;
    cli::note(&format!(
        "{}, {:.0} GiB",
        report.gpu,
        report.memory_bytes as f64 / f64::from(1 << 30)
    ));
    let has = |part| args.only.contains(&part);
    if has(Part::Values) {
        values::check(args, &device, &mut report)?;
    }
    if has(Part::Runs) {
        runs::compare_with_processor(args, &device, &mut report)?;
    }
    // What comes now is done by other processes, which shall have the GPU's memory for themselves.
    drop(device);
    if has(Part::Runs) {
        runs::repeat(args, &mut report)?;
        runs::kill_and_resume(args, &mut report)?;
    }
    if has(Part::Speed) {
        speed::measure(args, &mut report)?;
    }
    if has(Part::Training) {
        runs::train_both(args, &mut report)?;
    }
    cli::line(table(&report).trim_end());
    let failed = report.checks.iter().filter(|check| !check.passed).count();
    if failed > 0 {
        bail!(
            "{failed} of {} checks failed: see {}",
            report.checks.len(),
            report.out.display()
        );
    }
    Ok(())
}

/// The trainer: the one that was named, or the one beside this program.
fn trainer(args: &Args) -> anyhow::Result<PathBuf> {
    let path = match &args.trainer {
        Some(path) => path.to_path_buf(),
        None => env::current_exe()?.with_file_name("trainer"),
    };
    if !path.is_file() {
        bail!(
            "there is no trainer at `{}`; name it with --trainer",
            path.display()
        );
    }
    Ok(path)
}

/// Whether CIFAR-10 is there.
fn has_cifar(data_dir: &Path) -> bool {
    fs::exists(data_dir.join(datasets::cifar10::FOLDER)).unwrap_or(false)
}

fn table(report: &Report) -> String {
    let mut text = format!("\n{}\n", report.gpu);
    for check in &report.checks {
        let verdict = if check.passed { "ok" } else { "FAILED" };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            check.part, check.name, check.found, verdict
        );
    }
    speed::write_tables(report, &mut text);
    runs::write_table(report, &mut text);
    text
}
