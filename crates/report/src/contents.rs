//! The tables and sentences of a report, for Markdown and HTML.

use crate::comparison::{Comparison, Group, accuracy, network_name};
use crate::statistics::{PairedTest, mcnemar, paired_test};
use datasets::{DatasetSource, cifar10, synthetic};
use models::grouped;
use run::cli::count;
use run::predictions::MATRIX_CLASSES;
use run::settings::{FIELDS, Precision, Property};
use run::{Choices, EpochMetrics, Machine, MadeBy, Predictions, Run, Session};
use std::cmp::Reverse;

/// A table. The first column names the rows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table {
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<C: Into<String>>(corner: &str, columns: impl IntoIterator<Item = C>) -> Self {
        let columns = columns.into_iter().map(Into::into);
        Self {
            header: [corner.to_owned()].into_iter().chain(columns).collect(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(
        &mut self,
        name: impl Into<String>,
        cells: impl IntoIterator<Item = Option<String>>,
    ) {
        let cells = cells.into_iter();
        let cells = cells.map(|cell| cell.unwrap_or_else(|| "–".to_owned()));
        self.rows
            .push([name.into()].into_iter().chain(cells).collect());
    }
}

/// What a table shows of a run, if the run has it.
type OfRun<T> = fn(&Run) -> Option<T>;

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

/// The data sets whose reports show the post's results: CIFAR-10, and the synthetic set, which stands in for it.
const POST_DATASETS: [&str; 2] = [cifar10::INFO.name, synthetic::INFO.name];

/// Epochs and training images of the post's runs.
const POST_EPOCHS: usize = 50;
const POST_IMAGES: u64 = 50_000;

impl Post {
    /// The name of the post's column or row.
    fn label(&self) -> String {
        format!("the post: {}", network_name(self.model))
    }
}

/// The networks that the post compares.
pub fn post_networks() -> impl Iterator<Item = &'static str> {
    POST.iter().map(|post| post.model)
}

/// The post's results of the networks that are compared, for the data sets in [`POST_DATASETS`].
fn posts(comparison: &Comparison) -> Vec<&'static Post> {
    let is_compared = |post: &&Post| {
        comparison.runs().any(|run| {
            run.settings.model == post.model
                && POST_DATASETS.contains(&run.settings.dataset.as_str())
        })
    };
    POST.iter().filter(is_compared).collect()
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
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 120.0 {
        format!("{seconds:.1} s")
    } else if seconds < 7200.0 {
        format!("{:.1} min", seconds / 60.0)
    } else {
        format!("{:.2} h", seconds / 3600.0)
    }
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
    let dataset = DatasetSource::display_name(&comparison.first().settings.dataset);
    format!("{} on {dataset}", names.join(" and "))
}

/// When the metrics of the curves are measured.
pub(crate) const MEASURED: &str =
    "Training metrics are measured during an epoch, test metrics after it.";

