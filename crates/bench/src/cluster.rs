//! A simulation of training in several processes on as many machines, from what the layers took in runs on one.
//!
//! The time of a layer, and that of the rest of a step, is taken for a linear function of the images, through the measured
//! times of two runs with different batch sizes. Each process computes its part of the batch; gradients are exchanged one
//! after another in the order in which the backward pass computes them, as soon as they are ready. To exchange `n` bytes
//! among `R` processes takes `2 (1 - 1/R) n` divided by the bandwidth, and `2 log2 R` messages. That all machines are
//! equally fast, that the network carries all pairs at once, and that adding and sending cost the computation nothing, are
//! assumptions.

use anyhow::{Context, bail, ensure};
use run::cli::{self, UsageError};
use run::layers::{self, Layer};
use run::{NativePath, NonNegative, Positive, Run, file};
use std::num::NonZeroUsize;

/// Options of the simulation.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Two runs of one network on a CPU of this kind, with different batch sizes.
    #[arg(value_name = "RUN", num_args = 2, required = true)]
    runs: Vec<NativePath>,

    /// The numbers of machines, powers of two.
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1,2,4,8,16,32,64"
    )]
    machines: Vec<NonZeroUsize>,

    /// The bandwidths of the network between them, in Gbit/s.
    #[arg(
        long,
        value_name = "GBIT",
        value_delimiter = ',',
        default_value = "10,100"
    )]
    gigabits: Vec<Positive>,

    /// The time of a message without content, in microseconds.
    #[arg(long, value_name = "MICROSECONDS", default_value = "20")]
    latency: NonNegative,

    /// The images of a batch over all machines.
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "500,4000"
    )]
    batch_size: Vec<NonZeroUsize>,
}

/// Seconds for a number of images: `fixed + images * each`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seconds {
    fixed: f64,
    each: f64,
}

impl Seconds {
    /// The line through two measurements, images and seconds each. Where it has a negative part, which noise makes, it is
    /// the proportional one of the larger measurement.
    fn through([small, large]: [(f64, f64); 2]) -> Self {
        let each = (large.1 - small.1) / (large.0 - small.0);
        let fixed = small.1 - small.0 * each;
        if each >= 0.0 && fixed >= 0.0 {
            return Self { fixed, each };
        }
        Self {
            fixed: 0.0,
            each: large.1 / large.0,
        }
    }

    fn of(self, images: f64) -> f64 {
        self.fixed + images * self.each
    }
}

/// What is simulated of a layer.
#[derive(Clone, Copy, Debug)]
struct SimulatedLayer {
    forward: Seconds,
    backward: Seconds,
    /// Bytes of the gradients of its weight and bias.
    bytes: f64,
}

/// A network on one machine.
struct Network {
    name: String,
    layers: Vec<SimulatedLayer>,
    /// A step without its layers: batches, loss and update.
    rest: Seconds,
}

/// What a run measured.
struct Measured {
    model: String,
    images: f64,
    /// Seconds of a step.
    step: f64,
    layers: Vec<Layer>,
}

impl Measured {
    fn read(path: &NativePath) -> anyhow::Result<Self> {
        let run = Run::read(path)?;
        let images = run.settings.batch_size.get() as f64;
        let path = path.join(file::LAYERS);
        let layers = layers::read(&path)?;
        let is_timed = layers.iter().any(|layer| layer.seconds.is_some());
        ensure!(is_timed, "`{}` has no times of layers", path.display());
        let last = run.made_by.sessions.last();
        let is_alone = last.is_none_or(|session| session.machine.processes.get() == 1);
        ensure!(
            is_alone,
            "`{}` is of a run in several processes",
            path.display()
        );
        Ok(Self {
            step: images / run.last().images_per_second,
            model: run.settings.model,
            images,
            layers,
        })
    }

    /// Seconds of the forward and the backward pass of a layer; none where it is fused into the one before.
    fn layer(&self, index: usize) -> [f64; 2] {
        self.layers[index].seconds.unwrap_or_default()
    }

    fn rest(&self) -> f64 {
        let layers = self.layers.iter().filter_map(|layer| layer.seconds);
        (self.step - layers.flatten().sum::<f64>()).max(0.0)
    }
}

impl Network {
    fn new(mut runs: [Measured; 2]) -> anyhow::Result<Self> {
        runs.sort_by(|a, b| a.images.total_cmp(&b.images));
        let [small, large] = &runs;
        if small.model != large.model || small.images == large.images {
            bail!(UsageError(
                "the runs need the same network and different batch sizes".to_owned()
            ));
        }
        let through = |times: [f64; 2]| {
            Seconds::through([(small.images, times[0]), (large.images, times[1])])
        };
        let layers = large.layers.iter().enumerate().map(|(index, layer)| {
            let [few, many] = [small.layer(index), large.layer(index)];
            SimulatedLayer {
                forward: through([few[0], many[0]]),
                backward: through([few[1], many[1]]),
                bytes: 4.0 * layer.parameters as f64,
            }
        });
        Ok(Self {
            name: large.model.clone(),
            layers: layers.collect(),
            rest: through([small.rest(), large.rest()]),
        })
    }
}

