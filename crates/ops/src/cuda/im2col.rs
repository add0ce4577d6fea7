//! Convolutions as matrix products of patches, by cuBLASLt and our own kernels, without cuDNN.
//!
//! A patch `[kernel, kernel, in_channels]` is what the kernel sees at one position of the result. The patches of some
//! images are a matrix `P`, one row a position. Images are taken in chunks, so that `P` takes bounded memory.

use super::cudnn::{Pass, Task};
use super::memory::{Buffer, Elements, empty};
use super::narrow;
use super::product::{Stored, gemm, product};
use super::program::{Program, launch};
use candle_core::{DType, Result, Shape};
use kernels::conv2d::Geometry;

/// Elements of `P`, unless one image has more: 256 MiB in `f32`.
const MAX_ELEMENTS: usize = 64 << 20;

/// Computes one of the three tensors images, weight and result from the two others. Chunks are added in order, in `f32`.
///
/// # Errors
/// When the GPU is out of memory, or cuBLASLt fails.
pub(crate) fn convolve_by_products(task: Task, tensors: [Elements<'_>; 3]) -> Result<()> {
    convolve(task, tensors, MAX_ELEMENTS)
}

/// The same, with at most `most` elements of `P` unless one image has more.
fn convolve(task: Task, tensors: [Elements<'_>; 3], most: usize) -> Result<()> {
    task.check(&tensors)?;
    let [x, weight, y] = tensors;
    let (g, precision, device) = (&task.geometry, task.precision, x.device);
    let patch = g.taps() * g.in_channels;
    let shape = Shape::from((g.out_channels, patch));
    let weight = part(weight, 0, &shape);
    match task.pass {
        // Y = P W'
        Pass::Forward => in_chunks(g, most, [x, y], |g, [x, y]| {
            let patches = im2col(g, x)?;
            let patches = (patches.elements(), Stored::AsIs);
            product(precision, patches, (weight, Stored::Transposed), y)
        }),
        // dP = dY W, of which col2im makes dX
        Pass::InputGradient => in_chunks(g, most, [x, y], |g, [x, y]| {
            let patches = empty(device, DType::F32, (g.batch * g.positions(), patch))?;
            let [y, weight] = [y, weight].map(|factor| (factor, Stored::AsIs));
            product(precision, y, weight, patches.elements())?;
            col2im(g, patches.elements(), x)
        }),
        // dW = dY' P, the sum over all chunks
        Pass::WeightGradient => {
            let wide = match weight.dtype {
                DType::F32 => None,
                _ => Some(empty(device, DType::F32, shape.clone())?),
            };
            let sum = wide.as_ref().map_or(weight, Buffer::elements);
            let mut beta = 0.0;
            in_chunks(g, most, [x, y], |g, [x, y]| {
                let patches = im2col(g, x)?;
                let patches = (patches.elements(), Stored::AsIs);
                gemm(precision, (y, Stored::Transposed), patches, beta, sum)?;
                beta = 1.0;
                Ok(())
            })?;
            match &wide {
                Some(wide) => narrow(wide.elements(), weight),
                None => Ok(()),
            }
        }
    }
}

/// The images of a chunk: a function of the geometry and `most` alone, and as even as possible.
fn images(g: &Geometry, most: usize) -> usize {
    let fit = most / (g.positions() * g.taps() * g.in_channels).max(1);
    let chunks = g.batch.div_ceil(fit.max(1)).max(1);
    g.batch.div_ceil(chunks).max(1)
}

/// Calls `work` with the geometry of each chunk, its images `[batch, height, width, channels]` and the rows of its results
/// `[positions, channels]`.
fn in_chunks(
    g: &Geometry,
    most: usize,
    [x, y]: [Elements<'_>; 2],
    mut work: impl FnMut(&Geometry, [Elements<'_>; 2]) -> Result<()>,
) -> Result<()> {
    let images = images(g, most);
    for first in (0..g.batch).step_by(images) {
        let batch = images.min(g.batch - first);
        let x_shape = (batch, g.height, g.width, g.in_channels).into();
        let y_shape = (batch * g.positions(), g.out_channels).into();
        let x = part(x, first * g.image(), &x_shape);
        let y = part(y, first * g.out_image(), &y_shape);
        work(&Geometry { batch, ..*g }, [x, y])?;
    }
    Ok(())
}

/// The elements of `whole` from the element `first` on, in this shape.
fn part<'a>(whole: Elements<'a>, first: usize, shape: &'a Shape) -> Elements<'a> {
    assert!(first + shape.elem_count() <= whole.count());
    let address = whole.address + (first * whole.dtype.size_in_bytes()) as u64;
    Elements {
        shape,
        address,
        ..whole
    }
}

/// The patches of images, `[positions, kernel * kernel * in_channels]`.
fn im2col(g: &Geometry, x: Elements<'_>) -> Result<Buffer> {
    let shape = (g.batch * g.positions(), g.taps() * g.in_channels);
    let patches = empty(x.device, x.dtype, shape)?;
    rearrange("im2col", g, x.dtype, x, patches.elements())?;
    Ok(patches)
}

/// The gradient of the images, from that of their patches in `f32`.
fn col2im(g: &Geometry, patches: Elements<'_>, x: Elements<'_>) -> Result<()> {
    rearrange("col2im", g, x.dtype, patches, x)
}

/// Starts a kernel that makes patches of images of the type `dtype`, or the way back.
fn rearrange(
    kernel: &'static str,
    g: &Geometry,
    dtype: DType,
    from: Elements<'_>,
    to: Elements<'_>,
) -> Result<()> {
    let program = Program::packed(dtype, g.in_channels);
    let packs = program.packs(to.count());
    let sizes = [
        packs,
        g.in_channels,
        g.height,
        g.width,
        g.out_height(),
        g.out_width(),
        g.kernel,
        g.padding,
    ];
    let arguments = [&[from.into(), to.into()], &sizes.map(Into::into)[..]].concat();
    launch(from.device, program, kernel, packs, &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arithmetic::Precision;
    use crate::cuda::open;
    use candle_core::{Device, Tensor};
    use kernels::Activation;
    use kernels::conv2d::{Conv2d, ConvAlgorithm};

    const PASSES: [Pass; 3] = [Pass::Forward, Pass::InputGradient, Pass::WeightGradient];

    fn geometry([batch, height, width, in_channels, out_channels]: [usize; 5]) -> Geometry {
        Geometry {
            batch,
            height,
            width,
            in_channels,
            out_channels,
            kernel: 3,
            padding: 1,
        }
    }

    /// Values between -1 and 1 that are exact in every precision.
    fn values(count: usize, seed: usize) -> Vec<f64> {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 255) as f64 / 128.0 - 1.0;
        (0..count).map(value).collect()
    }

    /// The weight `[out, in, taps]` as `[out, taps, in]`.
    fn arranged(g: &Geometry, weight: &[f64]) -> Vec<f64> {
        let (taps, channels) = (g.taps(), g.in_channels);
        let at = |i: usize| (i / channels / taps * channels + i % channels) * taps;
        let value = |i: usize| weight[at(i) + i / channels % taps];
        (0..g.weights()).map(value).collect()
    }

    /// What a pass computes, from the images, the weight and the result of another pass, on the GPU.
    fn computed(
        device: &Device,
        task: Task,
        tensors: [&[f64]; 3],
        images: usize,
    ) -> Result<Vec<f32>> {
        let g = &task.geometry;
        let mut tensors = tensors.map(|values| {
            let tensor = Tensor::new(values, &Device::Cpu)?.to_dtype(task.dtype)?;
            tensor.to_device(device)
        });
        let computed = match task.pass {
            Pass::Forward => 2,
            Pass::InputGradient => 0,
            Pass::WeightGradient => 1,
        };
        let Device::Cuda(gpu) = device else {
            unreachable!();
        };
        let count = tensors[computed].as_ref().map_or(0, Tensor::elem_count);
        tensors[computed] = Ok(empty(gpu, task.dtype, count)?.tensor());
        let [x, weight, y] = tensors;
        let (x, weight, y) = (x?, weight?, y?);
        let elements = |tensor| Elements::of("test", tensor, task.dtype);
        let most = images * g.positions() * g.taps() * g.in_channels;
        convolve(
            task,
            [elements(&x)?, elements(&weight)?, elements(&y)?],
            most,
        )?;
        let found = [x, weight, y][computed].to_device(&Device::Cpu)?;
        found.to_dtype(DType::F32)?.to_vec1()
    }

    fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
        assert_eq!(found.len(), expected.len());
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let differences = &mut found.iter().zip(expected).map(|(f, e)| f64::from(*f) - e);
        (norm(differences) / norm(&mut expected.iter().copied())).sqrt()
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn cuda_computes_the_passes_of_the_reference_with_the_same_bits_again() {
        let device = open(0).unwrap();
        let small = geometry([5, 6, 5, 8, 16]);
        let geometries = [
            // Chunks of 2, 2 and 1 images.
            (small, 2),
            (small, 5),
            (
                Geometry {
                    kernel: 4,
                    padding: 0,
                    ..small
                },
                1,
            ),
            (
                Geometry {
                    kernel: 5,
                    padding: 2,
                    ..small
                },
                3,
            ),
            (
                Geometry {
                    kernel: 1,
                    padding: 0,
                    ..small
                },
                4,
            ),
            // Positions that see zeros alone.
            (
                Geometry {
                    kernel: 2,
                    padding: 3,
                    ..small
                },
                2,
            ),
            // An image has more elements than a chunk may have.
            (geometry([2, 3, 9, 24, 8]), 0),
        ];
        for (g, images) in geometries {
            let reference = Conv2d::new(g, ConvAlgorithm::Direct, Activation::Identity, None);
            let reference = reference.unwrap();
            let x = values(g.batch * g.image(), 1);
            let weight = values(g.weights(), 2);
            let grad_y = values(g.batch * g.out_image(), 3);
            let (y, argmax) = reference.forward(&x, &weight, &vec![0.0; g.out_channels]);
            let gradients = reference.backward((&x, &weight), (&y, &argmax), &grad_y, true);
            let weight = arranged(&g, &weight);
            let expected = [y, gradients.x.unwrap(), arranged(&g, &gradients.weight)];
            for (precision, limit) in [
                (Precision::F32, 1e-5),
                (Precision::Tf32, 1e-4),
                (Precision::Bf16, 4e-3),
            ] {
                for (pass, expected) in PASSES.into_iter().zip(&expected) {
                    let task = Task {
                        pass,
                        geometry: g,
                        dtype: precision.activations(),
                        precision,
                    };
                    let compute = || computed(&device, task, [&x, &weight, &grad_y], images);
                    let found = compute().unwrap();
                    let error = relative_error(&found, expected);
                    assert!(error < limit, "{task:?}, {images} images: {error}");
                    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits);
                    assert!(bits(found).eq(bits(compute().unwrap())), "{task:?}");
                }
            }
        }
    }

    #[test]
    fn chunks_are_even_and_have_at_most_the_elements_that_are_given() {
        let g = geometry([10, 4, 4, 8, 8]);
        let image = 16 * 9 * 8;
        for (most, expected) in [
            (0, 1),
            (image, 1),
            (4 * image, 4),
            (6 * image, 5),
            (99 * image, 10),
        ] {
            assert_eq!(images(&g, most), expected);
        }
    }
}
