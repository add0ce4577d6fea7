//! Paths of flags and settings.

use clap::builder::{OsStringValueParser, TypedValueParser};
use serde::{Deserialize, Serialize, Serializer};
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A path that is printed as the system writes it. Windows reads both `/` and `\`: there, it has `\` in memory and `/` in
/// files, since a run may move to another system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "PathBuf")]
pub struct NativePath(PathBuf);

impl NativePath {
    /// The parser of a flag whose path is written to records, or into commands to be pasted.
    #[must_use]
    pub fn text_parser() -> impl TypedValueParser<Value = Self> {
        OsStringValueParser::new().try_map(|path| match path.to_str() {
            None => Err("its name is not valid Unicode, and cannot be recorded; rename it"),
            Some(text) if text.contains(char::is_control) => {
                Err("its name has control characters, and cannot be recorded; rename it")
            }
            Some(_) => Ok(Self::from(path)),
        })
    }
}

impl From<PathBuf> for NativePath {
    fn from(path: PathBuf) -> Self {
        match cfg!(windows) {
            true => Self(path.components().collect()),
            false => Self(path),
        }
    }
}

impl From<OsString> for NativePath {
    fn from(path: OsString) -> Self {
        PathBuf::from(path).into()
    }
}

impl FromStr for NativePath {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(PathBuf::from(text).into())
    }
}

impl Deref for NativePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl AsRef<OsStr> for NativePath {
    fn as_ref(&self) -> &OsStr {
        self.0.as_os_str()
    }
}

impl AsRef<Path> for NativePath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Serialize for NativePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.to_str() {
            Some(text) if cfg!(windows) => serializer.serialize_str(&text.replace('\\', "/")),
            _ => self.0.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_str, to_string};

    #[test]
    fn paths_are_read_on_every_system() {
        let path: NativePath = from_str("\"runs/a\"").unwrap();
        assert_eq!(*path, *Path::new("runs").join("a"));
        assert_eq!(
            path.display().to_string(),
            ["runs", "a"].join(std::path::MAIN_SEPARATOR_STR)
        );
        assert_eq!(to_string(&path).unwrap(), "\"runs/a\"");
        // A file name on other systems than Windows.
        let mixed = NativePath::from(OsString::from("r\\a/curves.svg"));
        let expected = if cfg!(windows) {
            "r\\a\\curves.svg"
        } else {
            "r\\a/curves.svg"
        };
        assert_eq!(mixed.display().to_string(), expected);
    }
}
