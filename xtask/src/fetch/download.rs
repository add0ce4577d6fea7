//! Downloads that resume after an interruption.

use super::archive::{self, max_bytes};
use super::source::Source;
use super::{space, tls};
use crate::files;
use anyhow::{Context, anyhow, bail, ensure};
use datasets::cifar::Archive;
use datasets::file_sha256;
use indicatif::{ProgressBar, ProgressStyle};
use run::cli;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;
use ureq::Agent;

/// Timeout for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Timeout for the next bytes from a server. The whole download may take any time.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// The number of attempts in a row without new data after which a mirror is given up.
const MAX_FUTILE_ATTEMPTS: u32 = 3;

/// Size of a read in bytes.
const CHUNK: usize = 1 << 16;

/// The file of a download, which may be incomplete.
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
    source: &'static Source,
    /// The version that is expected.
    version: &'static Archive,
    /// The digest of the whole archive.
    sha256: String,
    /// Bytes on the same disk that are needed after the download.
    needed_after: u64,
}

/// Why an archive was not received.
enum Failure {
    /// The connection was interrupted: another attempt may resume.
    Interrupted(anyhow::Error),
    /// This mirror cannot be used.
    Mirror(anyhow::Error),
    /// No mirror can be used, because of the file here.
    Local(anyhow::Error),
}

impl Partial {
    /// Opens the file that an earlier process left in `data_dir`, or creates it.
    pub(crate) fn open(
        data_dir: &Path,
        source: &'static Source,
        version: &'static Archive,
        sha256: String,
        needed_after: u64,
    ) -> anyhow::Result<Self> {
        let path = data_dir.join(format!("{}.part", version.file_name));
        let file = files::open(&path)?;
        Ok(Self {
            path,
            file,
            source,
            version,
            sha256,
            needed_after,
        })
    }

    /// Downloads the archive from the first of `mirrors` that has it, and returns its path.
    pub(crate) fn complete(&mut self, mirrors: &[String]) -> anyhow::Result<&Path> {
        let agent: Agent = Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .http_status_as_error(false)
            .user_agent("cargo xtask fetch-data")
            .tls_config(tls::config()?)
            .build()
            .into();
        for mirror in mirrors {
            match self.complete_from(&agent, mirror) {
                Ok(()) => return Ok(&self.path),
                Err(Failure::Interrupted(error) | Failure::Mirror(error)) => {
                    cli::note(&format!("{mirror}: {error:#}"));
                }
                Err(Failure::Local(error)) => return Err(error),
            }
        }
        let kept = match self.file.metadata() {
            Ok(metadata) if metadata.len() > 0 => " (received data are kept)",
            _ => "",
        };
        Err(anyhow!(
            "no mirror has the archive; try again later{kept}, give another address with --mirror, or download it by other \
             means and give it with --from-file"
        ))
    }

    /// Removes the file if it is empty; otherwise the next call resumes the download.
    pub(crate) fn remove_empty(self) -> anyhow::Result<()> {
        match self.file.metadata() {
            Ok(metadata) if metadata.len() == 0 => self.remove(),
            _ => Ok(()),
        }
    }

    /// Removes the file.
    pub(crate) fn remove(self) -> anyhow::Result<()> {
        atomic_file::remove_file(&self.path)
            .with_context(|| format!("cannot remove `{}`", self.path.display()))
    }

    fn complete_from(&mut self, agent: &Agent, mirror: &str) -> Result<(), Failure> {
        let resumed = self.length()? > 0;
        self.receive(agent, mirror)?;
        let mut found = self.found_sha256()?;
        if found != self.sha256 && resumed {
            self.clear()?;
            cli::note("the data received before are not from this archive; starting again");
            self.receive(agent, mirror)?;
            found = self.found_sha256()?;
        }
        let matches = check(
            "what it sent",
            &self.path,
            self.source,
            &found,
            &self.sha256,
        );
        if matches.is_err() {
            self.clear()?;
        }
        matches.map_err(Failure::Mirror)
    }

    /// Receives data until the archive is complete. Resumes after every interruption.
    fn receive(&mut self, agent: &Agent, mirror: &str) -> Result<(), Failure> {
        if Some(self.length()?) == self.expected_bytes() {
            return Ok(());
        }
        let mut futile_attempts = 0;
        // A server that ignores ranges sends everything again.
        let mut furthest = self.length()?;
        loop {
            let error = match self.receive_once(agent, mirror) {
                Err(Failure::Interrupted(error)) => error,
                result => return result,
            };
            let have = self.length()?;
            futile_attempts = if have > furthest {
                0
            } else {
                futile_attempts + 1
            };
            furthest = furthest.max(have);
            if futile_attempts == MAX_FUTILE_ATTEMPTS {
                return Err(Failure::Interrupted(error));
            }
            let next = match have {
                0 => "trying again".to_owned(),
                have => format!("resuming after {have} bytes"),
            };
            cli::note(&format!("{mirror}: {error:#}; {next}"));
            thread::sleep(Duration::from_millis(200 << futile_attempts));
        }
    }

