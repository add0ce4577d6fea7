//! The memory that training takes on a CPU.

use models::Architecture;
use ops::Precision;

/// Bytes of memory that training takes on a CPU.
#[derive(Clone, Copy, Debug)]
pub struct TrainingMemory {
    /// Bytes that do not depend on the batch size.
    fixed: u64,
    /// Bytes per image of a batch.
    image: u64,
}

impl TrainingMemory {
    /// An estimate for a network, with an EMA of its weights or without, and with frozen features or without. It was 10 to
    /// 21 % above the peak of resident memory of AlexNet and SmallAlexNet with Winograd's convolutions and batches of 64 and
    /// 256; direct convolutions take less.
    /// In `bf16`, with batches of 16 to 256, it was up to half above.
    #[must_use]
    pub fn new(
        architecture: Architecture,
        ema: bool,
        frozen_features: bool,
        precision: Precision,
    ) -> Self {
        const MIB: u64 = 1 << 20;
        /// The batch of the step, and those that are prepared meanwhile.
        const BATCHES: usize = 3;
        let pixels: usize = models::IMAGE.iter().product();
        let parameters = 4 * architecture.parameter_count() as u64;
        // Weights, gradients, momentum buffers, those of the best epoch, and what a checkpoint and Winograd's filters take.
        let copies = if ema { 6 } else { 5 };
        let element = precision.activations().size_in_bytes();
        let elements = architecture.training_elements(frozen_features);
        let image = (element * elements + 4 * BATCHES * pixels) as u64;
        // A sixteenth more, for gaps between the allocator's blocks.
        let with_gaps = |bytes: u64| bytes + bytes / 16;
        Self {
            fixed: with_gaps(copies * parameters + 32 * MIB),
            image: with_gaps(image),
        }
    }

    /// Bytes for batches of this size.
    #[must_use]
    pub fn bytes(self, batch_size: usize) -> u64 {
        self.fixed
            .saturating_add(self.image.saturating_mul(batch_size as u64))
    }

    /// The largest batch that fits into these bytes; 0 if not even one image does.
    #[must_use]
    pub fn largest_batch(self, bytes: u64) -> usize {
        let images = bytes.saturating_sub(self.fixed) / self.image.max(1);
        usize::try_from(images).unwrap_or(usize::MAX)
    }
}
