//! Folders of pictures by class, as torchvision's `ImageFolder` reads them.

#[cfg(feature = "pictures")]
mod cache;
#[cfg(feature = "pictures")]
mod load;
#[cfg(feature = "pictures")]
pub use load::{LoadOptions, LoadProgress, LoadStage};

use crate::error::Error;
use crate::info::Images;
use rng::{Purpose, Stream};
use run::predictions::NUM_CLASSES;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

/// The extensions of pictures, in lower case.
const EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];

/// Names of the folder of training pictures, the first one that is there; in any case. As in timm's `ImageDataset`.
const TRAINING: [&str; 2] = ["train", "training"];

/// Names of the folder of test pictures.
const TEST: [&str; 5] = ["test", "testing", "val", "valid", "validation"];

/// The seed that chooses the test pictures of a folder that has none.
const TEST_SPLIT_SEED: u64 = 0;

/// One in this many pictures of a class is held out as a test picture.
const TEST_SPLIT: usize = 6;

/// Why a folder is not one of pictures by class.
#[derive(Debug, thiserror::Error)]
pub enum ImageFolderError {
    /// There are test pictures, but no training pictures.
    #[error(
        "`{}` has a folder `{}`, but no `train`: put the training pictures into `train`, with a folder for each class",
        path.display(),
        test.display()
    )]
    NoTraining {
        /// The folder.
        path: PathBuf,
        /// The name of that of the test pictures.
        test: OsString,
    },
    /// There are too few or too many classes.
    #[error(
        "`{}` has {}; it needs a folder with pictures for each of {} to {} classes",
        path.display(),
        run::cli::count(*found, "class folder"),
        NUM_CLASSES.start(),
        NUM_CLASSES.end()
    )]
    Classes {
        /// The folder.
        path: PathBuf,
        /// The number of its folders.
        found: usize,
    },
    /// The name of a class cannot be recorded.
    #[error(
        "the name of the class folder `{}` is not valid Unicode, or has control characters; rename it",
        run::cli::one_line(&.0.display().to_string())
    )]
    ClassName(PathBuf),
    /// Classes without pictures.
    #[error(
        "`{}` has no pictures (PNG or JPEG) of {}: add some, or remove the folder",
        path.display(),
        names(classes)
    )]
    EmptyClasses {
        /// The folder of the classes.
        path: PathBuf,
        /// Those without pictures.
        classes: Vec<String>,
    },
    /// A class with too few pictures to hold one out.
    #[error(
        "`{}` has a single picture of `{class}`, and no test pictures: add more, or put test pictures into `test`",
        path.display()
    )]
    SinglePicture {
        /// The folder of the classes.
        path: PathBuf,
        /// The class.
        class: String,
    },
    /// The test pictures have other classes than the training pictures.
    #[error(
        "`{}` and `{}` have different classes: {}",
        training.display(),
        test.display(),
        [("first", only_training), ("second", only_test)]
            .into_iter()
            .filter(|(_, classes)| !classes.is_empty())
            .map(|(which, classes)| format!("only the {which} one has {}", names(classes)))
            .collect::<Vec<_>>()
            .join(", ")
    )]
    OtherTestClasses {
        /// The folder of the training pictures.
        training: PathBuf,
        /// The folder of the test pictures.
        test: PathBuf,
        /// Classes without a folder of test pictures.
        only_training: Vec<String>,
        /// Classes without a folder of training pictures.
        only_test: Vec<String>,
    },
    /// A link leads to a folder that it is in.
    #[error("`{}` is a link to a folder that it is in; remove it", .0.display())]
    LinkLoop(PathBuf),
    /// Pictures that cannot be read: how many of how many, and the first ones with the reasons.
    #[error(
        "{} of {all} in `{}` cannot be read; repair or remove them, or leave them out with --skip-unreadable:{}",
        run::cli::count(*count, "picture"),
        path.display(),
        lines(first, *count)
    )]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// The number of pictures that cannot be read.
        count: usize,
        /// The number of pictures.
        all: usize,
        /// The paths and reasons of the first ones.
        first: Vec<String>,
    },
    /// It was asked to stop.
    #[error("reading the pictures was stopped")]
    Stopped,
}

