//! `cargo xtask fetch-data`: downloads CIFAR-10 or CIFAR-100 into the data folder.

mod archive;
mod download;
mod installation;
mod source;
mod space;
mod tls;

use crate::files::RemovedIfEmpty;
use crate::lock::Lock;
use anyhow::{Context, anyhow};
use archive::{parse_sha256, unpacked_bytes};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use datasets::Error;
use datasets::cifar::Archive;
use download::{Partial, address, check_file};
use installation::{Checksums, Installation, first_unofficial};
use run::NativePath;
use run::cli::{self, Exit, UsageError};
use source::Source;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Options of `fetch-data`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The data set.
    #[arg(long, value_name = "NAME", default_value = "cifar10", value_parser = source())]
    dataset: &'static Source,

    /// Download from this address instead of the known ones. May be repeated; addresses are tried in order.
    #[arg(long = "mirror", value_name = "URL", value_parser = address)]
    mirrors: Vec<String>,

    /// Use this archive instead of downloading one: the binary version or the one for Python.
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
            dataset: Source::cifar10(),
            mirrors: Vec::new(),
            from_file: None,
            sha256: None,
            data_dir,
            force: false,
        }
    }

    /// The SHA-256 of the archive of this version.
    fn sha256(&self, archive: &Archive) -> &str {
        self.sha256.as_deref().unwrap_or(archive.sha256)
    }
}

/// The parser of a data set's name.
fn source() -> impl TypedValueParser<Value = &'static Source> {
    let known = PossibleValuesParser::new(Source::names());
    known.try_map(|name| Source::named(&name).ok_or("unknown name"))
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
    let source = args.dataset;
    match present {
        Present::Verified {
            archive,
            folder,
            is_official,
        } => {
            note_unused(args, archive, is_official);
            cli::line(&source.is_in(archive, &folder, "complete and verified, "));
            return Ok(Exit::Success);
        }
        Present::Unusable(error) => cli::note(&format!(
            "{error:#}; fetching {} again",
            source.dataset.display_name
        )),
        Present::Nothing => {}
    }
    let (archive, folder, checksums) = match &args.from_file {
        Some(file) => install_file(args, file)?,
        None => download(args)?,
    };
    cli::line(&source.is_in(archive, &folder, ""));
    if let Ok((_, other)) = source.dataset.find(data_dir)
        && other != folder
    {
        cli::note(&format!(
            "warning: `{}` is there as well, and is read first; remove it",
            other.display()
        ));
    }
    if let Some((name, _)) = first_unofficial(archive, &checksums) {
        cli::note(&format!(
            "warning: `{name}` is not the official file of this name, but the archive has the SHA-256 of --sha256"
        ));
    }
    Ok(Exit::Success)
}

/// Notes the flags that have no effect where the data are present.
fn note_unused(args: &Args, archive: &Archive, is_official: bool) {
    let has_other_sha256 = is_official && args.sha256(archive) != archive.sha256;
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
    /// A version of the data set, in this folder; whether its files are the official ones.
    Verified {
        archive: &'static Archive,
        folder: PathBuf,
        is_official: bool,
    },
    /// Files that are to be replaced, since they are not those of the data set.
    Unusable(anyhow::Error),
    /// Nothing that counts.
    Nothing,
}

impl Present {
    /// # Errors
    /// When something is in the way of a folder.
    fn find(args: &Args) -> anyhow::Result<Self> {
        let (archive, folder) = match args.dataset.dataset.find(&args.data_dir) {
            Ok(_) if args.force => return Ok(Self::Nothing),
            Ok(found) => found,
            Err(Error::MissingFolder(_)) => return Ok(Self::Nothing),
            Err(error) => {
                let data_dir = args.data_dir.display();
                let context = format!("cannot write to the data folder `{data_dir}`");
                return Err(anyhow::Error::new(error).context(context));
            }
        };
        Ok(
            match installation::verify(archive, &folder, args.sha256(archive)) {
                Ok(is_official) => Self::Verified {
                    archive,
                    folder,
                    is_official,
                },
                Err(error) => Self::Unusable(error),
            },
        )
    }
}

/// A version of the data set that was installed in this folder, and the checksums of its files.
type Installed = (&'static Archive, PathBuf, Checksums);

/// Installs the files of a local archive. Without `--sha256`, any archive of the official files will do.
fn install_file(args: &Args, file: &Path) -> anyhow::Result<Installed> {
    let problem = match fs::metadata(file) {
        Ok(metadata) if metadata.is_dir() => {
            Some("it is a folder, not an archive; give a data folder with --data-dir".to_owned())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Some(error.to_string()),
        _ => None,
    };
    if let Some(problem) = problem {
        let error = format!("--from-file: cannot read `{}`: {problem}", file.display());
        return Err(UsageError(error).into());
    }
    let version = archive::version(file, args.dataset)?;
    let installation = Installation::prepare(&args.data_dir, version)?;
    if let Some(sha256) = &args.sha256 {
        check_file(file, args.dataset, sha256)?;
    }
    space::check(installation.folder(), unpacked_bytes(version))?;
    let checksums = installation.unpack(file, args.dataset)?;
    if let (None, Some((name, _))) = (&args.sha256, first_unofficial(version, &checksums)) {
        let dataset = args.dataset.dataset.display_name;
        check_file(file, args.dataset, version.sha256).with_context(|| {
            format!("the archive is refused: its `{name}` is not that of {dataset}")
        })?;
    }
    let folder = installation.folder().to_owned();
    installation.finish(&checksums, args.sha256(version))?;
    Ok((version, folder, checksums))
}

/// Downloads the archive, and installs its files.
fn download(args: &Args) -> anyhow::Result<Installed> {
    let source = args.dataset;
    let mirrors = match args.mirrors.as_slice() {
        [] => &source.mirrors.map(str::to_owned),
        mirrors => mirrors,
    };
    // Addresses of the other version end with its name.
    let is_at = |archive: &&&Archive| mirrors[0].ends_with(archive.file_name);
    let archives = source.archives();
    let mut version = *archives.iter().find(is_at).unwrap_or(&archives[0]);
    let mut installation = Installation::prepare(&args.data_dir, version)?;
    let needed = unpacked_bytes(version);
    space::check(installation.folder(), needed)?;
    let needed_after = match space::is_shared(&args.data_dir, installation.folder()) {
        true => needed,
        false => 0,
    };
    let sha256 = args.sha256(version).to_owned();
    let mut partial = Partial::open(&args.data_dir, source, version, sha256, needed_after)?;
    let checksums = match partial.complete(mirrors) {
        Ok(archive) => {
            let found = archive::version(archive, source)?;
            if found != version {
                version = found;
                installation = Installation::prepare(&args.data_dir, version)?;
            }
            installation.unpack(archive, source)?
        }
        Err(error) => {
            partial.remove_empty()?;
            return Err(error);
        }
    };
    let folder = installation.folder().to_owned();
    installation.finish(&checksums, args.sha256(version))?;
    partial.remove()?;
    Ok((version, folder, checksums))
}
