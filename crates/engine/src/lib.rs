//! The training engine: recipe, optimiser, learning-rate schedule, the loops over steps and epochs,
//! evaluation, checkpoints, and the stream of events in which it says what happens.
//!
//! It prints nothing and reads no arguments: whoever observes the events decides what becomes of
//! them.

mod checkpoint;
mod error;
mod evaluation;
mod event;
mod feed;
mod optimiser;
mod plateau;
mod range_test;
mod recipe;
mod schedule;
mod training;

pub use checkpoint::{Checkpoint, Checkpoints, FORMAT_VERSION, Inputs, Progress, Weights};
pub use error::Error;
pub use evaluation::{Evaluation, Views, evaluate, evaluation_feed};
pub use event::Event;
pub use feed::{Feed, Pass};
pub use optimiser::Sgd;
pub use plateau::Plateau;
pub use range_test::{RangeTest, Tried, suggested_rate};
pub use recipe::{
    Augment, Cutout, DecayOn, DropoutEpochs, Fraction, NonNegative, OpenFraction, OutOfRange,
    Positive, Recipe, built_in, names as recipe_names,
};
pub use schedule::{Rates, Schedule};
pub use training::{BestEpoch, Observed, Outcome, Position, Training};
