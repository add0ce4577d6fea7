//! The page of one run, which is refreshed during the run.

use crate::chart::{Chart, Series};
use crate::comparison::network_name;
use crate::contents::{PredictedImage, Table, duration, percent};
use crate::html::{head, pictures, table};
use datasets::DatasetSource;
use maud::{DOCTYPE, Markup, html};
use run::cli::{count, four_digits};
use run::predictions::Mistake;
use run::settings::Difference;
use run::{EpochMetrics, EvaluationSplit, Record};

/// Seconds between two versions of the page of a run that is running.
pub const REFRESH_SECONDS: u64 = 5;

/// What is known of a run.
#[derive(Clone, Debug)]
pub struct RunPage {
    /// Its name.
    pub name: String,
    /// Its record.
    pub record: Record,
    /// The settings in which it differs from its recipe, whose values come second.
    pub overrides: Vec<Difference>,
    /// The device in words.
    pub device: String,
    /// What it is evaluated on.
    pub split: EvaluationSplit,
    /// The finished epochs.
    pub epochs: Vec<EpochMetrics>,
    /// The most confident mistakes of the latest evaluation; `None` where this process has made none.
    pub mistakes: Option<Vec<MistakenImage>>,
    /// Whether it is running.
    pub state: State,
    /// The command that resumes it.
    pub resume: String,
}

/// An image that is misclassified.
#[derive(Clone, Debug)]
pub struct MistakenImage {
    /// What the network predicts.
    pub mistake: Mistake,
    /// The correct class.
    pub class: String,
    /// The predicted class.
    pub predicted: String,
    /// `[3, 32, 32]`.
    pub picture: Vec<u8>,
}

/// Whether a run is running.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// It is running.
    Training(Progress),
    /// All epochs are done, or early stopping ended it.
    Finished,
    /// It was interrupted after these steps of an epoch.
    Interrupted(usize),
    /// It failed, with this message, and can be resumed.
    Failed(String),
    /// Its loss or weights became infinite or NaN, with this message.
    Diverged(String),
}

/// Where a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Finished steps of the epoch.
    pub step: usize,
    /// Steps of the epoch; 0 before the first one and between two epochs.
    pub steps: usize,
    /// Whether the steps are done and the network is evaluated.
    pub is_evaluating: bool,
    /// What is known after a step of this process.
    pub metrics: Option<ProgressMetrics>,
}

/// What is known of an epoch before its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProgressMetrics {
    /// Mean training loss.
    pub loss: f64,
    /// Training accuracy, 0 to 1.
    pub accuracy: f64,
    /// Training throughput.
    pub images_per_second: f64,
    /// Time until the end of the run.
    pub seconds_left: f64,
}

/// The page. `written` is the time.
#[must_use]
pub fn run_page(run: &RunPage, written: &str) -> String {
    let settings = &run.record.settings;
    let title = format!(
        "{} on {}",
        network_name(&settings.model),
        DatasetSource::display_name(&settings.dataset)
    );
    let is_running = matches!(run.state, State::Training(_));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            (head(&format!("{}: {title}", run.name), is_running.then_some(REFRESH_SECONDS)))
            body {
                h1 { (title) }
                p class="quiet" {
                    "Run " (run.name) ", recipe " (settings.recipe) ", seed " (settings.seed) ", on " (run.device)
                }
                (state(run))
                (facts(run))
                p class="quiet" {
                    "Written on " (written) "."
                    @if is_running {
                        " This page is refreshed every " (REFRESH_SECONDS) " seconds during the run. If it is older than that, the run was killed, and this command resumes it:"
                    }
                }
                @if is_running { pre { (run.resume) } }
                @if !run.epochs.is_empty() {
                    h2 { "Curves" }
                    (charts(run))
                    h2 { "Epochs" }
                    (table(&epochs(run)))
                }
                @if let Some(mistakes) = &run.mistakes {
                    h2 { "Mistakes" }
                    (pictures_of(mistakes, run))
                } @else if run.state != State::Finished {
                    h2 { "Mistakes" }
                    p class="quiet" { "They are shown after the next evaluation." }
                }
                h2 { "Settings that differ from the recipe" }
                (overrides(run))
                h2 { "Record" }
                pre { (run.record.to_toml().unwrap_or_default()) }
            }
        }
    };
    page.into_string()
}