/// The data and the epochs of the runs, and where they differ from the post's.
pub(crate) fn setting(comparison: &Comparison) -> Vec<String> {
    let first = comparison.first();
    let images = first.made_by.train_images;
    let epochs = || comparison.runs().map(|run| run.epochs.len());
    let epochs = (epochs().min().unwrap_or(0), epochs().max().unwrap_or(0));
    let mut sentences = vec![format!(
        "{} of {} each, on {} training images of {}, evaluated on {} images.",
        count(comparison.runs().count(), "run"),
        match epochs {
            (shortest, longest) if shortest == longest => count(longest, "epoch"),
            (shortest, longest) => format!("{shortest} to {longest} epochs"),
        },
        grouped(images as usize),
        DatasetSource::display_name(&first.settings.dataset),
        grouped(first.made_by.test_images as usize),
    )];
    if !posts(comparison).is_empty() {
        if (first.settings.dataset.as_str(), images) != (cifar10::INFO.name, POST_IMAGES) {
            sentences.push(format!(
                "The post trained on all {} images of CIFAR-10 for {POST_EPOCHS} epochs, so its accuracies are not comparable with these.",
                grouped(POST_IMAGES as usize)
            ));
        } else if epochs != (POST_EPOCHS, POST_EPOCHS) {
            sentences.push(format!(
                "The post trained on the same images for {POST_EPOCHS} epochs."
            ));
        }
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
    for run in comparison.runs().filter(|run| run.last().stopped_early) {
        sentences.push(format!(
            "Early stopping ended the run {} after {} epochs.",
            run.name,
            run.epochs.len()
        ));
    }
    for run in comparison.runs().filter(|run| !run.finished()) {
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

/// The heading of the results.
pub(crate) fn results_heading(comparison: &Comparison) -> &'static str {
    match posts(comparison).is_empty() {
        true => "Results",
        false => "Results compared with the post's",
    }
}

/// The post's table of results, with the groups beside it.
pub(crate) fn results(comparison: &Comparison) -> Table {
    let (posts, groups) = (posts(comparison), &comparison.groups);
    let labels = groups.iter().map(|group| group.label.clone());
    let mut table = Table::new("", posts.iter().map(|post| post.label()).chain(labels));
    let mut row = |name: &str,
                   theirs: &dyn Fn(&Post) -> Option<String>,
                   ours: &dyn Fn(&Group) -> Option<String>| {
        let theirs = posts.iter().map(|post| theirs(post));
        table.row(name, theirs.chain(groups.iter().map(ours)));
    };
    let of_network: [(&str, OfRun<String>); 2] = [
        ("parameters", |run| {
            Some(grouped(run.made_by.parameters as usize))
        }),
        ("of these in convolutions", |run| {
            convolution_fraction(run).map(percent)
        }),
    ];
    for (name, value) in of_network {
        let of_network = |model: &str| {
            let mut runs = comparison.runs().filter(|run| run.settings.model == model);
            runs.find_map(value)
        };
        row(name, &|post| of_network(post.model), &|group| {
            of_network(&group.first().settings.model)
        });
    }
    row("epochs", &|_| Some(POST_EPOCHS.to_string()), &|group| {
        let epochs = group.sample(|run| run.epochs.len() as f64);
        Some(match epochs.deviation {
            Some(deviation) if deviation > 0.0 => format!("{:.1} (mean)", epochs.mean),
            _ => epochs.mean.to_string(),
        })
    });
    row("seeds", &|_| Some("1".to_owned()), &|group| {
        Some(group.runs.len().to_string())
    });
    row(
        "test accuracy after the last epoch",
        &|post| Some(percent(post.accuracy)),
        &|group| Some(percent(group.mean(accuracy))),
    );
    let mut row = |name: &str, ours: &dyn Fn(&Group) -> Option<String>| row(name, &|_| None, ours);
    let of_several = |value: Option<String>| value.or_else(|| Some("needs two seeds".to_owned()));
    row("standard deviation over seeds", &|group| {
        let deviation = group.sample(accuracy).deviation;
        of_several(deviation.map(|deviation| format!("{:.2} points", 100.0 * deviation)))
    });
    row("95 % confidence interval of the mean", &|group| {
        let sample = group.sample(accuracy);
        of_several(sample.half_width.map(|half| {
            // An accuracy is within 0 and 1.
            let (low, high) = ((sample.mean - half).max(0.0), (sample.mean + half).min(1.0));
            format!("{:.2} to {:.2} %", 100.0 * low, 100.0 * high)
        }))
    });
    let optional: [(&str, OfRun<f64>); 2] = [
        ("test accuracy with the EMA of the weights", |run| {
            run.last().evaluated.model_ema_accuracy
        }),
        ("test accuracy with test-time augmentation", |run| {
            run.last().evaluated.tta_accuracy
        }),
    ];
    for (name, accuracy) in optional {
        if comparison.runs().any(|run| accuracy(run).is_some()) {
            row(name, &|group| {
                let mean = group.mean(|run| accuracy(run).unwrap_or(f64::NAN));
                mean.is_finite().then(|| percent(mean))
            });
        }
    }
    row("best test accuracy of any epoch", &|group| {
        Some(percent(group.mean(Run::best_accuracy)))
    });
    row("test loss after the last epoch", &|group| {
        let loss = group.mean(|run| run.last().evaluated.loss);
        Some(format!("{loss:.4}"))
    });
    row("training accuracy in the last epoch", &|group| {
        Some(percent(group.mean(|run| run.last().train_accuracy)))
    });
    table
}

/// The ratios of parameters and accuracies, in sentences.
pub(crate) fn ratios(comparison: &Comparison) -> Vec<String> {
    let pairs = comparison.pairs().map(|(a, b)| {
        let (first, second) = (a.mean(accuracy), b.mean(accuracy));
        let parameters = |group: &Group| group.first().made_by.parameters as f64;
        format!(
            "{} has {} times the parameters of {} and reaches {:.3} times its test accuracy ({} and {}).",
            b.label,
            ratio(parameters(b) / parameters(a)),
            a.label,
            second / first,
            percent(second),
            percent(first),
        )
    });
    let post = both_posts(comparison).map(|[first, second]| {
        format!(
            "In the post, {} reaches {:.3} times the test accuracy of {}.",
            network_name(second.model),
            second.accuracy / first.accuracy,
            network_name(first.model),
        )
    });
    pairs.chain(post).collect()
}

/// The post's two results if both networks are compared.
fn both_posts(comparison: &Comparison) -> Option<[&'static Post; 2]> {
    posts(comparison).try_into().ok()
}

/// Mean seconds of an epoch.
fn epoch_seconds(group: &Group) -> f64 {
    group.mean(|run| run.seconds() / run.epochs.len() as f64)
}

/// The table of times.
pub(crate) fn times(comparison: &Comparison) -> Table {
    let columns = ["time per epoch", "total time", "images/s", "device"];
    let mut table = Table::new("", columns);
    for post in posts(comparison) {
        let seconds = 60.0 * post.minutes;
        let images = POST_IMAGES as f64 * POST_EPOCHS as f64;
        let cells = [
            duration(seconds / POST_EPOCHS as f64),
            format!("{:.0} min", post.minutes),
            format!("about {:.0}", images / seconds),
            "GTX 1070 Ti, PyTorch".to_owned(),
        ];
        table.row(post.label(), cells.map(Some));
    }
    for group in &comparison.groups {
        let mut devices: Vec<_> = group.runs.iter().map(device).collect();
        devices.dedup();
        let cells = [
            duration(epoch_seconds(group)),
            duration(group.mean(Run::seconds)),
            format!("{:.0}", group.mean(Run::images_per_second)),
            devices.join("; "),
        ];
        table.row(&group.label, cells.map(Some));
    }
    table
}

/// The machine that finished a run. Earlier versions did not record it.
fn machine(run: &Run) -> Option<&Machine> {
    run.made_by.sessions.last().map(|session| &session.machine)
}

/// The device of a run, with what affects its speed.
fn device(run: &Run) -> String {
    let MadeBy {
        gpu,
        device,
        choices: Choices { precision, .. },
        ..
    } = &run.made_by;
    let threads = machine(run).map(Machine::threads_in_words).or_else(|| {
        let threads = run.settings.threads?;
        Some(count(threads.get(), "thread"))
    });
    let device = match (gpu, threads) {
        (Some(gpu), _) => return format!("{gpu}, {precision}"),
        (None, Some(threads)) => format!("{device}, {threads}"),
        (None, None) => device.clone(),
    };
    match precision {
        Precision::F32 => device,
        _ => format!("{device}, {precision}"),
    }
}

/// The ratios of times, in sentences.
pub(crate) fn time_ratios(comparison: &Comparison) -> Vec<String> {
    let pairs = comparison.pairs().map(|(a, b)| {
        format!(
            "An epoch of {} takes {} times as long as one of {}.",
            b.label,
            ratio(epoch_seconds(b) / epoch_seconds(a)),
            a.label
        )
    });
    let post = both_posts(comparison).map(|[first, second]| {
        format!(
            "In the post, it takes {:.2} times as long ({:.0} and {:.0} minutes in all); its images/s are computed from these times, which include evaluation.",
            second.minutes / first.minutes,
            second.minutes,
            first.minutes
        )
    });
    pairs.chain(post).collect()
}

/// What runs of several sessions were trained on, a sentence for each run.
pub(crate) fn sessions(comparison: &Comparison) -> Vec<String> {
    let sentences = comparison.runs().filter_map(|run| {
        let sessions = &run.made_by.sessions;
        let first = sessions.first()?;
        // Earlier versions did not record sessions.
        let unknown = match (first.from_epoch, first.from_step) {
            (0, 0) => None,
            start => Some(format!("{} on an unknown machine", until(start))),
        };
        let on_machine = sessions.chunk_by(|a, b| a.machine == b.machine);
        let on_machine = on_machine.filter_map(|sessions| {
            let Session {
                to_epoch,
                to_step,
                machine,
                ..
            } = sessions.last()?;
            let end = to_epoch.zip(*to_step).unwrap_or((run.last().epoch, 0));
            Some(format!("{} on {machine}", until(end)))
        });
        let stretches: Vec<_> = unknown.into_iter().chain(on_machine).collect();
        let several = sessions.len() > 1 || stretches.len() > 1;
        several.then(|| {
            format!(
                "The run {} was trained in {}: {}.",
                run.name,
                count(sessions.len(), "recorded session"),
                stretches.join("; then ")
            )
        })
    });
    sentences.collect()
}

/// The end of a session, in words: finished epochs, and finished steps of the epoch after them.
fn until((epoch, step): (u32, usize)) -> String {
    match step {
        0 => format!("to the end of epoch {epoch}"),
        step => format!("to step {step} of epoch {}", epoch + 1),
    }
}

/// The time of each layer in a training step.
pub(crate) fn layer_times(run: &Run) -> Option<Table> {
    let layers = run.layers.as_ref()?.iter();
    let layers: Vec<_> = layers
        .filter_map(|layer| Some((layer, layer.seconds?)))
        .collect();
    let all: f64 = layers.iter().flat_map(|(_, seconds)| seconds).sum();
    let mut table = Table::new("layer", ["forward", "backward", "fraction of all layers"]);
    for (layer, [forward, backward]) in layers {
        let cells = [
            format!("{:.2} ms", 1e3 * forward),
            format!("{:.2} ms", 1e3 * backward),
            format!("{:.1} %", 100.0 * (forward + backward) / all),
        ];
        table.row(format!("{} {}", layer.name, layer.kind), cells.map(Some));
    }
    (all > 0.0).then_some(table)
}

fn p_value(p: f64) -> String {
    if p < 0.0001 {
        "p < 0.0001".to_owned()
    } else if p < 0.1 {
        format!("p = {p:.4}")
    } else {
        format!("p = {p:.2}")
    }
}

/// Whether a difference with this p-value is called significant, in words.
fn significance(p: f64) -> &'static str {
    if p < 0.05 {
        "significant"
    } else {
        "not significant"
    }
}

/// Whether the differences are significant, in sentences.
pub(crate) fn tests(comparison: &Comparison) -> Vec<String> {
    let of_pair = |(a, b): (&Group, &Group)| {
        let of_seeds = a.paired(b).filter_map(|runs| seed_test([a, b], runs));
        [accuracy_test(a, b)].into_iter().chain(of_seeds).collect()
    };
    comparison.pairs().flat_map::<Vec<_>, _>(of_pair).collect()
}

/// The paired t-test of two groups' accuracies over the seeds that both have.
fn accuracy_test(a: &Group, b: &Group) -> String {
    let pairs: Vec<_> = a
        .paired(b)
        .map(|(a, b)| (accuracy(a), accuracy(b)))
        .collect();
    let seeds = pairs.len();
    let Some(PairedTest { difference, p }) = paired_test(&pairs) else {
        return format!(
            "{} and {}: a paired t-test needs at least two seeds that both have; here they have {} in common.",
            a.label,
            b.label,
            if seeds == 1 { "one" } else { "none" }
        );
    };
    let (better, worse) = if difference.mean >= 0.0 {
        (a, b)
    } else {
        (b, a)
    };
    let (mean, half) = (difference.mean.abs(), difference.half_width.unwrap_or(0.0));
    let mut text = format!(
        "Over {seeds} seeds, the mean accuracy of {} is {:.2} points above that of {} (95 % confidence interval {:.2} to \
         {:.2} points; paired t-test, {}): the difference is {}.",
        better.label,
        100.0 * mean,
        worse.label,
        100.0 * (mean - half),
        100.0 * (mean + half),
        p_value(p),
        significance(p),
    );
    if seeds < 5 {
        text += &format!(" With only {seeds} seeds, the test detects large differences alone.");
    }
    text
}

/// McNemar's test of the predictions of two groups' runs of one seed, if both recorded them.
fn seed_test([a, b]: [&Group; 2], (first, second): (&Run, &Run)) -> Option<String> {
    let [of_a, of_b] = predictions_of_both(first, second)?;
    let count = |wanted: (bool, bool)| {
        let images = 0..of_a.labels.len();
        let images = images.filter(|n| (of_a.correct(*n), of_b.correct(*n)) == wanted);
        images.count()
    };
    let (only_a, only_b) = (count((true, false)), count((false, true)));
    let p = mcnemar(only_a as u64, only_b as u64);
    Some(format!(
        "Seed {}: of {} test images, {} are classified correctly by {} only and {} by {} only (McNemar's exact test, {}): \
         the difference between these two trained networks is {}.",
        first.settings.seed,
        grouped(of_a.labels.len()),
        grouped(only_a),
        a.label,
        grouped(only_b),
        b.label,
        p_value(p),
        significance(p),
    ))
}

/// The predictions of two runs if both recorded them for the same images.
fn predictions_of_both<'a>(first: &'a Run, second: &'a Run) -> Option<[&'a Predictions; 2]> {
    let both = [first.predictions.as_ref()?, second.predictions.as_ref()?];
    (both[0].labels == both[1].labels).then_some(both)
}

