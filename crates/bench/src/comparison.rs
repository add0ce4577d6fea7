//! The whole measurement: contestants in turn, ratios, layers, tables.

use crate::device::DeviceKind;
use crate::layers::LayerTime;
use crate::machine::Machine;
use crate::rival::{self, Configuration};
use crate::throughput::{Engine, Measured, Pass, name};
use anyhow::{Context, bail};
use atomic_file::Unfinished;
use models::Architecture;
use run::NativePath;
use run::cli::{self, UsageError};
use run::settings::Precision;
use serde::{Serialize, de::DeserializeOwned};
use std::env;
use std::fmt::Write;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::available_parallelism;

/// The options.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The networks.
    #[arg(long, value_delimiter = ',', default_values = models::POST)]
    models: Vec<Architecture>,

    /// Training steps, the forward pass alone, or both.
    #[arg(long, value_delimiter = ',', value_enum, default_value = "train,eval")]
    passes: Vec<Pass>,

    /// Images per batch.
    #[arg(long, value_delimiter = ',', default_value = "128")]
    batch_sizes: Vec<NonZeroUsize>,

    /// The device: the CPU, or the first NVIDIA GPU.
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceKind,

    /// Threads [default: one per core].
    #[arg(long, value_delimiter = ',')]
    threads: Vec<NonZeroUsize>,

    /// The engines: `winograd`, the trainer in f32; `direct`, the same with `--conv direct`; `bf16` and, on a GPU, `tf32`,
    /// its other precisions; on a CPU also `tape` and `graph`, our operations on our tape and in candle's graph, on one
    /// batch, and `candle`, candle's own convolutions.
    #[arg(
        long,
        value_delimiter = ',',
        value_enum,
        default_value = "winograd,bf16"
    )]
    engines: Vec<Engine>,

    /// Measure PyTorch as well, with this Python, in turn with ours: in the precisions of the engines (bf16 is autocast), on a
    /// CPU in both layouts, as it is and compiled.
    #[arg(long, value_name = "PYTHON")]
    against_pytorch: Option<NativePath>,

    /// Measure PyTorch as it is alone. On a GPU, compiling takes a minute for each measurement.
    #[arg(long)]
    no_compile: bool,

    /// How often each is measured, in turn. The machine is measured twice if this is above 1.
    #[arg(long, default_value = "2")]
    rounds: NonZeroU32,

    /// The time of one measurement in seconds, without warm-up.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,

    /// Leave out the layers.
    #[arg(long)]
    no_layers: bool,

    /// Write all figures to this file, as JSON.
    #[arg(long, value_name = "FILE", default_value = "bench.json")]
    out: NativePath,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s| *s > 0.0 && *s <= 3600.0);
    seconds.ok_or_else(|| "give a number of seconds above 0, at most 3600".to_owned())
}

/// A program that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contestant<'a> {
    Ours(Engine),
    /// PyTorch in this Python.
    PyTorch(&'a Path, Configuration),
}

/// What all contestants do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Task {
    model: Architecture,
    pass: Pass,
    batch_size: NonZeroUsize,
    device: DeviceKind,
    threads: NonZeroUsize,
}

/// All figures.
#[derive(Debug, Default, Serialize)]
struct Report {
    version: &'static str,
    commit: &'static str,
    pytorch: Option<String>,
    machines: Vec<Machine>,
    throughput: Vec<Row>,
    ratios: Vec<Ratio>,
    layers: Vec<Layers>,
}

/// One contestant at one task.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    task: Task,
    contestant: String,
    precision: Precision,
    /// Whether it is this program.
    #[serde(skip)]
    ours: bool,
    /// One per round.
    images_per_second: Vec<f64>,
    peak_bytes: Option<u64>,
    waiting_share: Option<f64>,
    host_milliseconds: Option<f64>,
}

/// How many times as many images per second the first processed as the second, in each round.
#[derive(Debug, Serialize)]
struct Ratio {
    #[serde(flatten)]
    task: Task,
    of: String,
    to: String,
    median: f64,
    least: f64,
    most: f64,
    /// Peak memory of the first divided by that of the second.
    memory: Option<f64>,
}

