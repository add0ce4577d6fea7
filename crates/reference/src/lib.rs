//! Values that PyTorch computed in float64 (`golden/make_golden.py`), and what the tests that compare devices with them
//! share: [`test_device!`], the generator of inputs, and deviations.

mod deviation;
mod test_device;
mod uniform;

pub use deviation::{Deviation, Statistics, bits, elements, relative_error};
pub use uniform::{narrow, uniform};

/// Inputs of operations, and the outputs and gradients of PyTorch, as JSON.
pub const OPERATIONS: &str = include_str!("../golden/ops.json");

/// The relative errors of the networks' gradients in PyTorch under autocast to `bf16` on a CPU, as JSON.
pub const AUTOCAST_ERRORS: &str = include_str!("../golden/bf16.json");

/// Logits, losses, gradients and updated parameters of a network in PyTorch, as JSON; `None` for an unknown one.
#[must_use]
pub fn network(name: &str) -> Option<&'static str> {
    Some(match name {
        "alexnet" => include_str!("../golden/alexnet.json"),
        "small-alexnet" => include_str!("../golden/small-alexnet.json"),
        "lenet" => include_str!("../golden/lenet.json"),
        _ => return None,
    })
}