/// Where overfitting begins, in a sentence.
pub(crate) fn overfitting(group: &Group) -> Option<String> {
    let epochs = group.runs.iter().map(|run| run.epochs.len()).min()?;
    let mean = |value: fn(&EpochMetrics) -> f64| -> Vec<f64> {
        let of_epoch = |epoch: usize| group.mean(|run| value(&run.epochs[epoch]));
        (0..epochs).map(of_epoch).collect()
    };
    let losses = mean(|epoch| epoch.evaluated.loss);
    let trained = mean(|epoch| epoch.train_loss);
    let last = epochs.checked_sub(1)?;
    let lowest = (0..epochs).min_by(|a, b| losses[*a].total_cmp(&losses[*b]))?;
    let best = format!("({:.4})", losses[lowest]);
    let rest = if lowest == last {
        format!("the last epoch {best}, so overfitting has not begun; more epochs may help.")
    } else if trained[last] < trained[lowest] {
        format!(
            "epoch {} {best} and ends at {:.4}, while the training loss decreases further, from {:.4} to {:.4}: \
             overfitting begins there.",
            lowest + 1,
            losses[last],
            trained[lowest],
            trained[last]
        )
    } else {
        format!(
            "epoch {} {best}; the training loss does not decrease after it either.",
            lowest + 1
        )
    };
    Some(format!(
        "{}: the mean test loss is lowest after {rest}",
        group.label
    ))
}