    /// Requests the missing data once.
    fn receive_once(&mut self, agent: &Agent, mirror: &str) -> Result<(), Failure> {
        let unusable = |message: String| Err(Failure::Mirror(anyhow!(message)));
        let interrupted = |message: String| Err(Failure::Interrupted(anyhow!(message)));
        let mut have = self.length()?;
        let mut request = agent.get(mirror);
        if have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
        }
        let response = request.call().map_err(|error| match tls::refusal(&error) {
            Some(refusal) => Failure::Mirror(refusal),
            None if is_lasting(&error) || !is_known_host(mirror) => Failure::Mirror(error.into()),
            None => Failure::Interrupted(error.into()),
        })?;
        let header = |name| response.headers().get(name)?.to_str().ok();
        let total = match response.status().as_u16() {
            200 => {
                // The server sends all data from the first byte, whatever was requested.
                have = 0;
                header("Content-Length").and_then(|text| text.parse().ok())
            }
            206 => {
                let range = header("Content-Range").and_then(content_range);
                let Some((start, total)) = range else {
                    return unusable("it sent a range without a valid Content-Range".to_owned());
                };
                if start != have {
                    return unusable(format!(
                        "it sent a range from byte {start}, not from {have}"
                    ));
                }
                total
            }
            416 => {
                // The range is empty: the file here is complete, or is another one.
                if self.found_sha256()? != self.sha256 {
                    self.clear()?;
                    return interrupted(
                        "it has no more bytes than were received before".to_owned(),
                    );
                }
                return Ok(());
            }
            status => return unusable(format!("it answered with status {status}")),
        };
        if header("Content-Type").is_some_and(|content| content.starts_with("text/html")) {
            return unusable("it answered with an HTML page".to_owned());
        }
        if let (Some(total), Some(expected)) = (total, self.expected_bytes())
            && total != expected
        {
            return unusable(format!(
                "it has an archive of {total} bytes, the official one has {expected}; \
                 if you trust it, give its digest with --sha256"
            ));
        }
        let total = total.or(self.expected_bytes());
        self.file
            .set_len(have)
            .and_then(|()| self.file.seek(SeekFrom::Start(have)))
            .map_err(self.local())?;
        let missing = total.map_or(0, |total| total.saturating_sub(have));
        let needed = missing
            .min(max_bytes(self.source))
            .saturating_add(self.needed_after);
        space::check(&self.path, needed).map_err(Failure::Local)?;
        let bar = bar(total, have);
        cli::note(&match have {
            0 => format!("{mirror}: receiving"),
            have => format!("{mirror}: receiving from byte {have} on"),
        });
        let chunks = read_in_thread(response.into_body().into_reader());
        loop {
            match chunks.recv_timeout(READ_TIMEOUT) {
                Ok(Ok(chunk)) => {
                    have += chunk.len() as u64;
                    if have > total.unwrap_or(u64::MAX).min(max_bytes(self.source)) {
                        self.clear()?;
                        return unusable("it sent more bytes than expected".to_owned());
                    }
                    self.file.write_all(&chunk).map_err(|error| {
                        Failure::Local(space::cannot_write(&self.path, needed)(error))
                    })?;
                    bar.inc(chunk.len() as u64);
                }
                Ok(Err(error)) => {
                    return interrupted(format!("the connection was interrupted: {error}"));
                }
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = READ_TIMEOUT.as_secs();
                    return interrupted(format!("it sent nothing for {seconds} s"));
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        bar.finish_and_clear();
        if total.is_some_and(|total| have < total) {
            return interrupted(format!("the connection was interrupted after {have} bytes"));
        }
        atomic_file::sync(&self.file).map_err(self.local())
    }

    /// The size of the archive in bytes, if it is the official one.
    fn expected_bytes(&self) -> Option<u64> {
        (self.sha256 == self.version.sha256).then_some(self.version.bytes)
    }

    fn clear(&self) -> Result<(), Failure> {
        self.file.set_len(0).map_err(self.local())
    }

    fn length(&self) -> Result<u64, Failure> {
        Ok(self.file.metadata().map_err(self.local())?.len())
    }

    fn found_sha256(&self) -> Result<String, Failure> {
        file_sha256(&self.path).map_err(self.local())
    }

    /// An error of the file.
    fn local(&self) -> impl FnOnce(io::Error) -> Failure + use<> {
        let (path, needed) = (self.path.clone(), self.needed_after);
        move |error| Failure::Local(space::cannot_write(&path, needed)(error))
    }
}

/// Whether another request would fail as well.
fn is_lasting(error: &ureq::Error) -> bool {
    matches!(
        error,
        ureq::Error::BadUri(_)
            | ureq::Error::Http(_)
            | ureq::Error::HostNotFound
            | ureq::Error::InvalidProxyUrl
            | ureq::Error::TooManyRedirects
            | ureq::Error::Tls(_)
    )
}

/// Whether the host of an address can be found now. Where a proxy finds hosts, this is not known.
fn is_known_host(address: &str) -> bool {
    let host = address.parse::<ureq::http::Uri>();
    let host = host.ok().and_then(|uri| uri.host().map(str::to_owned));
    let found = host.map(|host| (host, 0).to_socket_addrs());
    found.is_none_or(|found| found.is_ok()) || ureq::Proxy::try_from_env().is_some()
}

/// Checks the digest of the archive at `path`, which `what` names in the error.
fn check(
    what: &str,
    path: &Path,
    source: &Source,
    found: &str,
    wanted: &str,
) -> anyhow::Result<()> {
    if found == wanted {
        return Ok(());
    }
    let mut start = Vec::new();
    // Where it cannot be read, the digests are all that is known.
    let _ = File::open(path).and_then(|file| file.take(512).read_to_end(&mut start));
    match archive::describe_other(&start) {
        Some(description) => bail!(
            "{what} is not an archive of {}: it {description}",
            source.dataset.display_name
        ),
        None => bail!(
            "{what} has SHA-256 {found}, not {wanted}; if you trust it, give its digest with --sha256"
        ),
    }
}

/// First byte and total size in `bytes FIRST-LAST/TOTAL`; `None` where it is malformed.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((first.parse().ok()?, total))
}

