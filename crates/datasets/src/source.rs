//! What `--dataset` names: a data set of the table, or a folder of pictures.

use crate::error::Error;
use crate::image_folder::{ImageFolder, check_folder};
use crate::info::{DatasetInfo, Images};
use crate::table::UnknownDataset;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where images come from.
#[derive(Clone, Debug, PartialEq)]
pub enum DatasetSource {
    /// A data set of the table.
    Known(DatasetInfo),
    /// A folder of pictures by class.
    Folder(PathBuf),
}

impl FromStr for DatasetSource {
    type Err = Error;

    /// A name, or else the path of a folder, which exists.
    fn from_str(text: &str) -> Result<Self, Error> {
        let path = Path::new(text);
        match text.parse() {
            Ok(known) => return Ok(Self::Known(known)),
            // A separator tells a path from a name that is misspelt.
            Err(_) if text.contains(['/', '\\']) => check_folder(path)?,
            Err(_) if path.is_dir() => {}
            Err(unknown) => return Err(UnknownDataset::into(unknown)),
        }
        Ok(Self::Folder(path.to_owned()))
    }
}

impl fmt::Display for DatasetSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(info) => f.write_str(info.name),
            Self::Folder(path) => path.display().fmt(f),
        }
    }
}

impl DatasetSource {
    /// The name in reports and messages: of a folder, its own.
    #[must_use]
    pub fn display_name(setting: &str) -> &str {
        match setting.parse::<DatasetInfo>() {
            Ok(info) => info.display_name,
            Err(_) => {
                let mut parts = setting.rsplit(['/', '\\']);
                let name = parts.find(|part| !part.is_empty() && *part != ".");
                name.unwrap_or(setting)
            }
        }
    }

    /// The classes by label.
    ///
    /// # Errors
    /// When the folder is not one of pictures by class.
    pub fn class_names(&self) -> Result<Vec<String>, Error> {
        Ok(match self {
            Self::Known(info) => info.class_names.iter().map(ToString::to_string).collect(),
            Self::Folder(path) => ImageFolder::find(path)?.class_names().to_vec(),
        })
    }

    /// Checks that there are files: in `data_dir`, or in the folder of pictures.
    ///
    /// # Errors
    /// When there are none.
    pub fn check(&self, data_dir: &Path) -> Result<(), Error> {
        match self {
            Self::Known(info) => info.check(data_dir),
            Self::Folder(path) => ImageFolder::find(path).map(drop),
        }
    }

    /// How many images there are without a limit.
    ///
    /// # Errors
    /// As for [`DatasetSource::class_names`].
    pub fn images(&self) -> Result<Images, Error> {
        match self {
            Self::Known(info) => Ok(info.images),
            Self::Folder(path) => ImageFolder::find(path)?.images(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_folders_are_told_apart() {
        let source = |text: &str| text.parse::<DatasetSource>();
        let name = |text| DatasetSource::display_name(text);
        assert_eq!(
            source("cifar10").unwrap(),
            DatasetSource::Known(crate::cifar10::INFO)
        );
        // Tests run in the folder of their crate.
        for path in [".", "..", "src", "./src/"] {
            assert_eq!(source(path).unwrap(), DatasetSource::Folder(path.into()));
        }
        for (path, expected) in [
            ("cifar11", "is not a data set"),
            ("./cifar10", "the folder `./cifar10` does not exist"),
            ("C:\\pictures", "the folder `C:\\pictures` does not exist"),
            ("./Cargo.toml", "`./Cargo.toml` is not a folder"),
        ] {
            let error = source(path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(name("cifar10"), "CIFAR-10");
        for path in [
            "/home/me/pets",
            "pets",
            "pets/",
            "../pets/.",
            "C:\\me\\pets",
        ] {
            assert_eq!(name(path), "pets", "{path}");
        }
    }
}
