//! Processes that train one network together, each on a part of every batch, and what they exchange.

use bytemuck::{cast_slice, cast_slice_mut};
use ops::Shards;
use std::io;
use std::ops::Range;

/// Processes that train one network together: ranks 0, 1, ... Their number is a power of two.
///
/// Every process makes the same calls in the same order, from one thread at a time.
pub trait ProcessGroup: Send + Sync {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;

    /// The number of processes.
    fn size(&self) -> usize;

    /// Sends bytes to another process and receives what it sends to this one.
    ///
    /// # Errors
    /// When the other process cannot be reached.
    fn exchange(&self, partner: usize, sent: &[u8], received: &mut [u8]) -> io::Result<()>;
}

/// The pairs of a binary tree over the ranks, from its leaves on: at each level the partner of this rank, and the ranks of
/// the two subtrees, this rank's own first.
fn levels(
    group: &dyn ProcessGroup,
) -> impl DoubleEndedIterator<Item = (usize, [Range<usize>; 2])> + use<> {
    let rank = group.rank();
    (0..group.size().trailing_zeros()).map(move |level| {
        let ranks = 1 << level;
        let subtree = |rank: usize| {
            let first = rank / ranks * ranks;
            first..first + ranks
        };
        let partner = rank ^ ranks;
        (partner, [subtree(rank), subtree(partner)])
    })
}

/// Whether some of these ranks have images of a batch in `shards`.
fn have_images(shards: Shards, size: usize, ranks: &Range<usize>) -> bool {
    let images = |rank| shards.of_rank(rank, size).images();
    images(ranks.start).start < images(ranks.end - 1).end
}

/// Replaces `values` by the sums over all ranks along the tree of the shards; a rank without images adds nothing. `shards`
/// are those of all ranks.
///
/// Each level of the tree halves the part of the values that a rank adds up, and on the way back the sums are exchanged
/// (R. Rabenseifner, "Optimization of collective reduction operations", 2004): a rank sends and receives
/// `2 (1 - 1 / ranks)` times the values.
///
/// # Errors
/// When another process cannot be reached.
pub(crate) fn all_reduce(
    group: &dyn ProcessGroup,
    shards: Shards,
    values: &mut [f32],
) -> io::Result<()> {
    let mut part = 0..values.len();
    let mut halves = Vec::new();
    let mut received = Vec::new();
    for (partner, [own, theirs]) in levels(group) {
        let middle = part.start + part.len() / 2;
        let (low, high) = (part.start..middle, middle..part.end);
        let (kept, sent) = match group.rank() < partner {
            true => (low, high),
            false => (high, low),
        };
        received.resize(kept.len(), 0.0);
        let to = cast_slice_mut(&mut received);
        group.exchange(partner, cast_slice(&values[sent.clone()]), to)?;
        let has_images = |ranks| have_images(shards, group.size(), ranks);
        let sums = &mut values[kept.clone()];
        match (has_images(&own), has_images(&theirs)) {
            (_, false) => {}
            (false, true) => sums.copy_from_slice(&received),
            (true, true) => {
                for (sum, value) in sums.iter_mut().zip(&received) {
                    *sum += *value;
                }
            }
        }
        halves.push((partner, kept.clone(), sent));
        part = kept;
    }
    for (partner, kept, missing) in halves.into_iter().rev() {
        exchange_parts(group, partner, values, kept, missing)?;
    }
    Ok(())
}

/// What the ranks tell one another in a step before its backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct StepSums {
    /// Sum of the loss over the images.
    pub(crate) loss: f64,
    /// Correctly classified images.
    pub(crate) correct: u64,
    /// Whether a rank was asked to stop.
    pub(crate) stops: bool,
}

impl StepSums {
    /// The sums over all ranks, along the tree of the shards as those of [`all_reduce`].
    ///
    /// # Errors
    /// When another process cannot be reached.
    pub(crate) fn over(mut self, group: &dyn ProcessGroup, shards: Shards) -> io::Result<Self> {
        for (partner, [own, theirs]) in levels(group) {
            let sent = [self.loss.to_bits(), self.correct, u64::from(self.stops)];
            let mut received = [0_u64; 3];
            let to = cast_slice_mut(&mut received);
            group.exchange(partner, cast_slice(&sent), to)?;
            let [loss, correct, stops] = received;
            let loss = f64::from_bits(loss);
            let has_images = |ranks| have_images(shards, group.size(), ranks);
            match (has_images(&own), has_images(&theirs)) {
                (_, false) => {}
                (false, true) => self.loss = loss,
                (true, true) => self.loss += loss,
            }
            self.correct += correct;
            self.stops |= stops != 0;
        }
        Ok(self)
    }
}

/// Whether a condition holds on any rank.
///
/// # Errors
/// When another process cannot be reached.
pub(crate) fn any(group: &dyn ProcessGroup, own: bool) -> io::Result<bool> {
    let mut any = [u8::from(own)];
    for (partner, _) in levels(group) {
        let mut received = [0];
        group.exchange(partner, &any, &mut received)?;
        any[0] |= received[0];
    }
    Ok(any[0] != 0)
}

/// Sends a part of the values to another process and receives the part beside it. The lower part is the lower rank's.
fn exchange_parts<T: bytemuck::Pod>(
    group: &dyn ProcessGroup,
    partner: usize,
    values: &mut [T],
    own: Range<usize>,
    theirs: Range<usize>,
) -> io::Result<()> {
    let is_lower = group.rank() < partner;
    let (lower, upper) = match is_lower {
        true => (own, theirs),
        false => (theirs, own),
    };
    let (before, after) = values.split_at_mut(upper.start);
    let (lower, upper) = (&mut before[lower], &mut after[..upper.len()]);
    let (sent, to) = match is_lower {
        true => (lower, upper),
        false => (upper, lower),
    };
    group.exchange(partner, cast_slice(sent), cast_slice_mut(to))
}

/// The values of all ranks.
///
/// # Errors
/// When another process cannot be reached.
pub fn gather<const N: usize>(group: &dyn ProcessGroup, own: [u8; N]) -> io::Result<Vec<[u8; N]>> {
    let mut values = vec![[0; N]; group.size()];
    values[group.rank()] = own;
    all_gather(group, values.as_flattened_mut(), |rank| {
        rank * N..(rank + 1) * N
    })?;
    Ok(values)
}

/// Gathers the parts of all ranks: `part` gives the range of the part of a rank, which are consecutive. Before, `values`
/// have this rank's part; afterwards, all.
///
/// # Errors
/// When another process cannot be reached.
pub(crate) fn all_gather<T: bytemuck::Pod>(
    group: &dyn ProcessGroup,
    values: &mut [T],
    part: impl Fn(usize) -> Range<usize>,
) -> io::Result<()> {
    let parts = |ranks: &Range<usize>| part(ranks.start).start..part(ranks.end - 1).end;
    for (partner, [own, theirs]) in levels(group) {
        exchange_parts(group, partner, values, parts(&own), parts(&theirs))?;
    }
    Ok(())
}
