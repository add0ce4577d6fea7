//! `cargo xtask fetch-data` with good and bad servers on this machine.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in helpers of the tests.

use datasets::cifar10::{BINARY, FILE_BYTES, FOLDER, TEST_FILE, TRAINING_FILES};
use end_to_end::{program, refused};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::Duration;

/// An archive, compressed, of these files: paths and contents.
fn archive<'a>(files: impl IntoIterator<Item = (String, Cow<'a, [u8]>)>) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, &*bytes).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Records of invented images with this label, or with several label bytes.
fn records(images: usize, label: &[u8]) -> Vec<u8> {
    let image: Vec<u8> = (0..3072).map(|i| (i / 97 % 251) as u8).collect();
    [label, &image].concat().repeat(images)
}

/// An archive of invented data in the official layout of the binary version of CIFAR-10, and its digest.
static ARCHIVE: LazyLock<(Vec<u8>, String)> = LazyLock::new(|| {
    let files = (0..).zip(TRAINING_FILES.iter().chain([&TEST_FILE]));
    let bytes = archive(files.map(|(number, name)| {
        let records = records(datasets::cifar10::RECORDS, &[number]);
        (format!("{FOLDER}/{name}"), records.into())
    }));
    let digest = sha256(&bytes);
    (bytes, digest)
});

#[derive(Clone, Copy, PartialEq)]
enum Server {
    Good,
    /// Closes every connection after a quarter of the archive.
    Interrupts,
    /// Sends in small pieces, with pauses.
    Slow,
    /// Sends one wrong byte.
    WrongByte,
    /// Ignores the requested range, and closes the first connection early.
    IgnoresRange,
    /// Ignores the requested range, and closes every connection: after a quarter of the archive, or a half, in turn.
    Restarts,
    /// Sends more than the archive, without a length.
    Endless,
    Status(u16),
}

/// Starts a server. Returns its address and the requests that it receives.
fn serve(kind: Server) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!(
        "http://{}/cifar-10-binary.tar.gz",
        listener.local_addr().unwrap()
    );
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = requests.clone();
    let count = AtomicUsize::new(0);
    thread::spawn(move || {
        for stream in listener.incoming().take(50) {
            let number = count.fetch_add(1, Ordering::SeqCst);
            // The client may close the connection at any time.
            let _ = answer(kind, stream.unwrap(), number, &seen);
        }
    });
    (address, requests)
}

