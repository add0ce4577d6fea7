//! Line charts as SVG. Their colours are those of the page's style sheet, which has a light and a dark scheme.

use maud::{Markup, html};
use std::iter;

/// One line.
pub(crate) struct Series {
    /// Its name in the legend; lines of the same name are listed once.
    pub(crate) name: String,
    /// The style's class for its colour and dashes.
    pub(crate) class: String,
    /// x and y.
    pub(crate) points: Vec<(f64, f64)>,
    /// x, and the lower and upper bound of y.
    pub(crate) band: Vec<(f64, f64, f64)>,
    /// A thin line without a legend: one of several runs.
    pub(crate) thin: bool,
}

/// A chart.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    pub(crate) series: Vec<Series>,
    /// A logarithmic y axis.
    pub(crate) logarithmic: bool,
    /// x ticks at integers only.
    pub(crate) whole: bool,
}

/// Size of the chart and its margins, in pixels at full size.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 260.0;
const RIGHT: f64 = 16.0;
/// Width of the y axis's label and of the gaps beside its ticks, and of a character of a tick.
const LABEL: f64 = 30.0;
const CHARACTER: f64 = 8.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 42.0;

/// The range of an axis and its ticks.
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    fn linear(values: impl Iterator<Item = f64>, whole: bool) -> Self {
        let (low, high) = range(values);
        let (low, high, least) = if whole {
            (low.min(1.0), high.max(2.0), 1.0)
        } else {
            let margin = 0.05 * (high - low).max(1e-9 + 1e-3 * high.abs());
            (low - margin, high + margin, 0.0)
        };
        let step = step((high - low) / 6.0).max(least);
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let first = (low / step).ceil() as i64;
        let last = (high / step).floor() as i64;
        let ticks = (first..=last).map(|tick| tick as f64 * step);
        Self {
            low,
            high,
            ticks: ticks
                .map(|tick| (tick, format!("{tick:.decimals$}")))
                .collect(),
        }
    }

    /// An axis of logarithms to base 10.
    fn logarithmic(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = range(values);
        let (low, high) = ((low - 0.1).floor(), (high + 0.1).ceil());
        let ticks = (low as i64..=high as i64)
            .map(|power| (power as f64, format!("10{}", superscript(power))));
        Self {
            low,
            high,
            ticks: ticks.collect(),
        }
    }

    /// The position of a value on the axis, 0 to 1.
    fn fraction(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// The smallest of 1, 2 and 5 times a power of ten that is not below `least`.
fn step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= least * (1.0 - 1e-9));
    step.unwrap_or(10.0 * power)
}

fn superscript(number: i64) -> String {
    let digits = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let superscript = |digit: char| {
        digit
            .to_digit(10)
            .map_or('⁻', |digit| digits[digit as usize])
    };
    number.to_string().chars().map(superscript).collect()
}

impl Chart {
    /// A chart of values by epoch.
    pub(crate) fn by_epoch(title: &str, y: &'static str, series: Vec<Series>) -> Self {
        Self {
            title: title.to_owned(),
            x: "epoch",
            y,
            series,
            logarithmic: false,
            whole: true,
        }
    }

    /// The chart with its title and legend.
    pub(crate) fn figure(&self) -> Markup {
        let mut named: Vec<(&str, &str)> = Vec::new();
        for series in self.series.iter().filter(|series| !series.thin) {
            if named.iter().all(|(name, _)| *name != series.name) {
                named.push((&series.name, &series.class));
            }
        }
        html! {
            figure class="chart" {
                figcaption {
                    strong { (self.title) }
                    span class="legend" {
                        @for (name, class) in named {
                            span {
                                svg viewBox="0 0 28 10" width="28" height="10" aria-hidden="true" {
                                    line class={"line " (class)} x1="1" y1="5" x2="27" y2="5" {}
                                }
                                " " (name)
                            }
                        }
                    }
                }
                (self.svg())
            }
        }
    }

