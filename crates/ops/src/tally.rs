//! What the images of many steps came to.

use crate::cross_entropy::{cross_entropy, predictions};
use candle_core::{DType, Device, Result, Tensor, bail};

/// Sums over images.
#[derive(Clone, Debug, PartialEq)]
pub struct Totals {
    /// Sum of the cross-entropy.
    pub loss: f64,
    /// How many images of class `row` were taken for class `column`: `confusion[row * classes + column]`.
    pub confusion: Vec<u64>,
    /// The first step whose loss was not finite.
    pub diverged: Option<u64>,
}

impl Totals {
    fn new(classes: usize) -> Self {
        Self {
            loss: 0.0,
            confusion: vec![0; classes * classes],
            diverged: None,
        }
    }

    /// Images whose loss was finite.
    #[must_use]
    pub fn images(&self) -> u64 {
        self.confusion.iter().sum()
    }

    /// Images that were classified rightly.
    #[must_use]
    pub fn right(&self) -> u64 {
        let classes = self.confusion.len().isqrt();
        self.confusion.iter().step_by(classes + 1).sum()
    }
}

/// Gathers [`Totals`] where the logits are, so that a GPU need not be waited for at every step.
///
/// On a GPU the loss is summed in whole units of 2^-24 an image (an image counts at most 2^29, far beyond any
/// loss of a network that learns), so that the sum does not depend on when it is taken.
pub struct Tally {
    classes: usize,
    place: Place,
}

enum Place {
    Host(Totals),
    #[cfg(feature = "cuda")]
    Gpu(
        candle_core::CudaDevice,
        candle_core::cuda::cudarc::driver::CudaSlice<u64>,
    ),
}

impl Tally {
    /// A tally of nothing, for logits of `classes` classes on `device`.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(classes: usize, device: &Device) -> Result<Self> {
        let place = match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                let empty = crate::cross_entropy::cuda::empty_tally(classes);
                Place::Gpu(device.clone(), crate::cuda::upload(device, &empty)?)
            }
            _ => Place::Host(Totals::new(classes)),
        };
        Ok(Self { classes, place })
    }

    /// Adds a batch: `logits` `[batch, classes]` and `labels` `[batch]` of `u32`, of the step `step`.
    ///
    /// # Errors
    /// As for [`cross_entropy`].
    pub fn add(&mut self, logits: &Tensor, labels: &Tensor, step: u64) -> Result<()> {
        let (rows, classes) = logits.dims2()?;
        if classes != self.classes || labels.dims() != [rows] || labels.dtype() != DType::U32 {
            bail!(
                "a tally of {} classes does not fit logits {:?} and labels {:?}",
                self.classes,
                logits.shape(),
                labels.shape()
            );
        }
        match &mut self.place {
            Place::Host(totals) => {
                let mean = cross_entropy(logits, labels)?.to_dtype(DType::F64)?;
                let mean = mean.to_scalar::<f64>()?;
                if !mean.is_finite() {
                    totals.diverged.get_or_insert(step);
                    return Ok(());
                }
                totals.loss += mean * rows as f64;
                let labels = labels.to_vec1::<u32>()?;
                for (label, prediction) in labels.iter().zip(predictions(logits)?) {
                    totals.confusion[*label as usize * classes + prediction] += 1;
                }
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Place::Gpu(device, tally) => {
                let (logits, labels) = (logits.contiguous()?, labels.contiguous()?);
                let (logits, logits_layout) = logits.storage_and_layout();
                let (labels, labels_layout) = labels.storage_and_layout();
                let logits = crate::cuda::slice::<f32>("tally", &logits, logits_layout)?;
                let labels = crate::cuda::slice::<u32>("tally", &labels, labels_layout)?;
                let batch = (&logits, &labels);
                crate::cross_entropy::cuda::add(device, batch, (rows, classes), tally, step)
            }
        }
    }

    /// The totals since the last time, waiting for the GPU where they are there.
    ///
    /// # Errors
    /// When the device fails.
    pub fn take(&mut self) -> Result<Totals> {
        match &mut self.place {
            Place::Host(totals) => Ok(std::mem::replace(totals, Totals::new(self.classes))),
            #[cfg(feature = "cuda")]
            Place::Gpu(device, tally) => {
                use crate::cross_entropy::cuda::{HEADER, NOWHERE, UNIT, empty_tally};
                let numbers = device.clone_dtoh(tally)?;
                device.memcpy_htod(&empty_tally(self.classes), tally)?;
                Ok(Totals {
                    loss: numbers[0] as f64 * UNIT,
                    confusion: numbers[HEADER..].to_vec(),
                    diverged: (numbers[2] != NOWHERE).then_some(numbers[2]),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_add_up() -> Result<()> {
        let mut tally = Tally::new(3, &Device::Cpu)?;
        let logits = Tensor::new(&[[3_f32, 1.0, 2.0], [0.0, 0.0, 0.0]], &Device::Cpu)?;
        let labels = Tensor::new(&[2_u32, 0], &Device::Cpu)?;
        tally.add(&logits, &labels, 0)?;
        tally.add(&logits, &labels, 1)?;
        let totals = tally.take()?;
        let loss = cross_entropy(&logits, &labels)?.to_scalar::<f32>()?;
        assert_eq!(totals.loss, 4.0 * f64::from(loss));
        assert_eq!(totals.confusion, [2, 0, 0, 0, 0, 0, 2, 0, 0]);
        assert_eq!((totals.images(), totals.right()), (4, 2));
        assert_eq!(tally.take()?, Totals::new(3));
        Ok(())
    }

    #[test]
    fn the_first_step_without_a_finite_loss_is_named() -> Result<()> {
        let mut tally = Tally::new(2, &Device::Cpu)?;
        let labels = Tensor::new(&[0_u32], &Device::Cpu)?;
        for (step, logit) in [(3, 0.0), (4, f32::NAN), (5, f32::NAN)] {
            tally.add(&Tensor::new(&[[logit, 0.0]], &Device::Cpu)?, &labels, step)?;
        }
        assert_eq!(tally.take()?.diverged, Some(4));
        Ok(())
    }
}
