//! Shapes that do not fit each other.

/// Why an operation does not accept its shapes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A weight is not for the channels of the input, or is not square.
    #[error("conv2d: an input of shape {x:?} does not fit a weight of shape {weight:?}")]
    Weight {
        /// `[batch, height, width, in_channels]`.
        x: [usize; 4],
        /// `[out_channels, in_channels, kernel, kernel]`.
        weight: [usize; 4],
    },
    /// A kernel is empty or larger than the padded input.
    #[error(
        "conv2d: a kernel of {kernel} does not fit an input of shape {x:?} with padding {padding}"
    )]
    Kernel {
        /// Height and width of the kernel.
        kernel: usize,
        /// `[batch, height, width, in_channels]`.
        x: [usize; 4],
        /// Zeros on each side of the input.
        padding: usize,
    },
    /// No pooling window fits, or a window is empty, larger than 15 or does not move.
    #[error("pooling: a window of {kernel} with stride {stride} does not fit {height} by {width}")]
    Window {
        /// Height and width of a window.
        kernel: usize,
        /// Distance between windows.
        stride: usize,
        /// Height of the input.
        height: usize,
        /// Width of the input.
        width: usize,
    },
}
