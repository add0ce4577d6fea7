//! Augmentation and normalisation by the settings of a run.

use crate::{Augmentation, Edges, Flip, Normalisation};
use run::Settings;
use run::settings::{self, Augment, PaddingMode};

impl From<&Settings> for Augmentation {
    fn from(settings: &Settings) -> Self {
        match settings.augment {
            Augment::None => Self::None,
            Augment::Standard => Self::Standard {
                edges: match settings.padding_mode {
                    PaddingMode::Constant => Edges::Zero,
                    PaddingMode::Reflect => Edges::Reflect,
                },
                flip: match settings.flip {
                    settings::Flip::Random => Flip::Random,
                    settings::Flip::Alternating => Flip::Alternating,
                },
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
