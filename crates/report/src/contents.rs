//! The tables and sentences of a report, for Markdown and HTML.

use crate::comparison::{Comparison, Group, network_name};
use crate::statistics::{Sample, mcnemar, paired_test};
use datasets::DatasetInfo;
use models::grouped;
use run::settings::{FIELDS, Property};
use run::{Predictions, Run, predictions::CLASSES};

/// A table. The first column names the rows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table {
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(header: [&str; N]) -> Self {
        Self {
            header: header.map(str::to_owned).to_vec(),
            rows: Vec::new(),
        }
    }
}

/// The post's result of a network: <https://github.com/gratus907/Pytorch-Cifar10> and the article about it. One run
/// each, on a GTX 1070 Ti with PyTorch.
struct Post {
    model: &'static str,
    accuracy: f64,
    minutes: f64,
}

const POST: [Post; 2] = [
    Post {
        model: "alexnet",
        accuracy: 0.8503,
        minutes: 76.0,
    },
    Post {
        model: "small-alexnet",
        accuracy: 0.8316,
        minutes: 31.0,
    },
];

/// Epochs and training images of the post's runs.
const POST_EPOCHS: usize = 50;
const POST_IMAGES: u64 = 50_000;

/// The networks that the post compares.
pub fn post_networks() -> impl Iterator<Item = &'static str> {
    POST.iter().map(|post| post.model)
}

/// The name of the post's column for a network.
fn post_label(post: &Post) -> String {
    format!("the post: {}", network_name(post.model))
}

/// The post's results of the networks that are compared.
fn posts(comparison: &Comparison) -> impl Iterator<Item = &'static Post> {
    POST.iter().filter(|post| {
        comparison
            .groups
            .iter()
            .any(|group| group.first().settings.model == post.model)
    })
}

pub(crate) fn percent(fraction: f64) -> String {
    format!("{:.2} %", 100.0 * fraction)
}

/// A ratio with two decimals, or two significant digits if it is small.
fn ratio(ratio: f64) -> String {
    let decimals = (1.0 - ratio.log10().floor()).clamp(2.0, 9.0) as usize;
    format!("{ratio:.decimals$}")
}

/// Seconds in a unit that fits.
fn duration(seconds: f64) -> String {
    if seconds < 120.0 {
        format!("{seconds:.1} s")
    } else if seconds < 7200.0 {
        format!("{:.1} min", seconds / 60.0)
    } else {
        format!("{:.2} h", seconds / 3600.0)
    }
}

fn interval(sample: &Sample) -> String {
    sample.half_width.map_or_else(
        || "needs two seeds".to_owned(),
        |half| {
            // An accuracy is within 0 and 1.
            let (low, high) = ((sample.mean - half).max(0.0), (sample.mean + half).min(1.0));
            format!("{:.2} to {:.2} %", 100.0 * low, 100.0 * high)
        },
    )
}

