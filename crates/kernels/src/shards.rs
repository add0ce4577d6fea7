//! A batch in shards, whose gradients are summed along a fixed binary tree.

use crate::instruction_set::arch;
use crate::simd::Real;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Elements that a thread adds at a time.
const PART: usize = 1 << 14;

/// The shards of a batch that one process computes: those of its rank.
///
/// A batch of `B` images has `N` shards, a power of two; shard `k` has images `⌊k B / N⌋` to `⌊(k + 1) B / N⌋`. Sums over
/// a batch are sums over its shards, added in pairs, then in pairs of pairs, and so on; a shard without images is left
/// out. A rank computes consecutive shards, a subtree. So a sum does not depend on the number of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    batch: usize,
    count: usize,
    /// The first of these shards, and the one after the last.
    own: (usize, usize),
}

impl Shards {
    /// `batch` images in one shard.
    #[must_use]
    pub fn one(batch: usize) -> Self {
        Self::new(batch, 1)
    }

    /// `batch` images in `count` shards, all of them in one process.
    ///
    /// # Panics
    /// When `count` is not a power of two.
    #[must_use]
    pub fn new(batch: usize, count: usize) -> Self {
        assert!(count.is_power_of_two(), "{count} is not a power of two");
        Self {
            batch,
            count,
            own: (0, count),
        }
    }

    /// The shards of process `rank` of `ranks`.
    ///
    /// # Panics
    /// When `ranks` is not a power of two or larger than the number of shards, or `rank` is not less than `ranks`.
    #[must_use]
    pub fn of_rank(self, rank: usize, ranks: usize) -> Self {
        assert!(ranks.is_power_of_two() && ranks <= self.count && rank < ranks);
        let each = self.count / ranks;
        Self {
            own: (rank * each, (rank + 1) * each),
            ..self
        }
    }

    /// Images of the batch, over all ranks.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The images of these shards in the batch.
    #[must_use]
    pub fn images(&self) -> Range<usize> {
        self.start(self.own.0)..self.start(self.own.1)
    }

    /// Whether these are all shards of the batch.
    #[must_use]
    pub fn are_all(&self) -> bool {
        self.own == (0, self.count)
    }

    /// Whether these are the whole batch in one shard.
    pub(crate) fn is_one(&self) -> bool {
        self.count == 1
    }

    /// The first image of shard `shard` in the batch.
    fn start(&self, shard: usize) -> usize {
        let start = shard as u128 * self.batch as u128 / self.count as u128;
        start as usize // At most `batch`.
    }

    /// The images of each of these shards, counted from the first image of them all.
    pub(crate) fn each(self) -> impl Iterator<Item = Range<usize>> {
        let (first, last) = self.own;
        let start = move |shard| self.start(shard) - self.start(first);
        (first..last).map(move |shard| start(shard)..start(shard + 1))
    }

    /// The sum of the shards' partial sums, along the tree; `None` without images. `partial` gives that of a shard, from
    /// its images as [`Shards::each`] counts them; `add` adds the second sum to the first.
    pub(crate) fn sum<P>(
        &self,
        mut partial: impl FnMut(Range<usize>) -> P,
        mut add: impl FnMut(&mut P, P),
    ) -> Option<P> {
        // The sums of complete subtrees, the largest one first.
        let mut subtrees: Vec<Option<P>> = Vec::new();
        for (done, images) in (1_usize..).zip(self.each()) {
            let mut sum = (!images.is_empty()).then(|| partial(images));
            for _ in 0..done.trailing_zeros() {
                sum = match (subtrees.pop().flatten(), sum) {
                    (Some(mut left), Some(right)) => {
                        add(&mut left, right);
                        Some(left)
                    }
                    (left, right) => left.or(right),
                };
            }
            subtrees.push(sum);
        }
        subtrees.pop().flatten()
    }
}

