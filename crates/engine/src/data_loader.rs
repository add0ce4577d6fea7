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
    /// On the host, also where a GPU has the images.
    pub(crate) host: Loader,
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
        let host = Loader::new(split, batch_size, normalisation);
        Ok(Self {
            #[cfg(feature = "cuda")]
            resident: device
                .is_cuda()
                .then(|| gpu::Resident::new(&host, device, precision))
                .transpose()?
                .map(Arc::new),
            host,
        })
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
            let plan = self.host.training_plan(seed, epoch, augmentation, first);
            return gpu::batches(resident.clone(), plan);
        }
        let batches = self.host.training(seed, epoch, augmentation, first)?;
        Ok(Box::new(batches))
    }

    /// All images in the order of the data set, each in the same view.
    pub(crate) fn evaluation(&self, view: View) -> Result<Batches> {
        #[cfg(feature = "cuda")]
        if let Some(resident) = &self.resident {
            let plan = self.host.evaluation_plan(view);
            return gpu::batches(resident.clone(), plan);
        }
        Ok(Box::new(self.host.evaluation(view)?))
    }
}

/// The batches of one epoch, or of one evaluation. On a CPU a thread prepares them, which ends with this value.
pub type Batches = Box<dyn Iterator<Item = Result<Batch>>>;

#[cfg(feature = "cuda")]
mod gpu {
    use candle_core::{DType, Device, Result, Tensor};
    use datasets::{Batch, Loader, Seen};
    use ops::{Images, Precision, View};
    use run::settings::PaddingMode;
    use std::iter;
    use std::sync::Arc;

    /// Images in the memory of a GPU.
    pub(super) struct Resident {
        images: Images,
        /// By index of the image, on the host, which sends them in the order of the batches.
        labels: Vec<u32>,
        device: Device,
        dtype: DType,
    }

    impl Resident {
        pub(super) fn new(loader: &Loader, device: &Device, precision: Precision) -> Result<Self> {
            let numbers = loader.normalisation().numbers().concat();
            let numbers = Tensor::from_vec(numbers, (3, 256), device)?;
            let images = loader.split().images().contiguous()?.to_device(device)?;
            let to_u32 =
                |labels: &[u8], _: &[u8]| labels.iter().map(|label| u32::from(*label)).collect();
            Ok(Self {
                images: Images::new(images, numbers)?,
                labels: loader.split().with_bytes(to_u32)?,
                device: device.clone(),
                dtype: precision.activations(),
            })
        }
    }

    /// The batches of one epoch. The whole order is sent at once: each transfer may wait for the GPU.
    pub(super) fn batches(
        resident: Arc<Resident>,
        plan: impl Iterator<Item = Vec<Seen>>,
    ) -> Result<super::Batches> {
        let (mut views, mut labels, mut batches) = (Vec::new(), Vec::new(), Vec::new());
        for seen in plan {
            batches.push(views.len()..views.len() + seen.len());
            for Seen { index, view } in seen {
                let cutout = view.cutout;
                labels.push(resident.labels[index as usize]);
                views.push(View {
                    image: index,
                    top: view.top,
                    left: view.left,
                    flipped: view.flipped,
                    reflected: view.padding_mode == PaddingMode::Reflect,
                    cutout: [cutout.top, cutout.left, cutout.bottom, cutout.right],
                });
            }
        }
        if batches.is_empty() {
            // A GPU cannot allocate zero bytes.
            return Ok(Box::new(iter::empty()));
        }
        let count = labels.len();
        let labels = Tensor::from_vec(labels, count, &resident.device)?;
        let views = resident.images.views(&views)?;
        Ok(Box::new(batches.into_iter().map(move |range| {
            Ok(Batch {
                labels: labels.narrow(0, range.start, range.len())?,
                images: resident.images.batch(&views, range, resident.dtype)?,
            })
        })))
    }
}