fn answer(
    kind: Server,
    mut stream: impl Read + Write,
    number: usize,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut from = 0;
    let mut request = String::new();
    for line in BufReader::new(&mut stream).lines() {
        let line = line?.to_ascii_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
        request += &line;
        request.push('\n');
    }
    seen.lock().unwrap().push(request);
    let archive = &ARCHIVE.0;
    if let Server::Status(status) = kind {
        return write!(
            stream,
            "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    if matches!(kind, Server::IgnoresRange | Server::Restarts) {
        from = 0;
    }
    let total = archive.len();
    let head = if kind == Server::Endless {
        "HTTP/1.1 200 OK\r\n".to_owned()
    } else if from == 0 {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n")
    } else if from >= total {
        return write!(
            stream,
            "HTTP/1.1 416 No\r\nContent-Range: bytes */{total}\r\nConnection: close\r\n\r\n"
        );
    } else {
        let last = total - 1;
        format!(
            "HTTP/1.1 206 Part\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{last}/{total}\r\n",
            total - from
        )
    };
    write!(stream, "{head}Connection: close\r\n\r\n")?;
    match kind {
        Server::Slow => {
            for piece in archive[from..].chunks(total / 20) {
                stream.write_all(piece)?;
                thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        }
        Server::Interrupts => stream.write_all(&archive[from..(from + total / 4 + 1).min(total)]),
        Server::IgnoresRange if number == 0 => stream.write_all(&archive[..total / 2]),
        Server::Restarts => stream.write_all(&archive[..(1 + number % 2) * total / 4]),
        Server::WrongByte => {
            let mut wrong = archive.clone();
            wrong[total / 3] ^= 1;
            stream.write_all(&wrong[from..])
        }
        Server::Endless => {
            let zeros = vec![0; 1 << 20];
            loop {
                stream.write_all(&zeros)?;
            }
        }
        _ => stream.write_all(&archive[from..]),
    }
}

fn fetch(data: &Path, mirrors: &[&str]) -> assert_cmd::Command {
    let mut command = program("xtask");
    command
        .arg("fetch-data")
        .arg("--data-dir")
        .arg(data)
        .args(["--sha256", &ARCHIVE.1]);
    for mirror in mirrors {
        command.args(["--mirror", mirror]);
    }
    command
}

/// The data folder contains the data set and nothing else.
fn assert_fetched(data: &Path) {
    BINARY.checksums(&data.join(FOLDER)).unwrap();
    assert_eq!(fs::read_dir(data).unwrap().count(), 1);
}

#[test]
fn the_data_are_fetched_once() {
    let data = tempfile::tempdir().unwrap();
    let (good, requests) = serve(Server::Good);
    fetch(data.path(), &[&good]).assert().success();
    assert_fetched(data.path());
    let output = fetch(data.path(), &[&good])
        .assert()
        .success()
        .get_output()
        .stdout
        .clone();
    assert!(
        String::from_utf8(output)
            .unwrap()
            .contains("complete and verified")
    );
    assert_eq!(requests.lock().unwrap().len(), 1);
    fetch(data.path(), &[&good])
        .arg("--force")
        .assert()
        .success();
    assert_eq!(requests.lock().unwrap().len(), 2);
    assert_fetched(data.path());
}

#[test]
fn an_interrupted_download_resumes() {
    let data = tempfile::tempdir().unwrap();
    let (server, requests) = serve(Server::Interrupts);
    fetch(data.path(), &[&server]).assert().success();
    assert_fetched(data.path());
    let requests = requests.lock().unwrap();
    let quarter = ARCHIVE.0.len() / 4 + 1;
    assert_eq!(requests.len(), 4);
    assert!(
        requests[3].contains(&format!("range: bytes={}-", 3 * quarter)),
        "{requests:?}"
    );
}

#[test]
fn data_of_an_earlier_process_are_used() {
    let data = tempfile::tempdir().unwrap();
    let part = data.path().join("cifar-10-binary.tar.gz.part");
    let (good, requests) = serve(Server::Good);
    for have in [1000, ARCHIVE.0.len()] {
        fs::write(&part, &ARCHIVE.0[..have]).unwrap();
        fetch(data.path(), &[&good])
            .arg("--force")
            .assert()
            .success();
        assert_fetched(data.path());
        let last = requests.lock().unwrap().last().cloned().unwrap();
        assert!(last.contains(&format!("range: bytes={have}-")), "{last}");
    }
    // Data of another file: the digest is wrong, and the archive is downloaded again.
    fs::write(&part, "something else").unwrap();
    fetch(data.path(), &[&good])
        .arg("--force")
        .assert()
        .success();
    assert_fetched(data.path());
}

#[test]
fn a_slow_server_does_not_time_out() {
    let data = tempfile::tempdir().unwrap();
    fetch(data.path(), &[&serve(Server::Slow).0])
        .assert()
        .success();
    assert_fetched(data.path());
}

#[test]
fn a_server_that_ignores_ranges_is_read_from_the_start() {
    let data = tempfile::tempdir().unwrap();
    fetch(data.path(), &[&serve(Server::IgnoresRange).0])
        .assert()
        .success();
    assert_fetched(data.path());
}

#[test]
fn a_server_that_never_sends_all_is_given_up() {
    let data = tempfile::tempdir().unwrap();
    let (bad, requests) = serve(Server::Restarts);
    fetch(data.path(), &[&bad, &serve(Server::Good).0])
        .assert()
        .success();
    assert_fetched(data.path());
    // Two that bring more than those before, and three that do not.
    assert_eq!(requests.lock().unwrap().len(), 5);
}

#[test]
fn bad_mirrors_are_skipped() {
    let data = tempfile::tempdir().unwrap();
    let bad = [
        Server::Status(404),
        Server::Status(500),
        Server::WrongByte,
        Server::Endless,
    ]
    .map(|kind| serve(kind).0);
    let (good, _) = serve(Server::Good);
    let mut mirrors: Vec<&str> = bad.iter().map(String::as_str).collect();
    // No server listens there.
    mirrors.push("http://127.0.0.1:9/none");
    mirrors.push(&good);
    let output = fetch(data.path(), &mirrors)
        .assert()
        .success()
        .get_output()
        .stderr
        .clone();
    let messages = String::from_utf8(output).unwrap();
    for message in [
        "status 404",
        "status 500",
        "has SHA-256",
        "more bytes than expected",
    ] {
        assert!(messages.contains(message), "{messages}");
    }
    assert_fetched(data.path());
}

#[test]
fn a_wrong_byte_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let (wrong, _) = serve(Server::WrongByte);
    let output = fetch(data.path(), &[&wrong])
        .assert()
        .code(1)
        .get_output()
        .stderr
        .clone();
    let message = String::from_utf8(output).unwrap();
    assert!(
        message.contains("error: no mirror has the archive") && !message.contains("are kept"),
        "{message}"
    );
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
}

#[test]
fn an_archive_that_is_not_the_official_one_needs_its_digest() {
    let data = tempfile::tempdir().unwrap();
    let (server, _) = serve(Server::Good);
    let mut command = program("xtask");
    command
        .arg("fetch-data")
        .arg("--data-dir")
        .arg(data.path())
        .args(["--mirror", &server]);
    let output = command.assert().code(1).get_output().stderr.clone();
    assert!(String::from_utf8(output).unwrap().contains("--sha256"));

    let archive = data.path().join("archive.tar.gz");
    fs::write(&archive, &ARCHIVE.0).unwrap();
    let from_file = || {
        let mut command = program("xtask");
        command
            .arg("fetch-data")
            .arg("--data-dir")
            .arg(data.path().join("data"))
            .arg("--from-file")
            .arg(&archive);
        command
    };
    refused(
        &mut from_file(),
        1,
        &["archive.tar.gz", &ARCHIVE.1, "--sha256"],
    );
    // The folders that were made for it are removed.
    assert!(!data.path().join("data").exists());
    from_file()
        .args(["--sha256", &ARCHIVE.1])
        .assert()
        .success();
    assert_fetched(&data.path().join("data"));
    let notes = messages(from_file().args(["--sha256", &ARCHIVE.1]));
    assert!(notes.contains("--from-file has no effect"), "{notes}");
}

/// What a command prints on standard error, after it succeeded.
fn messages(command: &mut assert_cmd::Command) -> String {
    let output = command.assert().success().get_output().clone();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn changed_files_are_named_and_fetched_again() {
    let data = tempfile::tempdir().unwrap();
    let (good, requests) = serve(Server::Good);
    fetch(data.path(), &[&good]).assert().success();
    let file = |name| data.path().join(FOLDER).join(name);
    fs::copy(file("data_batch_1.bin"), file("test_batch.bin")).unwrap();
    let printed = messages(&mut fetch(data.path(), &[&good]));
    assert!(
        printed.contains("test_batch.bin` is not the official file"),
        "{printed}"
    );
    assert_eq!(requests.lock().unwrap().len(), 2);
    for (offset, byte) in [(5, 255), (0, 10)] {
        let mut bytes = fs::read(file("data_batch_2.bin")).unwrap();
        bytes[offset] = byte;
        fs::write(file("data_batch_2.bin"), &bytes).unwrap();
        let printed = messages(&mut fetch(data.path(), &[&good]));
        assert!(printed.contains("data_batch_2.bin"), "{printed}");
    }
    assert_eq!(requests.lock().unwrap().len(), 4);
    assert_fetched(data.path());
    // Without the digest of their archive, they are not known.
    let mut command = program("xtask");
    command.arg("fetch-data").arg("--data-dir").arg(data.path());
    refused_after_notes(
        command.args(["--mirror", &good]),
        &["data_batch_1.bin", "fetching CIFAR-10 again", "--sha256"],
    );
}

/// Runs a command that must fail with exit code 1 after notes, all of which contain `parts`.
fn refused_after_notes(command: &mut assert_cmd::Command, parts: &[&str]) -> String {
    let output = command.assert().code(1).get_output().clone();
    let message = String::from_utf8(output.stderr).unwrap();
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    message
}

#[test]
fn archives_of_the_official_files_need_no_digest() {
    let real = std::env::var_os("CIFAR10_DIR")
        .map_or_else(|| end_to_end::root().join("data"), Into::into)
        .join(FOLDER);
    if !real.is_dir() {
        let message = format!("skipped: no CIFAR-10 in `{}`\n", real.display());
        let _ = std::io::stderr().write_all(message.as_bytes());
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let archive = data.path().join("unzipped by the browser.tar");
    let mut builder = tar::Builder::new(fs::File::create(&archive).unwrap());
    for name in TRAINING_FILES.iter().chain([&TEST_FILE]) {
        let path = format!("./{FOLDER}/{name}");
        builder
            .append_path_with_name(real.join(name), path)
            .unwrap();
    }
    builder.finish().unwrap();
    let from_file = || {
        let mut command = program("xtask");
        command.arg("fetch-data").arg("--from-file").arg(&archive);
        command.arg("--data-dir").arg(data.path().join("data"));
        command
    };
    assert_eq!(messages(&mut from_file()), "");
    assert_fetched(&data.path().join("data"));
    let set = data.path().join("data").join(FOLDER);
    assert_eq!(fs::read_dir(&set).unwrap().count(), 6);
    fs::copy(set.join("data_batch_1.bin"), set.join("test_batch.bin")).unwrap();
    let printed = messages(&mut from_file());
    assert!(
        printed.contains("test_batch.bin` is not the official file"),
        "{printed}"
    );
    let output = from_file().assert().success().get_output().clone();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("complete and verified"), "{printed}");
}

/// Invented images as CIFAR-10's version for Python has them: `pickle.dump({"data": array, "labels": list}, file, 2)` of
/// Python 2.
fn pickle(images: u16, label: u8) -> Vec<u8> {
    let pixels = vec![label; usize::from(images) * 3072];
    [
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01M",
        &images.to_le_bytes()[..],
        b"M\0\x0c\x86cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T",
        &(pixels.len() as u32).to_le_bytes(),
        &pixels,
        b"tbU\x06labels](",
        &[b'K', label].repeat(images.into()),
        b"eu.",
    ]
    .concat()
}

/// `fetch-data --from-file FILE` into a data folder.
fn fetch_file(data: &Path, file: &Path, arguments: &[&str]) -> assert_cmd::Command {
    let mut command = program("xtask");
    command.arg("fetch-data").arg("--data-dir").arg(data);
    command.arg("--from-file").arg(file).args(arguments);
    command
}

#[test]
fn archives_for_python_are_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().join("data"), folder.path().join("archive"));
    let names = [
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
    ];
    let files = (0..).zip(names).map(|(label, name)| {
        let path = format!("cifar-10-batches-py/{name}");
        (path, pickle(10_000, label).into())
    });
    let bytes = archive(files);
    fs::write(&file, &bytes).unwrap();
    refused(
        &mut fetch_file(&data, &file, &[]),
        1,
        &["its `data_batch_1` is not that of CIFAR-10", "--sha256"],
    );
    assert!(!data.exists());
    let sha256 = sha256(&bytes);
    let printed = messages(&mut fetch_file(&data, &file, &["--sha256", &sha256]));
    assert!(printed.contains("not the official file"), "{printed}");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
    // It is known by its digest.
    let mut again = fetch_file(&data, &file, &["--sha256", &sha256]);
    let output = again.assert().success().get_output().clone();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed.contains("cifar-10-batches-py`: complete and verified, 60000 images, 6 files"),
        "{printed}"
    );
    let changed = data.join("cifar-10-batches-py/test_batch");
    fs::write(&changed, pickle(10_000, 7)).unwrap();
    let printed = messages(&mut fetch_file(&data, &file, &["--sha256", &sha256]));
    assert!(
        printed.contains("test_batch` is not the official file"),
        "{printed}"
    );
    assert_eq!(fs::read(&changed).unwrap(), pickle(10_000, 5));
}

