//! `fetch` against a server on loopback that behaves well, badly, and with intent.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of tests are tests, which clippy.toml cannot say.

use clap::Parser as _;
use flate2::{Compression, write::GzEncoder};
use hawkeye_inference::config::{Cli, Command, FetchArgs};
use hawkeye_inference::engine::with_causes;
use hawkeye_inference::fetch::download::DownloadError;
use hawkeye_inference::fetch::unpack::UnpackError;
use hawkeye_inference::fetch::{FetchError, fetch};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tar::{EntryType, Header};
use tempfile::TempDir;

/// A server that answers every request by a function of its number and its head; a thread each, ended with the test.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answer: impl Fn(usize, &str) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let count = AtomicUsize::new(0);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let head = head(&mut stream);
                seen.lock().unwrap().push(head.clone());
                let bytes = answer(count.fetch_add(1, Ordering::SeqCst), &head);
                // The client may have gone when it was told enough.
                let _gone = stream.write_all(&bytes);
            }
        });
        Self { address, requests }
    }

    /// Serves these bytes, and parts of them where a range is asked for.
    fn of(bytes: Vec<u8>) -> Self {
        Self::start(move |_, head| file(&bytes, head))
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    fn heads(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut all = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    all.extend(body);
    all
}

fn offset(head: &str) -> Option<usize> {
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes="))?;
    range.trim_end_matches('-').parse().ok()
}

fn file(bytes: &[u8], head: &str) -> Vec<u8> {
    match offset(head) {
        None => answer("200 OK", "etag: \"1\"\r\n", bytes),
        Some(from) if from < bytes.len() => answer(
            "206 Partial Content",
            &format!(
                "etag: \"1\"\r\ncontent-range: bytes {from}-{}/{}\r\n",
                bytes.len() - 1,
                bytes.len()
            ),
            &bytes[from..],
        ),
        Some(_) => answer("416 Range Not Satisfiable", "", b""),
    }
}

/// The first `n` bytes of an answer, as when a connection breaks.
fn cut(mut answer: Vec<u8>, n: usize) -> Vec<u8> {
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    answer.truncate(body + n);
    answer
}

fn sum(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

const MODEL: &[u8] = b"not really a TorchScript file, but its bytes are what their sum says";

fn manifest() -> Vec<u8> {
    format!(
        r#"{{"formatVersion":1,"name":"t","models":[{{"role":"detector","name":"n","architecture":"yolo11m","licence":"MIT",
            "imageSize":1280,"stride":32,"files":[{{"dtype":"float32","path":"models/d.pt","sha256":"{}"}}]}}]}}"#,
        sum(MODEL)
    )
    .into_bytes()
}

/// One raw entry: names are taken as they are, which the library's builder would refuse.
fn entry(name: &str, kind: EntryType, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    if matches!(kind, EntryType::Symlink | EntryType::Link) {
        header.as_old_mut().linkname[..4].copy_from_slice(b"/etc");
    }
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.extend([0; 1024]);
    bytes
}

