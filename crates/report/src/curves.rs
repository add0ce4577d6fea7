//! The curves of runs, as in the post: loss on the left, accuracy on the right, training blue, test orange, one point
//! an epoch; and the loss against the learning rates of the LR finder.

use crate::comparison::Comparison;
use crate::{contents, picture};
use image::RgbImage;
use plotters::coord::{CoordTranslate, Shift};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use run::{EpochMetrics, EvaluationSplit, LrFinderStep};

/// A plot that could not be drawn or encoded.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the curves: {0}")]
pub struct Error(String);

/// A plot as two files.
#[derive(Clone, Debug)]
pub struct Plot {
    /// An SVG document.
    pub svg: String,
    /// A PNG file.
    pub png: Vec<u8>,
}

/// Width and height of a plot of one run, in pixels.
const SIZE: (u32, u32) = (1600, 640);

/// Height of a comparison's title, in pixels.
const TITLE_HEIGHT: u32 = 60;

/// Height of a group's title and panels, in pixels.
const GROUP_HEIGHT: u32 = 520;

/// The two colours by which matplotlib, and so the post, tells curves apart.
const TRAINING: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const TEST: RGBColor = RGBColor(0xff, 0x7f, 0x0e);

/// The font's name in the plot. An SVG is shown in the viewer's own sans-serif font.
const FONT: &str = "sans-serif";

/// Loss and accuracy by epoch.
///
/// # Errors
/// When they cannot be drawn.
pub fn curves(title: &str, epochs: &[EpochMetrics]) -> Result<Plot, Error> {
    plot(title, Figure::Curves(epochs))
}

/// Loss and accuracy by epoch of all runs of a comparison as an SVG document: a row for each group, a line for each run.
/// All rows have the same axes.
///
/// # Errors
/// When they cannot be drawn.
pub(crate) fn comparison_curves(comparison: &Comparison) -> Result<String, Error> {
    let groups = comparison.groups.len() as u32;
    let size = (SIZE.0, TITLE_HEIGHT + groups * GROUP_HEIGHT);
    let title = contents::title(comparison);
    svg(size, &title, Figure::Comparison(comparison))
}

/// The loss against the learning rates of the LR finder, with its suggestion marked.
///
/// # Errors
/// When it cannot be drawn.
pub fn lr_curve(
    title: &str,
    steps: &[LrFinderStep],
    suggestion: Option<f64>,
) -> Result<Plot, Error> {
    plot(title, Figure::LrFinder(steps, suggestion))
}

/// What is drawn.
#[derive(Clone, Copy)]
enum Figure<'a> {
    Curves(&'a [EpochMetrics]),
    Comparison(&'a Comparison),
    LrFinder(&'a [LrFinderStep], Option<f64>),
}

fn plot(title: &str, figure: Figure<'_>) -> Result<Plot, Error> {
    let svg = svg(SIZE, title, figure)?;
    let mut pixels = RgbImage::new(SIZE.0, SIZE.1);
    draw(BitMapBackend::with_buffer(&mut pixels, SIZE), title, figure)?;
    let png = picture::png(&pixels).map_err(error)?;
    Ok(Plot { svg, png })
}

fn svg(size: (u32, u32), title: &str, figure: Figure<'_>) -> Result<String, Error> {
    let mut svg = String::new();
    draw(SVGBackend::with_string(&mut svg, size), title, figure)?;
    Ok(svg)
}

fn error(error: impl std::fmt::Display) -> Error {
    Error(error.to_string())
}

/// One panel: what it shows of an epoch, training first.
struct Panel {
    caption: &'static str,
    values: fn(&EpochMetrics) -> [f64; 2],
    /// The lowest upper end of the axis, which begins at 0.
    least: f64,
    legend: SeriesLabelPosition,
}

const PANELS: [Panel; 2] = [
    Panel {
        caption: "Loss",
        values: |epoch| [epoch.train_loss, epoch.evaluated.loss],
        least: 0.1,
        legend: SeriesLabelPosition::UpperRight,
    },
    Panel {
        caption: "Accuracy (%)",
        values: |epoch| {
            [epoch.train_accuracy, epoch.evaluated.accuracy].map(|accuracy| 100.0 * accuracy)
        },
        least: 1.0,
        legend: SeriesLabelPosition::LowerRight,
    },
];

fn draw<B: DrawingBackend>(backend: B, title: &str, figure: Figure<'_>) -> Result<(), Error> {
    register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| error("the font is damaged"))?;
    let area = backend.into_drawing_area();
    area.fill(&WHITE).map_err(error)?;
    let area = area.margin(14, 0, 0, 0);
    let area = area.titled(title, (FONT, 30)).map_err(error)?;
    match figure {
        Figure::Curves(epochs) => draw_panels(&area, &[epochs], &[epochs])?,
        Figure::Comparison(comparison) => {
            let all: Vec<_> = comparison.runs().map(|run| &run.epochs[..]).collect();
            let rows = area.split_evenly((comparison.groups.len(), 1));
            for (group, row) in comparison.groups.iter().zip(rows) {
                let row = row.titled(&group.label, (FONT, 28)).map_err(error)?;
                let runs: Vec<_> = group.runs.iter().map(|run| &run.epochs[..]).collect();
                draw_panels(&row, &runs, &all)?;
            }
        }
        Figure::LrFinder(steps, suggestion) => draw_lr_finder(&area, steps, suggestion)?,
    }
    area.present().map_err(error)
}

/// A chart with space for the labels of its axes.
fn builder<'a, 'b, B: DrawingBackend>(area: &'a DrawingArea<B, Shift>) -> ChartBuilder<'a, 'b, B> {
    let mut builder = ChartBuilder::on(area);
    builder
        .margin(20)
        .x_label_area_size(60)
        .y_label_area_size(80);
    builder
}

/// Loss and accuracy of `runs` side by side, on axes for the values of `all` runs.
fn draw_panels<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    runs: &[&[EpochMetrics]],
    all: &[&[EpochMetrics]],
) -> Result<(), Error> {
    for (panel, area) in PANELS.iter().zip(area.split_evenly((1, 2))) {
        draw_panel(&area, panel, runs, all)?;
    }
    Ok(())
}

