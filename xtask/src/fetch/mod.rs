//! `cargo xtask fetch-data`: downloads CIFAR-10 into the data folder.

mod archive;
mod download;

use anyhow::Context;
use archive::{OFFICIAL, parse_sha256};
use datasets::cifar10;
use download::{Partial, address, check_file};
use run::NativePath;
use run::cli::{self, Exit};
use std::fs;
use std::path::Path;

/// Addresses of the official archive: fast mirrors first, the original site last.
const MIRRORS: [&str; 3] = [
    "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
];

/// Options of `fetch-data`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Download from this address instead of the known ones. May be repeated; addresses are tried in order.
    #[arg(long = "mirror", value_name = "URL", value_parser = address)]
    mirrors: Vec<String>,

    /// Use this archive instead of downloading one.
    #[arg(long, value_name = "ARCHIVE", conflicts_with = "mirrors")]
    from_file: Option<NativePath>,

    /// The SHA-256 of the archive [default: the official archive's].
    #[arg(long, value_name = "HEX", value_parser = parse_sha256)]
    sha256: Option<String>,

    /// The data folder.
    #[arg(long, value_name = "DIR", default_value = "data")]
    data_dir: NativePath,

    /// Fetch the data even if they are present.
    #[arg(long)]
    force: bool,
}

impl Args {
    /// Options to download from the known addresses into this folder.
    pub(crate) fn into(data_dir: NativePath) -> Self {
        Self {
            data_dir,
            ..Self::default()
        }
    }
}

/// Fetches the data, unless they are present.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let data_dir: &Path = &args.data_dir;
    let folder = data_dir.join(cifar10::FOLDER);
    fs::create_dir_all(data_dir)
        .with_context(|| format!("cannot create the data folder `{}`", data_dir.display()))?;
    if folder.exists() && !args.force {
        match cifar10::check(&folder) {
            Ok(()) => {
                cli::line(&format!(
                    "CIFAR-10 is in `{}`: complete and verified (60,000 images, 6 files)",
                    folder.display()
                ));
                return Ok(Exit::Success);
            }
            Err(error) => cli::note(&format!("{error}; fetching CIFAR-10 again")),
        }
    }
    let sha256 = args.sha256.as_deref().unwrap_or(OFFICIAL);
    if let Some(archive) = &args.from_file {
        check_file(archive, sha256)?;
        install(archive, data_dir)?;
    } else {
        let mirrors = match args.mirrors.as_slice() {
            [] => &MIRRORS.map(str::to_owned),
            mirrors => mirrors,
        };
        let path = data_dir.join("cifar-10-binary.tar.gz.part");
        let mut partial = Partial::open(path, sha256.to_owned())?;
        match partial.complete(mirrors) {
            Ok(archive) => install(archive, data_dir)?,
            Err(error) => {
                partial.remove_empty()?;
                return Err(error);
            }
        }
        partial.remove()?;
    }
    cli::line(&format!(
        "CIFAR-10 is in `{}`: 60,000 images, 6 files",
        folder.display()
    ));
    Ok(Exit::Success)
}

/// Unpacks into a temporary folder, checks the files, and only then moves them into place.
fn install(archive: &Path, data_dir: &Path) -> anyhow::Result<()> {
    let folder = data_dir.join(cifar10::FOLDER);
    let cannot_write = || format!("cannot write to the data folder `{}`", data_dir.display());
    let beside = tempfile::Builder::new()
        .prefix(".unpacking-")
        .tempdir_in(data_dir)
        .with_context(cannot_write)?;
    let new = beside.path().join("new");
    fs::create_dir(&new).with_context(cannot_write)?;
    archive::unpack(archive, &new)?;
    if folder.exists() {
        atomic_file::rename(&folder, &beside.path().join("old")).with_context(cannot_write)?;
    }
    atomic_file::rename(&new, &folder).with_context(cannot_write)
}
