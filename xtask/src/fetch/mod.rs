//! `cargo xtask fetch-data`: downloads CIFAR-10 into the data folder.

mod archive;
mod download;
mod installation;
mod space;
mod tls;

use crate::files::RemovedIfEmpty;
use crate::lock::Lock;
use anyhow::{Context, anyhow};
use archive::{OFFICIAL, UNPACKED_BYTES, parse_sha256};
use datasets::{Error, cifar10};
use download::{Partial, address, check_file};
use installation::{Digests, Installation, first_unofficial};
use run::NativePath;
use run::cli::{self, Exit};
use std::fs;
use std::path::{Path, PathBuf};

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

    /// The SHA-256 of the archive [default: the official archive's; with --from-file, the official files' decide].
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

    /// The SHA-256 of the archive.
    fn sha256(&self) -> &str {
        self.sha256.as_deref().unwrap_or(OFFICIAL)
    }
}

/// Fetches the data, unless they are present.
pub(crate) fn run(args: &Args) -> anyhow::Result<Exit> {
    let data_dir: &Path = &args.data_dir;
    // Dropped last: a refusal leaves no empty folders.
    let _new = RemovedIfEmpty::missing(data_dir);
    fs::create_dir_all(data_dir)
        .map_err(|error| match Error::dangling_link(data_dir) {
            Some(link) => anyhow::Error::new(link),
            None if data_dir.ancestors().any(Path::is_file) => anyhow!("a file is in the way"),
            None => error.into(),
        })
        .with_context(|| format!("cannot create the data folder `{}`", data_dir.display()))?;
    let mut present = Present::find(args)?;
    let _lock = match present {
        Present::Verified { .. } => None,
        _ => {
            let lock = Lock::wait(data_dir, "fetch-data", cli::note)?;
            if lock.waited {
                present = Present::find(args)?;
            }
            Some(lock)
        }
    };
    match present {
        Present::Verified {
            folder,
            is_official,
        } => {
            note_unused(args, is_official);
            cli::line(&format!(
                "CIFAR-10 is in `{}`: complete and verified (60,000 images, 6 files)",
                folder.display()
            ));
            return Ok(Exit::Success);
        }
        Present::Unusable(error) => cli::note(&format!("{error:#}; fetching CIFAR-10 again")),
        Present::Nothing => {}
    }
    let installation = Installation::prepare(data_dir)?;
    let folder = installation.folder().to_owned();
    let digests = match &args.from_file {
        Some(archive) => install_file(args, archive, installation)?,
        None => download(args, installation)?,
    };
    cli::line(&format!(
        "CIFAR-10 is in `{}`: 60,000 images, 6 files",
        folder.display()
    ));
    if let Some((name, _)) = first_unofficial(&digests) {
        cli::note(&format!(
            "warning: `{name}` is not the official file of this name, but the archive has the SHA-256 of --sha256"
        ));
    }
    Ok(Exit::Success)
}

/// Notes the flags that have no effect where the data are present.
fn note_unused(args: &Args, is_official: bool) {
    let has_other_sha256 = is_official && args.sha256() != OFFICIAL;
    let unused = [
        ("--from-file", args.from_file.is_some()),
        ("--mirror", !args.mirrors.is_empty()),
        ("--sha256", has_other_sha256),
    ];
    for (flag, _) in unused.iter().filter(|(_, is_unused)| *is_unused) {
        cli::note(&format!(
            "note: {flag} has no effect, since the data are there; give --force to replace them"
        ));
    }
}

/// What is in the data folder.
enum Present {
    /// The data set, in this folder; whether its files are the official ones.
    Verified { folder: PathBuf, is_official: bool },
    /// Files that are to be replaced, since they are not those of the data set.
    Unusable(anyhow::Error),
    /// Nothing that counts.
    Nothing,
}

impl Present {
    /// # Errors
    /// When something is in the way.
    fn find(args: &Args) -> anyhow::Result<Self> {
        match cifar10::folder(&args.data_dir) {
            Ok(_) if args.force => Ok(Self::Nothing),
            Ok(folder) => Ok(match installation::verify(&folder, args.sha256()) {
                Ok(is_official) => Self::Verified {
                    folder,
                    is_official,
                },
                Err(error) => Self::Unusable(error),
            }),
            Err(Error::MissingFolder(_) | Error::OtherArchive { .. }) => Ok(Self::Nothing),
            Err(error) => {
                let data_dir = args.data_dir.display();
                let context = format!("cannot write to the data folder `{data_dir}`");
                Err(anyhow::Error::new(error).context(context))
            }
        }
    }
}

/// Installs the files of a local archive. Without `--sha256`, any archive of the official files will do.
fn install_file(
    args: &Args,
    archive: &Path,
    installation: Installation,
) -> anyhow::Result<Digests> {
    if let Some(sha256) = &args.sha256 {
        check_file(archive, sha256)?;
    }
    space::check(installation.folder(), UNPACKED_BYTES)?;
    let digests = installation.unpack(archive)?;
    if let (None, Some((name, _))) = (&args.sha256, first_unofficial(&digests)) {
        check_file(archive, OFFICIAL)
            .with_context(|| format!("the archive is refused: its `{name}` is not CIFAR-10's"))?;
    }
    installation.finish(&digests, args.sha256())?;
    Ok(digests)
}

/// Downloads the archive, and installs its files.
fn download(args: &Args, installation: Installation) -> anyhow::Result<Digests> {
    let mirrors = match args.mirrors.as_slice() {
        [] => &MIRRORS.map(str::to_owned),
        mirrors => mirrors,
    };
    space::check(installation.folder(), UNPACKED_BYTES)?;
    let needed_after = match space::is_shared(&args.data_dir, installation.folder()) {
        true => UNPACKED_BYTES,
        false => 0,
    };
    let path = args.data_dir.join("cifar-10-binary.tar.gz.part");
    let mut partial = Partial::open(path, args.sha256().to_owned(), needed_after)?;
    let digests = match partial.complete(mirrors) {
        Ok(archive) => installation.unpack(archive)?,
        Err(error) => {
            partial.remove_empty()?;
            return Err(error);
        }
    };
    installation.finish(&digests, args.sha256())?;
    partial.remove()?;
    Ok(digests)
}
