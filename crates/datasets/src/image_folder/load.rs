//! Decodes the pictures of a folder, in parallel.

use super::cache::{self, Decoded};
use super::{ImageFolder, ImageFolderError, TEST_SPLIT_SEED};
use crate::dataset::Dataset;
use crate::error::Error;
use crate::picture::{PictureError, read_picture};
use crate::records::{Records, file_sha256, hexadecimal};
use rayon::prelude::*;
use run::cli;
use run::predictions::IMAGE_BYTES;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The layout of the cached pictures, and how they are decoded: another one makes the pictures anew.
const VERSION: &str = "pictures 1";

/// How many unreadable pictures are named.
const NAMED: usize = 10;

/// What is done with all pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadStage {
    /// Their files are read, to see whether one changed.
    Reading,
    /// They are decoded.
    Decoding,
}

/// Called with a stage, the number of pictures that are done, and that of all pictures; returns whether to go on.
pub type LoadProgress<'a> = dyn Fn(LoadStage, usize, usize) -> bool + Sync + 'a;

/// How pictures are loaded.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    /// The folder for decoded pictures.
    pub cache_dir: &'a Path,
    /// Bytes of memory for decoding.
    pub memory: u64,
    /// Whether pictures that cannot be read are left out.
    pub skip_unreadable: bool,
    /// Is told of the progress.
    pub progress: &'a LoadProgress<'a>,
}

impl ImageFolder {
    /// Loads all pictures: the shorter side scaled to 32 pixels, and the square in the middle. Decoded pictures are kept in
    /// `cache_dir` until a file changes, appears or disappears, which its content decides.
    ///
    /// # Errors
    /// When pictures cannot be read, and `skip_unreadable` is not set; all of them are tried before. When it was asked to
    /// stop.
    pub fn load(&self, options: LoadOptions<'_>) -> Result<Dataset, Error> {
        let key = self.key(options)?;
        let path = cache::path(options.cache_dir, &self.path);
        let mut notes = Vec::new();
        let decoded = match cache::read(&path, &key, self.pictures.len()) {
            Some(decoded) => decoded,
            None => {
                let (decoded, is_final) = self.decode(options)?;
                if is_final && let Err(error) = cache::write(&path, &key, &decoded) {
                    notes.push(format!(
                        "the decoded pictures cannot be kept in `{}` ({error}); they will be decoded again",
                        path.display()
                    ));
                }
                decoded
            }
        };
        notes.extend(self.notes(&decoded, options.skip_unreadable)?);
        let skipped: Vec<_> = decoded.unreadable.iter().map(|(index, _)| *index).collect();
        // They are in order.
        let (training, test) = self.split(|index| skipped.binary_search(&index).is_err())?;
        let records = |indices: Vec<usize>| {
            let mut records = Records::with_capacity(indices.len());
            for index in indices {
                records.labels.push(self.pictures[index].class);
                let pixels = &decoded.pixels[index * IMAGE_BYTES..][..IMAGE_BYTES];
                records.pixels.extend_from_slice(pixels);
            }
            records
        };
        let mut dataset = Dataset::new(records(training), records(test), self.class_names.clone())?;
        dataset.notes = notes;
        dataset.skipped = skipped.len();
        dataset.test_split_seed = self.holds_out().then_some(TEST_SPLIT_SEED);
        Ok(dataset)
    }