#[test]
fn cifar100_is_fetched_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().join("data"), folder.path().join("archive"));
    let files = [("train.bin", 50_000), ("test.bin", 10_000)];
    let files = files.map(|(name, images)| {
        let path = format!("cifar-100-binary/{name}");
        (path, records(images, &[19, 99]).into())
    });
    let bytes = archive(files);
    fs::write(&file, &bytes).unwrap();
    let sha256 = sha256(&bytes);
    refused(
        &mut fetch_file(&data, &file, &["--sha256", &sha256]),
        1,
        &["it is CIFAR-100; give --dataset cifar100"],
    );
    let arguments = ["--dataset", "cifar100", "--sha256", &sha256];
    let output = fetch_file(&data, &file, &arguments).assert().success();
    let printed = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    assert!(printed.contains("60000 images, 2 files"), "{printed}");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
}

#[test]
fn a_second_fetch_data_waits_for_the_first() {
    let data = tempfile::tempdir().unwrap();
    let (slow, requests) = serve(Server::Slow);
    program("xtask"); // Built before the clock runs.
    let printed: Vec<String> = thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| messages(&mut fetch(data.path(), &[&slow]))));
        both.map(|one| one.join().unwrap()).into()
    });
    assert_eq!(requests.lock().unwrap().len(), 1);
    let waiting = printed
        .iter()
        .filter(|text| text.contains("waiting for it"));
    assert_eq!(waiting.count(), 1, "{printed:?}");
    assert_fetched(data.path());
}

