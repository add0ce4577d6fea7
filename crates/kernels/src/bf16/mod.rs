//! Products of `bf16` values with sums in `f32`, with the bits of Intel's matrix unit (AMX) on every machine.
//!
//! Where the processor has the unit, it computes the products; elsewhere `portable` computes the same bits. So a run may
//! move between machines.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod amx;
mod block;
pub(crate) mod conv2d;
pub(crate) mod linear;
mod operands;
mod portable;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) use amx::is_available as has_amx;

#[cfg(test)]
mod tests {
    use crate::conv2d::{Conv2d, ConvAlgorithm, Geometry};
    use crate::linear::{self, Sizes};
    use crate::{Activation, Element, Pool, Shards, max_pool2d};
    use half::bf16;
    use proptest::prelude::*;

    /// Values of `bf16` in -1..1, of which a part are 0.
    fn values(seed: u64, count: usize) -> Vec<bf16> {
        let stream = rng::Stream::new(seed, rng::Purpose::Synthetic, 0);
        let value = |index| {
            let [word, kind, ..] = stream.words(index);
            let value = 2.0 * rng::unit(word) - 1.0;
            bf16::from_real(if kind % 8 == 0 { 0.0 } else { value })
        };
        (0..count as u64).map(value).collect()
    }

    fn wide(values: &[bf16]) -> Vec<f64> {
        values.iter().map(|value| value.to_f64()).collect()
    }

    fn single(values: &[bf16]) -> Vec<f32> {
        values.iter().map(|value| value.to_real()).collect()
    }

    /// Whether values are those expected, rounded to 8 significant bits, of sums whose terms are at most `scale`.
    fn close(found: impl IntoIterator<Item = f64>, expected: &[f64], scale: f64) -> bool {
        let mut pairs = found.into_iter().zip(expected);
        pairs.all(|(found, expected)| {
            (found - expected).abs() <= expected.abs() / 256.0 + 1e-6 * scale
        })
    }

    fn wide_f32(values: &[f32]) -> impl Iterator<Item = f64> {
        values.iter().map(|value| f64::from(*value))
    }