fn draw_panel<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    panel: &Panel,
    runs: &[&[EpochMetrics]],
    all: &[&[EpochMetrics]],
) -> Result<(), Error> {
    let epochs = || all.iter().copied().flatten();
    let split = epochs()
        .next()
        .map_or(EvaluationSplit::Test, |epoch| epoch.evaluated.split);
    let values = || epochs().flat_map(panel.values);
    let (low, high) = (
        values().fold(0.0, f64::min),
        values().fold(panel.least, f64::max),
    );
    let longest = all.iter().map(|run| run.len()).max().unwrap_or(0);
    // One epoch is a point; the margin on both sides shows it.
    let last = longest.max(2) as f64;
    let mut chart = builder(area)
        .caption(panel.caption, (FONT, 26))
        .build_cartesian_2d(
            1.0 - 0.02 * last..last * 1.02,
            low..high + 0.05 * (high - low),
        )
        .map_err(error)?;
    chart
        .configure_mesh()
        .x_desc("Epoch")
        .x_labels(longest.clamp(2, 11))
        .x_label_formatter(&|epoch| {
            // A short run has ticks between two epochs, which are not labelled.
            if epoch.fract() == 0.0 {
                format!("{epoch}")
            } else {
                String::new()
            }
        })
        .y_label_formatter(&|value| format!("{value:.*}", if high > 5.0 { 0 } else { 1 }))
        .label_style((FONT, 20))
        .axis_desc_style((FONT, 22))
        .light_line_style(RGBColor(0xf4, 0xf4, 0xf4))
        .bold_line_style(RGBColor(0xdd, 0xdd, 0xdd))
        .draw()
        .map_err(error)?;
    let curves = [("training".to_owned(), TRAINING), (split.to_string(), TEST)];
    for (column, (name, colour)) in curves.into_iter().enumerate() {
        for (index, run) in runs.iter().enumerate() {
            let point =
                |epoch: &EpochMetrics| (f64::from(epoch.epoch), (panel.values)(epoch)[column]);
            let points: Vec<_> = run.iter().map(point).collect();
            let circles = points
                .iter()
                .map(|point| Circle::new(*point, 4, colour.filled()));
            let circles: Vec<_> = circles.collect();
            // All runs share one entry of the legend.
            let name = (index == 0).then(|| name.clone());
            draw_line(&mut chart, name, colour, points)?;
            chart.draw_series(circles).map_err(error)?;
        }
    }
    draw_legend(&mut chart, panel.legend.clone())
}

/// The loss of each step in grey, its moving average in the colour of training, the suggestion as a line.
fn draw_lr_finder<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    steps: &[LrFinderStep],
    suggestion: Option<f64>,
) -> Result<(), Error> {
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
        return Ok(());
    };
    let smoothed = || steps.iter().map(|step| step.smoothed_loss);
    let all = smoothed().chain(steps.iter().map(|step| step.loss));
    let low = all.fold(f64::INFINITY, f64::min);
    // A single step far above the others is outside.
    let high = smoothed().fold(f64::NEG_INFINITY, f64::max);
    let margin = 0.1 * (high - low).max(0.1);
    let (low, high) = ((low - margin).max(0.0), high + margin);
    // One step is a point; the margin on both sides shows it.
    let lrs = 0.9 * first.lr..1.1 * last.lr;
    let mut chart = builder(area)
        .build_cartesian_2d(lrs.log_scale(), low..high)
        .map_err(error)?;
    chart
        .configure_mesh()
        .x_desc("Learning rate")
        .y_desc("Training loss")
        .x_label_formatter(&|lr| format!("{lr:.0e}"))
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .label_style((FONT, 20))
        .axis_desc_style((FONT, 22))
        .light_line_style(WHITE)
        .draw()
        .map_err(error)?;
    let grey = BLACK.mix(0.3).filled();
    let inside = steps
        .iter()
        .filter(|step| (low..=high).contains(&step.loss));
    chart
        .draw_series(inside.map(|step| Circle::new((step.lr, step.loss), 3, grey)))
        .map_err(error)?
        .label("of one step")
        .legend(move |(x, y)| Circle::new((x + 15, y), 3, grey));
    let average = steps.iter().map(|step| (step.lr, step.smoothed_loss));
    draw_line(
        &mut chart,
        Some("moving average".to_owned()),
        TRAINING,
        average.collect(),
    )?;
    if let Some(lr) = suggestion {
        let name = format!("suggested: {lr:.2e}");
        draw_line(&mut chart, Some(name), TEST, vec![(lr, low), (lr, high)])?;
    }
    draw_legend(&mut chart, SeriesLabelPosition::UpperMiddle)
}

