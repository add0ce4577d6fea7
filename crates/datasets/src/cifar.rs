//! What CIFAR-10 and CIFAR-100 have in common: archives of files with the same images, in a binary version and in one for
//! Python. Source: <https://www.cs.toronto.edu/~kriz/cifar.html>.
//!
//! In the binary version, a record has one label byte (CIFAR-100: two, of which the second one is the class) and 3,072
//! pixel bytes: 1,024 red, 1,024 green, 1,024 blue, row-major. In the Python version, a pickled dictionary has the labels
//! as a list, and the same pixels as a matrix with a row for each image.

#[cfg(feature = "tensors")]
use crate::dataset::Dataset;
use crate::error::Error;
#[cfg(feature = "tensors")]
use crate::info::DatasetInfo;
use crate::info::Images;
use crate::python_file::{PythonFile, PythonFileError};
use crate::records::{Records, hexadecimal};
use md5::Md5;
use run::predictions::IMAGE_BYTES;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// One version of a data set: its official archive, and the folder of files that this unpacks to.
#[derive(Debug, PartialEq)]
pub struct Archive {
    /// The name of the archive.
    pub file_name: &'static str,
    /// The SHA-256 of the archive, in hexadecimal.
    pub sha256: &'static str,
    /// The size of the archive in bytes.
    pub bytes: u64,
    /// The folder.
    pub folder: &'static str,
    /// The files: those of the training images in order, and last that of the test images.
    pub files: &'static [ImageFile],
    /// The file with the names of the classes. It may be missing.
    pub names: &'static str,
    pub(crate) format: Format,
    /// The names of the classes.
    pub(crate) class_names: &'static [&'static str],
}

/// A file of images.
#[derive(Debug, PartialEq)]
pub struct ImageFile {
    /// Its name.
    pub name: &'static str,
    /// The number of its images.
    pub images: usize,
    /// The checksum of the official file in hexadecimal.
    pub(crate) checksum: &'static str,
}

/// How images are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Format {
    /// Records, with these numbers of classes in the label bytes before the pixels. The last one is that of the classes.
    Binary { labels: &'static [usize] },
    /// Pickles, with the labels at this key, and the names of the classes at another.
    Python {
        labels: &'static str,
        names: &'static str,
    },
}

/// The most bytes that a file with the names of classes may have.
const NAMES_BYTES: u64 = 1 << 16;

impl Format {
    fn checksum(self, bytes: &[u8]) -> String {
        match self {
            Self::Binary { .. } => hexadecimal(&Sha256::digest(bytes)),
            Self::Python { .. } => hexadecimal(&Md5::digest(bytes)),
        }
    }
}

impl Archive {
    /// Whether this is the checksum, in hexadecimal, of the official file of this name.
    #[must_use]
    pub fn is_official(&self, name: &str, checksum: &str) -> bool {
        let mut files = self.files.iter();
        files.any(|file| file.name == name && file.checksum == checksum)
    }

    /// Checks that all files are in `folder`, with the correct sizes and labels, and the names of the classes if their file is
    /// there. Returns the names of the files, and their checksums in hexadecimal.
    ///
    /// # Errors
    /// For the first bad file.
    pub fn checksums(&self, folder: &Path) -> Result<Vec<(&'static str, String)>, Error> {
        self.check_names(folder)?;
        let files = self.files.iter();
        files
            .map(|file| Ok((file.name, self.read(folder, file)?.1)))
            .collect()
    }

    /// The most bytes that a file of images may have.
    #[must_use]
    pub fn max_bytes(&self, file: &ImageFile) -> u64 {
        match self.format {
            Format::Binary { labels } => (file.images * (labels.len() + IMAGE_BYTES)) as u64,
            // Python 3 writes a byte above 127 as two at protocol 2; the rest is labels and names of files.
            Format::Python { .. } => (file.images * (2 * IMAGE_BYTES + 256) + (1 << 16)) as u64,
        }
    }