#[cfg(unix)]
#[test]
fn a_link_to_nothing_is_found_before_downloading() {
    let data = tempfile::tempdir().unwrap();
    let (good, requests) = serve(Server::Good);
    let link = data.path().join(FOLDER);
    std::os::unix::fs::symlink("/nonexistent", &link).unwrap();
    let words = "is a link to `/nonexistent`, which does not exist";
    refused(
        &mut fetch(data.path(), &[&good]),
        1,
        &[FOLDER, words, "remove the link"],
    );
    refused(
        &mut fetch(&link, &[&good]),
        1,
        &["cannot create the data folder", words],
    );
    assert_eq!(requests.lock().unwrap().len(), 0);
    // A link to a folder on another disk.
    let disk = tempfile::tempdir().unwrap();
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(disk.path(), &link).unwrap();
    fetch(data.path(), &[&good]).assert().success();
    assert_fetched(data.path());
    assert!(link.is_symlink() && disk.path().join(TEST_FILE).is_file());
}

/// A library that makes system calls fail, for `LD_PRELOAD`: `flock` where `NO_FLOCK` is set, and `write` above 1 MB of
/// files that have `FULL` in their path.
#[cfg(target_os = "linux")]
fn faults(folder: &Path) -> std::path::PathBuf {
    let source = folder.join("faults.c");
    fs::write(
        &source,
        r#"
        #define _GNU_SOURCE
        #include <errno.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int flock(int file, int operation) {
            if (getenv("NO_FLOCK")) { errno = ENOSYS; return -1; }
            return syscall(SYS_flock, file, operation);
        }
        ssize_t write(int file, const void *bytes, size_t count) {
            char link[64], path[4096];
            snprintf(link, sizeof link, "/proc/self/fd/%d", file);
            ssize_t length = readlink(link, path, sizeof path - 1);
            path[length > 0 ? length : 0] = 0;
            const char *full = getenv("FULL");
            if (full && strstr(path, full) && lseek(file, 0, SEEK_CUR) + (off_t)count > 1000000) {
                errno = ENOSPC;
                return -1;
            }
            return syscall(SYS_write, file, bytes, count);
        }
        "#,
    )
    .unwrap();
    let library = folder.join("faults.so");
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library);
    assert!(compiler.arg(&source).status().unwrap().success());
    library
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let library = faults(folder.path());
    let data = folder.path().join("data");
    let (good, requests) = serve(Server::Good);
    for (full, resumes) in [(".part", true), ("test_batch.bin", false)] {
        let mut command = fetch(&data, &[&good]);
        command.env("LD_PRELOAD", &library).env("FULL", full);
        let message = refused_after_notes(
            &mut command,
            &[
                "error: cannot write `",
                full,
                "no space left: ",
                "MB are needed",
            ],
        );
        assert!(
            !message.contains("damaged") && !message.contains("no mirror"),
            "{message}"
        );
        let part = data.join("cifar-10-binary.tar.gz.part");
        assert_eq!(
            fs::metadata(part).unwrap().len() < ARCHIVE.0.len() as u64,
            resumes
        );
    }
    // One for each part of the archive.
    assert_eq!(requests.lock().unwrap().len(), 2);
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
    fetch(&data, &[&good]).assert().success();
    assert_fetched(&data);
}

