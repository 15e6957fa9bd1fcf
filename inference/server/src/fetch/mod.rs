//! `fetch`: a model bundle from an HTTP server into a folder, which appears whole and checked or not at all.
//!
//! Everything is made in a folder beside the one that is asked for: the archive, which a later run goes on with, and
//! what is unpacked from it. The bundle's files are checked against its `bundle.json`, then the folder is renamed.

pub mod download;
pub mod unpack;

use crate::config::FetchArgs;
use download::{Client, DownloadError, download, shown};
use hawkeye_pipeline::bundle::{Bundle, BundleError};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use unpack::{UnpackError, unpack};

/// File in the bundle's folder that says which archive it came from.
const MARK: &str = ".fetched";
/// Most files and folders in an archive; a bundle has about ten.
const MAX_ENTRIES: u64 = 10_000;
/// First wait between two tries; doubled each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The archive cannot be downloaded, or is not the one that was promised.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The archive holds what must not be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The archive holds no bundle.
    #[error("the archive has no bundle.json at its root or in its only folder")]
    NoBundle,
    /// The bundle in the archive is not sound.
    #[error("the archive's bundle is not sound: {0}")]
    Bundle(#[from] BundleError),
    /// The folder is there and holds something else.
    #[error("{0} exists and holds no bundle that was fetched; it is left as it is")]
    Occupied(PathBuf),
    /// A path that cannot become a folder.
    #[error("{0} names no folder")]
    NoFolder(PathBuf),
    /// A file or folder cannot be read, written or renamed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long as a whole.
    #[error("not done within {} s", .0.as_secs())]
    TooLong(Duration),
}

impl FetchError {
    /// The process's exit code: 3 where another try gets the same answer, else 1. (2 is a wrong command line.)
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Download(error) if !error.is_final() => 1,
            Self::Unpack(UnpackError::Io { .. }) | Self::Io { .. } | Self::TooLong(_) => 1,
            _ => 3,
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Io { action, path, source }
}

/// Fetches the bundle, with the waits between tries that the program has.
///
/// # Errors
/// [`FetchError`].
pub async fn run(args: &FetchArgs) -> Result<(), FetchError> {
    fetch(args, FIRST_WAIT).await
}

/// Fetches the bundle; the first wait between two tries is `first_wait`.
///
/// # Errors
/// [`FetchError`].
pub async fn fetch(args: &FetchArgs, first_wait: Duration) -> Result<(), FetchError> {
    match tokio::time::timeout(args.timeout, steps(args, first_wait)).await {
        Ok(result) => result,
        Err(_) => Err(FetchError::TooLong(args.timeout)),
    }
}

async fn steps(args: &FetchArgs, first_wait: Duration) -> Result<(), FetchError> {
    let started = Instant::now();
    if present(args)? {
        return Ok(());
    }
    let work = work_folder(&args.out)?;
    fs::create_dir_all(&work).map_err(io_error("create", &work))?;
    let archive = work.join("archive");
    let client = Client::new(first_wait, args.attempts, args.max_bytes)?;
    let bytes = download(&client, &args.url, &args.sha256, &archive).await?;

    let files = work.join("files");
    clear(&files)?;
    let unpacked = unpack(&archive, &files, args.max_bytes, MAX_ENTRIES)?;
    let root = root_of(&files)?;
    let bundle = Bundle::open(&root)?;
    bundle.verify()?;
    let mark = root.join(MARK);
    fs::write(&mark, &args.sha256).map_err(io_error("write", &mark))?;
    fs::rename(&root, &args.out).map_err(io_error("rename the bundle to", &args.out))?;
    clear(&work)?;
    tracing::info!(
        bundle = bundle.manifest().name,
        archive_bytes = bytes,
        unpacked_bytes = unpacked.bytes,
        files = unpacked.files,
        seconds = started.elapsed().as_secs_f64(),
        "the bundle is there and sound"
    );
    Ok(())
}

/// True when the bundle is there already, as after the restart of a node; one that was damaged since is removed.
fn present(args: &FetchArgs) -> Result<bool, FetchError> {
    let out = &args.out;
    let entries = match fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(io_error("read", out)(error)),
    };
    // An empty folder can be renamed over.
    if !entries {
        return Ok(false);
    }
    let Ok(mark) = fs::read_to_string(out.join(MARK)) else {
        return Err(FetchError::Occupied(out.clone()));
    };
    if mark == args.sha256 {
        match Bundle::open(out).and_then(|bundle| bundle.verify()) {
            Ok(()) => {
                tracing::info!(folder = %out.display(), "the bundle is there already");
                return Ok(true);
            }
            Err(error) => tracing::warn!(%error, "the bundle is there, but damaged; it is fetched again"),
        }
    }
    clear(out)?;
    Ok(false)
}

/// `.NAME.partial` beside the folder, on the same file system.
fn work_folder(out: &Path) -> Result<PathBuf, FetchError> {
    let name = out.file_name().ok_or_else(|| FetchError::NoFolder(out.to_owned()))?;
    Ok(out.with_file_name(format!(".{}.partial", name.to_string_lossy())))
}

fn clear(folder: &Path) -> Result<(), FetchError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", folder)(error)),
        _ => Ok(()),
    }
}

/// The folder with `bundle.json`: what was unpacked, or the only folder in it.
fn root_of(files: &Path) -> Result<PathBuf, FetchError> {
    if files.join("bundle.json").is_file() {
        return Ok(files.to_owned());
    }
    let mut folders = Vec::new();
    for entry in fs::read_dir(files).map_err(io_error("read", files))? {
        let path = entry.map_err(io_error("read", files))?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    match folders.as_slice() {
        [only] if only.join("bundle.json").is_file() => Ok(only.clone()),
        _ => Err(FetchError::NoBundle),
    }
}

/// Leaves the reason of a failure where Kubernetes reads it. A file that cannot be written changes nothing: the log says
/// the same.
pub fn leave_message(args: &FetchArgs, message: &str) {
    if let Some(path) = &args.message_file
        && let Err(error) = fs::write(path, format!("{}: {message}", shown(&args.url)))
    {
        tracing::warn!(path = %path.display(), %error, "the reason could not be written");
    }
}