/// The heading of [`classes`].
pub(crate) fn classes_heading(comparison: &Comparison) -> String {
    let of_group = |group| Some(recorded(group)?.1.class_names.len());
    match comparison.groups.iter().find_map(of_group) {
        Some(all) if all > MATRIX_CLASSES => {
            format!("Accuracy per class: the {MATRIX_CLASSES} lowest of {all} classes")
        }
        _ => "Accuracy per class".to_owned(),
    }
}

/// Accuracy per class: the mean over runs whose predictions were recorded. Of many classes only those of the lowest
/// accuracy.
pub(crate) fn classes(comparison: &Comparison) -> Option<Table> {
    let groups = &comparison.groups;
    let (_, predictions) = groups.iter().find_map(recorded)?;
    let mut table = Table::new("class", groups.iter().map(|group| &group.label));
    let names = &predictions.class_names;
    let matrices: Vec<_> = groups.iter().map(confusion).collect();
    let accuracy = |matrix: &Option<Vec<u64>>, class: usize| {
        let counts = matrix.as_ref()?.chunks_exact(names.len()).nth(class)?;
        let images: u64 = counts.iter().sum();
        (images > 0).then(|| counts[class] as f64 / images as f64)
    };
    let mut classes: Vec<_> = (0..names.len()).collect();
    if names.len() > MATRIX_CLASSES {
        // Classes without images come last.
        let key = |class: usize| {
            let accuracies = matrices.iter().map(|matrix| accuracy(matrix, class));
            accuracies
                .flatten()
                .reduce(f64::min)
                .unwrap_or(f64::INFINITY)
        };
        classes.sort_by(|a, b| key(*a).total_cmp(&key(*b)));
        classes.truncate(MATRIX_CLASSES);
    }
    for class in classes {
        let accuracies = matrices.iter().map(|matrix| accuracy(matrix, class));
        let cells = accuracies
            .map(|accuracy| accuracy.map(|accuracy| format!("{:.1} %", 100.0 * accuracy)));
        table.row(&names[class], cells);
    }
    Some(table)
}

