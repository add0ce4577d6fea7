//! The curves of a run, as in the post: loss on the left, accuracy on the right, training blue,
//! test orange, one point an epoch; and the loss against the rates of a search.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
use run::{EpochMetrics, EvaluationSplit};
use serde::Serialize;
use std::io::Cursor;

/// A picture that could not be drawn or encoded.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the curves: {0}")]
pub struct Error(String);

/// Width and height of the picture, in pixels.
const SIZE: (u32, u32) = (1600, 640);

/// The two colours by which matplotlib, and so the post, tells curves apart.
const TRAINING: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const TEST: RGBColor = RGBColor(0xff, 0x7f, 0x0e);

/// The font's name in the picture. An SVG is shown in the viewer's own sans-serif font.
const FONT: &str = "sans-serif";

/// The curves as an SVG document.
///
/// # Errors
/// When they cannot be drawn.
pub fn curves_svg(title: &str, epochs: &[EpochMetrics]) -> Result<String, Error> {
    svg(title, Figure::Curves(epochs))
}

/// The curves as a PNG file.
///
/// # Errors
/// When they cannot be drawn.
pub fn curves_png(title: &str, epochs: &[EpochMetrics]) -> Result<Vec<u8>, Error> {
    png(title, Figure::Curves(epochs))
}

/// One step of a search for a learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TriedRate {
    /// The step's rate.
    pub learning_rate: f64,
    /// The loss of its images.
    pub loss: f64,
    /// The loss as a moving average.
    pub smoothed_loss: f64,
}

/// The loss against the rates of a search, with the suggested one marked, as an SVG document.
///
/// # Errors
/// When it cannot be drawn.
pub fn rates_svg(
    title: &str,
    tried: &[TriedRate],
    suggestion: Option<f64>,
) -> Result<String, Error> {
    svg(title, Figure::Rates(tried, suggestion))
}

/// The same as a PNG file.
///
/// # Errors
/// When it cannot be drawn.
pub fn rates_png(
    title: &str,
    tried: &[TriedRate],
    suggestion: Option<f64>,
) -> Result<Vec<u8>, Error> {
    png(title, Figure::Rates(tried, suggestion))
}

/// What is drawn.
#[derive(Clone, Copy)]
enum Figure<'a> {
    Curves(&'a [EpochMetrics]),
    Rates(&'a [TriedRate], Option<f64>),
}

fn svg(title: &str, figure: Figure<'_>) -> Result<String, Error> {
    let mut text = String::new();
    draw(
        &SVGBackend::with_string(&mut text, SIZE).into_drawing_area(),
        title,
        figure,
    )?;
    Ok(text)
}

fn png(title: &str, figure: Figure<'_>) -> Result<Vec<u8>, Error> {
    let (width, height) = SIZE;
    let mut pixels = vec![0; (width * height * 3) as usize];
    draw(
        &BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area(),
        title,
        figure,
    )?;
    let picture = image::RgbImage::from_raw(width, height, pixels)
        .ok_or_else(|| Error("a picture of another size".to_owned()))?;
    let mut file = Cursor::new(Vec::new());
    picture
        .write_to(&mut file, image::ImageFormat::Png)
        .map_err(error)?;
    Ok(file.into_inner())
}

fn error(error: impl std::fmt::Display) -> Error {
    Error(error.to_string())
}

/// One panel: what it shows of an epoch, training first.
struct Panel {
    caption: &'static str,
    values: fn(&EpochMetrics) -> (f64, f64),
    /// The range that the axis shows at least.
    least: (f64, f64),
}

const PANELS: [Panel; 2] = [
    Panel {
        caption: "Loss",
        values: |epoch| (epoch.train_loss, epoch.evaluated().loss),
        least: (0.0, 0.1),
    },
    Panel {
        caption: "Accuracy (%)",
        values: |epoch| {
            (
                100.0 * epoch.train_accuracy,
                100.0 * epoch.evaluated().accuracy,
            )
        },
        least: (0.0, 1.0),
    },
];

fn draw<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    figure: Figure<'_>,
) -> Result<(), Error> {
    register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| error("the font is damaged"))?;
    area.fill(&WHITE).map_err(error)?;
    let area = area.margin(14, 0, 0, 0);
    let area = area.titled(title, (FONT, 30)).map_err(error)?;
    match figure {
        Figure::Curves(epochs) => {
            for (panel, area) in PANELS.iter().zip(area.split_evenly((1, 2))) {
                draw_panel(&area, panel, epochs)?;
            }
        }
        Figure::Rates(tried, suggestion) => draw_rates(&area, tried, suggestion)?,
    }
    area.present().map_err(error)
}

