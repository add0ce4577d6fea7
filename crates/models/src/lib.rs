//! The networks as data. [`Architecture::ALL`] is the table of networks; the forward pass, parameter names, weight
//! initialisation, summary and memory estimate are derived from it.
//!
//! Without the feature `tensors` there is only the table, for programs that do without candle.

mod architecture;
mod layer;
#[cfg(feature = "tensors")]
mod network;
#[cfg(feature = "tensors")]
mod step;
mod summary;
mod table;
#[cfg(feature = "tensors")]
mod weight_init;

pub use architecture::{
    Architecture, CIFAR10_CLASSES, IMAGE, NamedLayer, ParameterMismatch, ParameterShape,
};
pub use layer::{Block, Layer};
#[cfg(feature = "tensors")]
pub use network::{DropoutMasks, Network};
#[cfg(feature = "tensors")]
pub use step::{Operation, Step};
pub use summary::{grouped, summary};
pub use table::{POST, UnknownArchitecture};
#[cfg(feature = "tensors")]
pub use weight_init::{initial_last_layer, initial_parameters};