/// The most frequent confusions of a group's runs: label, predicted class, and the number of images. Where there are too
/// many classes for a matrix.
pub(crate) fn confusions(group: &Group) -> Option<Table> {
    const SHOWN: usize = 20;
    let (_, predictions) = recorded(group)?;
    let names = &predictions.class_names;
    if names.len() <= MATRIX_CLASSES {
        return None;
    }
    let matrix = confusion(group)?;
    let cells = matrix.iter().enumerate();
    let cells = cells.map(|(cell, count)| (cell / names.len(), cell % names.len(), *count));
    let mut mistakes: Vec<_> = cells
        .filter(|(label, predicted, count)| label != predicted && *count > 0)
        .collect();
    mistakes.sort_by_key(|(_, _, count)| Reverse(*count));
    let mut table = Table::new("label", ["predicted as", "images", "of the class"]);
    for (label, predicted, count) in mistakes.into_iter().take(SHOWN) {
        let images: u64 = matrix[label * names.len()..][..names.len()].iter().sum();
        let fraction = format!("{:.1} %", 100.0 * count as f64 / images as f64);
        let cells = [names[predicted].clone(), count.to_string(), fraction];
        table.row(&names[label], cells.map(Some));
    }
    Some(table)
}

/// The first run of a group whose predictions were recorded.
pub(crate) fn recorded(group: &Group) -> Option<(&Run, &Predictions)> {
    let mut runs = group.runs.iter();
    runs.find_map(|run| Some((run, run.predictions.as_ref()?)))
}

