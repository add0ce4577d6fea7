//! The whole measurement: contestants in turn, ratios, layers, tables.

use crate::layers::LayerTime;
use crate::machine::Machine;
use crate::rival::{self, Layout};
use crate::throughput::{Engine, Measured, Pass};
use anyhow::{Context, bail};
use atomic_file::Unfinished;
use models::Architecture;
use run::cli;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::env;
use std::fmt::Write;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::available_parallelism;

/// What is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The networks.
    #[arg(long, value_delimiter = ',', default_value = "alexnet,small-alexnet")]
    models: Vec<Architecture>,

    /// Training steps, the forward pass alone, or both.
    #[arg(long, value_delimiter = ',', value_enum, default_value = "train,eval")]
    passes: Vec<Pass>,

    /// Images a batch.
    #[arg(long, value_delimiter = ',', default_value = "128")]
    batch_sizes: Vec<NonZeroUsize>,

    /// Threads [default: one a core].
    #[arg(long, value_delimiter = ',')]
    threads: Vec<NonZeroUsize>,

    /// Who computes: `winograd`, the default of the trainer; `direct`, its other algorithm; `tape` and `graph`, our operations on
    /// our tape and in candle's graph, on one batch; `candle`, candle's own convolutions.
    #[arg(long, value_delimiter = ',', value_enum, default_value = "winograd")]
    engines: Vec<Engine>,

    /// Measure PyTorch as well, by this Python, in turn with ours.
    #[arg(long, value_name = "PYTHON")]
    against_pytorch: Option<PathBuf>,

    /// How often each is measured, in turn.
    #[arg(long, default_value = "2")]
    rounds: NonZeroU32,

    /// The time of one measurement, warm-up not counted.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,

    /// Leave out the layers.
    #[arg(long)]
    no_layers: bool,

    /// Write all figures to this file, as JSON.
    #[arg(long, value_name = "FILE", default_value = "bench.json")]
    out: PathBuf,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 3600.0 => Ok(seconds),
        _ => Err("give a number of seconds above 0, at most 3600".to_owned()),
    }
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contestant {
    Ours(Engine),
    PyTorch(Layout),
}

impl Contestant {
    fn name(self) -> String {
        match self {
            Self::Ours(engine) => engine.name().to_owned(),
            Self::PyTorch(layout) => format!("pytorch {}", layout.name()),
        }
    }
}

/// All figures.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    version: String,
    pytorch: Option<String>,
    machines: Vec<Machine>,
    throughput: Vec<Row>,
    ratios: Vec<Ratio>,
    layers: Vec<Layers>,
}

/// One contestant at one task.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    model: Architecture,
    pass: Pass,
    batch_size: usize,
    threads: usize,
    contestant: String,
    /// One a round.
    images_per_second: Vec<f64>,
    peak_bytes: Option<u64>,
    waiting_share: Option<f64>,
}

/// How many times as many images a second the first handled as the second, in each round.
#[derive(Debug, Serialize, Deserialize)]
struct Ratio {
    model: Architecture,
    pass: Pass,
    batch_size: usize,
    threads: usize,
    of: String,
    to: String,
    median: f64,
    least: f64,
    most: f64,
    /// Peak memory of the first over that of the second.
    memory: Option<f64>,
}