/// The layers of one network.
#[derive(Debug, Serialize)]
struct Layers {
    model: Architecture,
    engine: Engine,
    batch_size: NonZeroUsize,
    device: DeviceKind,
    threads: NonZeroUsize,
    layers: Vec<LayerTime>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let device = args.device;
    if let Some(engine) = args.engines.iter().find(|engine| !engine.is_for(device)) {
        let text = format!(
            "--engines {}: not for --device {}",
            name(*engine),
            name(device)
        );
        return Err(UsageError(text).into());
    }
    let cannot_write = || format!("cannot write `{}`", args.out.display());
    // A file that cannot be written is reported before the measurements. It is removed at once: Ctrl-C would leave it.
    drop(Unfinished::create(&args.out).with_context(cannot_write)?);
    let mut threads = args.threads.clone();
    if threads.is_empty() {
        threads.push(available_parallelism()?);
    }
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        commit: env!("BUILT_FROM"),
        ..Report::default()
    };
    let mut contestants: Vec<_> = args.engines.iter().copied().map(Contestant::Ours).collect();
    if let Some(python) = &args.against_pytorch {
        match rival::version(python, device) {
            Ok(version) => {
                report.pytorch = Some(version);
                let compiles = !args.no_compile
                    && rival::compiles(python)
                        .inspect_err(|error| {
                            cli::note(&format!("{error}: measuring PyTorch as it is"));
                        })
                        .is_ok();
                let precisions = args.engines.iter().map(|engine| engine.precision());
                let configurations = Configuration::all(precisions, device, compiles);
                contestants.extend(configurations.map(|how| Contestant::PyTorch(python, how)));
            }
            Err(error) => cli::note(&format!(
                "{}; measuring this program alone. PyTorch comes with `pip install torch` in a virtual environment",
                cli::message(error.as_ref())
            )),
        }
    }
    let measure_machine = |threads: &NonZeroUsize| -> anyhow::Result<Machine> {
        cli::note(&format!("the machine with {threads} threads"));
        own("machine", device, *threads)
    };
    let machines = threads.iter().map(measure_machine);
    report.machines = machines.collect::<anyhow::Result<_>>()?;
    for &model in &args.models {
        for &pass in &args.passes {
            for &batch_size in &args.batch_sizes {
                for &threads in &threads {
                    let task = Task {
                        model,
                        pass,
                        batch_size,
                        device,
                        threads,
                    };
                    let rows = task.measure(args, &contestants)?;
                    report.ratios.extend(ratios(&rows));
                    report.throughput.extend(rows);
                }
            }
        }
    }
    report.ratios.extend(scaling(&report.throughput));
    // Again, some time later: on a shared machine, a single moment may be a bad one.
    if args.rounds > NonZeroU32::MIN {
        for machine in &mut report.machines {
            machine.improve(&measure_machine(&machine.threads)?);
        }
    }
    if !args.no_layers {
        let (Some(&batch_size), Some(&threads)) = (args.batch_sizes.first(), threads.last()) else {
            bail!("there is no batch size");
        };
        for &model in &args.models {
            let engines = args.engines.iter();
            for &engine in engines.filter(|engine| engine.arithmetic(device).is_some()) {
                let name = name(engine);
                cli::note(&format!("{model}, {name}: the layers"));
                let arguments = format!(
                    "layers --model={model} --engine={name} --batch-size={batch_size} --seconds={}",
                    args.seconds
                );
                report.layers.push(Layers {
                    model,
                    engine,
                    batch_size,
                    device,
                    threads,
                    layers: own(&arguments, device, threads)?,
                });
            }
        }
    }
    cli::line(&tables(&report));
    atomic_file::write(&args.out, &serde_json::to_vec_pretty(&report)?)
        .with_context(cannot_write)?;
    cli::note(&format!("all figures are in {}", args.out.display()));
    Ok(())
}