#[cfg(target_os = "linux")]
#[test]
fn fetch_data_works_without_locks() {
    let folder = tempfile::tempdir().unwrap();
    let library = faults(folder.path());
    let data = folder.path().join("data");
    let (good, _) = serve(Server::Good);
    let mut command = fetch(&data, &[&good]);
    command.env("LD_PRELOAD", &library).env("NO_FLOCK", "1");
    let printed = messages(&mut command);
    assert_eq!(
        printed.matches("warning: cannot lock").count(),
        1,
        "{printed}"
    );
    assert_fetched(&data);
}

/// Starts a server with TLS and an authority of this name. Returns its address, the certificate of its authority in PEM
/// format, and the number of connections.
fn serve_tls(name: &str) -> (String, String, Arc<AtomicUsize>) {
    let mut authority = rcgen::CertificateParams::default();
    let common_name = rcgen::DnType::CommonName;
    authority.distinguished_name.push(common_name, name);
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = rcgen::CertifiedIssuer::self_signed(authority, key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &authority).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let config = rustls::ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!(
        "https://localhost:{}/x",
        listener.local_addr().unwrap().port()
    );
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    thread::spawn(move || {
        for stream in listener.incoming().take(50) {
            let number = count.fetch_add(1, Ordering::SeqCst);
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let stream = rustls::StreamOwned::new(connection, stream.unwrap());
            let _ = answer(Server::Good, stream, number, &Mutex::default());
        }
    });
    (address, authority.pem(), connections)
}

