//! The archive: downloaded to a file while it is hashed, gone on with where a try ended, and refused unless its sha256
//! is the one that was promised.

use crate::http::{Http, HttpError, SILENCE};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_RANGE, ETAG, HeaderValue, IF_RANGE, RANGE, RETRY_AFTER};
use hyper::{Response, StatusCode};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use url::Url;

/// Longest wait between two tries, also where a server asks for more.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Time between two lines of progress in the log.
const PROGRESS: Duration = Duration::from_secs(5);

/// Why the archive is not there.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// No answer, or one that ended too early.
    #[error("{url} cannot be downloaded: {source}")]
    Transfer {
        /// Without its query, which may hold a signature.
        url: String,
        /// What went wrong.
        source: HttpError,
    },
    /// The server answered, but not with the archive.
    #[error("{url} answers {status}")]
    Status {
        /// Without its query.
        url: String,
        /// What it answered.
        status: StatusCode,
    },
    /// More bytes than allowed.
    #[error("the archive has more than {limit} bytes (--max-bytes, maxSize)")]
    TooLarge {
        /// Most bytes.
        limit: u64,
    },
    /// Other bytes than promised.
    #[error(
        "the archive has sha256 {found}, expected is {expected}: it was changed or cut off, or the sum is of another file"
    )]
    Checksum {
        /// What the bytes have.
        found: String,
        /// What was promised.
        expected: String,
    },
    /// The file cannot be written.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// TLS cannot be set up, which only a defect can cause.
    #[error("no HTTP client: {0}")]
    Client(String),
}

impl DownloadError {
    /// True where another try gets the same answer.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Client(_) => false,
            Self::Transfer { source, .. } => source.is_final(),
            Self::Status { status, .. } => !again(*status),
            Self::TooLarge { .. } | Self::Checksum { .. } => true,
        }
    }
}

fn again(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// A URL without its query, which may hold a signature.
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.to_string()
}

/// How downloads are made.
pub struct Client {
    http: Http,
    first_wait: Duration,
    attempts: u32,
    max_bytes: u64,
}

impl Client {
    /// `attempts` are those in a row without a new byte.
    ///
    /// # Errors
    /// [`DownloadError::Client`].
    pub fn new(first_wait: Duration, attempts: u32, max_bytes: u64) -> Result<Self, DownloadError> {
        Ok(Self {
            http: Http::new().map_err(|error| DownloadError::Client(error.to_string()))?,
            first_wait,
            attempts: attempts.max(1),
            max_bytes,
        })
    }
}

/// What is there of the archive.
struct Partial<'a> {
    path: &'a Path,
    file: File,
    hasher: Sha256,
    len: u64,
    /// Some of it came with an earlier answer, which may have been about another file.
    resumed: bool,
    etag: Option<HeaderValue>,
}

impl<'a> Partial<'a> {
    fn open(path: &'a Path) -> Result<Self, DownloadError> {
        let failed = |source| DownloadError::Io {
            path: path.to_owned(),
            source,
        };
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        let mut len = 0;
        loop {
            let read = file.read(&mut buffer).map_err(failed)?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            hasher.update(bytes);
            len += read as u64;
        }
        Ok(Self {
            path,
            file,
            hasher,
            len,
            resumed: len > 0,
            etag: None,
        })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        self.file.write_all(bytes).map_err(|source| DownloadError::Io {
            path: self.path.to_owned(),
            source,
        })?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), DownloadError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(|source| DownloadError::Io {
                path: self.path.to_owned(),
                source,
            })?;
        self.hasher = Sha256::new();
        self.len = 0;
        self.resumed = false;
        self.etag = None;
        Ok(())
    }

    fn sha256(&self) -> String {
        format!("{:x}", self.hasher.clone().finalize())
    }
}