fn bundle(prefix: &str) -> Vec<u8> {
    let name = |name: &str| format!("{prefix}{name}");
    tar(&[
        entry(&name("bundle.json"), EntryType::Regular, &manifest()),
        entry(&name("models/"), EntryType::Directory, b""),
        entry(&name("models/d.pt"), EntryType::Regular, MODEL),
    ])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
        }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }

    fn args(&self, url: &str, sha256: &str, more: &[&str]) -> FetchArgs {
        let out = self.out();
        let mut line = vec!["hawkeye-inference", "fetch", "--url", url, "--sha256", sha256, "--out"];
        line.push(out.to_str().unwrap());
        line.extend(more);
        match Cli::parse_from(line).command {
            Command::Fetch(args) => *args,
            _ => unreachable!("asked for fetch"),
        }
    }

    async fn fetch(&self, url: &str, sha256: &str, more: &[&str]) -> Result<(), FetchError> {
        let result = fetch(&self.args(url, sha256, more), Duration::from_millis(5)).await;
        assert_eq!(
            result.is_ok(),
            self.out().exists(),
            "the folder is there when all is well, and only then"
        );
        result
    }

    /// Serves an archive as it is, and says why its content is refused.
    async fn refusal(&self, archive: &[u8], more: &[&str]) -> FetchError {
        let server = Server::of(archive.to_vec());
        let error = self.fetch(&server.url("b"), &sum(archive), more).await.unwrap_err();
        assert_eq!(error.exit_code(), 3, "{}", with_causes(&error));
        error
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn every_form_of_archive_becomes_the_folder() {
    for archive in [
        bundle(""),
        bundle("./"),
        bundle("hawkeye-bundle/"),
        gzip(&bundle("b/")),
        zstd::encode_all(bundle("").as_slice(), 3).unwrap(),
    ] {
        let place = Place::new();
        let server = Server::of(archive.clone());
        place.fetch(&server.url("bundle"), &sum(&archive), &[]).await.unwrap();
        assert_eq!(names(&place.out()), [".fetched", "bundle.json", "models"]);
        assert_eq!(fs::read(place.out().join("models/d.pt")).unwrap(), MODEL);
        assert_eq!(names(place.folder.path()), ["bundle"], "nothing else is left");
    }
}

#[tokio::test]
async fn what_is_there_and_sound_is_not_fetched_again() {
    let archive = bundle("");
    let place = Place::new();
    let server = Server::of(archive.clone());
    let (url, sha256) = (server.url("b"), sum(&archive));
    place.fetch(&url, &sha256, &[]).await.unwrap();
    place.fetch(&url, &sha256, &[]).await.unwrap();
    assert_eq!(server.heads().len(), 1);
    fs::write(place.out().join("models/d.pt"), b"damaged").unwrap();
    place.fetch(&url, &sha256, &[]).await.unwrap();
    assert_eq!(server.heads().len(), 2);
    assert_eq!(fs::read(place.out().join("models/d.pt")).unwrap(), MODEL);

    let mine = Place::new();
    fs::create_dir(mine.out()).unwrap();
    fs::write(mine.out().join("notes.txt"), b"mine").unwrap();
    let error = fetch(&mine.args(&url, &sha256, &[]), Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, FetchError::Occupied(_)));
    assert_eq!(names(&mine.out()), ["notes.txt"]);
}

#[tokio::test]
async fn a_wrong_sum_is_refused_at_once() {
    let archive = bundle("");
    let server = Server::of(archive);
    let error = Place::new()
        .fetch(&server.url("b"), &"0".repeat(64), &[])
        .await
        .unwrap_err();
    assert!(
        matches!(error, FetchError::Download(DownloadError::Checksum { .. })),
        "{error}"
    );
    assert_eq!((error.exit_code(), server.heads().len()), (3, 1));
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_ended() {
    let archive = bundle("");
    let copy = archive.clone();
    let server = Server::start(move |n, head| match n {
        0 => cut(file(&copy, head), 700),
        1 => answer("503 Service Unavailable", "retry-after: 0\r\n", b""),
        2 => cut(file(&copy, head), 300),
        _ => file(&copy, head),
    });
    Place::new().fetch(&server.url("b"), &sum(&archive), &[]).await.unwrap();
    let asked: Vec<Option<usize>> = server.heads().iter().map(|head| offset(head)).collect();
    assert_eq!(asked, [None, Some(700), Some(700), Some(1000)]);
    assert!(server.heads()[1].contains("if-range: \"1\""));
}

#[tokio::test]
async fn pieces_of_two_files_are_thrown_away_once() {
    let archive = bundle("");
    let (new, mut old) = (archive.clone(), archive.clone());
    old[5] = b'X';
    let server = Server::start(move |n, head| {
        if n == 0 {
            cut(file(&old, head), 600)
        } else {
            file(&new, head)
        }
    });
    Place::new().fetch(&server.url("b"), &sum(&archive), &[]).await.unwrap();
    let asked: Vec<Option<usize>> = server.heads().iter().map(|head| offset(head)).collect();
    assert_eq!(asked, [None, Some(600), None]);
}

#[tokio::test]
async fn a_run_after_a_killed_one_goes_on_with_its_file() {
    let archive = bundle("");
    let place = Place::new();
    let work = place.folder.path().join(".bundle.partial");
    fs::create_dir_all(work.join("files/old")).unwrap();
    fs::write(work.join("archive"), &archive[..1234]).unwrap();
    let server = Server::of(archive.clone());
    place.fetch(&server.url("b"), &sum(&archive), &[]).await.unwrap();
    assert_eq!(offset(&server.heads()[0]), Some(1234));
    // All of it was there, and only the check was missing.
    let place = Place::new();
    fs::create_dir_all(place.folder.path().join(".bundle.partial")).unwrap();
    fs::write(place.folder.path().join(".bundle.partial/archive"), &archive).unwrap();
    let nobody = Server::start(|_, _| panic!("nothing is left to ask for"));
    place.fetch(&nobody.url("b"), &sum(&archive), &[]).await.unwrap();
    // Of another file and longer than this one.
    let place = Place::new();
    fs::create_dir_all(place.folder.path().join(".bundle.partial")).unwrap();
    fs::write(
        place.folder.path().join(".bundle.partial/archive"),
        vec![7; archive.len() + 9],
    )
    .unwrap();
    let server = Server::of(archive.clone());
    place.fetch(&server.url("b"), &sum(&archive), &[]).await.unwrap();
    assert_eq!(server.heads().len(), 2);
}

#[tokio::test]
async fn a_server_that_never_gets_further_is_given_up() {
    let server = Server::start(|_, _| answer("500 Internal Server Error", "", b""));
    let error = Place::new()
        .fetch(&server.url("b?signature=secret"), &"0".repeat(64), &["--attempts", "3"])
        .await
        .unwrap_err();
    let text = with_causes(&error);
    assert!(text.contains("/b answers 500"), "{text}");
    assert!(!text.contains("secret"), "{text}");
    assert_eq!((error.exit_code(), server.heads().len()), (1, 3));

    let closed = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let url = format!("http://{closed}/b?signature=secret");
    let error = Place::new()
        .fetch(&url, &"0".repeat(64), &["--attempts", "2"])
        .await
        .unwrap_err();
    let text = with_causes(&error);
    assert!(text.contains("refused") && !text.contains("secret"), "{text}");
    assert_eq!(error.exit_code(), 1);
}

#[tokio::test]
async fn a_missing_file_is_not_asked_for_twice() {
    let server = Server::start(|_, _| answer("404 Not Found", "", b""));
    let error = Place::new()
        .fetch(&server.url("b"), &"0".repeat(64), &[])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("404 Not Found"), "{error}");
    assert_eq!((error.exit_code(), server.heads().len()), (3, 1));
}