    /// What a person should know of the pictures.
    fn notes(&self, decoded: &Decoded, skip_unreadable: bool) -> Result<Vec<String>, Error> {
        let count = decoded.unreadable.len();
        let named = decoded.unreadable.iter().take(NAMED);
        let named = named.map(|(index, reason)| {
            let path = self.path.join(&self.pictures[*index].path);
            format!("`{}`: {reason}", cli::one_line(&path.display().to_string()))
        });
        let first: Vec<_> = named.collect();
        if count > 0 && !skip_unreadable {
            return Err(ImageFolderError::Unreadable {
                path: self.path.clone(),
                count,
                all: self.pictures.len(),
                first,
            }
            .into());
        }
        let mut notes = Vec::new();
        if self.holds_out() {
            notes.push(format!(
                "`{}` has no test pictures (`test` or `val`); a sixth of each class is held out",
                self.path.display()
            ));
        }
        for folder in self.unread() {
            let folder = cli::one_line(&folder.display().to_string());
            notes.push(match &self.parts.1 {
                Some(test) => format!(
                    "`{folder}` is not read, since there is `{}`",
                    test.display()
                ),
                None => format!("`{folder}` is not read"),
            });
        }
        if self.ignored > 0 {
            notes.push(format!(
                "ignored {} in `{}`: hidden, or no PNG or JPEG pictures",
                cli::count(self.ignored, "file"),
                self.path.display()
            ));
        }
        if count > 0 {
            notes.push(format!(
                "{} cannot be read and {} left out:{}",
                cli::count(count, "picture"),
                if count == 1 { "is" } else { "are" },
                super::lines(&first, count)
            ));
        }
        Ok(notes)
    }

    /// A digest of the pictures' paths and files.
    fn key(&self, options: LoadOptions<'_>) -> Result<String, Error> {
        let digests = for_each(
            self.pictures.par_iter(),
            LoadStage::Reading,
            options,
            |picture| {
                // Of a file that cannot be read, decoding says why.
                file_sha256(&self.path.join(&picture.path)).unwrap_or_default()
            },
        )?;
        let mut hasher = Sha256::new();
        hasher.update(VERSION);
        for (picture, digest) in self.pictures.iter().zip(digests) {
            for part in &picture.path {
                hasher.update(b"/");
                hasher.update(part.as_encoded_bytes());
            }
            hasher.update(b"\0");
            hasher.update(digest);
        }
        Ok(hexadecimal(&hasher.finalize()))
    }

    /// Decodes all pictures. Returns also whether that is final: with more memory, or in another state of the system, more of
    /// them may be readable.
    fn decode(&self, options: LoadOptions<'_>) -> Result<(Decoded, bool), Error> {
        let mut pixels = vec![0; self.pictures.len() * IMAGE_BYTES];
        let decode = |index: usize, out: &mut [u8], memory| {
            let path = self.path.join(&self.pictures[index].path);
            out.copy_from_slice(&read_picture(&path, memory)?);
            Ok::<_, PictureError>(())
        };
        let of_thread = options.memory / rayon::current_num_threads().max(1) as u64;
        let images = pixels.par_chunks_exact_mut(IMAGE_BYTES).enumerate();
        let results = for_each(images, LoadStage::Decoding, options, |(index, out)| {
            decode(index, out, of_thread)
        })?;
        let mut unreadable = Vec::new();
        let mut is_final = true;
        for (index, result) in results.into_iter().enumerate() {
            let result = match result {
                // Alone, it may have all of the memory.
                Err(PictureError::NoMemory { .. }) => {
                    let out = &mut pixels[index * IMAGE_BYTES..][..IMAGE_BYTES];
                    decode(index, out, options.memory)
                }
                result => result,
            };
            if let Err(error) = result {
                is_final &= !matches!(error, PictureError::NoMemory { .. } | PictureError::Read(_));
                unreadable.push((index, cli::one_line(&cli::message(&error))));
            }
        }
        Ok((Decoded { pixels, unreadable }, is_final))
    }
}

