//! Batches on the device that computes.

use candle_core::{Device, Result};
use datasets::{Augmentation, Batch, Loader, Normalisation, Split, View};
use std::num::NonZeroUsize;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// A split of a data set, cut into batches on a device.
///
/// On a CPU, a thread prepares the batches. On a GPU, the images are in its memory as bytes, and a kernel crops, flips
/// and normalises them; the host sends indices and crops alone. Both give the same images in the same order.
pub struct DataLoader {
    loader: Loader,
    #[cfg(feature = "cuda")]
    resident: Option<Arc<gpu::Resident>>,
}

impl DataLoader {
    /// Batches of `batch_size` images of `split` on `device`, in the type in which `precision` computes.
    ///
    /// # Errors
    /// When the device has no memory for the images.
    pub fn new(
        split: Split,
        batch_size: NonZeroUsize,
        normalisation: Normalisation,
        #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] device: &Device,
        #[cfg_attr(not(feature = "cuda"), allow(unused_variables))] precision: ops::Precision,
    ) -> Result<Self> {
        let loader = Loader::new(split, batch_size, normalisation);
        Ok(Self {
            #[cfg(feature = "cuda")]
            resident: device
                .is_cuda()
                .then(|| gpu::Resident::new(&loader, device, precision))
                .transpose()?
                .map(Arc::new),
            loader,
        })
    }

    /// The same without shuffling: every epoch has the same batches, in the order of the data set.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.loader = self.loader.in_order();
        self
    }

    /// Images per epoch.
    #[must_use]
    pub fn images(&self) -> usize {
        self.loader.images()
    }

    /// Batches per epoch.
    #[must_use]
    pub fn batches(&self) -> usize {
        self.loader.batches()
    }

    /// The training batches of an epoch, from batch `first` on: see [`Loader::training`].
    ///
    /// # Errors
    /// When the thread that prepares them cannot be started.
    pub fn training(
        &self,
        seed: u64,
        epoch: u32,
        augmentation: Augmentation,
        first: usize,
    ) -> Result<Batches> {
        #[cfg(feature = "cuda")]
        if let Some(resident) = &self.resident {
            let plan = self.loader.training_plan(seed, epoch, augmentation, first);
            return Ok(Batches(Source::Gpu(gpu::Batches::new(
                resident.clone(),
                plan,
            )?)));
        }
        let batches = self.loader.training(seed, epoch, augmentation, first)?;
        Ok(Batches(Source::Host(batches)))
    }

    /// All images in the order of the data set, each in the same view.
    pub(crate) fn evaluation(&self, view: View) -> Result<Batches> {
        #[cfg(feature = "cuda")]
        if let Some(resident) = &self.resident {
            let plan = self.loader.evaluation_plan(view);
            return Ok(Batches(Source::Gpu(gpu::Batches::new(
                resident.clone(),
                plan,
            )?)));
        }
        Ok(Batches(Source::Host(self.loader.evaluation(view)?)))
    }
}

/// The batches of one epoch, or of one evaluation.
pub struct Batches(Source);

enum Source {
    /// Prepared by a thread, which ends with this value.
    Host(datasets::Batches),
    #[cfg(feature = "cuda")]
    Gpu(gpu::Batches),
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Source::Host(batches) => batches.next(),
            #[cfg(feature = "cuda")]
            Source::Gpu(batches) => batches.next(),
        }
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use candle_core::{DType, Device, Result, Tensor};
    use datasets::{Batch, Loader, Seen};
    use ops::{GpuDataset, Precision, View, Views};
    use run::settings::PaddingMode;
    use std::ops::Range;
    use std::sync::Arc;
    use std::vec;

    /// Images in the memory of a GPU.
    pub(super) struct Resident {
        images: GpuDataset,
        /// By index of the image, on the host, which sends them in the order of the batches.
        labels: Vec<u32>,
        device: Device,
        dtype: DType,
    }

    impl Resident {
        pub(super) fn new(loader: &Loader, device: &Device, precision: Precision) -> Result<Self> {
            let normalised = loader.normalisation().numbers().concat();
            let normalised = Tensor::from_vec(normalised, (3, 256), device)?;
            let images = loader.split().images().contiguous()?.to_device(device)?;
            let labels = loader
                .split()
                .with_bytes(|labels, _| labels.iter().map(|label| u32::from(*label)).collect())?;
            Ok(Self {
                images: GpuDataset::new(images, normalised)?,
                labels,
                device: device.clone(),
                dtype: precision.activations(),
            })
        }
    }

    /// The batches of one epoch. The whole order is sent at once: each transfer may wait for the GPU.
    pub(super) struct Batches {
        resident: Arc<Resident>,
        views: Views,
        labels: Tensor,
        batches: vec::IntoIter<Range<usize>>,
    }

    impl Batches {
        pub(super) fn new(
            resident: Arc<Resident>,
            plan: impl Iterator<Item = Vec<Seen>>,
        ) -> Result<Self> {
            let (mut views, mut labels, mut batches) = (Vec::new(), Vec::new(), Vec::new());
            for seen in plan {
                batches.push(views.len()..views.len() + seen.len());
                for Seen { index, view } in seen {
                    labels.push(resident.labels[index as usize]);
                    views.push(View {
                        image: index,
                        top: view.top,
                        left: view.left,
                        flipped: view.flipped,
                        reflected: view.padding_mode == PaddingMode::Reflect,
                        cutout: [
                            view.cutout.top,
                            view.cutout.left,
                            view.cutout.bottom,
                            view.cutout.right,
                        ],
                    });
                }
            }
            if labels.is_empty() {
                // A GPU cannot allocate zero bytes. This view is never used: there is no batch.
                labels.push(0);
                views.push(View {
                    image: 0,
                    top: 0,
                    left: 0,
                    flipped: false,
                    reflected: false,
                    cutout: [0; 4],
                });
            }
            let count = labels.len();
            Ok(Self {
                views: resident.images.views(&views)?,
                labels: Tensor::from_vec(labels, count, &resident.device)?,
                batches: batches.into_iter(),
                resident,
            })
        }

        fn batch(&self, range: Range<usize>) -> Result<Batch> {
            let Resident { images, dtype, .. } = &*self.resident;
            Ok(Batch {
                labels: self.labels.narrow(0, range.start, range.len())?,
                images: images.batch(&self.views, range, *dtype)?,
            })
        }
    }

    impl Iterator for Batches {
        type Item = Result<Batch>;

        fn next(&mut self) -> Option<Self::Item> {
            let range = self.batches.next()?;
            Some(self.batch(range))
        }
    }
}
