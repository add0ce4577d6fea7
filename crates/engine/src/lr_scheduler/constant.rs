//! A constant learning rate.

/// The same learning rate at every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constant {
    lr: f64,
}

impl Constant {
    /// The learning rate `lr` at every step.
    #[must_use]
    pub fn new(lr: f64) -> Self {
        Self { lr }
    }

    /// The learning rate.
    #[must_use]
    pub fn lr(self) -> f64 {
        self.lr
    }
}