    fn svg(&self) -> Markup {
        let scaled = |y: f64| if self.logarithmic { y.log10() } else { y };
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::linear(points().map(|point| point.0), self.whole);
        let bands = self.series.iter().flat_map(|series| &series.band);
        let bounds = bands.flat_map(|band| [band.1, band.2]);
        let heights = points().map(|point| point.1).chain(bounds).map(scaled);
        let y = if self.logarithmic {
            Axis::logarithmic(heights)
        } else {
            Axis::linear(heights, false)
        };
        let longest = y.ticks.iter().map(|(_, label)| label.chars().count()).max();
        let left = LABEL + CHARACTER * longest.unwrap_or(0) as f64;
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        let text = |pixels: f64| format!("{pixels:.1}");
        let across = |value: f64| left + x.fraction(value) * (WIDTH - left - RIGHT);
        let up = |value: f64| HEIGHT - BOTTOM - y.fraction(value) * (HEIGHT - TOP - BOTTOM);
        let path = |points: &mut dyn Iterator<Item = (f64, f64)>| {
            let finite = points.filter(|(x, y)| x.is_finite() && y.is_finite());
            let commands = iter::once('M').chain(iter::repeat('L')).zip(finite);
            commands
                .map(|(command, (x, y))| format!("{command}{:.1} {:.1}", across(x), up(scaled(y))))
                .collect::<String>()
        };
        html! {
            svg viewBox={"0 0 " (WIDTH) " " (HEIGHT)} role="img" aria-label={(self.title) ": " (self.y) " against " (self.x)} {
                @for (tick, label) in &y.ticks {
                    line class="grid" x1=(left) x2=(right) y1=(text(up(*tick))) y2=(text(up(*tick))) {}
                    text x=(left - 6.0) y=(text(up(*tick) + 4.0)) text-anchor="end" { (label) }
                }
                @for (tick, label) in &x.ticks {
                    line class="grid" y1=(TOP) y2=(bottom) x1=(text(across(*tick))) x2=(text(across(*tick))) {}
                    text x=(text(across(*tick))) y=(bottom + 16.0) text-anchor="middle" { (label) }
                }
                text x=((left + WIDTH - RIGHT) / 2.0) y=(HEIGHT - 6.0) text-anchor="middle" { (self.x) }
                text transform={"translate(12 " ((TOP + HEIGHT - BOTTOM) / 2.0) ") rotate(-90)"} text-anchor="middle" { (self.y) }
                @for series in self.series.iter().filter(|series| !series.band.is_empty()) {
                    @let outline = series.band.iter().map(|band| (band.0, band.2)).chain(series.band.iter().rev().map(|band| (band.0, band.1)));
                    path class={"band " (series.class)} d={(path(&mut outline.clone())) "Z"} {}
                }
                @for series in &self.series {
                    path class={(if series.thin { "line thin " } else { "line " }) (series.class)} d=(path(&mut series.points.iter().copied())) {}
                    @if !series.thin && series.points.len() <= 20 {
                        @for (x, y) in &series.points {
                            circle class={"dot " (series.class)} cx=(text(across(*x))) cy=(text(up(scaled(*y)))) r="2.5" {}
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        for (least, expected) in [
            (0.9, 1.0),
            (1.1, 2.0),
            (2.5, 5.0),
            (6.0, 10.0),
            (0.03, 0.05),
            (40.0, 50.0),
        ] {
            assert!((step(least) - expected).abs() < 1e-9, "{least}");
        }
    }

    #[test]
    fn ticks_are_within_the_axis() {
        let labels = |axis: &Axis| {
            axis.ticks
                .iter()
                .map(|tick| tick.1.clone())
                .collect::<Vec<_>>()
        };
        let epochs = Axis::linear([1.0, 50.0].into_iter(), true);
        assert_eq!(labels(&epochs), ["10", "20", "30", "40", "50"]);
        let loss = Axis::linear([0.31, 2.3].into_iter(), false);
        assert_eq!(labels(&loss), ["0.5", "1.0", "1.5", "2.0"]);
        let rate = Axis::logarithmic([-2.0, -4.0].into_iter());
        assert_eq!(labels(&rate), ["10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]);
        // One value, or none.
        assert!(!Axis::linear([0.5].into_iter(), false).ticks.is_empty());
        assert!(!Axis::linear(std::iter::empty(), true).ticks.is_empty());
    }
}
