//! The curves of a run, as in the post: loss on the left, accuracy on the right, training blue,
//! test orange, one point an epoch.

use crate::metrics::Epoch;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};
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
pub fn curves_svg(title: &str, epochs: &[Epoch]) -> Result<String, Error> {
    let mut text = String::new();
    draw(
        &SVGBackend::with_string(&mut text, SIZE).into_drawing_area(),
        title,
        epochs,
    )?;
    Ok(text)
}

/// The curves as a PNG file.
///
/// # Errors
/// When they cannot be drawn.
pub fn curves_png(title: &str, epochs: &[Epoch]) -> Result<Vec<u8>, Error> {
    let (width, height) = SIZE;
    let mut pixels = vec![0; (width * height * 3) as usize];
    draw(
        &BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area(),
        title,
        epochs,
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
    values: fn(&Epoch) -> (f64, f64),
    /// The range that the axis shows at least.
    least: (f64, f64),
}

const PANELS: [Panel; 2] = [
    Panel {
        caption: "Loss",
        values: |epoch| (epoch.train_loss, epoch.test_loss),
        least: (0.0, 0.1),
    },
    Panel {
        caption: "Accuracy (%)",
        values: |epoch| (100.0 * epoch.train_accuracy, 100.0 * epoch.test_accuracy),
        least: (0.0, 1.0),
    },
];

fn draw<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    epochs: &[Epoch],
) -> Result<(), Error> {
    register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| error("the font is damaged"))?;
    area.fill(&WHITE).map_err(error)?;
    let area = area.margin(14, 0, 0, 0);
    let area = area.titled(title, (FONT, 30)).map_err(error)?;
    for (panel, area) in PANELS.iter().zip(area.split_evenly((1, 2))) {
        draw_panel(&area, panel, epochs)?;
    }
    area.present().map_err(error)
}

fn draw_panel<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    panel: &Panel,
    epochs: &[Epoch],
) -> Result<(), Error> {
    let points = |side: fn((f64, f64)) -> f64| {
        epochs
            .iter()
            .map(move |epoch| (f64::from(epoch.epoch), side((panel.values)(epoch))))
    };
    let curves = [
        (
            "training",
            TRAINING,
            points(|values| values.0).collect::<Vec<_>>(),
        ),
        ("test", TEST, points(|values| values.1).collect()),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(count: u32) -> Vec<Epoch> {
        (1..=count)
            .map(|epoch| Epoch {
                epoch,
                train_loss: 2.3 / f64::from(epoch),
                train_accuracy: 1.0 - 0.9 / f64::from(epoch),
                test_loss: 2.3 / f64::from(epoch).sqrt(),
                test_accuracy: 1.0 - 0.9 / f64::from(epoch).sqrt(),
                learning_rate: 0.01,
                seconds: 1.0,
                images_per_second: 1.0,
                weights_sha256: None,
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
}
