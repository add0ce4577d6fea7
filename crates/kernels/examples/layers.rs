//! Forward and backward pass of a convolution, with both algorithms, and of a fully connected layer, on slices.
//!
//! The assembly of this example contains the inner loops of all products; `PERFORMANCE.md` says how to analyse it.
#![expect(clippy::print_stdout, reason = "an example prints its results")]

use kernels::conv2d::{Conv2d, ConvAlgorithm, Geometry};
use kernels::{Activation, ShapeError, Shards, linear};

fn main() -> Result<(), ShapeError> {
    let values =
        |length: usize| -> Vec<f32> { (0..length).map(|i| (i % 7) as f32 - 3.0).collect() };
    let (x, weight, bias) = (
        values(4 * 16 * 16 * 32),
        values(48 * 32 * 3 * 3),
        values(48),
    );
    let geometry = Geometry::new([4, 16, 16, 32], [48, 32, 3, 3], 1)?;
    for algorithm in [ConvAlgorithm::Direct, ConvAlgorithm::Winograd] {
        let conv = Conv2d::new(geometry, algorithm, Activation::Relu, None)?;
        let (y, argmax) = conv.forward(&x, &weight, &bias);
        let gradients = conv.backward((&x, &weight), (&y, &argmax), &y, true);
        println!(
            "{algorithm:?}: {:?} {:?}",
            y.last(),
            gradients.weight.last()
        );
    }
    let sizes = linear::Sizes {
        batch: 4,
        inputs: 8192,
        outputs: 48,
    };
    let weight = values(sizes.outputs * sizes.inputs);
    let y = linear::forward(sizes, Activation::Identity, &x, &weight, &bias);
    let gradients = linear::backward(sizes, Shards::one(sizes.batch), &x, &weight, &y, true);
    println!("linear: {:?} {:?}", y.last(), gradients.weight.last());
    Ok(())
}
