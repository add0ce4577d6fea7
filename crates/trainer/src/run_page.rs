//! The page of a run, which a thread refreshes during the run.

use crate::data::Data;
use crate::progress::epochs_left;
use anyhow::Context;
use engine::{Evaluation, Event};
use report::{
    MistakenImage, Progress, ProgressMetrics, REFRESH_SECONDS, RunPage, SHOWN_IMAGES, State,
    write_run_page,
};
use run::predictions::{IMAGE_BYTES, mistakes};
use run::{EpochMetrics, Predictions, Record};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Writes the page of a run. The thread that trains only notes what changes.
pub(crate) struct RunPageWriter<'a> {
    path: PathBuf,
    page: Arc<Mutex<RunPage>>,
    data: &'a Data,
    /// Renews the page until the channel is closed.
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl<'a> RunPageWriter<'a> {
    /// Writes the page, and begins to refresh it.
    pub(crate) fn start(path: PathBuf, page: RunPage, data: &'a Data) -> anyhow::Result<Self> {
        write(&path, &page)?;
        let page = Arc::new(Mutex::new(page));
        let (sender, receiver) = channel();
        let of_thread = (path.clone(), page.clone());
        let thread = thread::Builder::new().name("run page".to_owned());
        let thread = thread.spawn(move || refresh(&of_thread.0, &of_thread.1, &receiver));
        let thread = thread.context("cannot start a thread")?;
        Ok(Self {
            path,
            page,
            data,
            thread: Some((sender, thread)),
        })
    }

    /// Notes what an event adds.
    pub(crate) fn update(&mut self, event: &Event<'_>) -> anyhow::Result<()> {
        let mut page = lock(&self.page);
        let State::Training(progress) = &mut page.state else {
            return Ok(());
        };
        match *event {
            Event::EpochStarted { done, steps, .. } => {
                *progress = Progress {
                    step: done,
                    steps,
                    ..Progress::default()
                };
            }
            Event::Step {
                epoch,
                done,
                loss,
                accuracy,
                images_per_second,
            } => {
                let steps = progress.steps;
                let epochs = page.record.settings.epochs.get();
                let images = epochs_left(epoch, epochs, done, steps) * self.data.train.len() as f64;
                let evaluations = f64::from(epochs.saturating_sub(page.epochs.len() as u32));
                let evaluation = page.epochs.last().map_or(0.0, |last| {
                    let training = self.data.train.len() as f64 / last.images_per_second;
                    (last.seconds - training).max(0.0)
                });
                page.state = State::Training(Progress {
                    step: done,
                    steps,
                    is_evaluating: false,
                    metrics: Some(ProgressMetrics {
                        loss,
                        accuracy,
                        images_per_second,
                        seconds_left: images / images_per_second + evaluations * evaluation,
                    }),
                });
            }
            Event::EvaluationStarted { .. } => progress.is_evaluating = true,
            Event::EpochFinished {
                history,
                evaluation,
                ..
            } => {
                *progress = Progress::default();
                page.epochs = history.to_vec();
                page.mistakes = Some(mistakes_of_evaluation(evaluation, self.data)?);
            }
            Event::IntervalFinished { .. } | Event::CheckpointWritten { .. } => {}
        }
        Ok(())
    }

    /// Writes the page of a run that has ended.
    pub(crate) fn finish(
        mut self,
        record: &Record,
        epochs: &[EpochMetrics],
        state: State,
    ) -> anyhow::Result<()> {
        self.stop();
        let mut page = lock(&self.page);
        page.record = record.clone();
        page.epochs = epochs.to_vec();
        page.state = state;
        write(&self.path, &page)
    }

    /// Ends the thread.
    fn stop(&mut self) {
        if let Some((sender, thread)) = self.thread.take() {
            drop(sender);
            // It does not panic.
            let _ = thread.join();
        }
    }
}

impl Drop for RunPageWriter<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(page: &Mutex<RunPage>) -> MutexGuard<'_, RunPage> {
    page.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write(path: &Path, page: &RunPage) -> anyhow::Result<()> {
    write_run_page(path, page).with_context(|| format!("cannot write `{}`", path.display()))
}

/// Writes the page again and again until the channel is closed.
fn refresh(path: &Path, page: &Mutex<RunPage>, closed: &Receiver<()>) {
    let mut has_failed = false;
    let interval = Duration::from_secs(REFRESH_SECONDS);
    while closed.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        let copy = lock(page).clone();
        // Training goes on. At its end, the error is one of the run.
        if let Err(error) = write(path, &copy)
            && !has_failed
        {
            has_failed = true;
            tracing::warn!("{error:#}");
        }
    }
}

/// The most confident mistakes of an evaluation.
fn mistakes_of_evaluation(
    evaluation: &Evaluation,
    data: &Data,
) -> anyhow::Result<Vec<MistakenImage>> {
    let images = data.test.with_slices(|labels, pixels| {
        let picture = |index| Some(pixels[index * IMAGE_BYTES..][..IMAGE_BYTES].to_vec());
        images(&data.class_names, labels, &evaluation.logits, picture)
    });
    Ok(images?)
}

/// The most confident mistakes of the predictions of a finished run.
pub(crate) fn mistakes_of_predictions(predictions: &Predictions) -> Vec<MistakenImage> {
    let Predictions {
        class_names,
        labels,
        logits,
        pictures,
        ..
    } = predictions;
    let picture = |index| pictures.get(&(index as u32)).cloned();
    images(class_names, labels, logits, picture)
}

fn images(
    class_names: &[String],
    labels: &[u32],
    logits: &[f32],
    picture: impl Fn(usize) -> Option<Vec<u8>>,
) -> Vec<MistakenImage> {
    let mistakes = mistakes(labels, logits, class_names.len());
    let images = mistakes.into_iter().take(SHOWN_IMAGES);
    let images = images.filter_map(|mistake| {
        Some(MistakenImage {
            mistake,
            class: class_names[labels[mistake.index] as usize].clone(),
            predicted: class_names[mistake.predicted].clone(),
            picture: picture(mistake.index)?,
        })
    });
    images.collect()
}