/// Reads in another thread, so that the receiver of the chunks can time out.
fn read_in_thread(mut reader: impl Read + Send + 'static) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::sync_channel(16);
    thread::spawn(move || {
        loop {
            let mut chunk = vec![0; CHUNK];
            let read = match reader.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => {
                    chunk.truncate(count);
                    Ok(chunk)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = read.is_err();
            if sender.send(read).is_err() || failed {
                break;
            }
        }
    });
    receiver
}

/// A progress bar, which is hidden unless standard error is a terminal.
fn bar(total: Option<u64>, have: u64) -> ProgressBar {
    let bar = ProgressBar::new(total.unwrap_or(0)).with_position(have);
    let template = "{bar:32} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// Checks that an address is of HTTP or HTTPS.
pub(crate) fn address(text: &str) -> Result<String, String> {
    if text.starts_with("http://") || text.starts_with("https://") {
        Ok(text.to_owned())
    } else {
        Err("the address of a mirror starts with http:// or https://".to_owned())
    }
}

/// Checks the digest of a local archive.
pub(crate) fn check_file(path: &Path, source: &Source, sha256: &str) -> anyhow::Result<()> {
    let name = format!("`{}`", path.display());
    let cannot_read = || format!("cannot read {name}");
    let bytes = fs::metadata(path).with_context(cannot_read)?.len();
    ensure!(
        bytes <= max_bytes(source),
        "{name} has {bytes} bytes, too many for an archive of {}",
        source.dataset.display_name
    );
    let found = file_sha256(path).with_context(cannot_read)?;
    check(&name, path, source, &found, sha256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn content_ranges_are_parsed() {
        assert_eq!(content_range("bytes 10-19/100"), Some((10, Some(100))));
        assert_eq!(content_range("bytes 10-19/*"), Some((10, None)));
        for text in [
            "",
            "bytes",
            "bytes 1/2",
            "bytes a-b/c",
            "bytes */5",
            "items 1-2/3",
        ] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }

    #[test]
    fn a_page_is_no_archive_to_trust() {
        let page = tempfile::NamedTempFile::new().unwrap();
        for (content, expected, other) in [
            ("<html>", "it is an HTML page", "--sha256"),
            ("\x1f\x1b", "--sha256", "HTML"),
        ] {
            fs::write(page.path(), content).unwrap();
            let error =
                check("what it sent", page.path(), Source::cifar10(), "01", "02").unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains(expected) && !error.contains(other),
                "{error}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text: String) {
            let _ = content_range(&text);
            let _ = content_range(&format!("bytes {text}"));
        }
    }
}
