//! Crops, flips, cutout and normalisation: the same bits on each device.

use candle_core::{DType, Device, Result};
use datasets::{Augmentation, DataLoader, Dataset, Normalisation};
use ops::Arithmetic;
use reference::{bits, test_device};
use run::settings::{Flip, PaddingMode};
use std::num::NonZeroUsize;

test_device!(batches_have_the_bits_of_the_cpu: cpu_f32, cuda_f32, cuda_bf16);

/// In bf16, those of the CPU are rounded.
fn batches_have_the_bits_of_the_cpu(
    device: &Device,
    _: DType,
    arithmetic: Arithmetic,
) -> Result<()> {
    let set = Dataset::synthetic(70, 1).unwrap();
    let normalisation = Normalisation::new([0.49, 0.48, 0.45], [0.25, 0.24, 0.26]);
    let size = NonZeroUsize::new(32).unwrap();
    let host = DataLoader::new(set.training(), size, normalisation.clone());
    let (split, precision) = (set.training(), arithmetic.precision);
    let loader = engine::DataLoader::new(split, size, normalisation, device, precision)?;
    let everything = Augmentation::Standard {
        padding_mode: PaddingMode::Reflect,
        flip: Flip::Alternating,
        cutout: 9,
    };
    for augmentation in [Augmentation::STANDARD, everything] {
        let found = loader.training(5, 3, augmentation, 0)?;
        let expected = host.load(host.training(5, 3, augmentation, 0))?;
        let mut images = 0;
        for (found, expected) in found.zip(expected) {
            let (found, expected) = (found?, expected?);
            let rounded = expected.images.to_dtype(found.images.dtype())?;
            assert!(bits(&found.images)? == bits(&rounded)?);
            let labels = expected.labels.to_vec1::<u32>()?;
            assert_eq!(found.labels.to_vec1::<u32>()?, labels);
            images += labels.len();
        }
        assert_eq!(images, 70);
    }
    Ok(())
}