fn draw_panel<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    panel: &Panel,
    epochs: &[EpochMetrics],
) -> Result<(), Error> {
    let points = |side: fn((f64, f64)) -> f64| {
        epochs
            .iter()
            .map(move |epoch| (f64::from(epoch.epoch), side((panel.values)(epoch))))
    };
    let split = epochs
        .first()
        .map_or(EvaluationSplit::Test, EpochMetrics::split);
    let curves = [
        (
            "training".to_owned(),
            TRAINING,
            points(|values| values.0).collect::<Vec<_>>(),
        ),
        (split.to_string(), TEST, points(|values| values.1).collect()),
    ];
    let (low, high) = curves
        .iter()
        .flat_map(|(.., points)| points)
        .fold(panel.least, |(low, high), (_, value)| {
            (low.min(*value), high.max(*value))
        });
    // One epoch is a point; room on both sides shows it.
    let last = epochs.len().max(2) as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(panel.caption, (FONT, 26))
        .margin(20)
        .x_label_area_size(60)
        .y_label_area_size(80)
        .build_cartesian_2d(
            1.0 - 0.02 * last..last * 1.02,
            low..high + 0.05 * (high - low),
        )
        .map_err(error)?;
    chart
        .configure_mesh()
        .x_desc("Epoch")
        .x_labels(epochs.len().clamp(2, 11))
        .x_label_formatter(&|epoch| {
            // Ticks between two epochs, as a short run has them, stay without a number.
            if epoch.fract() == 0.0 {
                format!("{epoch}")
            } else {
                String::new()
            }
        })
        .y_label_formatter(&|value| {
            if high > 5.0 {
                format!("{value:.0}")
            } else {
                format!("{value:.1}")
            }
        })
        .label_style((FONT, 20))
        .axis_desc_style((FONT, 22))
        .light_line_style(RGBColor(0xf4, 0xf4, 0xf4))
        .bold_line_style(RGBColor(0xdd, 0xdd, 0xdd))
        .draw()
        .map_err(error)?;
    for (name, colour, points) in curves {
        chart
            .draw_series(LineSeries::new(
                points.iter().copied(),
                colour.stroke_width(3),
            ))
            .map_err(error)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 30, y)], colour.stroke_width(3)));
        chart
            .draw_series(
                points
                    .iter()
                    .map(|point| Circle::new(*point, 4, colour.filled())),
            )
            .map_err(error)?;
    }
    chart
        .configure_series_labels()
        .position(if panel.caption == PANELS[0].caption {
            SeriesLabelPosition::UpperRight
        } else {
            SeriesLabelPosition::LowerRight
        })
        .legend_area_size(40)
        .margin(12)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(0xbb, 0xbb, 0xbb))
        .label_font((FONT, 20))
        .draw()
        .map_err(error)?;
    Ok(())
}