/// Downloads the archive and returns its size in bytes.
///
/// # Errors
/// [`DownloadError`]; what came so far stays in the file, unless it is known to be wrong.
pub async fn download(client: &Client, url: &Url, sha256: &str, path: &Path) -> Result<u64, DownloadError> {
    let mut partial = Partial::open(path)?;
    let mut fruitless = 0;
    let mut restarts = 0;
    tracing::info!(url = shown(url), have = partial.len, "downloading");
    // A run that ended between the last byte and the check has nothing left to ask for.
    while partial.len == 0 || partial.sha256() != sha256 {
        let before = partial.len;
        let (error, asked) = match attempt(client, url, &mut partial).await {
            Ok(()) => {
                let found = partial.sha256();
                if found == sha256 {
                    break;
                }
                let mixed = partial.resumed && restarts == 0;
                partial.restart()?;
                if !mixed {
                    let expected = sha256.to_owned();
                    return Err(DownloadError::Checksum { found, expected });
                }
                restarts += 1;
                tracing::warn!(found, "the pieces do not fit together; downloading from the beginning");
                continue;
            }
            Err(failure) => failure,
        };
        if error.is_final() {
            partial.restart()?;
            return Err(error);
        }
        // A full disk stays full.
        if matches!(error, DownloadError::Io { .. }) {
            return Err(error);
        }
        fruitless = if partial.len > before { 1 } else { fruitless + 1 };
        if fruitless >= client.attempts {
            return Err(error);
        }
        partial.resumed = partial.len > 0;
        let wait = client.first_wait.saturating_mul(1 << (fruitless - 1).min(16));
        let wait = wait.max(asked.unwrap_or_default()).min(LONGEST_WAIT);
        tracing::warn!(
            error = crate::engine::with_causes(&error),
            have = partial.len,
            wait_s = wait.as_secs_f64(),
            "trying again"
        );
        tokio::time::sleep(wait).await;
    }
    Ok(partial.len)
}

type Failure = (DownloadError, Option<Duration>);

/// One request. What it brings is appended; how long the server asks to wait comes with the error.
async fn attempt(client: &Client, url: &Url, partial: &mut Partial<'_>) -> Result<(), Failure> {
    let plain = |error| (error, None);
    let transfer = |source| {
        let url = shown(url);
        (DownloadError::Transfer { url, source }, None)
    };
    let mut headers = Vec::new();
    if partial.len > 0 {
        // A number is always a valid value.
        headers.extend(HeaderValue::try_from(format!("bytes={}-", partial.len)).map(|range| (RANGE, range)));
        headers.extend(partial.etag.clone().map(|etag| (IF_RANGE, etag)));
    }
    let mut response = client.http.get(url, &headers).await.map_err(transfer)?;
    let status = response.status();
    match status {
        StatusCode::PARTIAL_CONTENT if partial.len > 0 && starts_at(&response, partial.len) => {}
        // The whole of it, or something that does not fit what is there.
        StatusCode::OK => partial.restart().map_err(plain)?,
        StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT if partial.len > 0 => {
            partial.restart().map_err(plain)?;
            response = client.http.get(url, &[]).await.map_err(transfer)?;
            if response.status() != StatusCode::OK {
                return Err(refused(url, &response));
            }
        }
        _ => return Err(refused(url, &response)),
    }
    // Weak tags say that files mean the same, not that their bytes are the same.
    let tag = response.headers().get(ETAG);
    partial.etag = tag.filter(|tag| !tag.as_bytes().starts_with(b"W/")).cloned();
    let left = response.body().size_hint().exact();
    let total = left.map(|left| left.saturating_add(partial.len));
    let limit = client.max_bytes;
    if total.is_some_and(|total| total > limit) {
        return Err(plain(DownloadError::TooLarge { limit }));
    }
    let (started, mut said) = (Instant::now(), Instant::now());
    let had = partial.len;
    loop {
        let frame = timeout(SILENCE, response.body_mut().frame()).await;
        let Some(frame) = frame.map_err(|_| transfer(HttpError::Silent(SILENCE)))? else {
            break;
        };
        // What is no data are trailers.
        let Ok(bytes) = frame.map_err(|error| transfer(error.into()))?.into_data() else {
            continue;
        };
        if partial.len + bytes.len() as u64 > limit {
            return Err(plain(DownloadError::TooLarge { limit }));
        }
        partial.append(&bytes).map_err(plain)?;
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            let per_second = (partial.len - had) as f64 / started.elapsed().as_secs_f64();
            tracing::info!(
                have = partial.len,
                of = total,
                bytes_per_s = per_second as u64,
                "downloading"
            );
        }
    }
    Ok(())
}

fn refused(url: &Url, response: &Response<Incoming>) -> Failure {
    let seconds = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let error = DownloadError::Status {
        url: shown(url),
        status: response.status(),
    };
    (error, seconds.map(Duration::from_secs))
}

/// `Content-Range: bytes 100-199/200` begins where we left off.
fn starts_at(response: &Response<Incoming>, offset: u64) -> bool {
    let range = response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|value| value.to_str().ok());
    let first = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok());
    first == Some(offset)
}
