//! Batches on the device that computes.

use candle_core::{Device, Result};
use datasets::{Augmentation, Batch, Batches, Loader, Normalisation, Split, View};
use std::num::NonZeroUsize;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Images that wait on a device to be trained or evaluated on.
///
/// On a processor a thread makes the batches ready. On a GPU the images lie in its memory as bytes, and a
/// kernel crops, mirrors and normalises; the host sends numbers of images and views alone. Either way
/// the same images come, in the same order and with the same views.
pub struct Feed {
    loader: Loader,
    #[cfg(feature = "cuda")]
    resident: Option<Arc<gpu::Resident>>,
}

impl Feed {
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

    /// The same in the set's order, in training as well.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.loader = self.loader.in_order();
        self
    }

    /// Images of a pass.
    #[must_use]
    pub fn images(&self) -> usize {
        self.loader.images()
    }

    /// Batches of a pass.
    #[must_use]
    pub fn batches(&self) -> usize {
        self.loader.batches()
    }

    /// One epoch's batches: see [`Loader::training`].
    ///
    /// # Errors
    /// When the thread that makes them cannot be started.
    pub fn training(
        &self,
        seed: u64,
        epoch: u32,
        augmentation: Augmentation,
        first: usize,
    ) -> Result<Pass> {
        #[cfg(feature = "cuda")]
        if let Some(resident) = &self.resident {
            let plan = self.loader.training_plan(seed, epoch, augmentation, first);
            return Ok(Pass(Place::Gpu(gpu::Pass::new(resident.clone(), plan)?)));
        }
        let batches = self.loader.training(seed, epoch, augmentation, first)?;
        Ok(Pass(Place::Host(batches)))
    }

    /// All images in the set's order, each of them in this view.
    pub(crate) fn evaluation(&self, view: View) -> Result<Pass> {
        #[cfg(feature = "cuda")]
        if let Some(resident) = &self.resident {
            let plan = self.loader.evaluation_plan(view);
            return Ok(Pass(Place::Gpu(gpu::Pass::new(resident.clone(), plan)?)));
        }
        Ok(Pass(Place::Host(self.loader.evaluation(view)?)))
    }
}

/// The batches of one pass.
pub struct Pass(Place);

/// Who makes them.
enum Place {
    /// Made by a thread of their own, which ends with this.
    Host(Batches),
    #[cfg(feature = "cuda")]
    Gpu(gpu::Pass),
}

impl Iterator for Pass {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Place::Host(batches) => batches.next(),
            #[cfg(feature = "cuda")]
            Place::Gpu(pass) => pass.next(),
        }
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use candle_core::{DType, Device, Result, Tensor};
    use datasets::{Batch, Edges, Loader, Seen};
    use ops::{Images, Precision, View, Views};
    use std::ops::Range;
    use std::sync::Arc;
    use std::vec;

    /// A set of images in a GPU's memory.
    pub(super) struct Resident {
        images: Images,
        /// By number of the image, on the host, which sends them in a pass's order.
        labels: Vec<u32>,
        device: Device,
        dtype: DType,
    }

    impl Resident {
        pub(super) fn new(loader: &Loader, device: &Device, precision: Precision) -> Result<Self> {
            let numbers = loader.normalisation().numbers().concat();
            let numbers = Tensor::from_vec(numbers, (3, 256), device)?;
            let images = loader.split().images().contiguous()?.to_device(device)?;
            let labels = loader
                .split()
                .with_bytes(|labels, _| labels.iter().map(|label| u32::from(*label)).collect())?;
            Ok(Self {
                images: Images::new(images, numbers)?,
                labels,
                device: device.clone(),
                dtype: precision.activations(),
            })
        }
    }

    /// One pass. All of its order is sent at once: sending a part may wait for the GPU.
    pub(super) struct Pass {
        resident: Arc<Resident>,
        views: Views,
        labels: Tensor,
        batches: vec::IntoIter<Range<usize>>,
    }

    impl Pass {
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
                        mirrored: view.flipped,
                        reflected: view.edges == Edges::Reflect,
                        hole: [
                            view.hole.top,
                            view.hole.left,
                            view.hole.bottom,
                            view.hole.right,
                        ],
                    });
                }
            }
            if labels.is_empty() {
                // A GPU has no memory of no size. Nothing looks at this image: there is no batch.
                labels.push(0);
                views.push(View {
                    image: 0,
                    top: 0,
                    left: 0,
                    mirrored: false,
                    reflected: false,
                    hole: [0; 4],
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

    impl Iterator for Pass {
        type Item = Result<Batch>;

        fn next(&mut self) -> Option<Self::Item> {
            let range = self.batches.next()?;
            Some(self.batch(range))
        }
    }
}
