//! Batches on the device that computes.

use candle_core::{Device, Result};
use datasets::{
    Augmentation, Batch, DataLoader as HostLoader, Normalisation, Sample, Split, Transform,
};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

/// For a number of samples, the range of a part of them.
pub(crate) type Part = Arc<dyn Fn(usize) -> Range<usize> + Send + Sync>;

/// A split of a data set, cut into batches on a device.
///
/// On a CPU, a thread prepares the batches. On a GPU, the images are in its memory as bytes, and a kernel crops, flips
/// and normalises them; the host sends indices and crops alone. Both give the same images in the same order.
pub struct DataLoader {
    /// On the host, also where a GPU has the images.
    pub(crate) host: HostLoader,
    /// Which samples of a training batch this process has, given how many the batch has, if there are several processes.
    pub(crate) part: Option<Part>,
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
        let host = HostLoader::new(split, batch_size, normalisation);
        Ok(Self {
            #[cfg(feature = "cuda")]
            resident: device
                .is_cuda()
                .then(|| gpu::Resident::new(&host, device, precision))
                .transpose()?
                .map(Arc::new),
            host,
            part: None,
        })
    }

    /// The training batches of an epoch, from batch `first` on: see [`HostLoader::training`].
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
        let batches = self.host.training(seed, epoch, augmentation, first);
        match self.part.clone() {
            Some(part) => self.load(batches.map(move |samples| {
                let own = part(samples.len());
                samples[own].to_vec()
            })),
            None => self.load(batches),
        }
    }

    /// These batches of all images in the order of the data set, each with this transform.
    pub(crate) fn evaluation(
        &self,
        transform: Transform,
        batches: Range<usize>,
    ) -> Result<Batches> {
        let plan = self.host.evaluation(transform);
        self.load(plan.skip(batches.start).take(batches.len()))
    }

    fn load(&self, plan: impl Iterator<Item = Vec<Sample>> + Send + 'static) -> Result<Batches> {
        #[cfg(feature = "cuda")]
        if let Some(resident) = &self.resident {
            return gpu::batches(resident.clone(), plan);
        }
        Ok(Box::new(self.host.load(plan)?))
    }
}

/// The batches of one epoch, or of one evaluation. On a CPU a thread prepares them, which ends with this value.
pub type Batches = Box<dyn Iterator<Item = Result<Batch>>>;

#[cfg(feature = "cuda")]
mod gpu {
    use candle_core::{DType, Device, Result, Tensor};
    use datasets::{Batch, DataLoader as HostLoader, Sample};
    use ops::{GpuDataset, Precision, View};
    use run::settings::PaddingMode;
    use std::iter;
    use std::sync::Arc;

    /// Images in the memory of a GPU.
    pub(super) struct Resident {
        images: GpuDataset,
        /// By index of the image, on the host, which sends them in the order of the batches.
        labels: Vec<u32>,
        device: Device,
        dtype: DType,
    }

    impl Resident {
        pub(super) fn new(
            loader: &HostLoader,
            device: &Device,
            precision: Precision,
        ) -> Result<Self> {
            let normalised = loader.normalisation().table().concat();
            let normalised = Tensor::from_vec(normalised, (3, 256), device)?;
            let images = loader.split().images().contiguous()?.to_device(device)?;
            Ok(Self {
                images: GpuDataset::new(images, normalised)?,
                labels: loader.split().with_slices(|labels, _| labels.to_vec())?,
                device: device.clone(),
                dtype: precision.activations(),
            })
        }
    }

    /// The batches of one epoch. The whole order is sent at once: each transfer may wait for the GPU.
    pub(super) fn batches(
        resident: Arc<Resident>,
        plan: impl Iterator<Item = Vec<Sample>>,
    ) -> Result<super::Batches> {
        let (mut views, mut labels, mut batches) = (Vec::new(), Vec::new(), Vec::new());
        for samples in plan {
            batches.push(views.len()..views.len() + samples.len());
            for Sample { index, transform } in samples {
                let cutout = transform.cutout;
                labels.push(resident.labels[index as usize]);
                views.push(View {
                    image: index,
                    top: transform.top,
                    left: transform.left,
                    flipped: transform.flipped,
                    reflected: transform.padding_mode == PaddingMode::Reflect,
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
