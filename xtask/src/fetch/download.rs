//! Downloads that resume where they broke off.

use super::archive::{MOST_BYTES, OFFICIAL, OFFICIAL_BYTES, Sha256Digest};
use anyhow::{Context, anyhow, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use run::cli;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(20);

/// How long a server may be silent. A slow one is waited for, whatever the whole takes.
const SILENCE: Duration = Duration::from_secs(60);

/// How often in a row a mirror may break off without having sent anything.
const FRUITLESS: u32 = 3;

/// Bytes that are read at once.
const CHUNK: usize = 1 << 16;

/// What is downloaded: an archive of a known digest, and of a known size where it is the official one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) sha256: Sha256Digest,
}

impl Wanted {
    fn bytes(&self) -> Option<u64> {
        (self.sha256 == OFFICIAL).then_some(OFFICIAL_BYTES)
    }

    fn most(&self) -> u64 {
        self.bytes().unwrap_or(MOST_BYTES)
    }
}

/// A download that may be incomplete: a file that this process alone writes to.
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    /// Opens what an earlier call left at `path`, or begins a new file.
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
                bail!("another download to `{}` is under way", path.display())
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock `{}`", path.display()))
            }
        }
    }

    /// Downloads what is wanted from the first of `mirrors` that has it.
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
            "no mirror has the archive ({}); try again later (what was received is kept), name another with --mirror, \
             or download it by other means and give it with --from-file",
            failures.join(", ")
        ))
    }

    /// Removes the file where it is empty: only what can be used again is kept.
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
        cli::note("what was received before does not belong to this archive; starting again");
        self.receive(mirror, wanted)?;
        let found = Sha256Digest::of(&self.path)?;
        if found != wanted.sha256 {
            self.clear()?;
            return Err(mismatch("what it sent", found, wanted.sha256));
        }
        Ok(())
    }

    /// Receives until the archive is whole, going on after every interruption.
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
                Err(Attempt::BrokenOff(error)) => error,
            };
            fruitless = if self.length()? > before {
                0
            } else {
                fruitless + 1
            };
            if fruitless == FRUITLESS {
                return Err(error);
            }
            let next = match self.length()? {
                0 => "trying again".to_owned(),
                have => format!("going on after {have} bytes"),
            };
            cli::note(&format!("{mirror}: {error:#}; {next}"));
            thread::sleep(Duration::from_millis(200 << fruitless));
        }
    }

    /// One request, for what is missing.
    fn receive_once(&mut self, mirror: &str, wanted: Wanted) -> Result<(), Attempt> {
        let mut have = self.length()?;
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
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
            error => Attempt::BrokenOff(error.into()),
        })?;
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let total = match response.status().as_u16() {
            200 => {
                // From the first byte on, asked for or not.
                have = 0;
                header("Content-Length").and_then(|text| text.parse::<u64>().ok())
            }
            206 => {
                let (start, total) =
                    header("Content-Range")
                        .and_then(content_range)
                        .ok_or_else(|| {
                            Attempt::Final(anyhow!("it sent a part without saying which"))
                        })?;
                if start != have {
                    return Err(Attempt::Final(anyhow!(
                        "it sent a part from byte {start}, not from {have}"
                    )));
                }
                total
            }
            416 => {
                // Nothing is left to send: what is here is the whole, or another file.
                self.clear_unless_whole(wanted)?;
                return if self.length()? > 0 {
                    Ok(())
                } else {
                    Err(Attempt::BrokenOff(anyhow!(
                        "it has no more bytes than were received"
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
        let chunks = read_aside(response.into_body().into_reader());
        loop {
            match chunks.recv_timeout(SILENCE) {
                Ok(Ok(chunk)) => {
                    have += chunk.len() as u64;
                    if have > total.unwrap_or(u64::MAX).min(wanted.most()) {
                        self.clear()?;
                        return Err(Attempt::Final(anyhow!("it sent more bytes than expected")));
                    }
                    self.file.write_all(&chunk)?;
                    bar.inc(chunk.len() as u64);
                }
                Ok(Err(error)) => {
                    return Err(Attempt::BrokenOff(
                        anyhow::Error::from(error).context("the connection broke off"),
                    ));
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Attempt::BrokenOff(anyhow!(
                        "it was silent for {} s",
                        SILENCE.as_secs()
                    )));
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        bar.finish_and_clear();
        if total.or(wanted.bytes()).is_some_and(|total| have < total) {
            return Err(Attempt::BrokenOff(anyhow!(
                "the connection broke off after {have} bytes"
            )));
        }
        self.file.sync_all()?;
        Ok(())
    }

    fn clear_unless_whole(&mut self, wanted: Wanted) -> anyhow::Result<()> {
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
    /// Another attempt may go on from here.
    BrokenOff(anyhow::Error),
    /// This mirror will not do.
    Final(anyhow::Error),
}

impl From<io::Error> for Attempt {
    /// Errors of the local file, a full disk among them.
    fn from(error: io::Error) -> Self {
        Self::Final(anyhow::Error::from(error).context("cannot write what was received"))
    }
}

impl From<anyhow::Error> for Attempt {
    fn from(error: anyhow::Error) -> Self {
        Self::Final(error)
    }
}

/// That an archive is not the wanted one.
pub(crate) fn mismatch(what: &str, found: Sha256Digest, wanted: Sha256Digest) -> anyhow::Error {
    anyhow!(
        "{what} has SHA-256 {found}, not {wanted}; if you trust it, give its digest with --sha256"
    )
}

/// First byte and whole size of `bytes FIRST-LAST/TOTAL`.
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

/// Reads in a thread of its own, so that whoever waits for the chunks can give up waiting.
fn read_aside(mut reader: impl Read + Send + 'static) -> Receiver<io::Result<Vec<u8>>> {
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

/// Checks that an address is one that can be downloaded from.
pub(crate) fn address(text: &str) -> Result<String, String> {
    if text.starts_with("http://") || text.starts_with("https://") {
        Ok(text.to_owned())
    } else {
        Err("a mirror's address begins with http:// or https://".to_owned())
    }
}

/// Checks the digest of an archive that is there already.
pub(crate) fn check_file(path: &Path, wanted: Wanted) -> anyhow::Result<()> {
    let cannot_read = || format!("cannot read `{}`", path.display());
    let bytes = fs::metadata(path).with_context(cannot_read)?.len();
    ensure!(
        bytes <= MOST_BYTES,
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
    fn ranges_are_read() {
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
        fn any_range_is_read_or_refused(text: String) {
            let _ = content_range(&text);
            let _ = content_range(&format!("bytes {text}"));
        }
    }
}
