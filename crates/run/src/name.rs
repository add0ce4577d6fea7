//! Names of runs, which are the names of their folders on every system.

use crate::cli::UsageError;
use crate::settings::{Field, Settings};
use std::fs;
use std::path::Path;

/// The largest number of characters that a folder of pictures contributes to a name: with four bytes each, a name stays
/// below the 255 bytes that file systems allow.
const MAX_FOLDER_CHARS: usize = 40;

impl Settings {
    /// The default name of a run with these settings.
    #[must_use]
    pub fn default_name(&self) -> String {
        default_name(&self.model, Some(&self.dataset), &self.recipe, self.seed)
    }
}

/// The default name of a run: network, data set unless it is the default one, recipe and seed.
#[must_use]
pub fn default_name(model: &str, dataset: Option<&str>, recipe: &str, seed: u64) -> String {
    let default = Field::named("dataset").and_then(|field| field.default);
    let other = dataset.filter(|dataset| Some(*dataset) != default);
    let dataset = other.map_or_else(String::new, |name| format!("-{}", dataset_name(name)));
    format!("{model}{dataset}-{recipe}-seed{seed}")
}

/// The name of a data set, or that of a folder of pictures, with characters of a run's name only.
fn dataset_name(dataset: &str) -> String {
    let path = Path::new(dataset);
    // `..` and `.` have no name of their own.
    let named = match path.file_name() {
        Some(_) => path.to_owned(),
        None => fs::canonicalize(path).unwrap_or_default(),
    };
    let name = named.file_name().unwrap_or("pictures".as_ref());
    let safe = |c| if is_allowed(c) { c } else { '-' };
    let name = name.to_string_lossy();
    name.chars().take(MAX_FOLDER_CHARS).map(safe).collect()
}

/// Whether a run's name may have this character.
fn is_allowed(c: char) -> bool {
    c.is_alphanumeric() || "-_.+=,".contains(c)
}

/// Checks that this is the name of a folder that is valid on every system, since a run may be resumed on another one.
///
/// # Errors
/// When it is not.
pub fn check(name: &str) -> Result<String, UsageError> {
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_allowed) {
        return Err(UsageError(
            "a run's name consists of letters, digits and the characters `-_.+=,`, and does not start with a dot"
                .to_owned(),
        ));
    }
    if name.ends_with('.') || is_reserved_on_windows(name) {
        return Err(UsageError(
            "Windows reserves con, prn, aux, nul, com0 to com9 and lpt0 to lpt9, also with an extension, and ignores a \
             dot at the end; give another name, since a run may be resumed on any system"
                .to_owned(),
        ));
    }
    Ok(name.to_owned())
}

/// Whether Windows reads a file name as that of a device: "Naming Files, Paths, and Namespaces" in its documentation.
fn is_reserved_on_windows(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name).to_ascii_lowercase();
    let port = stem.strip_prefix("com").or(stem.strip_prefix("lpt"));
    let digit = |c: char| c.is_ascii_digit() || "¹²³".contains(c);
    matches!(stem.as_str(), "con" | "prn" | "aux" | "nul")
        || port.is_some_and(|port| port.chars().count() == 1 && port.chars().all(digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_names_have_the_data_set_unless_it_is_the_default() {
        let name = |dataset: &str| {
            let name = default_name("alexnet", Some(dataset), "best", 7);
            assert_eq!(check(&name).as_ref(), Ok(&name));
            assert!(name.len() <= 255, "{name}");
            name
        };
        for (dataset, expected) in [
            ("cifar10", "alexnet-best-seed7"),
            ("cifar100", "alexnet-cifar100-best-seed7"),
            ("./cifar10", "alexnet-cifar10-best-seed7"),
            ("/home/me/pets", "alexnet-pets-best-seed7"),
            ("../pets/.", "alexnet-pets-best-seed7"),
            ("my pets (2)/", "alexnet-my-pets--2--best-seed7"),
            ("Tiere/V\u{f6}gel", "alexnet-V\u{f6}gel-best-seed7"),
            ("/", "alexnet-pictures-best-seed7"),
        ] {
            assert_eq!(name(dataset), expected);
        }
        // Windows resolves `..` without looking for the folder before it.
        if cfg!(unix) {
            assert_eq!(name("missing/.."), "alexnet-pictures-best-seed7");
        }
        // Tests run in the folder of their crate.
        assert_eq!(name("."), "alexnet-run-best-seed7");
        assert_eq!(name("./src/.."), "alexnet-run-best-seed7");
        assert_eq!(name(".."), "alexnet-crates-best-seed7");
        name(&"\u{1d434}".repeat(200));
    }

    #[test]
    fn names_are_folders() {
        for name in ["a", "small-alexnet_1", "lr=0.1,b=2"] {
            assert!(check(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", ".a", "a/b", "a\\b", "a b"] {
            assert!(check(name).is_err(), "{name}");
        }
    }

    #[test]
    fn names_that_windows_reserves_or_changes_are_refused() {
        for name in [
            "con",
            "NUL",
            "com1",
            "LPT9",
            "com²",
            "aux.x",
            "prn.tar.gz",
            "a.",
        ] {
            assert!(check(name).is_err(), "{name}");
        }
        for name in ["con-1", "com10", "com", "null", "a.con", "compare"] {
            assert!(check(name).is_ok(), "{name}");
        }
    }
}