/// Names as a list that is not too long.
fn names(names: &[String]) -> String {
    let shown = names.len().min(10);
    let list: Vec<_> = names[..shown]
        .iter()
        .map(|name| format!("`{name}`"))
        .collect();
    list.join(", ") + &more(names.len(), shown)
}

/// The first pictures of `count`, each on a line.
fn lines(first: &[String], count: usize) -> String {
    let lines: String = first.iter().map(|line| format!("\n  {line}")).collect();
    match count - first.len() {
        0 => lines,
        more => format!("{lines}\n  and {more} more"),
    }
}

fn more(count: usize, shown: usize) -> String {
    match count - shown {
        0 => String::new(),
        more => format!(", and {more} more"),
    }
}

/// A picture's file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PictureFile {
    /// Its path from the folder of the data set.
    path: PathBuf,
    class: u32,
}

/// A folder of pictures by class. It has `train/CLASS/...` and `test/CLASS/...`, or other usual names for these; or only
/// `CLASS/...`. The order of classes and pictures is that of torchvision's `ImageFolder`: classes by name, and in a class
/// folders by path, then files by name.
#[derive(Debug)]
pub struct ImageFolder {
    path: PathBuf,
    class_names: Vec<String>,
    /// The folders of the training pictures' classes, and of the test pictures'.
    parts: (PathBuf, Option<PathBuf>),
    /// Training pictures, and then test pictures.
    pictures: Vec<PictureFile>,
    /// The number of training pictures.
    training: usize,
    /// Hidden files, and files that are no pictures.
    ignored: usize,
    /// Folders beside those of the training and test pictures.
    unread: Vec<PathBuf>,
}

impl ImageFolder {
    /// Lists the classes and pictures of a folder.
    ///
    /// # Errors
    /// When it is missing, or lacks what an `ImageFolder` needs.
    pub fn find(path: &Path) -> Result<Self, Error> {
        check_folder(path)?;
        let mut ignored = 0;
        let (mut names, _) = folders(path)?;
        // Of the same name in two cases, the lower one first.
        names.sort_by(|a, b| b.cmp(a));
        let named = |known: &[&str]| {
            let mut known = known.iter();
            known.find_map(|known| {
                let mut names = names.iter();
                names.find(|name| name.eq_ignore_ascii_case(known))
            })
        };
        let (training, test) = match (named(&TRAINING), named(&TEST)) {
            // Such as the trains among vehicles.
            (Some(only), None) | (None, Some(only)) if is_class(&path.join(only))? => {
                (path.to_owned(), None)
            }
            (Some(training), test) => (path.join(training), test.map(|name| path.join(name))),
            (None, Some(test)) => {
                let (path, test) = (path.to_owned(), test.clone());
                return Err(ImageFolderError::NoTraining { path, test }.into());
            }
            (None, None) => (path.to_owned(), None),
        };
        let mut unread = Vec::new();
        if training != path {
            let others = names.iter().map(|name| path.join(name));
            unread
                .extend(others.filter(|other| *other != training && Some(other) != test.as_ref()));
        }
        let class_names = classes(&training, &mut ignored)?;
        let mut files = pictures(path, &training, &class_names, &mut ignored)?;
        let training_files = files.len();
        if let Some(test) = &test {
            let test_classes = classes(test, &mut ignored)?;
            let only_in = |names: &[String], others: &[String]| {
                let names = names.iter().filter(|name| !others.contains(name));
                names.cloned().collect()
            };
            let only_training: Vec<_> = only_in(&class_names, &test_classes);
            let only_test: Vec<_> = only_in(&test_classes, &class_names);
            if !only_training.is_empty() || !only_test.is_empty() {
                return Err(ImageFolderError::OtherTestClasses {
                    training,
                    test: test.clone(),
                    only_training,
                    only_test,
                }
                .into());
            }
            files.append(&mut pictures(path, test, &class_names, &mut ignored)?);
        }
        Ok(Self {
            path: path.to_owned(),
            class_names,
            parts: (training, test),
            pictures: files,
            training: training_files,
            ignored,
            unread,
        })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Folders beside those of the training and test pictures, which are not read.
    #[must_use]
    pub fn unread(&self) -> &[PathBuf] {
        &self.unread
    }

    /// How many files are ignored: hidden ones, and those that are no pictures.
    #[must_use]
    pub fn ignored(&self) -> usize {
        self.ignored
    }

    /// The classes by label.
    #[must_use]
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// How many images there are, if all pictures can be read.
    ///
    /// # Errors
    /// When there are no test pictures, and a class has too few pictures to hold one out.
    pub fn images(&self) -> Result<Images, Error> {
        let (training, test) = self.split(|_| true)?;
        Ok(Images {
            training: training.len(),
            test: test.len(),
        })
    }

    /// Whether test pictures are held out from the training pictures, as the folder has none.
    fn holds_out(&self) -> bool {
        self.parts.1.is_none()
    }

    /// The indices of training and of test pictures, of those that can be read. If the folder has no test pictures, a sixth of
    /// each class is held out. Both parts keep the order of the pictures.
    fn split(
        &self,
        is_readable: impl Fn(usize) -> bool,
    ) -> Result<(Vec<usize>, Vec<usize>), Error> {
        let readable = (0..self.pictures.len()).filter(|index| is_readable(*index));
        let (training, mut test): (Vec<_>, Vec<_>) =
            readable.partition(|index| *index < self.training);
        let mut classes = vec![Vec::new(); self.class_names.len()];
        for index in training {
            classes[self.pictures[index].class as usize].push(index);
        }
        let folder = || self.parts.0.clone();
        let empty = self.class_names.iter().zip(&classes);
        let empty = empty.filter(|(_, members)| members.is_empty());
        let empty: Vec<_> = empty.map(|(name, _)| name.clone()).collect();
        if !empty.is_empty() {
            return Err(ImageFolderError::EmptyClasses {
                path: folder(),
                classes: empty,
            }
            .into());
        }
        if self.holds_out() {
            for ((class, name), members) in (0..).zip(&self.class_names).zip(&mut classes) {
                if members.len() == 1 {
                    return Err(ImageFolderError::SinglePicture {
                        path: folder(),
                        class: name.clone(),
                    }
                    .into());
                }
                // A Fisher-Yates shuffle of the first ones.
                let stream = Stream::new(TEST_SPLIT_SEED, Purpose::TestSplit, class);
                let held_out = (members.len() / TEST_SPLIT).max(1);
                for index in 0..held_out {
                    let rest = (members.len() - index) as u64;
                    members.swap(index, index + stream.below(index as u64, rest) as usize);
                }
                test.extend(members.drain(..held_out));
                members.sort_unstable();
            }
            test.sort_unstable();
        }
        Ok((classes.concat(), test))
    }
}

/// Checks that a path is a folder.
pub(crate) fn check_folder(path: &Path) -> Result<(), Error> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Error::NotAFolder(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(Error::dangling_link(path).unwrap_or_else(|| Error::MissingFolder(path.to_owned())))
        }
        Err(error) => Err(Error::read(path)(error)),
    }
}