/// The layers of one network.
#[derive(Debug, Serialize, Deserialize)]
struct Layers {
    model: Architecture,
    engine: Engine,
    batch_size: usize,
    threads: usize,
    layers: Vec<LayerTime>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let cannot_write = || format!("cannot write `{}`", args.out.display());
    // Found before the measurements: a file that cannot be written.
    let mut out = Unfinished::create(&args.out).with_context(cannot_write)?;
    let threads = match args.threads.as_slice() {
        [] => vec![available_parallelism()?],
        threads => threads.to_vec(),
    };
    let pytorch = args
        .against_pytorch
        .as_ref()
        .and_then(|python| match rival::version(python) {
            Ok(version) => Some(version),
            Err(error) => {
                cli::note(&format!(
                    "{error:#}; measuring this program alone. PyTorch comes with `pip install torch` in a \
                     virtual environment"
                ));
                None
            }
        });
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pytorch,
        machines: Vec::new(),
        throughput: Vec::new(),
        ratios: Vec::new(),
        layers: Vec::new(),
    };
    for threads in &threads {
        report.machines.push(measure_machine(*threads)?);
    }
    let mut contestants: Vec<_> = args.engines.iter().copied().map(Contestant::Ours).collect();
    if report.pytorch.is_some() {
        contestants.extend(Layout::ALL.map(Contestant::PyTorch));
    }
    for model in &args.models {
        for pass in &args.passes {
            for batch_size in &args.batch_sizes {
                for threads in &threads {
                    let task = Task {
                        model: *model,
                        pass: *pass,
                        batch_size: *batch_size,
                        threads: *threads,
                    };
                    let rows = task.measure(args, &contestants)?;
                    report.ratios.extend(ratios(&rows));
                    report.throughput.extend(rows);
                }
            }
        }
    }
    report.ratios.extend(scaling(&report.throughput));
    // Again, some time later: on a machine that is shared, a single moment may be a bad one.
    report.machines = report
        .machines
        .into_iter()
        .zip(&threads)
        .map(|(machine, threads)| Ok(machine.or_better(measure_machine(*threads)?)))
        .collect::<anyhow::Result<_>>()?;
    if !args.no_layers {
        let (Some(batch_size), Some(threads)) = (args.batch_sizes.first(), threads.last()) else {
            bail!("there is no batch size");
        };
        for model in &args.models {
            for engine in &args.engines {
                if engine.algorithm().is_none() {
                    continue;
                }
                let name = engine.name();
                cli::note(&format!("{model}, {name}: the layers"));
                let arguments = [
                    "layers".to_owned(),
                    format!("--model={model}"),
                    format!("--engine={name}"),
                    format!("--batch-size={batch_size}"),
                    format!("--seconds={}", args.seconds),
                ];
                report.layers.push(Layers {
                    model: *model,
                    engine: *engine,
                    batch_size: batch_size.get(),
                    threads: threads.get(),
                    layers: own(&arguments, *threads)?,
                });
            }
        }
    }
    cli::line(&tables(&report));
    out.write_all(&serde_json::to_vec_pretty(&report)?)
        .and_then(|()| out.keep())
        .with_context(cannot_write)?;
    cli::note(&format!("all figures are in {}", args.out.display()));
    Ok(())
}

fn measure_machine(threads: NonZeroUsize) -> anyhow::Result<Machine> {
    cli::note(&format!("the machine with {threads} threads"));
    own(&["machine".to_owned()], threads)
}