/// Where the run is, in words and as a bar.
fn state(run: &RunPage) -> Markup {
    let epochs = run.record.settings.epochs.get();
    let done = run.epochs.len();
    match &run.state {
        State::Training(progress) => {
            let Progress { step, steps, .. } = *progress;
            let of_epoch = step as f64 / steps.max(1) as f64;
            let fraction = (done as f64 + of_epoch) / f64::from(epochs);
            html! {
                p {
                    @if done >= epochs as usize { strong { "Finishing" } }
                    @else {
                        strong { "Epoch " (done + 1) " of " (epochs) } ", "
                        @if progress.is_evaluating { "evaluating on the " (run.split) " images" }
                        @else if steps == 0 { "starting" }
                        @else { "step " (step) " of " (steps) }
                    }
                }
                label class="bar" { "epoch" progress value=(of_epoch) {} }
                label class="bar" { "run" progress value=(fraction) {} }
            }
        }
        State::Finished => {
            let stopped_early = run.epochs.last().is_some_and(|last| last.stopped_early);
            html! {
                p {
                    strong { "Finished" } " after " (count(done, "epoch"))
                    @if stopped_early { " by early stopping" }
                }
            }
        }
        State::Interrupted(steps) => html! {
            p { strong { "Interrupted" } " after " (done) " of " (count(epochs as usize, "epoch")) " and " (count(*steps, "step")) ". This command resumes the run:" }
            pre { (run.resume) }
        },
        State::Diverged(message) => html! {
            p { strong { "Failed" } " after " (done) " of " (count(epochs as usize, "epoch")) ": " (message) }
        },
        State::Failed(message) => html! {
            p { strong { "Failed" } " after " (done) " of " (count(epochs as usize, "epoch")) ": " (message) }
            p { "Once the cause is removed, this command resumes the run from its last checkpoint:" }
            pre { (run.resume) }
        },
    }
}

/// The first epoch with the highest accuracy.
fn best(epochs: &[EpochMetrics]) -> Option<&EpochMetrics> {
    epochs.iter().reduce(|best, epoch| {
        if epoch.evaluated.accuracy > best.evaluated.accuracy {
            epoch
        } else {
            best
        }
    })
}

/// The figures that are looked for first.
fn facts(run: &RunPage) -> Markup {
    let mut facts = Vec::new();
    if let State::Training(Progress {
        metrics: Some(metrics),
        ..
    }) = run.state
    {
        facts.extend([
            ("time left".to_owned(), duration(metrics.seconds_left)),
            (
                "images per second".to_owned(),
                format!("{:.0}", metrics.images_per_second),
            ),
            ("training loss".to_owned(), format!("{:.4}", metrics.loss)),
            ("training accuracy".to_owned(), percent(metrics.accuracy)),
        ]);
    }
    if let (Some(last), Some(best)) = (run.epochs.last(), best(&run.epochs)) {
        let (split, accuracy) = (run.split, last.evaluated.accuracy);
        let seconds: f64 = run.epochs.iter().map(|epoch| epoch.seconds).sum();
        facts.extend([
            (format!("{split} accuracy"), percent(accuracy)),
            (
                format!("best, after epoch {}", best.epoch),
                percent(best.evaluated.accuracy),
            ),
        ]);
        let time = match run.state {
            State::Finished => "time of all epochs",
            _ => "time of finished epochs",
        };
        facts.push((time.to_owned(), duration(seconds)));
        if !matches!(run.state, State::Training(_)) {
            let throughput = format!("{:.0}", last.images_per_second);
            facts.push(("images per second".to_owned(), throughput));
        }
    }
    html! {
        @if !facts.is_empty() {
            dl class="facts" { @for (name, value) in facts { div { dt { (name) } dd { (value) } } } }
        }
    }
}

/// A line of a value by epoch, of the epochs that have it.
fn series(
    name: impl Into<String>,
    class: &str,
    epochs: &[EpochMetrics],
    value: impl Fn(&EpochMetrics) -> Option<f64>,
) -> Series {
    let points = epochs.iter();
    let points = points.filter_map(|epoch| Some((f64::from(epoch.epoch), value(epoch)?)));
    Series {
        name: name.into(),
        class: class.to_owned(),
        points: points.collect(),
        band: Vec::new(),
        thin: false,
    }
}

