//! The built-in recipes. Each states the settings in which it differs from `reference`, whose settings are the
//! defaults.

use crate::settings::Overrides;

/// Names and files of the recipes.
const RECIPES: [(&str, &str); 3] = [
    ("reference", ""),
    ("best", include_str!("../recipes/best.toml")),
    ("sprint", include_str!("../recipes/sprint.toml")),
];

/// The names of the recipes.
pub fn names() -> impl Iterator<Item = &'static str> {
    RECIPES.iter().map(|(name, _)| *name)
}

/// The settings of a recipe; `None` where there is none of that name.
#[must_use]
pub fn recipe(name: &str) -> Option<Overrides> {
    let (_, text) = RECIPES.iter().find(|(known, _)| *known == name)?;
    // A test reads every recipe.
    toml::from_str(text).ok()
}