    /// The name of the checksum of official files: SHA-256, or MD5 as in torchvision.
    #[must_use]
    pub fn checksum_name(&self) -> &'static str {
        match self.format {
            Format::Binary { .. } => "SHA-256",
            // That of torchvision's `CIFAR10` and `CIFAR100`.
            Format::Python { .. } => "MD5",
        }
    }

    /// Reads one file of the data set and checks its size and labels. Returns its images, and its checksum.
    fn read(&self, folder: &Path, file: &ImageFile) -> Result<(Records, String), Error> {
        let path = &folder.join(file.name);
        let most = self.max_bytes(file);
        // One byte more, to notice a longer file.
        let (bytes, found) = read_at_most(path, most + 1)?;
        match self.format {
            Format::Binary { .. } if found != most => {
                return Err(Error::Size {
                    path: path.clone(),
                    found,
                    expected: most,
                });
            }
            Format::Python { .. } if found > most => {
                return Err(Error::TooLong {
                    path: path.clone(),
                    found,
                    most,
                });
            }
            _ => {}
        }
        let classes = self.class_names.len();
        let records = match self.format {
            Format::Binary { labels } => parse_records(&bytes, labels),
            Format::Python { labels, .. } => parse_pickle(&bytes, labels, classes),
        };
        let records = records.map_err(|fault| fault.at(path))?;
        let found = records.labels.len();
        if found != file.images {
            return Err(Error::ImageCount {
                path: path.clone(),
                found,
                expected: file.images,
            });
        }
        Ok((records, self.format.checksum(&bytes)))
    }

    /// Checks that the names of the classes are the known ones, in the same order, if their file is there.
    fn check_names(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(self.names);
        let bytes = match read_at_most(&path, NAMES_BYTES) {
            Err(Error::MissingFile(_)) => return Ok(()),
            read => read?.0,
        };
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<String> = match self.format {
            Format::Binary { .. } => text.lines().map(|line| line.trim().to_owned()).collect(),
            Format::Python { names, .. } => {
                let names = PythonFile::read(&bytes).and_then(|file| file.strings(names));
                names.map_err(|reason| Error::PythonFile {
                    path: path.clone(),
                    reason,
                })?
            }
        };
        let names = names.iter().map(String::as_str);
        let names: Vec<_> = names.filter(|name| !name.is_empty()).collect();
        let (found, known) = (names.as_slice(), self.class_names);
        if found == known {
            return Ok(());
        }
        let place = (0..known.len().max(found.len()))
            .find(|place| found.get(*place) != known.get(*place))
            .unwrap_or(0);
        let name = |names: &[&str]| {
            names
                .get(place)
                .map_or_else(|| "missing".to_owned(), |name| format!("`{name}`"))
        };
        Err(Error::ClassName {
            class: place,
            found: name(found),
            expected: name(known),
            path,
        })
    }

    /// The files that are needed for images.
    fn needed(&self, wanted: Images) -> &'static [ImageFile] {
        match wanted.training {
            0 => &self.files[self.files.len() - 1..],
            _ => self.files,
        }
    }

    /// The first of the needed files that is missing or has the wrong size, in words.
    fn incomplete(&self, folder: &Path, wanted: Images) -> Option<String> {
        self.needed(wanted).iter().find_map(|file| {
            let name = file.name;
            let Ok(metadata) = fs::metadata(folder.join(name)) else {
                return Some(format!("it has no `{name}`"));
            };
            match self.format {
                Format::Binary { .. } if metadata.len() != self.max_bytes(file) => {
                    Some(format!("its `{name}` has {} bytes", metadata.len()))
                }
                _ => None,
            }
        })
    }

    /// The folder in `data_dir`.
    ///
    /// # Errors
    /// When it is missing or is not a folder.
    pub fn folder(&self, data_dir: &Path) -> Result<PathBuf, Error> {
        let folder = data_dir.join(self.folder);
        for path in [data_dir, &folder] {
            let metadata = fs::metadata(path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Error::dangling_link(path)
                    .unwrap_or_else(|| Error::MissingFolder(folder.clone())),
                _ => Error::read(path)(error),
            })?;
            if !metadata.is_dir() {
                return Err(Error::NotAFolder(path.to_owned()));
            }
        }
        Ok(folder)
    }
}

/// Reads at most `most` bytes. Returns them, and the size of the file.
fn read_at_most(path: &Path, most: u64) -> Result<(Vec<u8>, u64), Error> {
    // Opening a pipe would wait for its other end.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(Error::read(path)(io::Error::other("it is not a file")));
    }
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Error::dangling_link(path).unwrap_or_else(|| Error::MissingFile(path.to_owned()))
        }
        _ => Error::read(path)(error),
    })?;
    let size = file.metadata().map_err(Error::read(path))?.len();
    let mut bytes = Vec::with_capacity(size.min(most) as usize);
    let mut start = (&file).take(most);
    start.read_to_end(&mut bytes).map_err(Error::read(path))?;
    let found = size.max(bytes.len() as u64);
    Ok((bytes, found))
}