/// Does something with each item, in parallel, until it is asked to stop.
fn for_each<I: IndexedParallelIterator, T: Send>(
    items: I,
    stage: LoadStage,
    options: LoadOptions<'_>,
    work: impl Fn(I::Item) -> T + Sync + Send,
) -> Result<Vec<T>, Error> {
    let (done, all) = (AtomicUsize::new(0), items.len());
    let results = items.map(|item| {
        let result = work(item);
        let done = 1 + done.fetch_add(1, Ordering::Relaxed);
        (options.progress)(stage, done, all).then_some(result)
    });
    let results: Option<Vec<T>> = results.collect();
    results.ok_or_else(|| ImageFolderError::Stopped.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, RgbImage};
    use std::fs::{self, File};
    use std::sync::Mutex;

    /// Enough for every picture here.
    const MEMORY: u64 = 1 << 30;

    /// A data folder, and beside it one with pictures of two classes; their grey is their number, from 1 on.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (number, path) in (1..).zip(["a/1.png", "a/2.png", "b/1.jpg", "b/2.png"]) {
            let path = folder.path().join("pictures/train").join(path);
            write(&path, number);
            write(&folder.path().join("pictures/test/a/1.png"), 5);
            write(&folder.path().join("pictures/test/b/1.png"), 6);
        }
        folder
    }

    fn write(path: &Path, number: u8) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let picture = RgbImage::from_pixel(40, 50, Rgb([number; 3]));
        picture.save(path).unwrap();
    }

    struct Loaded {
        dataset: Result<Dataset, Error>,
        was_decoded: bool,
    }

    fn load(folder: &tempfile::TempDir, memory: u64, skip_unreadable: bool) -> Loaded {
        let stages = Mutex::new(Vec::new());
        let pictures = ImageFolder::find(&folder.path().join("pictures")).unwrap();
        let dataset = pictures.load(LoadOptions {
            cache_dir: &folder.path().join("data"),
            memory,
            skip_unreadable,
            progress: &|stage, done, all| {
                assert!(done <= all && all == pictures.pictures.len());
                stages.lock().unwrap().push(stage);
                true
            },
        });
        Loaded {
            dataset,
            was_decoded: stages.into_inner().unwrap().contains(&LoadStage::Decoding),
        }
    }

    /// Labels and the first values of training and test images.
    fn images(dataset: &Dataset) -> Vec<(u32, u8)> {
        let parts = [dataset.training(), dataset.test()];
        let images = parts.iter().map(|part| {
            let read = |labels: &[u32], pixels: &[u8]| -> Vec<_> {
                let first = pixels.iter().step_by(IMAGE_BYTES);
                labels.iter().copied().zip(first.copied()).collect()
            };
            part.with_slices(read).unwrap()
        });
        images.collect::<Vec<_>>().concat()
    }

    const IMAGES: [(u32, u8); 6] = [(0, 1), (0, 2), (1, 3), (1, 4), (0, 5), (1, 6)];

    #[test]
    fn pictures_are_decoded_once() {
        let folder = folder();
        let first = load(&folder, MEMORY, false);
        assert!(first.was_decoded);
        let dataset = first.dataset.unwrap();
        assert_eq!(images(&dataset), IMAGES);
        assert_eq!(
            (dataset.notes(), dataset.test_split_seed()),
            (&[][..], None)
        );
        let cached = || load(&folder, MEMORY, false);
        assert!(!cached().was_decoded);
        assert_eq!(images(&cached().dataset.unwrap()), IMAGES);
        // The same content again.
        write(&folder.path().join("pictures/train/a/2.png"), 2);
        assert!(!cached().was_decoded);
    }

    #[test]
    fn every_change_is_noticed() {
        let folder = folder();
        let path = |name: &str| folder.path().join("pictures").join(name);
        let greys = || {
            let loaded = load(&folder, MEMORY, false);
            let images = images(&loaded.dataset.unwrap());
            let greys: Vec<_> = images.into_iter().map(|(_, grey)| grey).collect();
            (loaded.was_decoded, greys)
        };
        greys();
        // Of the same size and time.
        let changed = path("train/a/2.png");
        let before = fs::metadata(&changed).unwrap();
        let has_size = |number: &u8| {
            write(&changed, *number);
            fs::metadata(&changed).unwrap().len() == before.len()
        };
        let grey = (10..=255).find(has_size).unwrap();
        let file = File::options().write(true).open(&changed).unwrap();
        file.set_modified(before.modified().unwrap()).unwrap();
        assert_eq!(greys(), (true, vec![1, grey, 3, 4, 5, 6]));
        write(&path("train/b/0.png"), 9);
        assert_eq!(greys(), (true, vec![1, grey, 9, 3, 4, 5, 6]));
        fs::remove_file(path("train/a/1.png")).unwrap();
        assert_eq!(greys(), (true, vec![grey, 9, 3, 4, 5, 6]));
        fs::rename(path("train/b/2.png"), path("train/a/3.png")).unwrap();
        assert_eq!(greys(), (true, vec![grey, 4, 9, 3, 5, 6]));
        assert_eq!(greys(), (false, vec![grey, 4, 9, 3, 5, 6]));
        let files = || fs::read_dir(folder.path().join("data")).unwrap();
        assert_eq!(files().count(), 1);
        for file in files() {
            let file = file.unwrap().path();
            let mut bytes = fs::read(&file).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&file, &bytes).unwrap();
            assert_eq!(greys(), (true, vec![grey, 4, 9, 3, 5, 6]));
            assert!(!greys().0);
        }
    }

    #[test]
    fn all_unreadable_pictures_are_named() {
        let folder = folder();
        let path = |name: &str| folder.path().join("pictures").join(name);
        fs::write(path("train/a/1.png"), "").unwrap();
        fs::write(path("test/b/bad.png"), "<html>").unwrap();
        let loaded = load(&folder, MEMORY, false);
        let error = loaded.dataset.err().unwrap().to_string();
        let named = [
            "2 pictures of 7 in",
            "cannot be read; repair or remove them, or leave them out with --skip-unreadable:\n  `",
            "1.png`: it is not a PNG or JPEG picture; it is empty; download or copy it again\n  `",
            "bad.png`: it is not a PNG or JPEG picture; it is an HTML page",
        ];
        for part in named {
            assert!(error.contains(part), "{error}");
        }
        // They are not tried again.
        let skipped = load(&folder, MEMORY, true);
        assert!(!skipped.was_decoded);
        let dataset = skipped.dataset.unwrap();
        assert_eq!(images(&dataset), IMAGES[1..]);
        assert_eq!(dataset.skipped(), 2);
        let [note] = dataset.notes() else {
            panic!("{:?}", dataset.notes());
        };
        assert!(
            note.starts_with("2 pictures cannot be read and are left out:\n  `"),
            "{note}"
        );
        for number in 0..12 {
            fs::write(path(&format!("train/b/more{number}.png")), "").unwrap();
        }
        let error = load(&folder, MEMORY, false)
            .dataset
            .err()
            .unwrap()
            .to_string();
        assert!(error.ends_with("\n  and 4 more"), "{error}");
        fs::write(path("train/a/2.png"), "").unwrap();
        let error = load(&folder, MEMORY, true)
            .dataset
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("has no pictures (PNG or JPEG) of `a`"),
            "{error}"
        );
    }

    #[test]
    fn a_large_picture_may_have_the_memory_of_all_threads() {
        let folder = folder();
        let path = folder.path().join("pictures/train/a/2.png");
        RgbImage::from_pixel(320, 320, Rgb([2; 3]))
            .save(&path)
            .unwrap();
        // Its pixels, and a copy.
        let needed = 2 * 320 * 320 * 3;
        let loaded = load(&folder, needed, false);
        assert_eq!(images(&loaded.dataset.unwrap()), IMAGES);
        fs::remove_dir_all(folder.path().join("data")).unwrap();
        let error = load(&folder, needed - 1, false)
            .dataset
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("2.png`: it has 320 x 320 pixels"), "{error}");
        // There may be more memory the next time.
        assert!(load(&folder, needed, false).dataset.is_ok());
    }

    #[test]
    fn reading_can_be_stopped() {
        let folder = folder();
        let pictures = ImageFolder::find(&folder.path().join("pictures")).unwrap();
        let cache_dir = folder.path().join("data");
        for stage in [LoadStage::Reading, LoadStage::Decoding] {
            let stopped = pictures.load(LoadOptions {
                cache_dir: &cache_dir,
                memory: MEMORY,
                skip_unreadable: false,
                progress: &|now, _, _| now != stage,
            });
            let error = stopped.err().unwrap();
            assert!(matches!(
                error,
                Error::ImageFolder(ImageFolderError::Stopped)
            ));
            assert!(!cache_dir.exists());
        }
    }

    #[test]
    fn pictures_that_cannot_be_kept_are_still_used() {
        let folder = folder();
        fs::write(folder.path().join("data"), "a file").unwrap();
        let dataset = load(&folder, MEMORY, false).dataset.unwrap();
        assert_eq!(images(&dataset), IMAGES);
        let [note] = dataset.notes() else {
            panic!("{:?}", dataset.notes());
        };
        assert!(note.contains("they will be decoded again"), "{note}");
    }
}
