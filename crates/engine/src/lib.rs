//! The training engine: optimiser, learning-rate schedulers, EMA, early stopping, the training step, the epoch
//! loop, evaluation, the LR finder, checkpoints and events.
//!
//! It prints nothing and reads no arguments. [`Training::run`] reports [`Event`]s to an observer, which decides what to
//! print or write.

mod checkpoint;
mod checkpoint_writer;
mod data_loader;
mod dropout_schedule;
mod early_stopping;
mod ema;
mod error;
mod evaluation;
mod event;
mod gpu_memory;
mod lr_finder;
mod lr_scheduler;
mod memory;
mod named_tensors;
mod optimiser;
mod process_group;
mod progress;
mod pytorch;
mod span_times;
#[cfg(feature = "cuda")]
mod step_graph;
mod training;
mod training_setup;
mod training_step;
mod view;
mod weights;

pub use checkpoint::{Checkpoint, Checkpoints};
pub use data_loader::{Batches, DataLoader};
pub use error::{Error, Unusable};
pub use evaluation::{Evaluation, Evaluator};
pub use event::Event;
pub use lr_finder::{LrFinder, suggested_lr};
pub use memory::TrainingMemory;
pub use optimiser::Sgd;
pub use process_group::{ProcessGroup, gather};
pub use progress::{BestEpoch, Position, Progress};
pub use span_times::{SpanKey, SpanTimes, SpanTotal};
pub use training::{Observed, Outcome, Training};
pub use training_setup::TrainingSetup;
pub use weights::{Content, Inputs, Weights};