/// Runs this program with other arguments.
fn own<T: DeserializeOwned>(
    arguments: &str,
    device: DeviceKind,
    threads: NonZeroUsize,
) -> anyhow::Result<T> {
    let output = Command::new(env::current_exe()?)
        .args(arguments.split(' '))
        .arg(format!("--device={}", name(device)))
        .arg(format!("--threads={threads}"))
        // For candle's own operations.
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("measuring `{arguments}` failed");
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

impl Contestant<'_> {
    fn name(self) -> String {
        match self {
            Self::Ours(engine) => name(engine),
            Self::PyTorch(_, configuration) => format!("pytorch {configuration}"),
        }
    }

    fn precision(self) -> Precision {
        match self {
            Self::Ours(engine) => engine.precision(),
            Self::PyTorch(_, configuration) => configuration.precision,
        }
    }

    fn measure(self, task: Task, seconds: f64) -> anyhow::Result<Measured> {
        let (model, device, threads) = (task.model, task.device, task.threads);
        let options = format!(
            "--pass={} --batch-size={} --seconds={seconds}",
            name(task.pass),
            task.batch_size
        );
        match self {
            Self::Ours(engine) => own(
                &format!(
                    "throughput --model={model} --engine={} {options}",
                    name(engine)
                ),
                device,
                threads,
            ),
            Self::PyTorch(python, configuration) => {
                let options = format!(
                    "{options} --device={} --threads={threads} {}",
                    name(device),
                    configuration.arguments()
                );
                rival::ask(python, model, include_str!("pytorch.py"), &options)
            }
        }
    }
}

impl Task {
    /// All rounds, the contestants in turn.
    fn measure(self, args: &Args, contestants: &[Contestant<'_>]) -> anyhow::Result<Vec<Row>> {
        let rows = contestants.iter().map(|contestant| Row {
            task: self,
            contestant: contestant.name(),
            precision: contestant.precision(),
            ours: matches!(contestant, Contestant::Ours(_)),
            images_per_second: Vec::new(),
            peak_bytes: None,
            waiting_share: None,
            host_milliseconds: None,
        });
        let mut rows: Vec<Row> = rows.collect();
        for _ in 0..args.rounds.get() {
            for (contestant, row) in contestants.iter().zip(&mut rows) {
                let measured = contestant.measure(self, args.seconds)?;
                cli::note(&format!(
                    "{} {}, batch {}, {} threads: {} {:.1} images/s",
                    self.model,
                    name(self.pass),
                    self.batch_size,
                    self.threads,
                    row.contestant,
                    measured.images_per_second
                ));
                row.images_per_second.push(measured.images_per_second);
                row.peak_bytes = row.peak_bytes.max(measured.peak_bytes);
                row.waiting_share = measured.waiting_share.or(row.waiting_share);
                row.host_milliseconds = measured.host_milliseconds.or(row.host_milliseconds);
            }
        }
        Ok(rows)
    }

    /// The first cells of a row of a table.
    fn cells(self) -> String {
        let pass = name(self.pass);
        format!(
            "| {} | {pass} | {} | {} |",
            self.model, self.batch_size, self.threads
        )
    }
}

/// Each of ours against PyTorch's fastest configuration in the same precision, and in any, where that is another one; and
/// the first of ours against the others.
fn ratios(rows: &[Row]) -> Vec<Ratio> {
    let (ours, rivals): (Vec<&Row>, Vec<_>) = rows.iter().partition(|row| row.ours);
    let fastest = |precision: Option<Precision>| {
        let rivals = rivals.iter().copied();
        rivals
            .filter(|row| precision.is_none_or(|precision| row.precision == precision))
            .max_by(|a, b| median(&a.images_per_second).total_cmp(&median(&b.images_per_second)))
    };
    let mut ratios = Vec::new();
    for row in &ours {
        let same = fastest(Some(row.precision));
        let any =
            fastest(None).filter(|any| same.is_none_or(|same| same.contestant != any.contestant));
        let rivals = same.into_iter().chain(any);
        ratios.extend(rivals.map(|rival| ratio(row, rival, &rival.contestant)));
    }
    if let Some((first, others)) = ours.split_first() {
        let others = others.iter();
        ratios.extend(others.map(|row| ratio(first, row, &row.contestant)));
    }
    ratios
}

/// More threads against the fewest.
fn scaling(rows: &[Row]) -> Vec<Ratio> {
    let scaling = |row: &Row| {
        let same = rows.iter().filter(|other| {
            let threads = row.task.threads;
            row.contestant == other.contestant
                && row.task
                    == Task {
                        threads,
                        ..other.task
                    }
        });
        let fewest = same.min_by_key(|other| other.task.threads)?;
        let threads = fewest.task.threads;
        (threads < row.task.threads)
            .then(|| ratio(row, fewest, &format!("itself, {threads} threads")))
    };
    rows.iter().filter_map(scaling).collect()
}

fn ratio(of: &Row, to: &Row, name: &str) -> Ratio {
    let rates = of.images_per_second.iter().zip(&to.images_per_second);
    let ratios: Vec<f64> = rates.map(|(of, to)| of / to).collect();
    let bytes = of.peak_bytes.zip(to.peak_bytes);
    Ratio {
        task: of.task,
        of: of.contestant.clone(),
        to: name.to_owned(),
        median: median(&ratios),
        least: ratios.iter().copied().fold(f64::NAN, f64::min),
        most: ratios.iter().copied().fold(f64::NAN, f64::max),
        memory: bytes.map(|(of, to)| of as f64 / to as f64),
    }
}

/// The middle one, or the mean of the middle two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count => (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0,
    }
}

