//! A report as one HTML file without scripts or external resources.

use crate::chart::{Chart, Series};
use crate::comparison::{Comparison, Group, network_name};
use crate::contents::{self, Images, PredictedImage, Table};
use crate::{TIMES_BEGIN, TIMES_END, picture};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use run::{EpochMetrics, EvaluationSplit, Run};

const STYLE: &str = include_str!("style.css");

/// Colours that the style has for groups.
const GROUP_COLOURS: usize = 6;

/// The report. `written` is the date, which is shown in the block of times.
#[must_use]
pub fn html(comparison: &Comparison, written: &str) -> String {
    let title = contents::title(comparison);
    let several = comparison.groups.len() > 1;
    let disagreements = contents::disagreements(comparison);
    let mistakes = contents::mistakes(comparison);
    let classes = contents::classes(comparison);
    let networks = contents::one_of_each_network(comparison);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            (head(&title, None))
            body {
                h1 { (title) }
                @for sentence in contents::setting(comparison) { p { (sentence) } }
                nav {
                    a href="#results" { "Results" }
                    a href="#time" { "Time" }
                    @if several { a href="#significance" { "Is the difference significant?" } }
                    a href="#curves" { "Curves" }
                    @if classes.is_some() { a href="#classes" { "Classes" } a href="#pictures" { "Pictures" } }
                    @if !networks.is_empty() { a href="#layers" { "Layers" } }
                    a href="#runs" { "Settings and versions" }
                }
                h2 id="results" { (contents::results_heading(comparison)) }
                div class="stacked" { (table(&contents::results(comparison))) }
                (list(&contents::ratios(comparison)))

                (PreEscaped(format!("\n<!-- {TIMES_BEGIN} -->\n")))
                h2 id="time" { "Time" }
                div class="stacked" { (table(&contents::times(comparison))) }
                (list(&[contents::time_ratios(comparison), contents::sessions(comparison)].concat()))
                div class="charts" { (wall_clock(comparison)) }
                @for run in &networks {
                    @if let Some(times) = contents::layer_times(run) {
                        h3 { "Layers of " (network_name(&run.settings.model)) ": mean time in a training step of " (run.name) }
                        (table(&times))
                    }
                }
                p class="quiet" { "Written on " (written) "." }
                (PreEscaped(format!("\n<!-- {TIMES_END} -->\n")))

                @if several {
                    h2 id="significance" { "Is the difference significant?" }
                    (list(&contents::tests(comparison)))
                }

                h2 id="curves" { "Curves" }
                p class="quiet" {
                    "Lines are means over seeds; bands extend from the lowest to the highest seed. " (contents::MEASURED)
                }
                div class="charts" {
                    (overlay(comparison, "Test accuracy", "test accuracy (%)", test_accuracy))
                    (overlay(comparison, "Test loss", "test loss", |epoch| epoch.evaluated.loss))
                    @for group in &comparison.groups {
                        (losses(&group.label, &group.runs))
                    }
                    (learning_rates(comparison))
                }
                h3 { "Where overfitting begins" }
                (list(&comparison.groups.iter().filter_map(contents::overfitting).collect::<Vec<_>>()))
                h3 { "Curves of each run, as in the post" }
                div class="charts" {
                    @for group in &comparison.groups {
                        @for run in &group.runs {
                            @let label = format!("{}, seed {}", group.label, run.settings.seed);
                            @let one = std::slice::from_ref(run);
                            (losses(&label, one))
                            (accuracies(&label, one))
                        }
                    }
                }

                @if let Some(classes) = classes {
                    h2 id="classes" { (contents::classes_heading(comparison)) }
                    (table(&classes))
                    div class="charts" {
                        @for group in &comparison.groups { (confusion(group)) }
                    }
                    h2 id="pictures" { "Pictures" }
                    (images("Where the networks disagree", &disagreements))
                    (images("The most confident mistakes", &mistakes))
                    h3 { "Filters of the first layer" }
                    p class="quiet" { "Each filter is scaled to the full range of brightness." }
                    div class="charts" {
                        @for group in &comparison.groups { (filters(group)) }
                    }
                }

                @if !networks.is_empty() { h2 id="layers" { "Layers" } }
                @for run in &networks {
                    @if let Some(layers) = contents::layers(run) {
                        h3 { (network_name(&run.settings.model)) }
                        (table(&layers))
                    }
                }

                h2 id="runs" { "Settings and versions" }
                div class="provenance" { (table(&contents::provenance(comparison))) }
            }
        }
    };
    page.into_string()
}