/// Loss, accuracy, learning rate and throughput.
fn charts(run: &RunPage) -> Markup {
    let (epochs, split) = (run.epochs.as_slice(), run.split);
    let chart = |title, y, mut series: Vec<Series>| {
        series.retain(|series| !series.points.is_empty());
        Chart::by_epoch(title, y, series)
    };
    let ema = || format!("{split}, EMA");
    let loss = vec![
        series("training", "train", epochs, |epoch| Some(epoch.train_loss)),
        series(split.to_string(), "test", epochs, |epoch| {
            Some(epoch.evaluated.loss)
        }),
        series(ema(), "g0", epochs, |epoch| epoch.evaluated.model_ema_loss),
    ];
    let percents = |fraction: f64| Some(100.0 * fraction);
    let accuracy = vec![
        series("training", "train", epochs, |epoch| {
            percents(epoch.train_accuracy)
        }),
        series(split.to_string(), "test", epochs, |epoch| {
            percents(epoch.evaluated.accuracy)
        }),
        series(ema(), "g0", epochs, |epoch| {
            epoch.evaluated.model_ema_accuracy.and_then(percents)
        }),
    ];
    // A learning rate of 0 has no logarithm.
    let positive = |epoch: &EpochMetrics| Some(epoch.learning_rate).filter(|rate| *rate > 0.0);
    let rate = vec![series("of the first step", "g4", epochs, positive)];
    let throughput = vec![series("training", "train", epochs, |epoch| {
        Some(epoch.images_per_second)
    })];
    html! {
        div class="charts" {
            (chart("Loss", "loss", loss).figure())
            (chart("Accuracy", "accuracy (%)", accuracy).figure())
            (Chart { logarithmic: true, ..chart("Learning rate", "learning rate", rate) }.figure())
            (chart("Throughput", "images/s", throughput).figure())
        }
    }
}

/// The epochs, the latest one first. Columns without a value are left out.
fn epochs(run: &RunPage) -> Table {
    type Value = fn(&EpochMetrics) -> Option<String>;
    fn loss(loss: f64) -> String {
        format!("{loss:.4}")
    }
    let split = run.split;
    let columns: [(String, Value); 10] = [
        ("training loss".to_owned(), |epoch| {
            Some(loss(epoch.train_loss))
        }),
        ("training accuracy".to_owned(), |epoch| {
            Some(percent(epoch.train_accuracy))
        }),
        (format!("{split} loss"), |epoch| {
            Some(loss(epoch.evaluated.loss))
        }),
        (format!("{split} accuracy"), |epoch| {
            Some(percent(epoch.evaluated.accuracy))
        }),
        (format!("{split} loss, EMA"), |epoch| {
            epoch.evaluated.model_ema_loss.map(loss)
        }),
        (format!("{split} accuracy, EMA"), |epoch| {
            epoch.evaluated.model_ema_accuracy.map(percent)
        }),
        (format!("{split} accuracy, TTA"), |epoch| {
            epoch.evaluated.tta_accuracy.map(percent)
        }),
        ("learning rate".to_owned(), |epoch| {
            Some(four_digits(epoch.learning_rate).to_string())
        }),
        ("time".to_owned(), |epoch| Some(duration(epoch.seconds))),
        ("images/s".to_owned(), |epoch| {
            Some(format!("{:.0}", epoch.images_per_second))
        }),
    ];
    let is_present =
        |(_, value): &&(String, Value)| run.epochs.iter().any(|epoch| value(epoch).is_some());
    let columns: Vec<_> = columns.iter().filter(is_present).collect();
    let mut table = Table::new("epoch", columns.iter().map(|(name, _)| name));
    for epoch in run.epochs.iter().rev() {
        let values = columns.iter().map(|(_, value)| value(epoch));
        table.row(epoch.epoch.to_string(), values);
    }
    table
}

/// The most confident mistakes as pictures.
fn pictures_of(mistakes: &[MistakenImage], run: &RunPage) -> Markup {
    let images = mistakes.iter().map(|image| PredictedImage {
        index: image.mistake.index,
        class: image.class.clone(),
        predicted: vec![(
            "predicted".to_owned(),
            image.predicted.clone(),
            image.mistake.probability,
        )],
        picture: image.picture.clone(),
    });
    let images: Vec<_> = images.collect();
    html! {
        @if images.is_empty() {
            p { "There are none." }
        } @else {
            p class="quiet" {
                "The most confident ones on the " (run.split) " images after epoch " (run.epochs.len()) ": the correct class, and the predicted one with its probability."
            }
            (pictures(&images, run.split))
        }
    }
}