/// Everything, as Markdown.
fn tables(report: &Report) -> String {
    let mut text = String::new();
    for machine in &report.machines {
        let _ = writeln!(
            text,
            "{} with {} threads: {:.0} GFLOP/s in matrix products, {}{:.0} in bf16, {:.1} GB/s of memory traffic",
            machine.processor,
            machine.threads,
            machine.gemm_gflops,
            machine
                .tf32_gflops
                .map_or_else(String::new, |gflops| format!("{gflops:.0} in tf32, ")),
            machine.bf16_gflops,
            machine.bandwidth_gb_s
        );
    }
    if let Some(version) = &report.pytorch {
        let _ = writeln!(text, "PyTorch {version}");
    }
    text += "\n| network | pass | batch | threads | engine | images/s | rounds | ms per step | on the host | peak MB | waiting for data |\n\
             |---|---|---|---|---|---|---|---|---|---|---|\n";
    let or_none = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
    for row in &report.throughput {
        let rounds = row.images_per_second.iter();
        let rounds: Vec<_> = rounds.map(|rate| format!("{rate:.1}")).collect();
        let peak = row
            .peak_bytes
            .map(|bytes| format!("{:.0}", bytes as f64 / 1e6));
        let waiting = row
            .waiting_share
            .map(|share| format!("{:.2} %", 100.0 * share));
        let host = row.host_milliseconds.map(|host| format!("{host:.2}"));
        let rate = median(&row.images_per_second);
        let _ = writeln!(
            text,
            "{} {} | {rate:.1} | {} | {:.2} | {} | {} | {} |",
            row.task.cells(),
            row.contestant,
            rounds.join(", "),
            1e3 * row.task.batch_size.get() as f64 / rate,
            or_none(host),
            or_none(peak),
            or_none(waiting)
        );
    }
    if !report.ratios.is_empty() {
        text += "\n| network | pass | batch | threads | engine | compared with | ratio | range | memory ratio |\n\
                 |---|---|---|---|---|---|---|---|---|\n";
    }
    for ratio in &report.ratios {
        let _ = writeln!(
            text,
            "{} {} | {} | {:.2} | {:.2} to {:.2} | {} |",
            ratio.task.cells(),
            ratio.of,
            ratio.to,
            ratio.median,
            ratio.least,
            ratio.most,
            or_none(ratio.memory.map(|memory| format!("{memory:.2}")))
        );
    }
    for layers in &report.layers {
        let mut machines = report.machines.iter();
        if let Some(machine) = machines.find(|machine| machine.threads == layers.threads) {
            text += &layer_table(layers, machine);
        }
    }
    text
}