/// The head of a page that has neither scripts nor anything from outside, and that a browser loads again after `refresh`
/// seconds.
pub(crate) fn head(title: &str, refresh: Option<u64>) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:";
            @if let Some(seconds) = refresh { meta http-equiv="refresh" content=(seconds); }
            // Browsers ask for an icon where none is named.
            link rel="icon" href="data:,";
            title { (title) }
            style { (PreEscaped(STYLE)) }
        }
    }
}

/// Cells of up to this many characters are not broken.
const UNBROKEN: usize = 14;

/// A text with no line break between a number and its unit, or no line break at all if it is short.
fn unbroken(text: &str) -> String {
    if text.chars().count() <= UNBROKEN {
        text.replace(' ', "\u{a0}")
    } else {
        text.replace(" %", "\u{a0}%")
    }
}

pub(crate) fn table(table: &Table) -> Markup {
    html! {
        div class="scroll" {
            table {
                thead { tr { @for cell in &table.header { th scope="col" { (cell) } } } }
                tbody {
                    @for row in &table.rows {
                        tr {
                            @for (column, cell) in row.iter().enumerate() {
                                @if column == 0 { th scope="row" { (cell) } } @else { td data-label=(table.header[column]) { (unbroken(cell)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn list(sentences: &[String]) -> Markup {
    html! {
        @if !sentences.is_empty() {
            ul { @for sentence in sentences { li { (sentence) } } }
        }
    }
}

/// The style's class of a group.
fn group_class(number: usize) -> String {
    format!("g{}", number % GROUP_COLOURS)
}

/// Mean and range over runs of a value per epoch, up to the last epoch that all of them have.
fn over_seeds(
    name: &str,
    class: &str,
    runs: &[Run],
    value: impl Fn(&EpochMetrics) -> f64,
) -> Series {
    let epochs = runs.iter().map(|run| run.epochs.len()).min().unwrap_or(0);
    let by_epoch = (0..epochs).map(|epoch| {
        let values = || runs.iter().map(|run| value(&run.epochs[epoch]));
        let low = values().fold(f64::INFINITY, f64::min);
        let high = values().fold(f64::NEG_INFINITY, f64::max);
        let mean = values().sum::<f64>() / runs.len() as f64;
        let epoch = epoch as f64 + 1.0;
        ((epoch, mean), (epoch, low, high))
    });
    let (points, band): (Vec<_>, Vec<_>) = by_epoch.unzip();
    Series {
        name: name.to_owned(),
        class: class.to_owned(),
        points,
        band: if runs.len() > 1 { band } else { Vec::new() },
        thin: false,
    }
}

/// A line for each run of a group.
fn run_lines(
    (number, group): (usize, &Group),
    thin: bool,
    points: impl Fn(&Run) -> Vec<(f64, f64)>,
) -> Vec<Series> {
    let line = |run| Series {
        name: group.label.clone(),
        class: group_class(number),
        points: points(run),
        band: Vec::new(),
        thin,
    };
    group.runs.iter().map(line).collect()
}

/// A value of each epoch of a run.
fn by_epoch(run: &Run, value: impl Fn(&EpochMetrics) -> f64) -> Vec<(f64, f64)> {
    let epochs = run.epochs.iter();
    epochs
        .map(|epoch| (f64::from(epoch.epoch), value(epoch)))
        .collect()
}

/// All groups in one chart.
fn overlay(
    comparison: &Comparison,
    title: &str,
    y: &'static str,
    value: impl Fn(&EpochMetrics) -> f64,
) -> Markup {
    let mut series = Vec::new();
    for (number, group) in comparison.groups.iter().enumerate() {
        let class = group_class(number);
        series.push(over_seeds(&group.label, &class, &group.runs, &value));
        if group.runs.len() > 1 {
            let points = |run: &Run| by_epoch(run, &value);
            series.extend(run_lines((number, group), true, points));
        }
    }
    Chart::by_epoch(title, y, series).figure()
}

/// Training blue, test orange, as in the post.
fn train_and_test(
    title: &str,
    runs: &[Run],
    y: &'static str,
    values: impl Fn(&EpochMetrics) -> (f64, f64),
) -> Markup {
    let series = vec![
        over_seeds("training", "train", runs, |epoch| values(epoch).0),
        over_seeds("test", "test", runs, |epoch| values(epoch).1),
    ];
    Chart::by_epoch(title, y, series).figure()
}

fn losses(label: &str, runs: &[Run]) -> Markup {
    train_and_test(&format!("{label}: loss"), runs, "loss", |epoch| {
        (epoch.train_loss, epoch.evaluated.loss)
    })
}

fn accuracies(label: &str, runs: &[Run]) -> Markup {
    let title = format!("{label}: accuracy");
    train_and_test(&title, runs, "accuracy (%)", |epoch| {
        (100.0 * epoch.train_accuracy, test_accuracy(epoch))
    })
}

fn test_accuracy(epoch: &EpochMetrics) -> f64 {
    100.0 * epoch.evaluated.accuracy
}

fn learning_rates(comparison: &Comparison) -> Markup {
    let groups = comparison.groups.iter().enumerate();
    let series = groups.flat_map(|group| {
        run_lines(group, false, |run| {
            let mut points = by_epoch(run, |epoch| epoch.learning_rate);
            // A learning rate of 0 has no logarithm.
            points.retain(|point| point.1 > 0.0);
            points
        })
    });
    Chart {
        logarithmic: true,
        ..Chart::by_epoch("Learning rate", "learning rate", series.collect())
    }
    .figure()
}

/// Test accuracy against training time.
fn wall_clock(comparison: &Comparison) -> Markup {
    let groups = comparison.groups.iter().enumerate();
    let series = groups.flat_map(|group| {
        run_lines(group, false, |run| {
            let mut seconds = 0.0;
            let points = run.epochs.iter().map(|epoch| {
                seconds += epoch.seconds;
                (seconds / 60.0, test_accuracy(epoch))
            });
            points.collect()
        })
    });
    let title = "Test accuracy against time";
    Chart {
        x: "minutes of training and evaluation",
        whole: false,
        ..Chart::by_epoch(title, "test accuracy (%)", series.collect())
    }
    .figure()
}

fn confusion(group: &Group) -> Markup {
    let recorded = contents::recorded(group);
    let (Some(counts), Some((_, predictions))) = (contents::confusion(group), recorded) else {
        return html! {};
    };
    let names = &predictions.class_names;
    if let Some(confusions) = contents::confusions(group) {
        return html! {
            figure class="chart" {
                figcaption { strong { (group.label) } span class="legend" { "the most frequent confusions" } }
                (table(&confusions))
            }
        };
    }
    html! {
        figure class="chart" {
            figcaption { strong { (group.label) } span class="legend" { "rows: label; columns: prediction; % of the row" } }
            div class="scroll" {
                table class="confusion" {
                    thead { tr { th {} @for name in names { th scope="col" { (name) } } } }
                    tbody {
                        @for (row, (name, counts)) in names.iter().zip(counts.chunks_exact(names.len())).enumerate() {
                            @let images = counts.iter().sum::<u64>().max(1) as f64;
                            tr {
                                th scope="row" { (name) }
                                @for (column, count) in counts.iter().copied().enumerate() {
                                    @let fraction = count as f64 / images;
                                    td class=(if row == column { "hit" } else { "miss" }) style={"--s:" (format!("{:.3}", 0.75 * fraction))} {
                                        @if count > 0 { (format!("{:.0}", 100.0 * fraction)) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn images(heading: &str, kinds: &[Images]) -> Markup {
    html! {
        @for (kind, images) in kinds {
            @if !images.is_empty() {
                h3 { (heading) ": " (kind) }
                (pictures(images, EvaluationSplit::Test))
            }
        }
    }
}

/// Images of `split` with their predictions.
pub(crate) fn pictures(images: &[PredictedImage], split: EvaluationSplit) -> Markup {
    html! {
        div class="pictures" {
            @for image in images {
                figure {
                    @if let Some(source) = picture::image(&image.picture) {
                        img src=(source) width="128" height="128" alt={(split) " image " (image.index) ", " (image.class)};
                    }
                    figcaption {
                        strong { (image.class) }
                        @for (label, class, probability) in &image.predicted {
                            span { (label) ": " (class) " " (format!("{:.1}\u{a0}%", 100.0 * probability)) }
                        }
                        span { (split) " image " (image.index) }
                    }
                }
            }
        }
    }
}

fn filters(group: &Group) -> Markup {
    let Some((run, predictions)) = contents::recorded(group) else {
        return html! {};
    };
    html! {
        @if let Some((source, width)) = picture::filters(&predictions.filters) {
            figure class="chart" {
                figcaption { strong { (group.label) ", seed " (run.settings.seed) } span class="legend" { (predictions.filters.side) " × " (predictions.filters.side) } }
                img class="filters" src=(source) width=(width) alt={"filters of the first layer of " (group.label)};
            }
        }
    }
}