/// The loss of each step in grey, its moving average in the colour of training, the suggestion as a line.
fn draw_rates<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    tried: &[TriedRate],
    suggestion: Option<f64>,
) -> Result<(), Error> {
    let (Some(first), Some(last)) = (tried.first(), tried.last()) else {
        return Ok(());
    };
    let all = || {
        tried
            .iter()
            .flat_map(|tried| [tried.smoothed_loss, tried.loss])
    };
    let low = all().fold(f64::INFINITY, f64::min);
    // A step far above the others would press these to the bottom.
    let smoothed = tried.iter().map(|tried| tried.smoothed_loss);
    let high = smoothed.fold(f64::NEG_INFINITY, f64::max);
    let room = 0.1 * (high - low).max(0.1);
    let (low, high) = ((low - room).max(0.0), high + room);
    // One step is a point; room on both sides shows it.
    let rates = 0.9 * first.learning_rate..1.1 * last.learning_rate;
    let mut chart = ChartBuilder::on(area)
        .margin(20)
        .x_label_area_size(60)
        .y_label_area_size(80)
        .build_cartesian_2d(rates.log_scale(), low..high)
        .map_err(error)?;
    chart
        .configure_mesh()
        .x_desc("Learning rate")
        .y_desc("Training loss")
        .x_label_formatter(&|rate| format!("{rate:.0e}"))
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .label_style((FONT, 20))
        .axis_desc_style((FONT, 22))
        .light_line_style(WHITE)
        .draw()
        .map_err(error)?;
    let inside = tried
        .iter()
        .filter(|tried| (low..=high).contains(&tried.loss))
        .map(|tried| {
            Circle::new(
                (tried.learning_rate, tried.loss),
                3,
                BLACK.mix(0.3).filled(),
            )
        });
    chart
        .draw_series(inside)
        .map_err(error)?
        .label("of one step")
        .legend(|(x, y)| Circle::new((x + 12, y), 3, BLACK.mix(0.3).filled()));
    let line = tried
        .iter()
        .map(|tried| (tried.learning_rate, tried.smoothed_loss));
    chart
        .draw_series(LineSeries::new(line, TRAINING.stroke_width(3)))
        .map_err(error)?
        .label("moving average")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 24, y)], TRAINING.stroke_width(3)));
    if let Some(rate) = suggestion {
        chart
            .draw_series(LineSeries::new(
                [(rate, low), (rate, high)],
                TEST.stroke_width(3),
            ))
            .map_err(error)?
            .label(format!("suggested: {rate:.2e}"))
            .legend(|(x, y)| PathElement::new([(x, y), (x + 24, y)], TEST.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperMiddle)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 20))
        .draw()
        .map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use run::SplitMetrics;

    fn epochs(count: u32) -> Vec<EpochMetrics> {
        (1..=count)
            .map(|epoch| EpochMetrics {
                epoch,
                train_loss: 2.3 / f64::from(epoch),
                train_accuracy: 1.0 - 0.9 / f64::from(epoch),
                evaluation: EvaluationSplit::Test.metrics(SplitMetrics {
                    loss: 2.3 / f64::from(epoch).sqrt(),
                    accuracy: 1.0 - 0.9 / f64::from(epoch).sqrt(),
                    model_ema_loss: None,
                    model_ema_accuracy: None,
                    tta_accuracy: None,
                }),
                learning_rate: 0.01,
                seconds: 1.0,
                images_per_second: 1.0,
                weights_sha256: None,
                stopped_early: false,
            })
            .collect()
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
    fn both_curves_are_seen_for_any_number_of_epochs() {
        for count in [1, 2, 3, 50] {
            assert_eq!(
                colours(&curves_png("title", &epochs(count)).unwrap()),
                2,
                "{count}"
            );
        }
    }

    #[test]
    fn the_svg_holds_title_axes_and_both_curves() {
        let svg = curves_svg("a <title> & more", &epochs(7)).unwrap();
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
    fn a_search_shows_its_steps_and_its_suggestion() {
        let tried: Vec<_> = (0..50)
            .map(|step| TriedRate {
                learning_rate: 1e-5 * 1.25_f64.powi(step),
                loss: 2.3 - 0.02 * f64::from(step) + 0.01 * f64::from(step % 3),
                smoothed_loss: 2.3 - 0.02 * f64::from(step),
            })
            .collect();
        let picture = rates_png("title", &tried, Some(1e-3)).unwrap();
        assert_eq!(colours(&picture), 2);
        let svg = rates_svg("title", &tried, Some(1e-3)).unwrap();
        assert!(svg.contains("suggested: 1.00e-3"), "{svg}");
        for count in [0, 1, 2] {
            rates_svg("title", &tried[..count], None).unwrap();
        }
    }
}