/// Machines and their network.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    machines: usize,
    bytes_per_second: f64,
    latency: f64,
}

/// A simulated step.
#[derive(Clone, Copy, Debug)]
struct Step {
    seconds: f64,
    /// Bytes that a machine sends, and receives.
    bytes: f64,
    /// Seconds of all exchanges, and those for which the backward pass did not go on meanwhile.
    exchange: f64,
    exposed: f64,
}

impl Cluster {
    fn step(self, network: &Network, batch: usize) -> Step {
        let machines = self.machines as f64;
        // That of the machine with the most.
        let images = batch.div_ceil(self.machines) as f64;
        let messages = f64::from(2 * self.machines.ilog2()) * self.latency;
        let sent = |layer: &SimulatedLayer| 2.0 * (1.0 - 1.0 / machines) * layer.bytes;
        let forward: f64 = network
            .layers
            .iter()
            .map(|layer| layer.forward.of(images))
            .sum();
        // The loss.
        let mut clock = forward + messages / 2.0;
        let (mut network_free, mut exchange) = (clock, 0.0);
        for layer in network.layers.iter().rev() {
            clock += layer.backward.of(images);
            if layer.bytes > 0.0 {
                // The weight's and the bias's.
                let seconds = sent(layer) / self.bytes_per_second + 2.0 * messages;
                network_free = clock.max(network_free) + seconds;
                exchange += seconds;
            }
        }
        let exposed = (network_free - clock).max(0.0);
        Step {
            seconds: clock + exposed + network.rest.of(images),
            bytes: network.layers.iter().map(sent).sum(),
            exchange,
            exposed,
        }
    }
}

/// Prints a table for each batch size and bandwidth.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let runs: Vec<_> = args
        .runs
        .iter()
        .map(Measured::read)
        .collect::<Result<_, _>>()?;
    let runs: [Measured; 2] = runs.try_into().ok().context("two runs are needed")?;
    let network = Network::new(runs)?;
    for machines in &args.machines {
        if !machines.is_power_of_two() {
            bail!(UsageError(format!(
                "--machines {machines}: expected a power of two"
            )));
        }
    }
    cli::line(
        "| network | batch | Gbit/s | machines | images/s | speed-up | MB sent by each | exchange, s | hidden |",
    );
    cli::line("|---|---|---|---|---|---|---|---|---|");
    for batch in &args.batch_size {
        let alone = Cluster {
            machines: 1,
            bytes_per_second: 1.0,
            latency: 0.0,
        };
        let alone = alone.step(&network, batch.get()).seconds;
        for gigabits in &args.gigabits {
            for machines in &args.machines {
                let cluster = Cluster {
                    machines: machines.get(),
                    bytes_per_second: gigabits.get() * 1e9 / 8.0,
                    latency: args.latency.get() * 1e-6,
                };
                let step = cluster.step(&network, batch.get());
                let hidden = match step.exchange > 0.0 {
                    true => format!("{:.0} %", 100.0 * (1.0 - step.exposed / step.exchange)),
                    false => String::new(),
                };
                cli::line(&format!(
                    "| {} | {batch} | {gigabits} | {machines} | {:.0} | {:.1} | {:.0} | {:.3} | {hidden} |",
                    network.name,
                    batch.get() as f64 / step.seconds,
                    alone / step.seconds,
                    step.bytes / 1e6,
                    step.exchange,
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(fixed: f64, each: f64) -> Seconds {
        Seconds { fixed, each }
    }

    #[test]
    fn times_are_linear_in_the_images() {
        let line = Seconds::through([(10.0, 3.0), (30.0, 7.0)]);
        assert_eq!(line, seconds(1.0, 0.2));
        assert_eq!(line.of(100.0), 21.0);
        // Noise.
        let proportional = Seconds::through([(10.0, 1.0), (20.0, 4.0)]);
        assert_eq!(proportional, seconds(0.0, 0.2));
    }

    #[test]
    fn exchanges_are_hidden_behind_the_backward_pass_of_earlier_layers() {
        let layer = |bytes| SimulatedLayer {
            forward: seconds(0.0, 1.0),
            backward: seconds(0.0, 2.0),
            bytes,
        };
        let network = Network {
            name: "a".to_owned(),
            layers: vec![layer(10.0), layer(30.0)],
            rest: seconds(5.0, 0.0),
        };
        let cluster = |machines| Cluster {
            machines,
            bytes_per_second: 2.0,
            latency: 0.0,
        };
        let alone = cluster(1).step(&network, 4);
        assert_eq!((alone.seconds, alone.exchange), (8.0 + 16.0 + 5.0, 0.0));
        // Two images each. The last layer's exchange of 15 s begins after 2 of 4 layers of 4 s, the first one's of 5 s
        // after it.
        let two = cluster(2).step(&network, 4);
        assert_eq!(two.bytes, 40.0);
        assert_eq!(two.exchange, 20.0);
        assert_eq!(two.exposed, 16.0);
        assert_eq!(two.seconds, 4.0 + 8.0 + 16.0 + 5.0);
    }
}