    /// The 64-bit FNV-1a hash of values in `f32`.
    fn hash(values: impl IntoIterator<Item = f32>) -> u64 {
        let bytes = values
            .into_iter()
            .flat_map(|value| value.to_bits().to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// Another test runs this one on all instruction sets, AMX among them.
    #[test]
    fn layers_have_fixed_bits() {
        let geometry = Geometry::new([3, 9, 17, 21], [37, 21, 5, 5], 2).unwrap();
        let pool = Some(Pool {
            kernel: 3,
            stride: 2,
        });
        let layer = Conv2d::new(geometry, ConvAlgorithm::Direct, Activation::Relu, pool).unwrap();
        let x = values(1, 3 * geometry.image());
        let weight = single(&values(2, geometry.weights()));
        let (y, argmax) = layer.forward_bf16(&x, &weight, &single(&values(3, 37)));
        let grad_y = values(4, y.len());
        let found = layer.backward_bf16((&x, &weight), (&y, &argmax), &grad_y, true);
        let convolution = [
            hash(single(&y)),
            hash(single(&found.x.unwrap())),
            hash(found.weight),
            hash(found.bias),
        ];

        let sizes = Sizes {
            batch: 41,
            inputs: 75,
            outputs: 50,
        };
        let x = values(5, 41 * 75);
        let weight = single(&values(6, 75 * 50));
        let bias = single(&values(7, 50));
        let y: Vec<bf16> = linear::forward_bf16(sizes, Activation::Relu, &x, &weight, &bias);
        let found = linear::backward_bf16(
            sizes,
            Shards::one(sizes.batch),
            &x,
            &weight,
            &values(8, y.len()),
            true,
        );
        let linear = [
            hash(single(&y)),
            hash(single(&found.x.unwrap())),
            hash(found.weight),
            hash(found.bias),
        ];
        assert_eq!(
            convolution,
            [
                0x20c8_477f_8d0b_20f6,
                0x5544_f66d_2d05_252d,
                0x8708_ef77_213d_07e8,
                0x0f00_8efe_c183_6ad1
            ]
        );
        assert_eq!(
            linear,
            [
                0x05aa_77ac_abb6_d2fd,
                0x1e9d_1c89_71dc_7071,
                0x4103_1eed_3200_6993,
                0xd6f3_d8eb_815e_7e12
            ]
        );
    }

    /// The bias and the activation are what is left.
    #[test]
    fn layers_without_inputs_give_the_bias() {
        let sizes = Sizes {
            batch: 2,
            inputs: 0,
            outputs: 3,
        };
        let bias = [1.0, -2.0, 3.0];
        let y: Vec<f32> = linear::forward_bf16(sizes, Activation::Identity, &[], &[], &bias);
        assert_eq!(y, [bias, bias].concat());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

        /// Against unrolled images in `f64`.
        #[test]
        fn convolutions_agree_with_f64(
            batch in 1_usize..4,
            (height, width) in (1_usize..9, 1_usize..40),
            (inputs, outputs) in (1_usize..40, 1_usize..40),
            (kernel, padding) in (1_usize..6, 0_usize..6),
            (relu, pool) in (any::<bool>(), any::<bool>()),
            seed in 0_u64..1000,
        ) {
            let geometry = Geometry::new(
                [batch, height, width, inputs], [outputs, inputs, kernel, kernel], padding
            );
            let Ok(g) = geometry else { return Ok(()) };
            let activation = if relu { Activation::Relu } else { Activation::Identity };
            let pool = pool.then_some(Pool { kernel: 3, stride: 2 });
            let Ok(layer) = Conv2d::new(g, ConvAlgorithm::Direct, activation, pool) else { return Ok(()) };
            let x = values(seed, batch * g.image());
            let weight = values(seed + 1, g.weights());
            let bias = values(seed + 2, outputs);
            let (y, argmax) = layer.forward_bf16(&x, &single(&weight), &single(&bias));
            let (expected, _) = layer.forward(&wide(&x), &wide(&weight), &wide(&bias));
            let terms = (kernel * kernel * inputs) as f64;
            prop_assert!(close(wide(&y), &expected, terms), "y");

            let grad_y = values(seed + 3, y.len());
            let found = layer.backward_bf16((&x, &single(&weight)), (&y, &argmax), &grad_y, true);
            // The gradient of the convolution's result is rounded, also where those of overlapping windows were added.
            let mut grad = grad_y.clone();
            if relu {
                crate::relu::backward(&y, &mut grad);
            }
            let grad = match g.windows(pool).unwrap() {
                None => wide(&grad),
                Some(windows) => max_pool2d::backward(&windows, (batch, outputs), &wide(&grad), &argmax),
            };
            let grad: Vec<_> = grad.into_iter().map(|value| bf16::from_real(value as f32).to_f64()).collect();
            let convolution = Conv2d::new(g, ConvAlgorithm::Direct, Activation::Identity, None).unwrap();
            let expected = convolution.backward((&wide(&x), &wide(&weight)), (&grad, &[]), &grad, true);
            let terms = (kernel * kernel * outputs) as f64;
            prop_assert!(close(wide(&found.x.unwrap()), &expected.x.unwrap(), terms), "x");
            let terms = (batch * g.positions()) as f64;
            prop_assert!(close(wide_f32(&found.weight), &expected.weight, terms), "weight");
            // That of the bias is a sum of unrounded values.
            let expected = layer.backward((&wide(&x), &wide(&weight)), (&wide(&y), &argmax), &wide(&grad_y), false);
            prop_assert!(close(wide_f32(&found.bias), &expected.bias, terms), "bias");
        }

        #[test]
        fn fully_connected_layers_agree_with_f64(
            (batch, inputs, outputs) in (1_usize..70, 1_usize..150, 1_usize..150),
            seed in 0_u64..1000,
        ) {
            let sizes = Sizes { batch, inputs, outputs };
            let x = values(seed, batch * inputs);
            let weight = values(seed + 1, inputs * outputs);
            let bias = values(seed + 2, outputs);
            let relu = Activation::Relu;
            let y: Vec<bf16> = linear::forward_bf16(sizes, relu, &x, &single(&weight), &single(&bias));
            let expected = linear::forward(sizes, relu, &wide(&x), &wide(&weight), &wide(&bias));
            prop_assert!(close(wide(&y), &expected, inputs as f64), "y");
            let grad_y = values(seed + 3, y.len());
            let found = linear::backward_bf16(sizes, Shards::one(sizes.batch), &x, &single(&weight), &grad_y, true);
            let expected = linear::backward(sizes, Shards::one(sizes.batch), &wide(&x), &wide(&weight), &wide(&grad_y), true);
            prop_assert!(close(wide(&found.x.unwrap()), &expected.x.unwrap(), outputs as f64), "x");
            prop_assert!(close(wide_f32(&found.weight), &expected.weight, batch as f64), "weight");
            prop_assert!(close(wide_f32(&found.bias), &expected.bias, batch as f64), "bias");
        }
    }
}
