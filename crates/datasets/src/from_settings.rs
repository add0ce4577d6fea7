//! Augmentation and normalisation by the settings of a run.

use crate::{Augmentation, Normalisation};
use run::Settings;
use run::settings::Augment;

impl From<&Settings> for Augmentation {
    fn from(settings: &Settings) -> Self {
        match settings.augment {
            Augment::None => Self::None,
            Augment::Standard => Self::Standard {
                padding_mode: settings.padding_mode,
                flip: settings.flip,
                cutout: settings.cutout.get(),
            },
        }
    }
}

impl From<&Settings> for Normalisation {
    fn from(settings: &Settings) -> Self {
        Self::new(
            settings.mean.0.map(|value| value as f32),
            settings.std.0.map(|value| value.get() as f32),
        )
    }
}