/// The confusion matrix `[classes, classes]`, summed over the group's runs: counts images by label (row) and predicted
/// class (column).
pub(crate) fn confusion(group: &Group) -> Option<Vec<u64>> {
    let predictions = group.runs.iter().filter_map(|run| run.predictions.as_ref());
    let matrices = predictions.map(Predictions::confusion);
    matrices.reduce(|sum, matrix| sum.iter().zip(matrix).map(|(a, b)| a + b).collect())
}

/// A test image with the networks' predictions.
pub(crate) struct PredictedImage {
    pub(crate) index: usize,
    /// The label's class.
    pub(crate) class: String,
    /// Each prediction's label, class and probability.
    pub(crate) predicted: Vec<(String, String, f64)>,
    /// `[3, 32, 32]`.
    pub(crate) picture: Vec<u8>,
}

/// Images under a heading.
pub(crate) type Images = (String, Vec<PredictedImage>);

/// Images per heading: full rows of five on a wide screen and of two on a phone.
pub const SHOWN_IMAGES: usize = 10;

/// The first of the images with these indices, as groups predict them.
fn images(indices: Vec<usize>, predictions: &[(&Group, &Predictions)]) -> Vec<PredictedImage> {
    let image = |index: usize| {
        let mut pictures = predictions.iter().map(|(_, of_one)| &of_one.pictures);
        let picture = pictures.find_map(|pictures| pictures.get(&(index as u32)))?;
        let (_, first) = predictions.first()?;
        let predicted = predictions.iter().map(|(group, of_one)| {
            let (class, probability) = of_one.predicted(index);
            let class = of_one.class_names[class].clone();
            (group.label.clone(), class, probability)
        });
        Some(PredictedImage {
            index,
            class: first.class_names[first.labels[index] as usize].clone(),
            predicted: predicted.collect(),
            picture: picture.clone(),
        })
    };
    let shown = indices.into_iter().take(SHOWN_IMAGES);
    shown.filter_map(image).collect()
}

/// The images that exactly one of two networks classifies correctly, the most confident mistakes first: of each pair of
/// groups, for the first seed that both have.
pub(crate) fn disagreements(comparison: &Comparison) -> Vec<Images> {
    let of_pair = |(a, b)| -> Option<[Images; 2]> {
        let (first, second) = Group::paired(a, b).next()?;
        let [of_a, of_b] = predictions_of_both(first, second)?;
        let only = |group: &Group, correct: &Predictions, wrong: &Predictions| {
            let mut indices = wrong.mistakes();
            indices.retain(|index| correct.correct(*index));
            let heading = format!(
                "only {} is correct (seed {})",
                group.label, first.settings.seed
            );
            (heading, images(indices, &[(a, of_a), (b, of_b)]))
        };
        Some([only(a, of_a, of_b), only(b, of_b, of_a)])
    };
    comparison.pairs().filter_map(of_pair).flatten().collect()
}

/// The most confident mistakes of each group's first run.
pub(crate) fn mistakes(comparison: &Comparison) -> Vec<Images> {
    let of_group = |group| -> Option<Images> {
        let (run, predictions) = recorded(group)?;
        Some((
            format!("{}, seed {}", group.label, run.settings.seed),
            images(predictions.mistakes(), &[(group, predictions)]),
        ))
    };
    comparison.groups.iter().filter_map(of_group).collect()
}

