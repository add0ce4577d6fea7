//! The data sets that can be fetched, with their official archives.

use datasets::cifar::Archive;
use datasets::{DatasetInfo, cifar10, cifar100};
use run::cli::count;
use std::path::Path;

/// A data set that can be fetched.
#[derive(Debug)]
pub(crate) struct Source {
    /// The data set.
    pub(crate) dataset: DatasetInfo,
    /// Addresses of its first archive: fast mirrors first, the original site last.
    pub(crate) mirrors: [&'static str; 3],
}

static SOURCES: [Source; 2] = [
    Source {
        dataset: cifar10::INFO,
        mirrors: [
            "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
            "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        ],
    },
    Source {
        dataset: cifar100::INFO,
        mirrors: [
            "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-100-binary.tar.gz",
            "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/dataset/cifar100/cifar-100-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        ],
    },
];

/// Folders of archives that are of no use, and what is in them.
const USELESS: [(&str, &str); 2] = [
    ("cifar-10-batches-mat", "the MATLAB version of CIFAR-10"),
    ("cifar-100-matlab", "the MATLAB version of CIFAR-100"),
];

impl Source {
    /// The names of the data sets.
    pub(crate) fn names() -> [&'static str; 2] {
        SOURCES.each_ref().map(|source| source.dataset.name)
    }

    /// The data set of this name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        SOURCES.iter().find(|source| source.dataset.name == name)
    }

    /// CIFAR-10.
    pub(crate) fn cifar10() -> &'static Self {
        &SOURCES[0]
    }

    /// Its versions. The first one is downloaded.
    pub(crate) fn archives(&self) -> &'static [&'static Archive] {
        self.dataset.archives
    }

    /// The file names of the versions, or other names of theirs.
    pub(crate) fn names_of(&self, name: impl Fn(&Archive) -> &'static str) -> String {
        let names: Vec<_> = self
            .archives()
            .iter()
            .map(|archive| name(archive))
            .collect();
        names.join(" or ")
    }

    /// The version that unpacks to this folder.
    pub(crate) fn archive(&self, folder: &str) -> Option<&'static Archive> {
        let mut archives = self.archives().iter().copied();
        archives.find(|archive| archive.folder == folder)
    }

    /// What an archive has that unpacks to `folder` and is none of this data set, and what to do about it.
    pub(crate) fn describe_other(&self, folder: &str) -> Option<String> {
        let mut useless = USELESS.iter();
        if let Some((_, content)) = useless.find(|(name, _)| *name == folder) {
            let names = self.names_of(|archive| archive.file_name);
            return Some(format!("it is {content}; {names} is needed"));
        }
        let mut sources = SOURCES.iter();
        let other = sources.find(|source| source.archive(folder).is_some())?;
        let DatasetInfo {
            name, display_name, ..
        } = other.dataset;
        Some(format!("it is {display_name}; give --dataset {name}"))
    }

    /// The data set in `folder`, in words.
    pub(crate) fn is_in(&self, archive: &Archive, folder: &Path, state: &str) -> String {
        let images = self.dataset.images;
        format!(
            "{} is in `{}`: {state}{}, {}",
            self.dataset.display_name,
            folder.display(),
            count(images.training + images.test, "image"),
            count(archive.files.len(), "file")
        )
    }
}
