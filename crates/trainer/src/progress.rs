//! What a person sees of a run: a progress bar on a terminal, and a line an epoch.

use crate::printer;
use engine::Event;
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::time::Duration;

/// Shows the events of a run.
pub(crate) struct Progress {
    bar: ProgressBar,
    epochs: u32,
    /// Training images of an epoch.
    images: usize,
}

impl Progress {
    pub(crate) fn new(show_bar: bool, images: usize) -> Self {
        let bar = if show_bar && stderr().is_terminal() {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5))
        } else {
            ProgressBar::hidden()
        };
        // The template is checked by a test.
        if let Ok(style) = style() {
            bar.set_style(style);
        }
        Self {
            bar,
            epochs: 0,
            images,
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
                let steps = self.bar.length().unwrap_or(1).max(1) as f64;
                let epochs = f64::from(self.epochs - epoch) + 1.0 - done as f64 / steps;
                let left = epochs * self.images as f64 / images_per_second;
                self.bar.set_message(format!(
                    "loss {loss:.3}  accuracy {:.1} %  {images_per_second:.0} images/s  {} left",
                    100.0 * accuracy,
                    HumanDuration(Duration::try_from_secs_f64(left).unwrap_or_default())
                ));
            }
            Event::EvaluationStarted { .. } => {
                self.bar.set_message("evaluating on the test images")
            }
            Event::EpochFinished {
                history,
                best,
                epochs,
                ..
            } => {
                if let Some(epoch) = history.last() {
                    let mark = if best.epoch == epoch.epoch {
                        "  best"
                    } else {
                        ""
                    };
                    let width = epochs.to_string().len();
                    self.print(&format!(
                        "epoch {:>width$}/{epochs}  train loss {:.4} accuracy {:.2} %  test loss {:.4} accuracy {:.2} %  \
                         lr {}  {:.1} s  {:.1} images/s{mark}",
                        epoch.epoch,
                        epoch.train_loss,
                        100.0 * epoch.train_accuracy,
                        epoch.test_loss,
                        100.0 * epoch.test_accuracy,
                        epoch.learning_rate,
                        epoch.seconds,
                        epoch.images_per_second,
                    ));
                }
            }
            Event::CheckpointWritten { .. } => {}
        }
    }

    fn print(&self, line: &str) {
        self.bar.suspend(|| printer::line(line));
    }
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
    fn the_bars_template_is_right() {
        super::style().unwrap();
    }
}