#[tokio::test]
async fn redirects_are_followed_as_far_as_they_lead_somewhere() {
    let archive = bundle("");
    let target = Server::of(archive.clone());
    let location = format!("location: {}\r\n", target.url("real"));
    let server = Server::start(move |_, _| answer("302 Found", &location, b""));
    Place::new().fetch(&server.url("b"), &sum(&archive), &[]).await.unwrap();

    let looping = Server::start(|_, _| answer("302 Found", "location: /b\r\n", b""));
    let error = Place::new()
        .fetch(&looping.url("b"), &sum(&archive), &[])
        .await
        .unwrap_err();
    assert!(
        with_causes(&error).contains("not followed: more than 5 times"),
        "{}",
        with_causes(&error)
    );
    assert_eq!((error.exit_code(), looping.heads().len()), (3, 6));
    let elsewhere = Server::start(|_, _| answer("302 Found", "location: file:///etc/passwd\r\n", b""));
    let error = Place::new()
        .fetch(&elsewhere.url("b"), &sum(&archive), &[])
        .await
        .unwrap_err();
    assert!(with_causes(&error).contains("to file:"), "{}", with_causes(&error));
}

#[tokio::test]
async fn more_than_allowed_is_not_even_read() {
    let archive = bundle("");
    let error = Place::new().refusal(&archive, &["--max-bytes", "2000"]).await;
    assert!(
        matches!(error, FetchError::Download(DownloadError::TooLarge { limit: 2000 })),
        "{error}"
    );
    // Without a length the bytes are counted.
    let copy = archive.clone();
    let server = Server::start(move |_, _| {
        let mut all = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
        all.extend(&copy);
        all
    });
    let error = Place::new()
        .fetch(&server.url("b"), &sum(&archive), &["--max-bytes", "2000"])
        .await
        .unwrap_err();
    assert!(
        matches!(error, FetchError::Download(DownloadError::TooLarge { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn bombs_are_not_unpacked() {
    // A mebibyte of zeros in about a kibibyte.
    let zeros = vec![0; 1 << 20];
    let bomb = gzip(&tar(&[entry("zeros", EntryType::Regular, &zeros)]));
    assert!(bomb.len() < 4096);
    let place = Place::new();
    let error = place.refusal(&bomb, &["--max-bytes", "100KiB"]).await;
    assert!(
        matches!(error, FetchError::Unpack(UnpackError::TooLarge { .. })),
        "{error}"
    );
    let left = place.folder.path().join(".bundle.partial/files");
    assert!(names(&left).is_empty(), "not a byte of it was written");
    // So are a name of a gigabyte and a header that says so.
    let long = gzip(&tar(&[entry(
        "././@LongLink",
        EntryType::GNULongName,
        &vec![b'a'; 2 << 20],
    )]));
    let error = Place::new().refusal(&long, &[]).await;
    assert!(
        matches!(error, FetchError::Unpack(UnpackError::TooLarge { .. })),
        "{error}"
    );
    let many: Vec<Vec<u8>> = (0..10_001)
        .map(|n| entry(&n.to_string(), EntryType::Regular, b""))
        .collect();
    let error = Place::new().refusal(&gzip(&tar(&many)), &[]).await;
    assert!(
        matches!(error, FetchError::Unpack(UnpackError::TooMany { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_refused() {
    let pax = |name: &str| {
        let record = format!(" path={name}\n");
        let mut len = record.len() + 1;
        while len.to_string().len() + record.len() != len {
            len = len.to_string().len() + record.len();
        }
        format!("{len}{record}").into_bytes()
    };
    let regular = |name: &str| entry(name, EntryType::Regular, b"x");
    for entries in [
        vec![regular("../evil")],
        vec![regular("a/../../evil")],
        vec![regular("/tmp/evil")],
        vec![regular(&"d/".repeat(17))],
        vec![
            entry("././@LongLink", EntryType::GNULongName, b"../evil\0"),
            regular("good"),
        ],
        vec![entry("x", EntryType::XHeader, &pax("../evil")), regular("good")],
    ] {
        let place = Place::new();
        let error = place.refusal(&tar(&entries), &[]).await;
        assert!(matches!(error, FetchError::Unpack(UnpackError::Name(_))), "{error}");
        assert_eq!(names(place.folder.path()), [".bundle.partial"]);
        assert!(!Path::new("/tmp/evil").exists());
    }
    // Names that are only long are fine.
    let long = format!("{}/d.pt", "m".repeat(120));
    let json = String::from_utf8(manifest()).unwrap().replace("models/d.pt", &long);
    for extension in [
        entry("././@LongLink", EntryType::GNULongName, format!("{long}\0").as_bytes()),
        entry("x", EntryType::XHeader, &pax(&long)),
    ] {
        let file = |data| entry("short", EntryType::Regular, data);
        let archive = tar(&[
            entry("bundle.json", EntryType::Regular, json.as_bytes()),
            extension,
            file(MODEL),
        ]);
        let server = Server::of(archive.clone());
        Place::new().fetch(&server.url("b"), &sum(&archive), &[]).await.unwrap();
    }
}

#[tokio::test]
async fn nothing_but_files_and_folders_is_unpacked() {
    for (kind, word) in [
        (EntryType::Symlink, "symbolic link"),
        (EntryType::Link, "hard link"),
        (EntryType::Char, "device"),
        (EntryType::Block, "device"),
        (EntryType::Fifo, "pipe"),
        (EntryType::GNUSparse, "sparse file"),
    ] {
        let place = Place::new();
        let entries = [
            entry("models", kind, b""),
            entry("models/evil", EntryType::Regular, b"x"),
        ];
        let error = place.refusal(&tar(&entries), &[]).await;
        assert!(error.to_string().contains(word), "{error}");
        assert!(names(&place.folder.path().join(".bundle.partial/files")).is_empty());
    }
    let file = |name: &str| entry(name, EntryType::Regular, b"x");
    for twice in [vec![file("a"), file("a")], vec![file("a"), file("a/b")]] {
        let error = Place::new().refusal(&tar(&twice), &[]).await;
        assert!(matches!(error, FetchError::Unpack(UnpackError::Twice(_))), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_bundle_is_said_to_be_none() {
    let text = |error: &FetchError| with_causes(error);
    let error = Place::new().refusal(b"<html>Please log in</html>", &[]).await;
    assert!(text(&error).contains("no .tar"), "{error}");
    let whole = gzip(&bundle(""));
    let error = Place::new().refusal(&whole[..whole.len() / 2], &[]).await;
    assert!(matches!(error, FetchError::Unpack(UnpackError::Damaged(_))), "{error}");
    let error = Place::new()
        .refusal(&tar(&[entry("readme", EntryType::Regular, b"x")]), &[])
        .await;
    assert!(matches!(error, FetchError::NoBundle), "{error}");
    let other = tar(&[
        entry("bundle.json", EntryType::Regular, &manifest()),
        entry("models/d.pt", EntryType::Regular, b"other bytes"),
    ]);
    let error = Place::new().refusal(&other, &[]).await;
    assert!(text(&error).contains("d.pt has sha256"), "{}", text(&error));
}

#[tokio::test]
async fn time_has_an_end() {
    let server = Server::start(|_, _| answer("503 Service Unavailable", "retry-after: 20\r\n", b""));
    let error = Place::new()
        .fetch(&server.url("b"), &"0".repeat(64), &["--timeout", "300ms"])
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::TooLong(_)), "{error}");
    assert_eq!(error.exit_code(), 1);
}