#[test]
fn a_companys_certificates_are_trusted_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let file = folder.path().join("ca.pem");
    let (server, authority, connections) = serve_tls("Company");
    let with = |certificates: &str| {
        fs::write(&file, certificates).unwrap();
        let mut command = fetch(&data, &[&server]);
        command
            .env("SSL_CERT_FILE", &file)
            .env_remove("SSL_CERT_DIR");
        command
    };
    let (_, other, _) = serve_tls("Another company");
    refused_after_notes(
        &mut with(&other),
        &[
            "certificate is refused (UnknownIssuer",
            "SSL_CERT_FILE",
            "--from-file",
        ],
    );
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    refused(
        &mut with(""),
        1,
        &["SSL_CERT_FILE", "ca.pem`, where no certificates"],
    );
    let mut systems = fetch(&data, &[&server]);
    systems
        .env_remove("SSL_CERT_FILE")
        .env_remove("SSL_CERT_DIR");
    refused_after_notes(&mut systems, &["UnknownIssuer"]);
    assert_eq!(connections.load(Ordering::SeqCst), 2);
    with(&authority).assert().success();
    assert_fetched(&data);
}

#[test]
fn the_trainer_warns_of_other_files_and_eval_reads_the_test_images_alone() {
    let data = tempfile::tempdir().unwrap();
    let set = data.path().join(FOLDER);
    fs::create_dir(&set).unwrap();
    for name in TRAINING_FILES.iter().chain([&TEST_FILE]) {
        fs::write(set.join(name), vec![0; FILE_BYTES]).unwrap();
    }
    let trainer = |arguments: &[&str]| {
        let mut command = program("trainer");
        command.args(arguments).args(["--limit-test", "10"]);
        command
            .arg("--data-dir")
            .arg(data.path())
            .current_dir(data.path());
        messages(&mut command)
    };
    let warning = "warning: in `";
    let printed = trainer(&[
        "--model",
        "small-alexnet",
        "--limit-train",
        "12",
        "--batch-size",
        "6",
        "--epochs",
        "1",
        "--name",
        "a",
    ]);
    assert_eq!(printed.matches(warning).count(), 1, "{printed}");
    assert!(printed.contains("data_batch_1.bin, "), "{printed}");
    fs::remove_file(set.join("data_batch_3.bin")).unwrap();
    let printed = trainer(&["eval", "--checkpoint", "runs/a/last.safetensors"]);
    assert!(
        printed.contains(warning) && printed.contains("SHA-256 of test_batch.bin is not"),
        "{printed}"
    );
}

#[test]
fn wrong_arguments_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("file");
    fs::write(&file, "").unwrap();
    let command = || {
        let mut command = program("xtask");
        command.arg("fetch-data");
        command
    };
    refused(
        command().args(["--mirror", "ftp://example.org"]),
        2,
        &["--mirror", "http://"],
    );
    refused(command().args(["--sha256", "12"]), 2, &["--sha256", "64"]);
    refused(
        command().arg("--data-dir").arg(&file),
        1,
        &["cannot create the data folder", "a file is in the way"],
    );
    let missing = data.path().join("missing.tar.gz");
    refused(
        command()
            .arg("--data-dir")
            .arg(data.path().join("a/b"))
            .arg("--from-file")
            .arg(&missing),
        2,
        &["missing.tar.gz"],
    );
    assert!(!data.path().join("a").exists());
}
