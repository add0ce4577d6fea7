//! The gradients of operations with parameters.

/// The gradients of an operation with parameters.
pub struct ParameterGradients<T> {
    /// That of the input, if it was requested.
    pub x: Option<Vec<T>>,
    /// That of the weight.
    pub weight: Vec<T>,
    /// That of the bias.
    pub bias: Vec<T>,
}