/// Runs this program with other arguments.
fn own<T: DeserializeOwned>(arguments: &[String], threads: NonZeroUsize) -> anyhow::Result<T> {
    let output = Command::new(env::current_exe()?)
        .args(arguments)
        .arg(format!("--threads={threads}"))
        // Candle's own operations read it.
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("measuring `{}` failed", arguments.join(" "));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What is measured of all contestants.
#[derive(Clone, Copy)]
struct Task {
    model: Architecture,
    pass: Pass,
    batch_size: NonZeroUsize,
    threads: NonZeroUsize,
}

impl Task {
    /// All rounds, the contestants in turn.
    fn measure(&self, args: &Args, contestants: &[Contestant]) -> anyhow::Result<Vec<Row>> {
        let mut rows: Vec<Row> = contestants
            .iter()
            .map(|contestant| Row {
                model: self.model,
                pass: self.pass,
                batch_size: self.batch_size.get(),
                threads: self.threads.get(),
                contestant: contestant.name(),
                images_per_second: Vec::new(),
                peak_bytes: None,
                waiting_share: None,
            })
            .collect();
        for _ in 0..args.rounds.get() {
            for (contestant, row) in contestants.iter().zip(&mut rows) {
                let measured = match (contestant, &args.against_pytorch) {
                    (Contestant::Ours(engine), _) => self.ours(*engine, args.seconds)?,
                    (Contestant::PyTorch(layout), Some(python)) => rival::measure(
                        python,
                        *layout,
                        (self.model, self.pass),
                        (self.batch_size, self.threads),
                        args.seconds,
                    )?,
                    (Contestant::PyTorch(_), None) => bail!("there is no Python"),
                };
                cli::note(&format!(
                    "{} {}, batch {}, {} threads: {} {:.1} images/s",
                    self.model,
                    self.pass.name(),
                    self.batch_size,
                    self.threads,
                    row.contestant,
                    measured.images_per_second
                ));
                row.images_per_second.push(measured.images_per_second);
                row.peak_bytes = row.peak_bytes.max(measured.peak_bytes);
                row.waiting_share = measured.waiting_share.or(row.waiting_share);
            }
        }
        Ok(rows)
    }

    fn ours(&self, engine: Engine, seconds: f64) -> anyhow::Result<Measured> {
        let arguments = [
            "throughput".to_owned(),
            format!("--model={}", self.model),
            format!("--pass={}", self.pass.name()),
            format!("--engine={}", engine.name()),
            format!("--batch-size={}", self.batch_size),
            format!("--seconds={seconds}"),
        ];
        own(&arguments, self.threads)
    }
}

/// Each of ours against the better of PyTorch's layouts, and the first against the others of ours.
fn ratios(rows: &[Row]) -> Vec<Ratio> {
    let (rivals, ours): (Vec<_>, Vec<_>) = rows
        .iter()
        .partition(|row| row.contestant.starts_with("pytorch"));
    let best = rivals
        .into_iter()
        .max_by(|a, b| median(&a.images_per_second).total_cmp(&median(&b.images_per_second)));
    let mut ratios: Vec<_> = best
        .into_iter()
        .flat_map(|best| {
            ours.iter()
                .map(|row| ratio(row, best, best.contestant.clone()))
        })
        .collect();
    if let Some((first, others)) = ours.split_first() {
        ratios.extend(
            others
                .iter()
                .map(|row| ratio(first, row, row.contestant.clone())),
        );
    }
    ratios
}

/// More threads against the fewest.
fn scaling(rows: &[Row]) -> Vec<Ratio> {
    let same = |a: &Row, b: &Row| {
        (a.model, a.pass, a.batch_size, &a.contestant)
            == (b.model, b.pass, b.batch_size, &b.contestant)
    };
    rows.iter()
        .filter_map(|row| {
            let fewest = rows
                .iter()
                .filter(|other| same(row, other))
                .min_by_key(|other| other.threads)?;
            (fewest.threads < row.threads)
                .then(|| ratio(row, fewest, format!("itself, {} threads", fewest.threads)))
        })
        .collect()
}

fn ratio(of: &Row, to: &Row, name: String) -> Ratio {
    let mut ratios: Vec<f64> = of
        .images_per_second
        .iter()
        .zip(&to.images_per_second)
        .map(|(of, to)| of / to)
        .collect();
    ratios.sort_by(f64::total_cmp);
    Ratio {
        model: of.model,
        pass: of.pass,
        batch_size: of.batch_size,
        threads: of.threads,
        of: of.contestant.clone(),
        to: name,
        median: median(&ratios),
        least: ratios.first().copied().unwrap_or(f64::NAN),
        most: ratios.last().copied().unwrap_or(f64::NAN),
        memory: of
            .peak_bytes
            .zip(to.peak_bytes)
            .map(|(of, to)| of as f64 / to as f64),
    }
}

/// The middle one, or the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => (sorted[count / 2 - 1] + sorted[count / 2]) / 2.0,
    }
}

/// Everything, as Markdown.
fn tables(report: &Report) -> String {
    let mut text = String::new();
    let none = || "-".to_owned();
    for machine in &report.machines {
        let _ = writeln!(
            text,
            "{} with {} threads: {:.0} GFLOP/s in matrix products, {:.1} GB/s of memory traffic",
            machine.processor, machine.threads, machine.gemm_gflops, machine.bandwidth_gb_s
        );
    }
    if let Some(version) = &report.pytorch {
        let _ = writeln!(text, "PyTorch {version}");
    }
    let _ = writeln!(
        text,
        "\n| network | pass | batch | threads | who | images/s | rounds | peak MB | waiting for data |\n\
         |---|---|---|---|---|---|---|---|---|"
    );
    for row in &report.throughput {
        let rounds: Vec<_> = row
            .images_per_second
            .iter()
            .map(|rate| format!("{rate:.1}"))
            .collect();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {:.1} | {} | {} | {} |",
            row.model,
            row.pass.name(),
            row.batch_size,
            row.threads,
            row.contestant,
            median(&row.images_per_second),
            rounds.join(", "),
            row.peak_bytes
                .map_or_else(none, |bytes| format!("{:.0}", bytes as f64 / 1e6)),
            row.waiting_share
                .map_or_else(none, |share| format!("{:.2} %", 100.0 * share)),
        );
    }
    if !report.ratios.is_empty() {
        let _ = writeln!(
            text,
            "\n| network | pass | batch | threads | of | to | ratio | least to most | memory |\n\
             |---|---|---|---|---|---|---|---|---|"
        );
    }
    for ratio in &report.ratios {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {:.2} | {:.2} to {:.2} | {} |",
            ratio.model,
            ratio.pass.name(),
            ratio.batch_size,
            ratio.threads,
            ratio.of,
            ratio.to,
            ratio.median,
            ratio.least,
            ratio.most,
            ratio
                .memory
                .map_or_else(none, |memory| format!("{memory:.2}")),
        );
    }
    for layers in &report.layers {
        let machine = report
            .machines
            .iter()
            .find(|machine| machine.threads == layers.threads);
        if let Some(machine) = machine {
            text += &layer_table(layers, machine);
        }
    }
    text
}