/// The layers of a network with their parameters and multiply-adds.
pub(crate) fn layers(run: &Run) -> Option<Table> {
    let layers = run.layers.as_ref()?;
    let parameters: u64 = layers.iter().map(|layer| layer.parameters).sum();
    let multiply_adds: u64 = layers.iter().map(|layer| layer.multiply_adds).sum();
    let unless_zero = |part: u64, text: String| if part == 0 { String::new() } else { text };
    let fraction = |part: u64, all: u64| {
        unless_zero(part, format!("{:.1} %", 100.0 * part as f64 / all as f64))
    };
    let count = |count: u64| unless_zero(count, grouped(count as usize));
    let columns = [
        "type",
        "output",
        "parameters",
        "fraction",
        "multiply-adds per image",
        "fraction",
    ];
    let mut table = Table::new("layer", columns);
    for layer in layers {
        let shape: Vec<_> = layer.output.iter().map(ToString::to_string).collect();
        let cells = [
            layer.kind.clone(),
            shape.join(" × "),
            count(layer.parameters),
            fraction(layer.parameters, parameters),
            count(layer.multiply_adds),
            fraction(layer.multiply_adds, multiply_adds),
        ];
        table.row(&layer.name, cells.map(Some));
    }
    let [parameters, multiply_adds] = [parameters, multiply_adds].map(|sum| grouped(sum as usize));
    let none = String::new;
    let cells = [none(), none(), parameters, none(), multiply_adds, none()];
    table.row("total", cells.map(Some));
    Some(table)
}

/// The first run of every network whose layers were recorded.
pub(crate) fn one_of_each_network(comparison: &Comparison) -> Vec<&Run> {
    let mut runs: Vec<&Run> = Vec::new();
    for run in comparison.runs().filter(|run| run.layers.is_some()) {
        let is_of = |other: &&Run| other.settings.model == run.settings.model;
        if !runs.iter().any(is_of) {
            runs.push(run);
        }
    }
    runs
}

