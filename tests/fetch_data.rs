//! `cargo xtask fetch-data` with good and bad servers on this machine.

#![allow(clippy::unwrap_used, clippy::panic)] // Also in helpers of the tests.

use end_to_end::{program, refused};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::Duration;

/// An archive of invented data in the official layout, and its digest.
static ARCHIVE: LazyLock<(Vec<u8>, String)> = LazyLock::new(|| {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (number, name) in datasets::cifar10::TRAINING_FILES
        .iter()
        .chain([&datasets::cifar10::TEST_FILE])
        .enumerate()
    {
        let mut bytes: Vec<u8> = (0..datasets::cifar10::FILE_BYTES)
            .map(|i| (i / 997 % 251) as u8)
            .collect();
        for label in bytes.iter_mut().step_by(datasets::cifar10::RECORD_BYTES) {
            *label = number as u8;
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        let path = format!("{}/{name}", datasets::cifar10::FOLDER);
        builder
            .append_data(&mut header, path, bytes.as_slice())
            .unwrap();
    }
    let bytes = builder.into_inner().unwrap().finish().unwrap();
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
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
    mut stream: TcpStream,
    number: usize,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut from = 0;
    let mut request = String::new();
    for line in BufReader::new(stream.try_clone()?).lines() {
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
    if kind == Server::IgnoresRange {
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
        Server::WrongByte => {
            let mut wrong = archive.clone();
            wrong[total / 3] ^= 1;
            stream.write_all(&wrong[from..])
        }
        Server::Endless => {
            let zeros = vec![0; 1 << 20];
            for _ in 0..300 {
                stream.write_all(&zeros)?;
            }
            Ok(())
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
    datasets::cifar10::check(&data.join(datasets::cifar10::FOLDER)).unwrap();
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
    assert!(
        String::from_utf8(output)
            .unwrap()
            .contains("error: no mirror has the archive")
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
    from_file()
        .args(["--sha256", &ARCHIVE.1])
        .assert()
        .success();
    assert_fetched(&data.path().join("data"));
}

#[test]
fn present_files_with_a_valid_structure_are_accepted() {
    let data = tempfile::tempdir().unwrap();
    let (good, requests) = serve(Server::Good);
    fetch(data.path(), &[&good]).assert().success();
    let file = data
        .path()
        .join(datasets::cifar10::FOLDER)
        .join("data_batch_2.bin");
    let mut bytes = fs::read(&file).unwrap();
    bytes[5] ^= 1;
    fs::write(&file, &bytes).unwrap();
    fetch(data.path(), &[&good]).assert().success();
    assert_eq!(requests.lock().unwrap().len(), 1);
    // A label of 10 is invalid: the data set is fetched again.
    bytes[0] = 10;
    fs::write(&file, &bytes).unwrap();
    fetch(data.path(), &[&good]).assert().success();
    assert_eq!(requests.lock().unwrap().len(), 2);
    assert_fetched(data.path());
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
        &["cannot create the data folder"],
    );
    let missing = data.path().join("missing.tar.gz");
    refused(
        command()
            .arg("--data-dir")
            .arg(data.path())
            .arg("--from-file")
            .arg(&missing),
        1,
        &["missing.tar.gz"],
    );
}