/// What is wrong with the content of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A label is not below the number of classes.
    Label {
        record: usize,
        label: i64,
        classes: usize,
    },
    /// It is not a pickle of images.
    PythonFile(PythonFileError),
}

impl Fault {
    fn at(self, path: &Path) -> Error {
        let path = path.to_owned();
        match self {
            Self::Label {
                record,
                label,
                classes,
            } => Error::Label {
                path,
                record,
                label,
                last: classes - 1,
            },
            Self::PythonFile(reason) => Error::PythonFile { path, reason },
        }
    }
}

impl From<PythonFileError> for Fault {
    fn from(error: PythonFileError) -> Self {
        Self::PythonFile(error)
    }
}

/// Splits records into labels and pixels. A last, incomplete record is ignored.
pub(crate) fn parse_records(bytes: &[u8], label_classes: &[usize]) -> Result<Records, Fault> {
    let record_bytes = label_classes.len() + IMAGE_BYTES;
    let mut records = Records::with_capacity(bytes.len() / record_bytes);
    for (record, bytes) in bytes.chunks_exact(record_bytes).enumerate() {
        let (labels, pixels) = bytes.split_at(label_classes.len());
        for (label, classes) in labels.iter().zip(label_classes) {
            if usize::from(*label) >= *classes {
                return Err(Fault::Label {
                    record,
                    label: (*label).into(),
                    classes: *classes,
                });
            }
        }
        records.labels.extend(labels.last().copied().map(u32::from));
        records.pixels.extend_from_slice(pixels);
    }
    Ok(records)
}

/// The labels at a key, and the pixels, of a pickle.
fn parse_pickle(bytes: &[u8], key: &'static str, classes: usize) -> Result<Records, Fault> {
    let file = PythonFile::read(bytes)?;
    let pixels = file.matrix("data")?;
    let labels = file.integers(key)?;
    let problem = if pixels.columns != IMAGE_BYTES {
        let columns = pixels.columns;
        Some((
            "data",
            format!("has rows of {columns} bytes, not {IMAGE_BYTES}"),
        ))
    } else if pixels.rows != labels.len() {
        let (rows, labels) = (pixels.rows, labels.len());
        Some((key, format!("has {labels} labels for {rows} images")))
    } else {
        None
    };
    if let Some((key, problem)) = problem {
        return Err(PythonFileError::Key { key, problem }.into());
    }
    let label = |(record, label): (usize, i64)| match u32::try_from(label) {
        Ok(class) if (class as usize) < classes => Ok(class),
        _ => Err(Fault::Label {
            record,
            label,
            classes,
        }),
    };
    let labels: Result<_, _> = labels.into_iter().enumerate().map(label).collect();
    Ok(Records {
        labels: labels?,
        pixels: pixels.bytes.into_owned(),
    })
}

/// Reads the images of a data set in `data_dir`, from the first of its versions that is complete: all of them, or the test
/// images alone where no training images are wanted.
///
/// # Errors
/// When no version is complete, or a file is damaged.
#[cfg(feature = "tensors")]
pub(crate) fn load(info: &DatasetInfo, data_dir: &Path, wanted: Images) -> Result<Dataset, Error> {
    use rayon::prelude::*;
    let (archive, folder, note) = choose(info.archives, data_dir, wanted)?;
    archive.check_names(&folder)?;
    let files = archive.needed(wanted);
    // In parallel: checksums take most of the time.
    let records: Vec<_> = files
        .par_iter()
        .map(|file| archive.read(&folder, file))
        .collect();
    let mut foreign = Vec::new();
    let mut training = Records::with_capacity(0);
    let mut test = Records::with_capacity(0);
    let last = files.len() - 1;
    for (place, (file, read)) in files.iter().zip(records).enumerate() {
        let (mut records, checksum) = read?;
        if !archive.is_official(file.name, &checksum) {
            foreign.push(file.name);
        }
        if place == last {
            test = records;
        } else if place == 0 {
            training = records;
            // At once, for those that follow.
            training
                .pixels
                .reserve_exact((last - 1) * IMAGE_BYTES * file.images);
        } else {
            training.labels.append(&mut records.labels);
            training.pixels.append(&mut records.pixels);
        }
    }
    let mut dataset = Dataset::new(training, test, info.class_names.iter().copied())?;
    dataset.warning = (!foreign.is_empty()).then(|| {
        format!(
            "in `{}`, the {} of {} is not that of {}; `{}` fetches the official files",
            folder.display(),
            archive.checksum_name(),
            foreign.join(", "),
            info.display_name,
            info.fetch_command(data_dir)
        )
    });
    dataset.notes.extend(note);
    Ok(dataset)
}

