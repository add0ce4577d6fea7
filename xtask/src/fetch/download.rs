//! Downloads that resume after an interruption.

use super::archive::{MAX_ARCHIVE_BYTES, OFFICIAL, OFFICIAL_BYTES, Sha256Digest};
use anyhow::{Context, anyhow, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use run::cli;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Timeout for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Timeout for the next bytes from a server. The whole download may take any time.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// The number of attempts in a row without any data after which a mirror is given up.
const MAX_FRUITLESS: u32 = 3;

/// Size of a read in bytes.
const CHUNK: usize = 1 << 16;

/// The archive to download: its digest is known, and its size too if it is the official one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) sha256: Sha256Digest,
}

impl Wanted {
    fn bytes(&self) -> Option<u64> {
        (self.sha256 == OFFICIAL).then_some(OFFICIAL_BYTES)
    }

    fn max_bytes(&self) -> u64 {
        self.bytes().unwrap_or(MAX_ARCHIVE_BYTES)
    }
}

/// The file of a download, which may be incomplete. It is locked: only this process writes to it.
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    /// Opens the file that an earlier process left at `path`, or creates it.
    pub(crate) fn open(path: PathBuf) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("cannot write `{}`", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path, file }),
            Err(TryLockError::WouldBlock) => {
                bail!("another download to `{}` is running", path.display())
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock `{}`", path.display()))
            }
        }
    }

    /// Downloads the archive from the first of `mirrors` that has it, and returns its path.
    pub(crate) fn complete(&mut self, mirrors: &[String], wanted: Wanted) -> anyhow::Result<&Path> {
        let mut failures = Vec::new();
        for mirror in mirrors {
            match self.complete_from(mirror, wanted) {
                Ok(()) => return Ok(&self.path),
                Err(error) => {
                    cli::note(&format!("{mirror}: {error:#}"));
                    failures.push(mirror.as_str());
                }
            }
        }
        Err(anyhow!(
            "no mirror has the archive ({}); try again later (received data are kept), give another address with --mirror, \
             or download it by other means and give it with --from-file",
            failures.join(", ")
        ))
    }

    /// Removes the file if it is empty; otherwise the next call resumes the download.
    pub(crate) fn remove_empty(self) -> anyhow::Result<()> {
        if self.length()? == 0 {
            self.remove()
        } else {
            Ok(())
        }
    }

    /// Removes the file.
    pub(crate) fn remove(self) -> anyhow::Result<()> {
        fs::remove_file(&self.path)
            .with_context(|| format!("cannot remove `{}`", self.path.display()))
    }

    fn complete_from(&mut self, mirror: &str, wanted: Wanted) -> anyhow::Result<()> {
        let resumed = self.length()? > 0;
        self.receive(mirror, wanted)?;
        let found = Sha256Digest::of(&self.path)?;
        if found == wanted.sha256 {
            return Ok(());
        }
        self.clear()?;
        if !resumed {
            return Err(mismatch("what it sent", found, wanted.sha256));
        }
        cli::note("the data received before are not from this archive; starting again");
        self.receive(mirror, wanted)?;
        let found = Sha256Digest::of(&self.path)?;
        if found != wanted.sha256 {
            self.clear()?;
            return Err(mismatch("what it sent", found, wanted.sha256));
        }
        Ok(())
    }

    /// Receives data until the archive is complete. Resumes after every interruption.
    fn receive(&mut self, mirror: &str, wanted: Wanted) -> anyhow::Result<()> {
        if Some(self.length()?) == wanted.bytes() {
            return Ok(());
        }
        let mut fruitless = 0;
        loop {
            let before = self.length()?;
            let error = match self.receive_once(mirror, wanted) {
                Ok(()) => return Ok(()),
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Interrupted(error)) => error,
            };
            fruitless = if self.length()? > before {
                0
            } else {
                fruitless + 1
            };
            if fruitless == MAX_FRUITLESS {
                return Err(error);
            }
            let next = match self.length()? {
                0 => "trying again".to_owned(),
                have => format!("resuming after {have} bytes"),
            };
            cli::note(&format!("{mirror}: {error:#}; {next}"));
            thread::sleep(Duration::from_millis(200 << fruitless));
        }
    }

    /// Requests the missing data once.
    fn receive_once(&mut self, mirror: &str, wanted: Wanted) -> Result<(), Attempt> {
        let mut have = self.length()?;
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .http_status_as_error(false)
            .user_agent("cargo xtask fetch-data")
            .build()
            .into();
        let mut request = agent.get(mirror);
        if have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
        }
        let response = request.call().map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::HostNotFound => {
                Attempt::Final(anyhow::Error::from(error))
            }
            error => Attempt::Interrupted(error.into()),
        })?;
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let total = match response.status().as_u16() {
            200 => {
                // The server sends all data from the first byte, whatever was requested.
                have = 0;
                header("Content-Length").and_then(|text| text.parse::<u64>().ok())
            }
            206 => {
                let (start, total) =
                    header("Content-Range")
                        .and_then(content_range)
                        .ok_or_else(|| {
                            Attempt::Final(anyhow!("it sent a range without a valid Content-Range"))
                        })?;
                if start != have {
                    return Err(Attempt::Final(anyhow!(
                        "it sent a range from byte {start}, not from {have}"
                    )));
                }
                total
            }
            416 => {
                // The range is empty: the file here is complete, or is another one.
                self.clear_unless_complete(wanted)?;
                return if self.length()? > 0 {
                    Ok(())
                } else {
                    Err(Attempt::Interrupted(anyhow!(
                        "it has no more bytes than were received before"
                    )))
                };
            }
            status => return Err(Attempt::Final(anyhow!("it answered with status {status}"))),
        };
        if let (Some(total), Some(expected)) = (total, wanted.bytes())
            && total != expected
        {
            return Err(Attempt::Final(anyhow!(
                "it has an archive of {total} bytes, the official one has {expected}; \
                 if you trust it, give its digest with --sha256"
            )));
        }
        self.file.set_len(have)?;
        self.file.seek(SeekFrom::Start(have))?;
        let bar = bar(total.or(wanted.bytes()), have);
        cli::note(&format!(
            "{mirror}: receiving{}",
            if have > 0 {
                format!(" from byte {have} on")
            } else {
                String::new()
            }
        ));
        let chunks = read_in_thread(response.into_body().into_reader());
        loop {
            match chunks.recv_timeout(READ_TIMEOUT) {
                Ok(Ok(chunk)) => {
                    have += chunk.len() as u64;
                    if have > total.unwrap_or(u64::MAX).min(wanted.max_bytes()) {
                        self.clear()?;
                        return Err(Attempt::Final(anyhow!("it sent more bytes than expected")));
                    }
                    self.file.write_all(&chunk)?;
                    bar.inc(chunk.len() as u64);
                }
                Ok(Err(error)) => {
                    return Err(Attempt::Interrupted(
                        anyhow::Error::from(error).context("the connection was interrupted"),
                    ));
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Attempt::Interrupted(anyhow!(
                        "it sent nothing for {} s",
                        READ_TIMEOUT.as_secs()
                    )));
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        bar.finish_and_clear();
        if total.or(wanted.bytes()).is_some_and(|total| have < total) {
            return Err(Attempt::Interrupted(anyhow!(
                "the connection was interrupted after {have} bytes"
            )));
        }
        self.file.sync_all()?;
        Ok(())
    }

    fn clear_unless_complete(&mut self, wanted: Wanted) -> anyhow::Result<()> {
        if Sha256Digest::of(&self.path)? != wanted.sha256 {
            self.clear()?;
        }
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

/// Why an attempt to receive failed.
enum Attempt {
    /// Another attempt may resume from here.
    Interrupted(anyhow::Error),
    /// This mirror cannot be used.
    Final(anyhow::Error),
}

impl From<io::Error> for Attempt {
    /// Errors of the local file, such as a full disk.
    fn from(error: io::Error) -> Self {
        Self::Final(anyhow::Error::from(error).context("cannot write the received data"))
    }
}

impl From<anyhow::Error> for Attempt {
    fn from(error: anyhow::Error) -> Self {
        Self::Final(error)
    }
}

/// The error of an archive with a wrong digest.
fn mismatch(what: &str, found: Sha256Digest, wanted: Sha256Digest) -> anyhow::Error {
    anyhow!(
        "{what} has SHA-256 {found}, not {wanted}; if you trust it, give its digest with --sha256"
    )
}

/// First byte and total size in `bytes FIRST-LAST/TOTAL`; `None` where it is malformed.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let total = if total == "*" {
        None
    } else {
        Some(total.parse().ok()?)
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

fn bar(total: Option<u64>, have: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
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
pub(crate) fn check_file(path: &Path, wanted: Wanted) -> anyhow::Result<()> {
    let cannot_read = || format!("cannot read `{}`", path.display());
    let bytes = fs::metadata(path).with_context(cannot_read)?.len();
    ensure!(
        bytes <= MAX_ARCHIVE_BYTES,
        "`{}` has {bytes} bytes, too many for an archive of CIFAR-10",
        path.display()
    );
    let found = Sha256Digest::of(path).with_context(cannot_read)?;
    if found == wanted.sha256 {
        Ok(())
    } else {
        Err(mismatch(
            &format!("`{}`", path.display()),
            found,
            wanted.sha256,
        ))
    }
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

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text: String) {
            let _ = content_range(&text);
            let _ = content_range(&format!("bytes {text}"));
        }
    }
}