/// The report's title.
pub(crate) fn title(comparison: &Comparison) -> String {
    let mut names: Vec<&str> = Vec::new();
    for group in &comparison.groups {
        let name = network_name(&group.first().settings.model);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    format!(
        "{} on {}",
        names.join(" and "),
        dataset_name(&comparison.first().settings.dataset)
    )
}

/// The display name of a data set. A data set that this version does not know keeps its name.
fn dataset_name(dataset: &str) -> &str {
    dataset
        .parse()
        .map_or(dataset, |known: DatasetInfo| known.display_name)
}

/// The data and the epochs of the runs, and where they differ from the post's.
pub(crate) fn setting(comparison: &Comparison) -> Vec<String> {
    let runs: Vec<_> = comparison.runs().collect();
    let first = comparison.first();
    let images = first.made_by.train_images;
    let shortest = runs.iter().map(|run| run.epochs.len()).min().unwrap_or(0);
    let longest = runs.iter().map(|run| run.epochs.len()).max().unwrap_or(0);
    let epochs = if shortest == longest {
        format!("{longest}")
    } else {
        format!("{shortest} to {longest}")
    };
    let mut sentences = vec![format!(
        "{} runs of {epochs} epochs each, on {} training images of {}, evaluated on {} images.",
        runs.len(),
        grouped(images as usize),
        dataset_name(&first.settings.dataset),
        grouped(first.made_by.test_images as usize),
    )];
    if first.settings.dataset != "cifar10"
        || images != POST_IMAGES
        || shortest != POST_EPOCHS
        || longest != POST_EPOCHS
    {
        sentences.push(format!(
            "The post trained on all {} images of CIFAR-10 for {POST_EPOCHS} epochs, so its accuracies are not comparable with these.",
            grouped(POST_IMAGES as usize)
        ));
    }
    if let Some(images) = first.settings.validation {
        sentences.push(format!(
            "These runs were evaluated on {images} held-out training images; below, \"test\" refers to them.",
        ));
    }
    if first.settings.overfit_batches.is_some() {
        sentences.push(
            "These runs were evaluated on the images that they were trained on; below, \"test\" refers to them."
                .to_owned(),
        );
    }
    for run in runs.iter().filter(|run| run.last().stopped_early) {
        sentences.push(format!(
            "Early stopping ended the run {} after {} epochs.",
            run.name,
            run.epochs.len()
        ));
    }
    for run in runs.iter().filter(|run| !run.finished()) {
        sentences.push(format!(
            "The run {} is not finished: it has {} epochs.",
            run.name,
            run.epochs.len()
        ));
    }
    sentences
}

/// The fraction of the parameters that belong to convolutions.
fn convolution_fraction(run: &Run) -> Option<f64> {
    let layers = run.layers.as_ref()?;
    let all: u64 = layers.iter().map(|layer| layer.parameters).sum();
    let convolutions = layers.iter().filter(|layer| layer.kind == "Conv2d");
    let convolutions: u64 = convolutions.map(|layer| layer.parameters).sum();
    (all > 0).then(|| convolutions as f64 / all as f64)
}

/// The post's table of results, with the groups beside it.
pub(crate) fn results(comparison: &Comparison) -> Table {
    let posts: Vec<_> = posts(comparison).collect();
    let mut table = Table::new([""]);
    table
        .header
        .extend(posts.iter().map(|post| post_label(post)));
    table
        .header
        .extend(comparison.groups.iter().map(|group| group.label.clone()));
    let mut row =
        |name: &str, post: &dyn Fn(&Post) -> String, ours: &dyn Fn(&Group) -> Option<String>| {
            let mut cells = vec![name.to_owned()];
            cells.extend(posts.iter().map(|the| post(the)));
            cells.extend(
                comparison
                    .groups
                    .iter()
                    .map(|group| ours(group).unwrap_or_else(|| "–".to_owned())),
            );
            table.rows.push(cells);
        };
    let of_network = |model: &str, value: &dyn Fn(&Run) -> Option<String>| {
        comparison
            .runs()
            .filter(|run| run.settings.model == model)
            .find_map(value)
            .unwrap_or_else(|| "–".to_owned())
    };
    let none = |_: &Post| "–".to_owned();
    let parameters = |run: &Run| Some(grouped(run.made_by.parameters as usize));
    let convolutions = |run: &Run| convolution_fraction(run).map(percent);
    row(
        "parameters",
        &|post| of_network(post.model, &parameters),
        &|group| Some(of_network(&group.first().settings.model, &parameters)),
    );
    row(
        "of these in convolutions",
        &|post| of_network(post.model, &convolutions),
        &|group| Some(of_network(&group.first().settings.model, &convolutions)),
    );
    row("epochs", &|_| POST_EPOCHS.to_string(), &|group| {
        let epochs = group.sample(|run| run.epochs.len() as f64)?;
        Some(if epochs.deviation.unwrap_or(0.0) > 0.0 {
            format!("{:.1} (mean)", epochs.mean)
        } else {
            epochs.mean.to_string()
        })
    });
    row("seeds", &|_| "1".to_owned(), &|group| {
        Some(group.runs.len().to_string())
    });
    row(
        "test accuracy after the last epoch",
        &|post| percent(post.accuracy),
        &|group| {
            Some(percent(
                group.sample(|run| run.last().evaluated().accuracy)?.mean,
            ))
        },
    );
    row("standard deviation over seeds", &none, &|group| {
        let sample = group.sample(|run| run.last().evaluated().accuracy)?;
        Some(sample.deviation.map_or_else(
            || "needs two seeds".to_owned(),
            |deviation| format!("{:.2} points", 100.0 * deviation),
        ))
    });
    row("95 % confidence interval of the mean", &none, &|group| {
        Some(interval(
            &group.sample(|run| run.last().evaluated().accuracy)?,
        ))
    });
    // Where runs have them.
    for (name, accuracy) in [
        (
            "test accuracy with the EMA of the weights",
            (|run| run.last().evaluated().model_ema_accuracy) as fn(&Run) -> Option<f64>,
        ),
        ("test accuracy with test-time augmentation", |run| {
            run.last().evaluated().tta_accuracy
        }),
    ] {
        if comparison.runs().any(|run| accuracy(run).is_some()) {
            row(name, &none, &|group| {
                let known: Option<Vec<f64>> = group.runs.iter().map(accuracy).collect();
                Some(percent(Sample::of(&known?)?.mean))
            });
        }
    }
    row("best test accuracy of any epoch", &none, &|group| {
        Some(percent(group.sample(Run::best_accuracy)?.mean))
    });
    row("test loss after the last epoch", &none, &|group| {
        Some(format!(
            "{:.4}",
            group.sample(|run| run.last().evaluated().loss)?.mean
        ))
    });
    row("training accuracy in the last epoch", &none, &|group| {
        Some(percent(group.sample(|run| run.last().train_accuracy)?.mean))
    });
    table
}

/// The ratios of parameters and accuracies, in sentences.
pub(crate) fn ratios(comparison: &Comparison) -> Vec<String> {
    let mut sentences = Vec::new();
    for (a, b) in comparison.pairs() {
        let (Some(first), Some(second)) = (
            a.sample(|run| run.last().evaluated().accuracy),
            b.sample(|run| run.last().evaluated().accuracy),
        ) else {
            continue;
        };
        let parameters =
            |group: &Group| group.runs.first().map_or(0, |run| run.made_by.parameters) as f64;
        sentences.push(format!(
            "{} has {} times the parameters of {} and reaches {:.3} times its test accuracy ({} and {}).",
            b.label,
            ratio(parameters(b) / parameters(a)),
            a.label,
            second.mean / first.mean,
            percent(second.mean),
            percent(first.mean),
        ));
    }
    if posts(comparison).count() == 2 {
        sentences.push(format!(
            "In the post, {} reaches {:.3} times the test accuracy of {}.",
            network_name(POST[1].model),
            POST[1].accuracy / POST[0].accuracy,
            network_name(POST[0].model),
        ));
    }
    sentences
}

/// The table of times.
pub(crate) fn times(comparison: &Comparison) -> Table {
    let mut table = Table::new(["", "time per epoch", "total time", "images/s", "device"]);
    for post in posts(comparison) {
        let seconds = 60.0 * post.minutes;
        table.rows.push(vec![
            post_label(post),
            duration(seconds / POST_EPOCHS as f64),
            format!("{:.0} min", post.minutes),
            format!(
                "about {:.0}",
                POST_IMAGES as f64 * POST_EPOCHS as f64 / seconds
            ),
            "GTX 1070 Ti, PyTorch".to_owned(),
        ]);
    }
    for group in &comparison.groups {
        let mean = |value: &dyn Fn(&Run) -> f64| {
            group.sample(value).map_or(f64::NAN, |sample| sample.mean)
        };
        let mut devices: Vec<_> = group.runs.iter().map(device).collect();
        devices.dedup();
        table.rows.push(vec![
            group.label.clone(),
            duration(mean(&|run| run.seconds() / run.epochs.len() as f64)),
            duration(mean(&Run::seconds)),
            format!("{:.0}", mean(&Run::images_per_second)),
            devices.join("; "),
        ]);
    }
    table
}

/// The device of a run, with what affects its speed.
fn device(run: &Run) -> String {
    match (&run.made_by.gpu, run.settings.threads.get()) {
        (Some(gpu), _) => format!("{gpu}, {}", run.made_by.precision),
        (None, 1) => format!("{}, 1 thread", run.made_by.device),
        (None, threads) => format!("{}, {threads} threads", run.made_by.device),
    }
}

/// The ratios of times, in sentences.
pub(crate) fn time_ratios(comparison: &Comparison) -> Vec<String> {
    let mut sentences = Vec::new();
    for (a, b) in comparison.pairs() {
        let epoch = |group: &Group| {
            group
                .sample(|run| run.seconds() / run.epochs.len() as f64)
                .map(|sample| sample.mean)
        };
        if let (Some(first), Some(second)) = (epoch(a), epoch(b)) {
            sentences.push(format!(
                "An epoch of {} takes {} times as long as one of {}.",
                b.label,
                ratio(second / first),
                a.label
            ));
        }
    }
    if posts(comparison).count() == 2 {
        sentences.push(format!(
            "In the post, it takes {:.2} times as long ({:.0} and {:.0} minutes in all); its images/s are computed from these times, which include evaluation.",
            POST[1].minutes / POST[0].minutes,
            POST[1].minutes,
            POST[0].minutes
        ));
    }
    sentences
}

/// The time of each layer in a training step.
pub(crate) fn layer_times(run: &Run) -> Option<Table> {
    let layers: Vec<_> = run
        .layers
        .as_ref()?
        .iter()
        .filter_map(|layer| Some((layer, layer.seconds?)))
        .collect();
    let all: f64 = layers.iter().flat_map(|(_, seconds)| seconds).sum();
    if all <= 0.0 {
        return None;
    }
    let mut table = Table::new(["layer", "forward", "backward", "fraction of all layers"]);
    for (layer, [forward, backward]) in layers {
        table.rows.push(vec![
            format!("{} {}", layer.name, layer.kind),
            format!("{:.2} ms", 1e3 * forward),
            format!("{:.2} ms", 1e3 * backward),
            format!("{:.1} %", 100.0 * (forward + backward) / all),
        ]);
    }
    Some(table)
}

/// A p-value.
fn p_value(p: f64) -> String {
    if p < 0.0001 {
        "p < 0.0001".to_owned()
    } else if p < 0.1 {
        format!("p = {p:.4}")
    } else {
        format!("p = {p:.2}")
    }
}

/// The p-value below which a difference is called significant.
const SIGNIFICANT: f64 = 0.05;

/// Whether the differences are significant, in sentences.
pub(crate) fn tests(comparison: &Comparison) -> Vec<String> {
    let mut sentences = Vec::new();
    for (a, b) in comparison.pairs() {
        let pairs: Vec<_> = a
            .paired(b)
            .map(|(a, b)| (a.last().evaluated().accuracy, b.last().evaluated().accuracy))
            .collect();
        sentences.push(match paired_test(&pairs) {
            None => format!(
                "{} and {}: a paired t-test needs at least two seeds that both have; here they have {} in common.",
                a.label,
                b.label,
                if pairs.len() == 1 { "one" } else { "none" }
            ),
            Some(test) => {
                let mean = test.difference.mean;
                let (better, worse) = if mean >= 0.0 { (a, b) } else { (b, a) };
                let half = test.difference.half_width.unwrap_or(0.0);
                let sign = if mean >= 0.0 { 1.0 } else { -1.0 };
                let mut text = format!(
                    "Over {} seeds, the mean accuracy of {} is {:.2} points above that of {} (95 % confidence interval \
                     {:.2} to {:.2} points; paired t-test, {}): ",
                    pairs.len(),
                    better.label,
                    100.0 * mean.abs(),
                    worse.label,
                    100.0 * (sign * mean - half),
                    100.0 * (sign * mean + half),
                    p_value(test.p),
                );
                text += if test.p < SIGNIFICANT {
                    "the difference is significant."
                } else {
                    "the difference is not significant."
                };
                if pairs.len() < 5 {
                    text += &format!(" With only {} seeds, the test detects large differences alone.", pairs.len());
                }
                text
            }
        });
        for (first, second) in a.paired(b) {
            if let (Some(of_a), Some(of_b)) = (&first.predictions, &second.predictions)
                && of_a.labels == of_b.labels
            {
                let count = |wanted: (bool, bool)| {
                    (0..of_a.labels.len())
                        .filter(|n| (of_a.correct(*n), of_b.correct(*n)) == wanted)
                        .count() as u64
                };
                let (only_a, only_b) = (count((true, false)), count((false, true)));
                let p = mcnemar(only_a, only_b);
                sentences.push(format!(
                    "Seed {}: of {} test images, {} are classified correctly by {} only and {} by {} only (McNemar's exact \
                     test, {}): {}",
                    first.settings.seed,
                    grouped(of_a.labels.len()),
                    grouped(only_a as usize),
                    a.label,
                    grouped(only_b as usize),
                    b.label,
                    p_value(p),
                    if p < SIGNIFICANT {
                        "the difference between these two trained networks is significant."
                    } else {
                        "the difference between these two trained networks is not significant."
                    }
                ));
            }
        }
    }
    sentences
}

/// Where overfitting begins, in a sentence.
pub(crate) fn overfitting(group: &Group) -> Option<String> {
    let epochs = group.runs.iter().map(|run| run.epochs.len()).min()?;
    let mean = |epoch: usize, value: &dyn Fn(&run::EpochMetrics) -> f64| {
        group
            .runs
            .iter()
            .map(|run| value(&run.epochs[epoch]))
            .sum::<f64>()
            / group.runs.len() as f64
    };
    let losses: Vec<_> = (0..epochs)
        .map(|epoch| mean(epoch, &|epoch| epoch.evaluated().loss))
        .collect();
    let lowest = (0..epochs).min_by(|a, b| losses[*a].total_cmp(&losses[*b]))?;
    let trained = |epoch: usize| mean(epoch, &|epoch| epoch.train_loss);
    Some(if lowest + 1 == epochs {
        format!(
            "{}: the mean test loss is lowest after the last epoch ({:.4}), so overfitting has not begun; more epochs may help.",
            group.label, losses[lowest]
        )
    } else if trained(epochs - 1) < trained(lowest) {
        format!(
            "{}: the mean test loss is lowest after epoch {} ({:.4}) and ends at {:.4}, while the training loss \
             decreases further, from {:.4} to {:.4}: overfitting begins there.",
            group.label,
            lowest + 1,
            losses[lowest],
            losses[epochs - 1],
            trained(lowest),
            trained(epochs - 1)
        )
    } else {
        format!(
            "{}: the mean test loss is lowest after epoch {} ({:.4}); the training loss does not decrease after it either.",
            group.label,
            lowest + 1,
            losses[lowest]
        )
    })
}

/// Accuracy per class: the mean over runs whose predictions were recorded.
pub(crate) fn classes(comparison: &Comparison) -> Option<Table> {
    let names = comparison
        .runs()
        .find_map(|run| Some(run.predictions.as_ref()?.class_names.clone()))?;
    let mut table = Table::new(["class"]);
    table
        .header
        .extend(comparison.groups.iter().map(|group| group.label.clone()));
    for (class, name) in names.into_iter().enumerate() {
        let mut row = vec![name];
        row.extend(comparison.groups.iter().map(|group| {
            confusion(group)
                .and_then(|confusion| class_accuracy(&confusion, class))
                .map_or_else(
                    || "–".to_owned(),
                    |accuracy| format!("{:.1} %", 100.0 * accuracy),
                )
        }));
        table.rows.push(row);
    }
    Some(table)
}

/// The confusion matrix, summed over the group's runs: `[row][column]` counts images with label `row` and prediction
/// `column`.
pub(crate) fn confusion(group: &Group) -> Option<[[u64; CLASSES]; CLASSES]> {
    let mut predictions = group
        .runs
        .iter()
        .filter_map(|run| run.predictions.as_ref())
        .peekable();
    predictions.peek()?;
    let mut sum = [[0; CLASSES]; CLASSES];
    for confusion in predictions.map(Predictions::confusion) {
        for (sum, count) in sum
            .iter_mut()
            .flatten()
            .zip(confusion.into_iter().flatten())
        {
            *sum += count;
        }
    }
    Some(sum)
}

/// The accuracy on the images of a class.
fn class_accuracy(confusion: &[[u64; CLASSES]; CLASSES], class: usize) -> Option<f64> {
    let images: u64 = confusion[class].iter().sum();
    (images > 0).then(|| confusion[class][class] as f64 / images as f64)
}

/// A test image with the networks' predictions.
pub(crate) struct PredictedImage {
    pub(crate) number: usize,
    /// The label's class.
    pub(crate) class: String,
    /// Each network's label, the class that it predicts, and the probability.
    pub(crate) predicted: Vec<(String, String, f64)>,
    /// `[3, 32, 32]`.
    pub(crate) picture: Vec<u8>,
}

/// Images per heading: full rows of five on a wide screen and of two on a phone.
const SHOWN: usize = 10;

fn predicted_image(number: usize, runs: &[(&str, &Run)]) -> Option<PredictedImage> {
    let predictions: Vec<_> = runs
        .iter()
        .filter_map(|(label, run)| Some((*label, run.predictions.as_ref()?)))
        .collect();
    let picture = predictions
        .iter()
        .find_map(|(_, predictions)| predictions.pictures.get(&u32::try_from(number).ok()?))?;
    let (_, first) = predictions.first()?;
    let predicted = predictions.iter().map(|(label, predictions)| {
        let (class, probability) = predictions.predicted(number);
        (
            (*label).to_owned(),
            predictions.class_names[class].clone(),
            probability,
        )
    });
    Some(PredictedImage {
        number,
        class: first.class_names[usize::from(first.labels[number])].clone(),
        predicted: predicted.collect(),
        picture: picture.clone(),
    })
}

/// The images that exactly one of two networks classifies correctly, the most confident mistakes first: of each pair of
/// groups, for the first seed that both have.
pub(crate) fn disagreements(comparison: &Comparison) -> Vec<(String, Vec<PredictedImage>)> {
    let mut all = Vec::new();
    for (a, b) in comparison.pairs() {
        let Some((first, second)) = a.paired(b).next() else {
            continue;
        };
        let (Some(of_a), Some(of_b)) = (&first.predictions, &second.predictions) else {
            continue;
        };
        if of_a.labels != of_b.labels {
            continue;
        }
        let only_one = |correct: &Predictions, wrong: &Predictions| -> Vec<usize> {
            wrong
                .mistakes()
                .into_iter()
                .filter(|number| correct.correct(*number))
                .take(SHOWN)
                .collect()
        };
        let runs = [(a.label.as_str(), first), (b.label.as_str(), second)];
        let seed = first.settings.seed;
        for (numbers, correct) in [
            (only_one(of_a, of_b), &a.label),
            (only_one(of_b, of_a), &b.label),
        ] {
            let images = numbers
                .into_iter()
                .filter_map(|number| predicted_image(number, &runs))
                .collect();
            all.push((format!("only {correct} is correct (seed {seed})"), images));
        }
    }
    all
}

/// The most confident mistakes of each group's first run.
pub(crate) fn mistakes(comparison: &Comparison) -> Vec<(String, Vec<PredictedImage>)> {
    let mut all = Vec::new();
    for group in &comparison.groups {
        let Some(run) = group.runs.iter().find(|run| run.predictions.is_some()) else {
            continue;
        };
        let Some(predictions) = &run.predictions else {
            continue;
        };
        let runs = [(group.label.as_str(), run)];
        let numbers = predictions.mistakes().into_iter().take(SHOWN);
        all.push((
            format!("{}, seed {}", group.label, run.settings.seed),
            numbers
                .filter_map(|number| predicted_image(number, &runs))
                .collect(),
        ));
    }
    all
}

/// The layers of a network with their parameters and multiply-adds.
pub(crate) fn layers(run: &Run) -> Option<Table> {
    let layers = run.layers.as_ref()?;
    let parameters: u64 = layers.iter().map(|layer| layer.parameters).sum();
    let multiply_adds: u64 = layers.iter().map(|layer| layer.multiply_adds).sum();
    let fraction = |part: u64, all: u64| {
        if part == 0 {
            String::new()
        } else {
            format!("{:.1} %", 100.0 * part as f64 / all as f64)
        }
    };
    let number = |number: u64| {
        if number == 0 {
            String::new()
        } else {
            grouped(number as usize)
        }
    };
    let mut table = Table::new([
        "layer",
        "type",
        "output",
        "parameters",
        "fraction",
        "multiply-adds per image",
        "fraction",
    ]);
    for layer in layers {
        let shape: Vec<_> = layer.output.iter().map(ToString::to_string).collect();
        table.rows.push(vec![
            layer.name.clone(),
            layer.kind.clone(),
            shape.join(" × "),
            number(layer.parameters),
            fraction(layer.parameters, parameters),
            number(layer.multiply_adds),
            fraction(layer.multiply_adds, multiply_adds),
        ]);
    }
    table.rows.push(vec![
        "total".to_owned(),
        String::new(),
        String::new(),
        grouped(parameters as usize),
        String::new(),
        grouped(multiply_adds as usize),
        String::new(),
    ]);
    Some(table)
}

/// The first run of every network.
pub(crate) fn one_of_each_network(comparison: &Comparison) -> Vec<&Run> {
    let mut runs: Vec<&Run> = Vec::new();
    for run in comparison.runs() {
        if runs
            .iter()
            .all(|other| other.settings.model != run.settings.model)
            && run.layers.is_some()
        {
            runs.push(run);
        }
    }
    runs
}

/// The settings of each run and what made it: one column per run.
pub(crate) fn provenance(comparison: &Comparison) -> Table {
    let runs: Vec<_> = comparison.runs().collect();
    let mut table = Table::new(["run"]);
    table.header.extend(runs.iter().map(|run| run.name.clone()));
    // Settings that were read from a record fit TOML again.
    let settings: Vec<_> = runs
        .iter()
        .map(|run| run.settings.to_table().unwrap_or_default())
        .collect();
    let fields = FIELDS.iter().filter(|field| {
        let recorded = || settings.iter().any(|table| table.contains_key(field.key));
        !field.has(Property::LocalPath) && recorded()
    });
    for field in fields {
        let mut cells = vec![field.key.replace('_', " ")];
        cells.extend(settings.iter().map(|table| {
            table.get(field.key).map_or_else(
                || "–".to_owned(),
                |value| value.to_string().trim_matches('"').to_owned(),
            )
        }));
        table.rows.push(cells);
    }
    let mut row = |name: &str, value: &dyn Fn(&Run) -> String| {
        let mut cells = vec![name.to_owned()];
        cells.extend(runs.iter().map(|run| value(run)));
        table.rows.push(cells);
    };
    row("device used", &|run| {
        run.made_by
            .gpu
            .clone()
            .unwrap_or_else(|| run.made_by.device.clone())
    });
    row("precision used", &|run| run.made_by.precision.to_string());
    row("version", &|run| run.made_by.version.clone());
    row("commit", &|run| run.made_by.commit.clone());
    row("training images", &|run| {
        grouped(run.made_by.train_images as usize)
    });
    row("test images", &|run| {
        grouped(run.made_by.test_images as usize)
    });
    row("SHA-256 of the data", &|run| {
        run.made_by.data_sha256.clone()
    });
    row("SHA-256 of the weights", &|run| {
        run.last()
            .weights_sha256
            .clone()
            .unwrap_or_else(|| "–".to_owned())
    });
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up::run as made_up;
    use run::predictions::Filters;

    #[test]
    fn times_and_p_values_have_few_digits() {
        let ratios = [4.6946, 0.21301, 0.03, 0.0049936].map(ratio);
        assert_eq!(ratios, ["4.69", "0.21", "0.030", "0.0050"]);
        assert_eq!(
            (duration(37.2), duration(1860.0), duration(9000.0)),
            (
                "37.2 s".to_owned(),
                "31.0 min".to_owned(),
                "2.50 h".to_owned()
            )
        );
        assert_eq!(
            (p_value(0.00001), p_value(0.0213), p_value(0.25)),
            (
                "p < 0.0001".to_owned(),
                "p = 0.0213".to_owned(),
                "p = 0.25".to_owned()
            )
        );
    }

    #[test]
    fn the_posts_setting_is_recognised() {
        let epochs = [(1.0, 1.0, 0.8); 50];
        let run = made_up("alexnet", 0, "epochs = 50", &epochs);
        assert_eq!(setting(&Comparison::new(vec![run]).unwrap()).len(), 1);
        let run = made_up("alexnet", 0, "epochs = 50", &epochs[..49]);
        let sentences = setting(&Comparison::new(vec![run]).unwrap());
        assert!(
            sentences[1].contains("not comparable") && sentences[2].contains("is not finished"),
            "{sentences:?}"
        );
    }

    #[test]
    fn overfitting_begins_where_the_test_loss_is_lowest() {
        let sentence = |epochs: &[(f64, f64, f64)]| {
            let comparison = Comparison::new(vec![made_up("alexnet", 0, "", epochs)]).unwrap();
            overfitting(&comparison.groups[0]).unwrap()
        };
        assert!(sentence(&[(2.0, 2.0, 0.1), (1.0, 1.0, 0.2)]).contains("has not begun"));
        let text = sentence(&[(2.0, 2.0, 0.1), (1.0, 1.0, 0.2), (0.5, 1.25, 0.3)]);
        assert!(
            text.contains("lowest after epoch 2 (1.0000) and ends at 1.2500")
                && text.contains("overfitting begins there"),
            "{text}"
        );
        assert!(
            sentence(&[(1.0, 1.0, 0.2), (1.5, 1.25, 0.3)])
                .contains("does not decrease after it either")
        );
    }

    #[test]
    fn differences_are_tested() {
        // The pairs of `statistics`: stats.ttest_rel gives p = 0.00828, and half an interval of 0.00849.
        let accuracies = [
            ("alexnet", [0.8503, 0.8479, 0.8532, 0.8461]),
            ("small-alexnet", [0.8316, 0.8342, 0.8301, 0.8350]),
        ];
        let mut runs = Vec::new();
        for (model, accuracies) in accuracies {
            runs.extend(
                (0..)
                    .zip(accuracies)
                    .map(|(seed, accuracy)| made_up(model, seed, "", &[(1.0, 1.0, accuracy)])),
            );
        }
        // Ten images; nine are classified correctly by the first network only, one by the second only: binomtest(1, 10).pvalue = 0.0215.
        let logits = |correct: &dyn Fn(usize) -> bool| -> Vec<[f32; CLASSES]> {
            (0..10)
                .map(|number| {
                    std::array::from_fn(|class| {
                        f32::from(
                            class
                                == if correct(number) {
                                    number
                                } else {
                                    (number + 1) % 10
                                },
                        )
                    })
                })
                .collect()
        };
        for (run, correct) in [
            (0, &(|number: usize| number > 0) as &dyn Fn(usize) -> bool),
            (4, &|number: usize| number == 0),
        ] {
            let labels: Vec<u8> = (0..10).collect();
            let filters = Filters {
                side: 1,
                weights: vec![0.0; 3],
            };
            runs[run].predictions = Some(Predictions::new(
                1,
                &["a"; 10],
                &labels,
                &logits(correct),
                |_| vec![0; 3072],
                filters,
            ));
        }
        let comparison = Comparison::new(runs).unwrap();
        let sentences = tests(&comparison);
        assert_eq!(sentences.len(), 2);
        for part in [
            "Over 4 seeds, the mean accuracy of AlexNet is 1.66 points above that of SmallAlexNet",
            "0.82 to 2.51 points",
            "p = 0.0083",
            "is significant",
            "With only 4 seeds",
        ] {
            assert!(
                sentences[0].contains(part),
                "{part} is not in {}",
                sentences[0]
            );
        }
        for part in [
            "9 are classified correctly by AlexNet only and 1 by SmallAlexNet only",
            "p = 0.0215",
            "is significant",
        ] {
            assert!(
                sentences[1].contains(part),
                "{part} is not in {}",
                sentences[1]
            );
        }
        let shown = disagreements(&comparison);
        assert_eq!((shown[0].1.len(), shown[1].1.len()), (9, 1));
        assert_eq!(shown[1].1[0].number, 0);
        assert_eq!(mistakes(&comparison).len(), 2);
    }
}