/// The settings of each run and what made it: one column per run.
pub(crate) fn provenance(comparison: &Comparison) -> Table {
    let mut table = Table::new("run", comparison.runs().map(|run| &run.name));
    // Settings that were read from a record fit TOML again.
    let settings = comparison.runs().map(|run| run.settings.to_table());
    let settings: Vec<_> = settings.map(Result::unwrap_or_default).collect();
    for field in FIELDS
        .iter()
        .filter(|field| !field.has(Property::LocalPath))
    {
        let values = settings.iter().map(|table| {
            let value = table.get(field.key)?.to_string();
            Some(value.trim_matches('"').to_owned())
        });
        if values.clone().any(|value| value.is_some()) {
            table.row(field.key.replace('_', " "), values);
        }
    }
    let rows: [(&str, OfRun<String>); 9] = [
        ("device used", |Run { made_by, .. }| {
            made_by.gpu.clone().or_else(|| Some(made_by.device.clone()))
        }),
        ("machine", |run| {
            let machine = machine(run)?;
            let Machine {
                os,
                arch,
                processor,
                instruction_set,
                ..
            } = machine;
            Some(format!("{os} {arch}, {processor}, {instruction_set}"))
        }),
        ("precision used", |run| {
            Some(run.made_by.choices.precision.to_string())
        }),
        ("version", |run| Some(run.made_by.version.clone())),
        ("commit", |run| Some(run.made_by.commit.clone())),
        ("training images", |run| {
            Some(grouped(run.made_by.train_images as usize))
        }),
        ("test images", |run| {
            Some(grouped(run.made_by.test_images as usize))
        }),
        ("SHA-256 of the data", |run| {
            Some(run.made_by.data_sha256.clone())
        }),
        ("SHA-256 of the weights", |run| {
            run.last().weights_sha256.clone()
        }),
    ];
    for (name, value) in rows {
        table.row(name, comparison.runs().map(value));
    }
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
            sentences[1].contains("same images for 50 epochs")
                && sentences[2].contains("is not finished"),
            "{sentences:?}"
        );
        let mut run = made_up("alexnet", 0, "epochs = 50", &epochs);
        run.made_by.train_images = 10_000;
        let sentences = setting(&Comparison::new(vec![run]).unwrap());
        assert!(sentences[1].contains("not comparable"), "{sentences:?}");
        let run = made_up("alexnet", 0, "epochs = 50\ndataset = './pets'", &epochs);
        let comparison = Comparison::new(vec![run]).unwrap();
        assert_eq!(setting(&comparison).len(), 1);
        assert_eq!(results_heading(&comparison), "Results");
        assert_eq!(results(&comparison).header.len(), 2);
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
    fn runs_of_several_sessions_tell_what_they_ran_on() {
        let session = |epoch, step, os: &str| {
            let machine = format!(
                "os = '{os}'\narch = 'x86_64'\ninstruction_set = 'avx2'\nprocessor = 'P'\ndevice = 'cpu'\n\
                 threads = 2\nversion = '0.1.0'\ncommit = '0'"
            );
            Session::new(epoch, step, toml::from_str(&machine).unwrap())
        };
        let sentences = |sessions: Vec<Session>| {
            let mut run = made_up("alexnet", 0, "epochs = 3", &[(1.0, 1.0, 0.8); 3]);
            run.made_by.sessions = sessions.into_iter().fold(Vec::new(), run::session::resumed);
            super::sessions(&Comparison::new(vec![run]).unwrap()).join("")
        };
        assert_eq!(sentences(Vec::new()), "");
        assert_eq!(sentences(vec![session(0, 0, "linux")]), "");
        let machine = "x86_64 (P, avx2, 2 threads, version 0.1.0, commit 0)";
        assert_eq!(
            sentences(vec![
                session(0, 0, "linux"),
                session(1, 0, "linux"),
                session(1, 5, "windows"),
            ]),
            format!(
                "The run alexnet-reference-seed0 was trained in 3 recorded sessions: to step 5 of epoch 2 on linux \
                 {machine}; then to the end of epoch 3 on windows {machine}."
            )
        );
        // Begun by a version that did not record sessions.
        assert_eq!(
            sentences(vec![session(1, 0, "linux")]),
            format!(
                "The run alexnet-reference-seed0 was trained in 1 recorded session: to the end of epoch 1 on an unknown \
                 machine; then to the end of epoch 3 on linux {machine}."
            )
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
        let logits = |correct: &dyn Fn(usize) -> bool| -> Vec<f32> {
            let row = |number| {
                let predicted = match correct(number) {
                    true => number,
                    false => (number + 1) % 10,
                };
                (0..10).map(move |class| f32::from(class == predicted))
            };
            (0..10).flat_map(row).collect()
        };
        for (run, correct) in [
            (0, &(|number: usize| number > 0) as &dyn Fn(usize) -> bool),
            (4, &|number: usize| number == 0),
        ] {
            let labels: Vec<u32> = (0..10).collect();
            let filters = Filters {
                side: 1,
                weights: vec![0.0; 3],
            };
            runs[run].predictions = Some(Predictions::new(
                1,
                &vec!["a".to_owned(); 10],
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
        assert_eq!(shown[1].1[0].index, 0);
        assert_eq!(mistakes(&comparison).len(), 2);
    }

    #[test]
    fn many_classes_have_tables_of_the_worst_ones() {
        let names: Vec<_> = (0..30).map(|class| format!("kind {class}")).collect();
        let labels: Vec<u32> = (0..60).map(|index| index % 30).collect();
        // Class 7 is always taken for 8, and one of two images of class 3 for 4.
        let predicted = |index: usize| match index {
            7 | 37 => 8,
            3 => 4,
            index => index % 30,
        };
        let logits = (0..60)
            .flat_map(|index| (0..30).map(move |class| f32::from(class == predicted(index))));
        let logits: Vec<_> = logits.collect();
        let filters = || Filters {
            side: 1,
            weights: vec![0.0; 3],
        };
        let predictions = |names: &[String]| {
            let picture = |_| vec![0; 3072];
            Some(Predictions::new(
                1,
                names,
                &labels,
                &logits,
                picture,
                filters(),
            ))
        };
        let mut runs = vec![made_up("alexnet", 0, "", &[(1.0, 1.0, 0.95)])];
        runs[0].predictions = predictions(&names);
        let comparison = Comparison::new(runs.clone()).unwrap();
        let classes = classes(&comparison).unwrap();
        assert_eq!(classes.rows.len(), 20);
        assert_eq!(
            classes.rows[..2],
            [["kind 7", "0.0 %"], ["kind 3", "50.0 %"]]
        );
        let confusions = confusions(&comparison.groups[0]).unwrap();
        assert_eq!(
            confusions.rows,
            [
                ["kind 7", "kind 8", "2", "100.0 %"],
                ["kind 3", "kind 4", "1", "50.0 %"]
            ]
        );
        let heading = classes_heading(&comparison);
        assert_eq!(heading, "Accuracy per class: the 20 lowest of 30 classes");
        let mut other = made_up("alexnet", 1, "", &[(1.0, 1.0, 0.95)]);
        let renamed: Vec<_> = names.iter().map(|name| format!("a {name}")).collect();
        other.predictions = predictions(&renamed);
        runs.push(other);
        let error = Comparison::new(runs).err().unwrap().to_string();
        assert!(
            error.contains("their classes have different names"),
            "{error}"
        );
    }
}