/// The version to read, its folder, and a note where another one is there but incomplete.
///
/// # Errors
/// When no version has a folder.
pub(crate) fn choose<'a>(
    versions: &[&'a Archive],
    data_dir: &Path,
    wanted: Images,
) -> Result<(&'a Archive, PathBuf, Option<String>), Error> {
    let mut note = None;
    let mut first_error = None;
    let mut first_incomplete = None;
    for archive in versions {
        let folder = match archive.folder(data_dir) {
            Ok(folder) => folder,
            Err(error) => {
                // A link that leads nowhere, or a file, says more than a folder that is missing.
                let is_missing = matches!(error, Error::MissingFolder(_));
                if first_error.is_none()
                    || !is_missing && matches!(first_error, Some(Error::MissingFolder(_)))
                {
                    first_error = Some(error);
                }
                continue;
            }
        };
        let Some(reason) = archive.incomplete(&folder, wanted) else {
            return Ok((archive, folder, note));
        };
        note = Some(format!(
            "`{}` is incomplete ({reason}); the other version of the data set is used",
            folder.display()
        ));
        first_incomplete.get_or_insert((*archive, folder));
    }
    match (first_incomplete, first_error) {
        // Reading it says what is wrong.
        (Some((archive, folder)), _) => Ok((archive, folder, None)),
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::MissingFolder(data_dir.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLASS_NAMES: &[&str] = &["cat", "dog", "owl"];

    /// A data set of three files with two images each, in both versions.
    const BINARY: Archive = Archive {
        file_name: "binary.tar.gz",
        sha256: "",
        bytes: 0,
        folder: "binary",
        files: &[file("1.bin"), file("2.bin"), file("test.bin")],
        names: "names.txt",
        format: Format::Binary { labels: &[2, 3] },
        class_names: CLASS_NAMES,
    };
    const PYTHON: Archive = Archive {
        file_name: "python.tar.gz",
        sha256: "",
        bytes: 0,
        folder: "python",
        files: &[file("1"), file("2"), file("test")],
        names: "meta",
        format: Format::Python {
            labels: "fine_labels",
            names: "fine_label_names",
        },
        class_names: CLASS_NAMES,
    };

    const fn file(name: &'static str) -> ImageFile {
        ImageFile {
            name,
            images: 2,
            checksum: "no file has this",
        }
    }

    /// Two images of some classes, as records: the pixels of file number `n` are `n`, but for one.
    fn records(classes: [u8; 2], n: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        for class in classes {
            bytes.extend([1, class]);
            bytes.extend([n; IMAGE_BYTES - 1]);
            bytes.push(class + 100);
        }
        bytes
    }

    fn string(text: &str) -> Vec<u8> {
        [b"U", &[text.len() as u8][..], text.as_bytes()].concat()
    }

    /// The same as Python 2 pickles it.
    fn pickle(classes: [u8; 2], n: u8) -> Vec<u8> {
        let records = records(classes, n);
        let images = records.chunks_exact(2 + IMAGE_BYTES);
        let pixels: Vec<u8> = images.flat_map(|image| &image[2..]).copied().collect();
        let labels: Vec<u8> = classes.iter().flat_map(|class| [b'K', *class]).collect();
        let head = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01K\x02M\0\x0c\x86\
            cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T";
        [
            b"\x80\x02}(",
            &string("data")[..],
            head,
            &(pixels.len() as u32).to_le_bytes(),
            &pixels,
            b"tb",
            &string("fine_labels"),
            b"](",
            &labels,
            b"eu.",
        ]
        .concat()
    }

    const IMAGES: [([u8; 2], u8); 3] = [([0, 2], 7), ([1, 1], 8), ([2, 0], 9)];

    /// A data folder with these versions.
    fn data(versions: &[&Archive]) -> tempfile::TempDir {
        let data = tempfile::tempdir().unwrap();
        for archive in versions {
            let folder = data.path().join(archive.folder);
            fs::create_dir(&folder).unwrap();
            for (file, (classes, n)) in archive.files.iter().zip(IMAGES) {
                let bytes = match archive.format {
                    Format::Binary { .. } => records(classes, n),
                    Format::Python { .. } => pickle(classes, n),
                };
                fs::write(folder.join(file.name), bytes).unwrap();
            }
        }
        data
    }

    fn message(error: Error, data: &tempfile::TempDir) -> String {
        let data = data.path().display().to_string();
        error.to_string().replace(&data, "DATA").replace('\\', "/")
    }

    #[cfg(feature = "tensors")]
    mod loading {
        use super::*;

        const INFO: DatasetInfo = DatasetInfo {
            name: "animals",
            display_name: "Animals",
            class_names: CLASS_NAMES,
            images: Images {
                training: 4,
                test: 2,
            },
            channels: None,
            max_generated: None,
            archives: &[&BINARY, &PYTHON],
            load: super::super::load,
        };

        fn load(data: &tempfile::TempDir) -> Result<Dataset, Error> {
            INFO.load(data.path(), INFO.images)
        }

        #[test]
        fn both_versions_have_the_same_images() {
            let [binary, python] =
                [&BINARY, &PYTHON].map(|archive| load(&data(&[archive])).unwrap());
            assert_eq!(binary.digest().unwrap(), python.digest().unwrap());
            python
                .training()
                .with_slices(|labels, pixels| {
                    assert_eq!(labels, [0, 2, 1, 1]);
                    assert_eq!(pixels[..IMAGE_BYTES - 1], [7; IMAGE_BYTES - 1]);
                    assert_eq!(pixels[IMAGE_BYTES - 1], 100);
                })
                .unwrap();
            for (set, checksum) in [
                (binary, "SHA-256 of 1.bin, 2.bin, test.bin"),
                (python, "MD5 of 1, 2, test"),
            ] {
                assert_eq!(set.notes(), [""; 0]);
                let warning = set.warning().unwrap();
                let expected = format!("the {checksum} is not that of Animals; `cargo xtask fetch");
                assert!(warning.contains(&expected), "{warning}");
            }
        }

        #[test]
        fn the_version_that_is_complete_is_read() {
            let both = data(&[&BINARY, &PYTHON]);
            let path = both.path().join("binary/2.bin");
            // Other images than those of the Python version.
            fs::write(&path, records([0, 0], 1)).unwrap();
            let digest = |data: &_| load(data).unwrap().digest().unwrap();
            assert_ne!(digest(&both), digest(&data(&[&PYTHON])));
            for change in [
                |path: &Path| fs::write(path, "short"),
                |path: &Path| fs::remove_file(path),
            ] {
                change(&path).unwrap();
                let set = load(&both).unwrap();
                assert_eq!(set.digest().unwrap(), digest(&data(&[&PYTHON])));
                let [note] = set.notes() else {
                    panic!("one note")
                };
                assert!(note.contains("binary` is incomplete (it"), "{note}");
            }
            // With neither, the first one is asked for.
            fs::remove_file(both.path().join("python/1")).unwrap();
            let error = message(load(&both).err().unwrap(), &both);
            assert_eq!(error, "the file `DATA/binary/2.bin` is missing");
            fs::remove_dir_all(both.path().join("binary")).unwrap();
            let error = message(load(&both).err().unwrap(), &both);
            assert_eq!(error, "the file `DATA/python/1` is missing");
            fs::remove_dir_all(both.path().join("python")).unwrap();
            let error = message(load(&both).err().unwrap(), &both);
            assert_eq!(error, "the folder `DATA/binary` does not exist");
        }
    }

    #[test]
    fn the_names_of_classes_are_checked() {
        let names = |names: &[&str]| {
            let items: Vec<u8> = names.iter().flat_map(|name| string(name)).collect();
            [b"}", &string("fine_label_names")[..], b"](", &items, b"es."].concat()
        };
        for (archive, correct, reordered) in [
            (
                &BINARY,
                b"cat\r\ndog\nowl\n\n".to_vec(),
                b"dog\ncat\nowl\n".to_vec(),
            ),
            (
                &PYTHON,
                names(&["cat", "dog", "owl"]),
                names(&["dog", "cat", "owl"]),
            ),
        ] {
            let data = data(&[archive]);
            let folder = data.path().join(archive.folder);
            let file = folder.join(archive.names);
            archive.checksums(&folder).unwrap();
            fs::write(&file, correct).unwrap();
            archive.checksums(&folder).unwrap();
            fs::write(&file, reordered).unwrap();
            let error = archive.checksums(&folder).unwrap_err().to_string();
            assert!(
                error.ends_with("the name of class 0 is `dog`, but should be `cat`"),
                "{error}"
            );
            fs::write(&file, "").unwrap();
            archive.checksums(&folder).unwrap_err();
        }
    }

    #[test]
    fn errors_name_the_file_and_the_fault() {
        let data = data(&[&BINARY, &PYTHON]);
        let checked = |archive: &Archive, bytes: Option<&[u8]>| {
            let folder = data.path().join(archive.folder);
            let path = folder.join(archive.files[0].name);
            match bytes {
                Some(bytes) => fs::write(path, bytes).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
            match archive.checksums(&folder) {
                Ok(checksums) => format!("{} files", checksums.len()),
                Err(error) => message(error, &data),
            }
        };
        let good = records([0, 2], 1);
        let bad_label = |label| {
            let mut bytes = good.clone();
            bytes[label] = 3;
            bytes
        };
        let long = [&good[..], b"x"].concat();
        let pickled = pickle([0, 2], 1);
        let middle = pickled.len() / 2;
        for (archive, bytes, expected) in [
            (&BINARY, Some(&good[..]), "3 files"),
            (
                &BINARY,
                Some(b""),
                "`DATA/binary/1.bin` has 0 bytes, but should have 6148",
            ),
            (
                &BINARY,
                Some(&long),
                "`DATA/binary/1.bin` has 6149 bytes, but should have 6148",
            ),
            (
                &BINARY,
                Some(&bad_label(0)),
                "`DATA/binary/1.bin` has the label 3 at image 0, but labels go from 0 to 1",
            ),
            (
                &BINARY,
                Some(&bad_label(3075)),
                "`DATA/binary/1.bin` has the label 3 at image 1, but labels go from 0 to 2",
            ),
            (&BINARY, None, "the file `DATA/binary/1.bin` is missing"),
            (&PYTHON, Some(&pickled), "3 files"),
            (
                &PYTHON,
                Some(&pickle([0, 3], 1)),
                "`DATA/python/1` has the label 3 at image 1, but labels go from 0 to 2",
            ),
            (
                &PYTHON,
                Some(&pickled[..middle]),
                "`DATA/python/1` is not a file of CIFAR's Python version: it ends within a pickle",
            ),
            (
                &PYTHON,
                Some(&[0; 100_000]),
                "`DATA/python/1` has 100000 bytes, but should have at most 78336",
            ),
            (
                &PYTHON,
                Some(b"<html>"),
                "`DATA/python/1` is not a file of CIFAR's Python version: its pickle has the unknown opcode \
                 0x3c at byte 0",
            ),
            (&PYTHON, None, "the file `DATA/python/1` is missing"),
        ] {
            assert_eq!(checked(archive, bytes), expected);
        }
    }

    proptest! {
        #[test]
        fn records_are_split_or_the_first_bad_label_is_reported(
            labels in prop::collection::vec(0_u8..=10, 0..6), fill: u8
        ) {
            let mut bytes = Vec::new();
            for label in &labels {
                bytes.push(*label);
                bytes.extend([fill; IMAGE_BYTES]);
            }
            let first_wrong = labels.iter().position(|label| *label > 9);
            let labels: Vec<_> = labels.into_iter().map(u32::from).collect();
            match (parse_records(&bytes, &[10]), first_wrong) {
                (Ok(records), None) => {
                    prop_assert_eq!(&records.labels, &labels);
                    prop_assert_eq!(records.pixels, vec![fill; labels.len() * IMAGE_BYTES]);
                }
                (Err(fault), Some(record)) => {
                    prop_assert_eq!(fault, Fault::Label { record, label: 10, classes: 10 });
                }
                (result, bad) => prop_assert!(false, "{} {bad:?}", result.is_ok()),
            }
        }

        #[test]
        fn arbitrary_records_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..10_000)) {
            if let Ok(records) = parse_records(&bytes, &[20, 100]) {
                prop_assert_eq!(records.pixels.len(), records.labels.len() * IMAGE_BYTES);
                prop_assert!(records.labels.iter().all(|label| *label < 100));
            }
        }

        #[test]
        fn changed_pickles_of_images_do_not_panic(at in 0_usize..400, byte: u8) {
            let mut bytes = pickle([0, 2], 1);
            bytes[at] = byte;
            if let Ok(records) = parse_pickle(&bytes, "fine_labels", 3) {
                prop_assert_eq!(records.pixels.len(), records.labels.len() * IMAGE_BYTES);
            }
        }
    }
}