/// The settings in which the run differs from its recipe.
fn overrides(run: &RunPage) -> Markup {
    let mut differences = Table::new("setting", ["this run", "recipe"]);
    for Difference { key, first, second } in &run.overrides {
        let values = [first, second].map(|value| Some(value.trim_matches('"').to_owned()));
        differences.row(key.replace('_', " "), values);
    }
    html! {
        @if run.overrides.is_empty() {
            p { "There are none." }
        } @else {
            div class="provenance" { (table(&differences)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up;

    fn page(state: State, epochs: &[(f64, f64, f64)]) -> RunPage {
        let run = made_up::run("alexnet", 7, "epochs = 4\nlr = 0.25", epochs);
        RunPage {
            name: "a<b>".to_owned(),
            record: Record {
                settings: run.settings,
                made_by: run.made_by,
            },
            overrides: vec![Difference {
                key: "lr",
                first: "0.25".to_owned(),
                second: "0.01".to_owned(),
            }],
            device: "cpu".to_owned(),
            split: EvaluationSplit::Test,
            epochs: run.epochs,
            mistakes: None,
            state,
            resume: "cargo run -p trainer -- --resume 'runs/a<b>'".to_owned(),
        }
    }

    const TWO: [(f64, f64, f64); 2] = [(2.0, 1.5, 0.5), (1.0, 1.25, 0.75)];

    fn assert_has(page: &str, parts: &[&str]) {
        for part in parts {
            assert!(page.contains(part), "{part} is not in {page}");
        }
    }

    #[test]
    fn a_running_run_shows_where_it_is() {
        let mut progress = Progress {
            step: 25,
            steps: 100,
            is_evaluating: false,
            metrics: Some(ProgressMetrics {
                loss: 0.875,
                accuracy: 0.625,
                images_per_second: 1234.5,
                seconds_left: 90.0,
            }),
        };
        let training = |progress| run_page(&page(State::Training(progress), &TWO), "2026-11-27");
        let text = training(progress);
        assert_has(
            &text,
            &[
                "<meta http-equiv=\"refresh\" content=\"5\">",
                "Epoch 3 of 4</strong>, step 25 of 100",
                "<progress value=\"0.25\">",
                "<progress value=\"0.5625\">",
                "<dd>90.0 s</dd>",
                "<dd>1234</dd>",
                "<dd>0.8750</dd>",
                "<dd>62.50 %</dd>",
                "Written on 2026-11-27.",
                "This page is refreshed every 5 seconds",
                "time of finished epochs",
                "best, after epoch 2",
                "shown after the next evaluation",
            ],
        );
        progress.is_evaluating = true;
        assert_has(
            &training(progress),
            &["Epoch 3 of 4</strong>, evaluating on the test images"],
        );
        let text = run_page(&page(State::Training(Progress::default()), &[]), "");
        assert_has(&text, &["Epoch 1 of 4</strong>, starting"]);
        assert!(!text.contains("Curves"), "{text}");
    }

    #[test]
    fn a_run_that_has_ended_does_not_load_its_page_again() {
        for (state, epochs, parts) in [
            (
                State::Finished,
                &TWO[..],
                &["Finished</strong> after 2 epochs", "time of all epochs"][..],
            ),
            (
                State::Interrupted(3),
                &TWO,
                &[
                    "Interrupted</strong> after 2 of 4 epochs and 3 steps",
                    "<pre>cargo run -p trainer -- --resume 'runs/a&lt;b&gt;'</pre>",
                ],
            ),
            (
                State::Failed("no <memory>".to_owned()),
                &[],
                &[
                    "Failed</strong> after 0 of 4 epochs: no &lt;memory&gt;",
                    "--resume",
                ],
            ),
            (
                State::Diverged("use a lower learning rate".to_owned()),
                &[],
                &["Failed</strong> after 0 of 4 epochs: use a lower learning rate</p><p"],
            ),
        ] {
            let text = run_page(&page(state, epochs), "");
            assert_has(&text, parts);
            assert!(
                !text.contains("refresh") && !text.contains("is refreshed"),
                "{text}"
            );
        }
    }

    #[test]
    fn the_page_has_every_epoch_the_record_and_the_mistakes() {
        let mut page = page(State::Finished, &TWO);
        page.epochs[1].evaluated.model_ema_accuracy = Some(0.875);
        let class = "<script>alert(1)</script> or a very long name of the thousandth class";
        page.mistakes = Some(vec![MistakenImage {
            mistake: Mistake {
                index: 4711,
                predicted: 999,
                probability: 0.9375,
            },
            class: "street".to_owned(),
            predicted: class.to_owned(),
            picture: vec![0; 3072],
        }]);
        let text = run_page(&page, "");
        assert_has(
            &text,
            &[
                "<title>a&lt;b&gt;: AlexNet on CIFAR-10</title>",
                "default-src 'none'",
                "test accuracy, EMA",
                "87.50\u{a0}%",
                "<strong>street</strong>",
                "predicted: &lt;script&gt;alert(1)&lt;/script&gt; or a very long",
                "93.8\u{a0}%",
                "test image 4711",
                "src=\"data:image/png;base64,",
                ">0.25</td>",
                "\nlr = 0.25\n",
                "[made_by]",
            ],
        );
        assert!(!text.contains("<script") && !text.contains("TTA"), "{text}");
        page.mistakes = Some(Vec::new());
        page.overrides.clear();
        assert_eq!(run_page(&page, "").matches("There are none.").count(), 2);
    }
}