/// A line, which is in the legend if it has a name.
fn draw_line<'a, B: DrawingBackend + 'a, C: CoordTranslate<From = (f64, f64)>>(
    chart: &mut ChartContext<'a, B, C>,
    name: Option<String>,
    colour: RGBColor,
    points: Vec<(f64, f64)>,
) -> Result<(), Error> {
    let style = colour.stroke_width(3);
    let line = chart
        .draw_series(LineSeries::new(points, style))
        .map_err(error)?;
    if let Some(name) = name {
        line.label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 30, y)], style));
    }
    Ok(())
}

fn draw_legend<'a, B: DrawingBackend + 'a, C: CoordTranslate>(
    chart: &mut ChartContext<'a, B, C>,
    position: SeriesLabelPosition,
) -> Result<(), Error> {
    chart
        .configure_series_labels()
        .position(position)
        .legend_area_size(40)
        .margin(12)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(0xbb, 0xbb, 0xbb))
        .label_font((FONT, 20))
        .draw()
        .map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(count: u32) -> Vec<EpochMetrics> {
        let metrics = |epoch| {
            let epoch = f64::from(epoch);
            (2.3 / epoch, 2.3 / epoch.sqrt(), 1.0 - 0.9 / epoch.sqrt())
        };
        let metrics: Vec<_> = (1..=count).map(metrics).collect();
        crate::made_up::run("alexnet", 0, "", &metrics).epochs
    }

    fn colours(png: &[u8]) -> usize {
        let picture = image::load_from_memory(png).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), SIZE);
        [TRAINING, TEST]
            .into_iter()
            .filter(|colour| {
                let pixel = image::Rgb([colour.0, colour.1, colour.2]);
                picture.pixels().filter(|p| **p == pixel).count() > 50
            })
            .count()
    }

    #[test]
    fn both_curves_are_visible_for_any_number_of_epochs() {
        for count in [1, 2, 3, 50] {
            assert_eq!(
                colours(&curves("title", &epochs(count)).unwrap().png),
                2,
                "{count}"
            );
        }
    }

    #[test]
    fn the_svg_has_title_axes_and_both_curves() {
        let svg = curves("a <title> & more", &epochs(7)).unwrap().svg;
        for part in [
            "a &lt;title&gt; &amp; more",
            "Loss",
            "Accuracy (%)",
            "Epoch",
            "training",
            "test",
            "#1F77B4",
            "#FF7F0E",
        ] {
            assert!(svg.contains(part), "{part} is not in {svg}");
        }
    }

    #[test]
    fn a_comparison_has_a_row_for_each_group_and_a_line_for_each_run() {
        let run = |model, seed, accuracy| {
            let epochs = [(1.0, 1.1, accuracy), (0.5, 0.9, accuracy)];
            crate::made_up::run(model, seed, "", &epochs)
        };
        let runs = vec![
            run("alexnet", 0, 0.8),
            run("alexnet", 1, 0.7),
            run("small-alexnet", 0, 0.6),
        ];
        let svg = comparison_curves(&Comparison::new(runs).unwrap()).unwrap();
        for label in [
            "AlexNet and SmallAlexNet",
            "\nAlexNet\n",
            "\nSmallAlexNet\n",
        ] {
            assert!(svg.contains(label), "{label} is not in {svg}");
        }
        for colour in ["#1F77B4", "#FF7F0E"] {
            let line = format!(r#"<polyline fill="none" opacity="1" stroke="{colour}""#);
            // Three runs in two panels each, and the legends of four panels.
            assert_eq!(svg.matches(&line).count(), 3 * 2 + 4, "{svg}");
        }
    }

    #[test]
    fn the_lr_finder_shows_its_steps_and_its_suggestion() {
        let tried: Vec<_> = (0..50)
            .map(|step| LrFinderStep {
                lr: 1e-5 * 1.25_f64.powi(step),
                loss: 2.3 - 0.02 * f64::from(step) + 0.01 * f64::from(step % 3),
                smoothed_loss: 2.3 - 0.02 * f64::from(step),
            })
            .collect();
        let plot = lr_curve("title", &tried, Some(1e-3)).unwrap();
        assert_eq!(colours(&plot.png), 2);
        assert!(plot.svg.contains("suggested: 1.00e-3"), "{}", plot.svg);
        for count in [0, 1, 2] {
            lr_curve("title", &tried[..count], None).unwrap();
        }
    }
}