/// The layers, compared with the machine's peaks.
fn layer_table(layers: &Layers, machine: &Machine) -> String {
    let mut text = format!(
        "\n{}, {}, batch {}, {} threads. Effective: of the sums that define the layer; performed: of the \
         products that are left of them. The floor is the longer of products at the machine's peak and of \
         operands and results read and written once.\n\n\
         | layer | pass | ms | effective GFLOP/s | performed GFLOP/s | of peak | floor ms | of floor |\n\
         |---|---|---|---|---|---|---|---|\n",
        layers.model,
        name(layers.engine),
        layers.batch_size,
        layers.threads
    );
    let peak = match layers.engine.precision() {
        Precision::Bf16 => machine.bf16_gflops,
        Precision::Tf32 => machine.tf32_gflops.unwrap_or(f64::NAN),
        Precision::F32 => machine.gemm_gflops,
    };
    let (mut total, mut total_floor) = (0.0, 0.0);
    for row in &layers.layers {
        let work = row.work;
        let rate = |multiply_adds: u64| 2.0 * multiply_adds as f64 / row.milliseconds / 1e6;
        let products = 2.0 * work.performed as f64 / peak / 1e6;
        let traffic = work.bytes as f64 / machine.bandwidth_gb_s / 1e6;
        let floor = products.max(traffic);
        total += row.milliseconds;
        total_floor += floor;
        let products = match work.performed {
            0 => "- | - | -".to_owned(),
            performed => format!(
                "{:.0} | {:.0} | {:.0} %",
                rate(work.multiply_adds),
                rate(performed),
                100.0 * rate(performed) / peak
            ),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {:.3} | {products} | {floor:.3} | {:.1} |",
            row.layer,
            row.pass,
            row.milliseconds,
            row.milliseconds / floor
        );
    }
    let _ = writeln!(
        text,
        "| all | step | {total:.3} | - | - | - | {total_floor:.3} | {:.1} |",
        total / total_floor
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(contestant: &str, threads: usize, rates: &[f64], peak_bytes: u64) -> Row {
        let is_bf16 = contestant.contains("bf16");
        Row {
            task: Task {
                model: "alexnet".parse().unwrap(),
                pass: Pass::Train,
                batch_size: NonZeroUsize::new(128).unwrap(),
                device: DeviceKind::Cpu,
                threads: NonZeroUsize::new(threads).unwrap(),
            },
            contestant: contestant.to_owned(),
            precision: if is_bf16 {
                Precision::Bf16
            } else {
                Precision::F32
            },
            ours: !contestant.contains("pytorch"),
            images_per_second: rates.to_vec(),
            peak_bytes: Some(peak_bytes),
            waiting_share: None,
            host_milliseconds: None,
        }
    }

    #[test]
    fn ours_is_compared_with_the_fastest_configuration_of_pytorch() {
        let rows = [
            row("winograd", 2, &[30.0, 44.0], 100),
            row("candle", 2, &[5.0, 5.0], 200),
            row("bf16", 2, &[60.0, 66.0], 100),
            row("pytorch f32 contiguous", 2, &[9.0, 9.0], 300),
            row("pytorch f32 channels-last", 2, &[10.0, 11.0], 400),
            row("pytorch bf16 contiguous", 2, &[20.0, 22.0], 100),
        ];
        let found = ratios(&rows);
        let of: Vec<_> = found
            .iter()
            .map(|ratio| (ratio.of.as_str(), ratio.to.as_str()))
            .collect();
        assert_eq!(
            of,
            [
                ("winograd", "pytorch f32 channels-last"),
                ("winograd", "pytorch bf16 contiguous"),
                ("candle", "pytorch f32 channels-last"),
                ("candle", "pytorch bf16 contiguous"),
                ("bf16", "pytorch bf16 contiguous"),
                ("winograd", "candle"),
                ("winograd", "bf16")
            ]
        );
        assert_eq!(
            (found[0].least, found[0].median, found[0].most),
            (3.0, 3.5, 4.0)
        );
        assert_eq!(found[0].memory, Some(0.25));
        assert_eq!(found[5].median, (6.0 + 8.8) / 2.0);
    }

    #[test]
    fn more_threads_are_compared_with_the_fewest() {
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