/// Whether a folder named `train` or `test` is a class: it has no folders, and there are other folders beside it.
fn is_class(folder: &Path) -> Result<bool, Error> {
    let parent = folder.parent().unwrap_or(folder);
    Ok(folders(folder)?.0.is_empty() && folders(parent)?.0.len() > 1)
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().first() == Some(&b'.')
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|extension| {
        let mut known = EXTENSIONS.iter();
        known.any(|known| extension.eq_ignore_ascii_case(known))
    })
}

/// The names of the folders in `folder`, also of links to folders, without hidden ones; and the number of other entries.
fn folders(folder: &Path) -> Result<(Vec<OsString>, usize), Error> {
    let mut names = Vec::new();
    let mut others = 0;
    for entry in fs::read_dir(folder).map_err(Error::read(folder))? {
        let entry = entry.map_err(Error::read(folder))?;
        let name = entry.file_name();
        match is_hidden(&name) || !entry.path().is_dir() {
            true => others += 1,
            false => names.push(name),
        }
    }
    Ok((names, others))
}

/// The names of the classes in `folder`, sorted.
fn classes(folder: &Path, ignored: &mut usize) -> Result<Vec<String>, Error> {
    let (found, others) = folders(folder)?;
    *ignored += others;
    let mut names = Vec::new();
    for name in found {
        let path = folder.join(&name);
        match name.into_string() {
            // As for names in checkpoints.
            Ok(name) if run::cli::one_line(&name) == name => names.push(name),
            _ => return Err(ImageFolderError::ClassName(path).into()),
        }
    }
    // By code points, as Python does: UTF-8 keeps their order.
    names.sort();
    if !NUM_CLASSES.contains(&names.len()) {
        return Err(ImageFolderError::Classes {
            path: folder.to_owned(),
            found: names.len(),
        }
        .into());
    }
    Ok(names)
}