/// Adds `values` to `sums`, on the calling thread.
pub(crate) fn add<T: Real>(sums: &mut [T], values: &[T]) {
    struct Add<'a, T> {
        sums: &'a mut [T],
        values: &'a [T],
    }
    impl<T: Real> WithSimd for Add<'_, T> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            for (sum, value) in self.sums.iter_mut().zip(self.values) {
                *sum += *value;
            }
        }
    }
    assert_eq!(sums.len(), values.len());
    arch().dispatch(Add { sums, values });
}

/// The same on all threads.
pub(crate) fn par_add<T: Real>(sums: &mut [T], values: &[T]) {
    assert_eq!(sums.len(), values.len());
    let parts = sums.par_chunks_mut(PART).zip(values.par_chunks(PART));
    parts.for_each(|(sums, values)| add(sums, values));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv2d::{Conv2d, ConvAlgorithm, Geometry};
    use crate::linear::{self, Sizes};
    use crate::{Activation, Element, ParameterGradients};
    use half::bf16;
    use proptest::prelude::*;

    /// How a sum was made.
    fn tree(shards: Shards) -> Option<String> {
        let first = shards.images().start;
        shards.sum(
            |images| format!("{}-{}", first + images.start, first + images.end),
            |left, right| *left = format!("({left} {right})"),
        )
    }

    #[test]
    fn shards_are_added_in_pairs() {
        assert_eq!(tree(Shards::one(5)).unwrap(), "0-5");
        assert_eq!(tree(Shards::new(5, 2)).unwrap(), "(0-2 2-5)");
        assert_eq!(
            tree(Shards::new(17, 8)).unwrap(),
            "(((0-2 2-4) (4-6 6-8)) ((8-10 10-12) (12-14 14-17)))"
        );
    }

    #[test]
    fn shards_without_images_are_left_out() {
        assert_eq!(tree(Shards::new(2, 8)).unwrap(), "(0-1 1-2)");
        assert_eq!(tree(Shards::new(0, 4)), None);
        let ranks = [0, 1, 2, 3].map(|rank| tree(Shards::new(2, 8).of_rank(rank, 4)));
        assert_eq!(ranks, [None, Some("0-1".into()), None, Some("1-2".into())]);
    }

    fn values(count: usize, seed: u64) -> Vec<f32> {
        let stream = rng::Stream::new(seed, rng::Purpose::Synthetic, 0);
        (0..count as u64)
            .map(|i| rng::unit(stream.words(i)[0]) - 0.5)
            .collect()
    }

    fn half(values: &[f32]) -> Vec<bf16> {
        values.iter().map(|value| bf16::from_f32(*value)).collect()
    }

    /// The gradients of a weight and a bias, from those of each shard by itself, which `backward` computes.
    fn expected<E: Element<Real = f32>>(
        shards: Shards,
        backward: impl Fn(Range<usize>) -> ParameterGradients<E>,
    ) -> [Vec<f32>; 2] {
        let gradients = |images| {
            let found = backward(images);
            [found.weight, found.bias]
        };
        let sum = shards.sum(gradients, |sums: &mut [Vec<f32>; 2], values| {
            for (sum, value) in sums.iter_mut().flatten().zip(values.iter().flatten()) {
                *sum += value;
            }
        });
        sum.unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) })]

        #[test]
        fn gradients_of_convolutions_are_those_of_the_shards(
            batch in 1_usize..40, count in 0_u32..5, (inputs, outputs) in (1_usize..20, 1_usize..20),
            kernel in prop::sample::select(vec![1_usize, 3, 5]), side in 5_usize..9, direct: bool, seed in 0_u64..1000
        ) {
            let shards = Shards::new(batch, 1 << count);
            let algorithm = if direct { ConvAlgorithm::Direct } else { ConvAlgorithm::Winograd };
            let layer = |batch| {
                let shape = [batch, side, side, inputs];
                let g = Geometry::new(shape, [outputs, inputs, kernel, kernel], kernel / 2).unwrap();
                (g, Conv2d::new(g, algorithm, Activation::Relu, None).unwrap())
            };
            let (g, whole) = layer(batch);
            let x = values(batch * g.image(), seed);
            let (weight, bias) = (values(g.weights(), seed + 1), values(outputs, seed + 2));
            let (y, _) = whole.forward(&x, &weight, &bias);
            let grad_y = values(y.len(), seed + 3);
            let (image, result) = (g.image(), y.len() / batch);
            let found = whole.sharded(shards).backward((&x, &weight), (&y, &[]), &grad_y, true);
            let backward = |images: Range<usize>| {
                let (from, to) = (images.start, images.end);
                let y = (&y[from * result..to * result], &[][..]);
                let x = (&x[from * image..to * image], &weight[..]);
                layer(images.len()).1.backward(x, y, &grad_y[from * result..to * result], true)
            };
            prop_assert!([found.weight, found.bias] == expected(shards, backward));
            prop_assert!(found.x == whole.backward((&x, &weight), (&y, &[]), &grad_y, true).x);

            let (x, grad_y) = (half(&x), half(&grad_y));
            let (y, _) = whole.forward_bf16(&x, &weight, &bias);
            let found = whole.sharded(shards).backward_bf16((&x, &weight), (&y, &[]), &grad_y, true);
            let backward = |images: Range<usize>| {
                let (from, to) = (images.start, images.end);
                let y = (&y[from * result..to * result], &[][..]);
                let x = (&x[from * image..to * image], &weight[..]);
                layer(images.len()).1.backward_bf16(x, y, &grad_y[from * result..to * result], true)
            };
            prop_assert!([found.weight, found.bias] == expected(shards, backward));
        }

        /// Also shards deeper than one pass over the inner dimension.
        #[test]
        fn gradients_of_fully_connected_layers_are_those_of_the_shards(
            batch in prop_oneof![1_usize..60, 1000_usize..1200], count in 0_u32..4,
            (inputs, outputs) in (1_usize..100, 1_usize..60), seed in 0_u64..1000
        ) {
            let shards = Shards::new(batch, 1 << count);
            let sizes = |batch| Sizes { batch, inputs, outputs };
            let (x, grad_y) = (values(batch * inputs, seed), values(batch * outputs, seed + 1));
            let weight = values(outputs * inputs, seed + 2);
            let found = linear::backward(sizes(batch), shards, &x, &weight, &grad_y, false);
            let backward = |images: Range<usize>| {
                let (count, x) = (images.len(), &x[images.start * inputs..images.end * inputs]);
                let grad_y = &grad_y[images.start * outputs..images.end * outputs];
                linear::backward(sizes(count), Shards::one(count), x, &weight, grad_y, false)
            };
            prop_assert!([found.weight, found.bias] == expected(shards, backward));

            let (x, grad_y) = (half(&x), half(&grad_y));
            let found = linear::backward_bf16(sizes(batch), shards, &x, &weight, &grad_y, false);
            let backward = |images: Range<usize>| {
                let (count, x) = (images.len(), &x[images.start * inputs..images.end * inputs]);
                let grad_y = &grad_y[images.start * outputs..images.end * outputs];
                linear::backward_bf16(sizes(count), Shards::one(count), x, &weight, grad_y, false)
            };
            prop_assert!([found.weight, found.bias] == expected(shards, backward));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// The sums of the ranks, added along the same tree, are those of one rank.
        #[test]
        fn ranks_are_subtrees(batch in 0_usize..70, count in 0_u32..6, ranks in 0_u32..6) {
            let (count, ranks) = (1 << count, 1 << ranks.min(count));
            let all = Shards::new(batch, count);
            let parts: Vec<_> = (0..ranks).map(|rank| all.of_rank(rank, ranks)).collect();
            let images: Vec<_> = parts.iter().flat_map(Shards::images).collect();
            prop_assert_eq!(images, (0..batch).collect::<Vec<_>>());
            let mut sums: Vec<_> = parts.into_iter().map(tree).collect();
            while sums.len() > 1 {
                sums = sums
                    .chunks(2)
                    .map(|pair| match (&pair[0], &pair[1]) {
                        (Some(left), Some(right)) => Some(format!("({left} {right})")),
                        (left, right) => left.clone().or(right.clone()),
                    })
                    .collect();
            }
            prop_assert_eq!(sums.pop().flatten(), tree(all));
        }
    }
}