/// The layers against the machine's peaks.
fn layer_table(layers: &Layers, machine: &Machine) -> String {
    let mut text = format!(
        "\n{}, {}, batch {}, {} threads. Effective: of the sums that define the layer; performed: of the \
         products that are left of them. The floor is the longer of products at the machine's peak and of \
         operands and results read and written once.\n\n\
         | layer | pass | ms | effective GFLOP/s | performed GFLOP/s | of peak | floor ms | of floor |\n\
         |---|---|---|---|---|---|---|---|\n",
        layers.model,
        layers.engine.name(),
        layers.batch_size,
        layers.threads
    );
    let mut total = 0.0;
    let mut total_floor = 0.0;
    for row in &layers.layers {
        let rate = |multiply_adds: u64| 2.0 * multiply_adds as f64 / row.milliseconds / 1e6;
        let products = 2.0 * row.performed as f64 / machine.gemm_gflops / 1e6;
        let traffic = row.bytes as f64 / machine.bandwidth_gb_s / 1e6;
        let floor = products.max(traffic);
        total += row.milliseconds;
        total_floor += floor;
        let products = if row.performed == 0 {
            "- | - | -".to_owned()
        } else {
            format!(
                "{:.0} | {:.0} | {:.0} %",
                rate(row.multiply_adds),
                rate(row.performed),
                100.0 * rate(row.performed) / machine.gemm_gflops
            )
        };
        let _ = writeln!(
            text,
            "| {} | {} | {:.1} | {products} | {floor:.1} | {:.1} |",
            row.layer,
            row.pass,
            row.milliseconds,
            row.milliseconds / floor
        );
    }
    let _ = writeln!(
        text,
        "| all | step | {total:.1} | - | - | - | {total_floor:.1} | {:.1} |",
        total / total_floor
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(contestant: &str, threads: usize, rates: &[f64], peak_bytes: u64) -> Row {
        Row {
            model: "alexnet".parse().unwrap(),
            pass: Pass::Train,
            batch_size: 128,
            threads,
            contestant: contestant.to_owned(),
            images_per_second: rates.to_vec(),
            peak_bytes: Some(peak_bytes),
            waiting_share: None,
        }
    }

    #[test]
    fn ours_is_held_against_the_better_layout() {
        let rows = [
            row("winograd", 2, &[30.0, 44.0], 100),
            row("candle", 2, &[5.0, 5.0], 200),
            row("pytorch contiguous", 2, &[9.0, 9.0], 300),
            row("pytorch channels-last", 2, &[10.0, 11.0], 400),
        ];
        let found = ratios(&rows);
        let of: Vec<_> = found
            .iter()
            .map(|ratio| (ratio.of.as_str(), ratio.to.as_str()))
            .collect();
        assert_eq!(
            of,
            [
                ("winograd", "pytorch channels-last"),
                ("candle", "pytorch channels-last"),
                ("winograd", "candle")
            ]
        );
        assert_eq!(
            (found[0].least, found[0].median, found[0].most),
            (3.0, 3.5, 4.0)
        );
        assert_eq!(found[0].memory, Some(0.25));
        assert_eq!(found[2].median, (6.0 + 8.8) / 2.0);
    }

    #[test]
    fn more_threads_are_held_against_the_fewest() {
        let rows = [
            row("winograd", 1, &[10.0], 100),
            row("winograd", 2, &[19.0], 100),
            row("direct", 2, &[7.0], 100),
        ];
        let found = scaling(&rows);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].median, found[0].to.as_str()),
            (1.9, "itself, 1 threads")
        );
    }

    #[test]
    fn times_are_positive() {
        assert!(seconds("0.5").is_ok());
        for bad in ["0", "-1", "nan", "inf", "x"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