/// The pictures of the classes in `folder`, in the order of `sorted(os.walk(class, followlinks=True))`, with paths from `root`.
fn pictures(
    root: &Path,
    folder: &Path,
    class_names: &[String],
    ignored: &mut usize,
) -> Result<Vec<PictureFile>, Error> {
    let mut all = Vec::new();
    let mut empty = Vec::new();
    for (class, name) in (0..).zip(class_names) {
        let class_folder = folder.join(name);
        let mut found = files(&class_folder, ignored)?;
        if found.is_empty() {
            empty.push(name.clone());
        }
        found.sort_by_cached_key(|path| sort_key(&class_folder, path));
        all.extend(found.into_iter().map(|path| PictureFile {
            path: path.strip_prefix(root).map(Path::to_owned).unwrap_or(path),
            class,
        }));
    }
    match empty.is_empty() {
        true => Ok(all),
        false => Err(ImageFolderError::EmptyClasses {
            path: folder.to_owned(),
            classes: empty,
        }
        .into()),
    }
}

/// All pictures in a folder and in those below it.
fn files(folder: &Path, ignored: &mut usize) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut entries = WalkDir::new(folder)
        .follow_links(true)
        .min_depth(1)
        .into_iter();
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let path = error.path().unwrap_or(folder).to_owned();
                if path.file_name().is_some_and(is_hidden) {
                    *ignored += 1;
                    continue;
                }
                if error.loop_ancestor().is_some() {
                    return Err(ImageFolderError::LinkLoop(path).into());
                }
                // A link that leads nowhere is a picture that cannot be read.
                match error.into_io_error() {
                    Some(_) if path.is_symlink() && is_picture(&path) => found.push(path),
                    Some(_) if path.is_symlink() => *ignored += 1,
                    reason => {
                        let reason = reason.unwrap_or_else(|| ErrorKind::Other.into());
                        return Err(Error::Read { path, reason });
                    }
                }
                continue;
            }
        };
        let is_folder = entry.file_type().is_dir();
        if is_hidden(entry.file_name()) {
            *ignored += 1;
            if is_folder {
                entries.skip_current_dir();
            }
        } else if entry.file_type().is_file() && is_picture(entry.path()) {
            found.push(entry.into_path());
        } else if !is_folder {
            *ignored += 1;
        }
    }
    Ok(found)
}

