//! The two networks of the post as data: one list of layers each, from which the forward pass, the
//! parameter names, the initialisation and the summary table are all read.

mod architecture;
mod initialisation;
mod network;
mod summary;

pub use architecture::{
    Architecture, Block, CLASSES, IMAGE, Layer, ParameterShape, UnknownArchitecture,
};
pub use initialisation::{Initialisation, initial_parameters};
pub use network::{DropoutMasks, Error, Network};
pub use summary::summary;
