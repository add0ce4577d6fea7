//! What a person sees of a run: a progress bar on a terminal, and a line an epoch.

use engine::Event;
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use run::EvaluationSplit;
use run::cli;
use std::io::{IsTerminal, stderr};
use std::time::Duration;

/// Shows the events of a run.
pub(crate) struct Progress {
    bar: ProgressBar,
    epochs: u32,
    /// Training images of an epoch.
    images: usize,
    /// What is evaluated on.
    evaluated: EvaluationSplit,
}

impl Progress {
    pub(crate) fn new(show_bar: bool, images: usize, evaluated: EvaluationSplit) -> Self {
        let bar = bar(show_bar);
        // The template is checked by a test.
        if let Ok(style) = style() {
            bar.set_style(style);
        }
        Self {
            bar,
            epochs: 0,
            images,
            evaluated,
        }
    }

    /// Shows an event.
    pub(crate) fn show(&mut self, event: &Event<'_>) {
        match *event {
            Event::EpochStarted {
                epoch,
                epochs,
                done,
                steps,
                ..
            } => {
                self.epochs = epochs;
                self.bar.set_length(steps as u64);
                self.bar.set_position(done as u64);
                self.bar.set_prefix(format!("epoch {epoch}/{epochs}"));
            }
            Event::Step {
                epoch,
                done,
                loss,
                accuracy,
                images_per_second,
            } => {
                self.bar.set_position(done as u64);
                let steps = self.bar.length().unwrap_or(1);
                let left = epochs_left(epoch, self.epochs, done, steps as usize);
                let left = left * self.images as f64 / images_per_second;
                self.bar.set_message(format!(
                    "loss {loss:.3}  accuracy {:.1} %  {images_per_second:.0} images/s  {} left",
                    100.0 * accuracy,
                    HumanDuration(Duration::try_from_secs_f64(left).unwrap_or_default())
                ));
            }
            Event::EvaluationStarted { .. } => {
                let message = format!("evaluating on the {} images", self.evaluated);
                self.bar.set_message(message);
            }
            Event::EpochFinished { history, best, .. } => {
                let (epochs, evaluated) = (self.epochs, self.evaluated);
                if let Some(epoch) = history.last() {
                    let mark = if best.epoch == epoch.epoch {
                        "  best"
                    } else {
                        ""
                    };
                    let width = epochs.to_string().len();
                    self.print(&format!(
                        "epoch {:>width$}/{epochs}  train loss {:.4} accuracy {:.2} %  {evaluated} loss {:.4} accuracy {:.2} %  \
                         lr {}  {:.1} s  {:.1} images/s{mark}",
                        epoch.epoch,
                        epoch.train_loss,
                        100.0 * epoch.train_accuracy,
                        epoch.evaluated.loss,
                        100.0 * epoch.evaluated.accuracy,
                        cli::four_digits(epoch.learning_rate),
                        epoch.seconds,
                        epoch.images_per_second,
                    ));
                }
            }
            Event::IntervalFinished { .. } | Event::CheckpointWritten { .. } => {}
        }
    }

    fn print(&self, line: &str) {
        self.bar.suspend(|| cli::line(line));
    }
}

/// Epochs until the end of a run, when `done` of the `steps` of an epoch are done.
pub(crate) fn epochs_left(epoch: u32, epochs: u32, done: usize, steps: usize) -> f64 {
    f64::from(epochs - epoch) + 1.0 - done as f64 / steps.max(1) as f64
}

/// A progress bar of no length yet; hidden where standard error is not a terminal.
pub(crate) fn bar(show: bool) -> ProgressBar {
    if show && !cli::is_silent() && stderr().is_terminal() {
        ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5))
    } else {
        ProgressBar::hidden()
    }
}

/// A bar for the pictures of a folder.
pub(crate) fn pictures_bar(show: bool) -> ProgressBar {
    let bar = bar(show);
    if let Ok(style) = pictures_style() {
        bar.set_style(style);
    }
    bar
}

fn pictures_style() -> Result<ProgressStyle, indicatif::style::TemplateError> {
    let style = ProgressStyle::with_template("{prefix}  {bar:24} {pos}/{len}  {eta} left")?;
    Ok(style.progress_chars("=> "))
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style() -> Result<ProgressStyle, indicatif::style::TemplateError> {
    Ok(
        ProgressStyle::with_template("{prefix}  {bar:24} step {pos}/{len}  {msg}")?
            .progress_chars("=> "),
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_bars_templates_are_right() {
        super::style().unwrap();
        super::pictures_style().unwrap();
    }
}