/// The path of the file's folder from the folder of its class, and the file's name. Python sorts paths as text, with `/`
/// between their parts.
fn sort_key(class_folder: &Path, path: &Path) -> (Vec<u8>, Vec<u8>) {
    let folder = path
        .parent()
        .and_then(|parent| parent.strip_prefix(class_folder).ok());
    let parts = folder.into_iter().flat_map(Path::iter);
    let folder = parts.flat_map(|part| [b"/", part.as_encoded_bytes()].concat());
    let name = path.file_name().unwrap_or_default();
    (folder.collect(), name.as_encoded_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with empty files.
    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    fn names(folder: &ImageFolder) -> Vec<String> {
        let paths = folder.pictures.iter().map(|picture| &picture.path);
        paths
            .map(|path| path.display().to_string().replace('\\', "/"))
            .collect()
    }

    fn message(folder: &tempfile::TempDir) -> String {
        let error = ImageFolder::find(folder.path()).unwrap_err().to_string();
        let path = folder.path().display().to_string();
        error.replace(&path, "DIR").replace('\\', "/")
    }

    /// `torchvision.datasets.ImageFolder(root).samples` of torchvision 0.29 has this order.
    #[test]
    fn the_order_is_that_of_torchvision() {
        let folder = folder(&[
            "b/x.png",
            "a/10.png",
            "a/9.png",
            "a/B.jpg",
            "a/a.jpeg",
            "a/sub/1.png",
            "a/sub-2/1.png",
            "a/sub/deep/1.png",
            "a/\u{e9}.png",
            "Z/1.PNG",
            "\u{e4}/1.png",
        ]);
        let found = ImageFolder::find(folder.path()).unwrap();
        assert_eq!(found.class_names(), ["Z", "a", "b", "\u{e4}"]);
        assert_eq!(
            names(&found),
            [
                "Z/1.PNG",
                "a/10.png",
                "a/9.png",
                "a/B.jpg",
                "a/a.jpeg",
                "a/\u{e9}.png",
                "a/sub/1.png",
                "a/sub-2/1.png",
                "a/sub/deep/1.png",
                "b/x.png",
                "\u{e4}/1.png",
            ]
        );
    }

    #[test]
    fn parts_are_found() {
        let both = [
            "train/a/1.png",
            "train/b/1.png",
            "test/a/1.png",
            "test/b/1.png",
        ];
        let found = ImageFolder::find(folder(&both).path()).unwrap();
        assert_eq!(names(&found), both);
        assert_eq!(found.training, 2);
        let val = both.map(|name| name.replace("test", "val"));
        let val: Vec<_> = val.iter().map(String::as_str).collect();
        assert_eq!(names(&ImageFolder::find(folder(&val).path()).unwrap()), val);
        // Both: test pictures are those in `test`.
        let folder = folder(&[&both[..], &val[2..]].concat());
        let found = ImageFolder::find(folder.path()).unwrap();
        assert_eq!(names(&found), both);
        assert_eq!(found.unread, [folder.path().join("val")]);
    }

    #[test]
    fn parts_have_their_usual_names_in_any_case() {
        for (training, test) in [
            ("Training", "Testing"),
            ("Train", "TEST"),
            ("train", "valid"),
            ("training", "Validation"),
        ] {
            let files = [training, test]
                .map(|part| ["a", "b"].map(|class| format!("{part}/{class}/1.png")));
            let files = files.as_flattened();
            let files: Vec<_> = files.iter().map(String::as_str).collect();
            let found = ImageFolder::find(folder(&files).path()).unwrap();
            assert_eq!(names(&found), files);
            assert_eq!(found.training, 2);
        }
        let classes = folder(&["valid/1.png", "invalid/1.png"]);
        let found = ImageFolder::find(classes.path()).unwrap();
        assert_eq!(found.class_names(), ["invalid", "valid"]);
    }

    #[test]
    fn train_is_a_class_where_it_has_no_folders() {
        let vehicles = folder(&["bus/1.png", "bus/2.png", "train/1.png", "train/2.png"]);
        let found = ImageFolder::find(vehicles.path()).unwrap();
        assert_eq!(found.class_names(), ["bus", "train"]);
        // Alone, or beside `test`, it is the folder of the training pictures.
        for files in [&["train/1.png"][..], &["train/1.png", "test/a/1.png"]] {
            let error = message(&folder(files));
            assert!(
                error.starts_with("`DIR/train` has 0 class folders"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_sixth_of_each_class_is_held_out() {
        let mut files = Vec::new();
        for class in ["a", "b"] {
            files.extend((0..30).map(|number| format!("train/{class}/{number:02}.png")));
        }
        files.extend(["train/few/1.png", "train/few/2.png"].map(str::to_owned));
        let files: Vec<_> = files.iter().map(String::as_str).collect();
        let folder = folder(&files);
        let found = ImageFolder::find(folder.path()).unwrap();
        let (training, test) = found.split(|_| true).unwrap();
        assert_eq!((training.len(), test.len()), (51, 11));
        let in_class = |indices: &[usize], class| {
            let is_of = |index: &&usize| found.pictures[**index].class == class;
            indices.iter().filter(is_of).count()
        };
        assert_eq!([0, 1, 2].map(|class| in_class(&test, class)), [5, 5, 1]);
        let mut all = [&training[..], &test].concat();
        assert!(training.is_sorted() && test.is_sorted());
        all.sort_unstable();
        assert_eq!(all, (0..62).collect::<Vec<_>>());
        // These, in every version of the program.
        assert_eq!(test, [5, 7, 15, 23, 28, 32, 37, 46, 54, 58, 60]);
        // Pictures that cannot be read are as if they were absent.
        let (training, test) = found.split(|index| index >= 30 || index % 5 == 0).unwrap();
        assert_eq!((in_class(&training, 0), in_class(&test, 0)), (5, 1));
        let error = found.split(|index| index < 60).unwrap_err().to_string();
        assert!(
            error.contains("has no pictures (PNG or JPEG) of `few`"),
            "{error}"
        );
        let error = found.split(|index| index < 61).unwrap_err().to_string();
        assert!(error.contains("has a single picture of `few`"), "{error}");
    }

    #[test]
    fn what_is_no_picture_is_ignored() {
        let found = folder(&[
            "a/1.png",
            "a/.hidden.png",
            "a/.folder/2.png",
            "a/notes.txt",
            "a/png",
            "b/1.jpeg",
            ".git/config",
            "readme.md",
        ]);
        let found = ImageFolder::find(found.path()).unwrap();
        assert_eq!(names(&found), ["a/1.png", "b/1.jpeg"]);
        assert_eq!(found.ignored, 6);
    }

    #[test]
    fn other_folders_are_refused() {
        let range = "it needs a folder with pictures for each of 2 to 1000 classes";
        assert_eq!(
            message(&folder(&[])),
            format!("`DIR` has 0 class folders; {range}")
        );
        assert_eq!(
            message(&folder(&["train/a/1.png"])),
            format!("`DIR/train` has 1 class folder; {range}")
        );
        let many: Vec<_> = (0..=*NUM_CLASSES.end())
            .map(|class| format!("{class}/1.png"))
            .collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(
            message(&folder(&many)),
            format!("`DIR` has 1001 class folders; {range}")
        );
        assert_eq!(
            message(&folder(&["a/1.png", "b/1.txt", "c/d/.1.png"])),
            "`DIR` has no pictures (PNG or JPEG) of `b`, `c`: add some, or remove the folder"
        );
        assert_eq!(
            message(&folder(&["val/a/1.png", "val/b/1.png"])),
            "`DIR` has a folder `val`, but no `train`: put the training pictures into `train`, with a folder for each class"
        );
        let training = ["train/a/1.png", "train/b/1.png"];
        for (test, expected) in [
            (
                ["test/a/1.png", "test/c/1.png"].as_slice(),
                "only the first one has `b`, only the second one has `c`",
            ),
            (
                &["test/a/1.png", "test/b/1.png", "test/c/1.png"],
                "only the second one has `c`",
            ),
        ] {
            let error = message(&folder(&[&training, test].concat()));
            let start = "`DIR/train` and `DIR/test` have different classes: ";
            assert_eq!(error, format!("{start}{expected}"));
        }
        let folder = folder(&["a"]);
        for (name, expected) in [("a", "is not a folder"), ("b", "does not exist")] {
            let error = ImageFolder::find(&folder.path().join(name)).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed() {
        use std::os::unix::fs::symlink;
        let elsewhere = folder(&["1.png", "sub/2.png"]);
        let folder = folder(&["a/1.png", "b/1.png"]);
        let link = |target: &Path, name: &str| symlink(target, folder.path().join(name)).unwrap();
        link(elsewhere.path(), "c");
        link(&elsewhere.path().join("1.png"), "a/link.png");
        link(&elsewhere.path().join("sub"), "a/link");
        link(Path::new("/nonexistent"), "b/nothing.png");
        link(Path::new("/nonexistent"), "b/nothing.txt");
        // As Emacs makes them.
        link(Path::new("/nonexistent"), "b/.#1.png");
        link(&folder.path().join("b"), "b/.loop");
        let found = ImageFolder::find(folder.path()).unwrap();
        let expected = [
            "a/1.png",
            "a/link.png",
            "a/link/2.png",
            "b/1.png",
            "b/nothing.png",
            "c/1.png",
            "c/sub/2.png",
        ];
        assert_eq!(names(&found), expected);
        assert_eq!(found.ignored, 3);
        link(&folder.path().join("b"), "b/loop");
        assert_eq!(
            message(&folder),
            "`DIR/b/loop` is a link to a folder that it is in; remove it"
        );
    }

    #[test]
    fn names_that_cannot_be_in_a_checkpoint_are_refused() {
        // They change the order of other characters, or end a line.
        for name in ["a\u{202e}", "a\u{2028}"] {
            let folder = tempfile::tempdir().unwrap();
            for class in [name, "b"] {
                fs::create_dir(folder.path().join(class)).unwrap();
                fs::write(folder.path().join(class).join("1.png"), "").unwrap();
            }
            let error = ImageFolder::find(folder.path()).unwrap_err().to_string();
            assert!(error.contains("control characters"), "{error}");
            assert_eq!(run::cli::one_line(&error), error);
        }
    }
}
