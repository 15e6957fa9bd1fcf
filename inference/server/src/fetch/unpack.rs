//! The archive's files: a tar, plain or compressed by gzip or zstd, of regular files and folders and nothing else.
//!
//! The archive is what its sha256 says, but whoever wrote the sum may not have looked into it. So nothing is created
//! outside of the folder, nothing is followed, nothing is overwritten, and sizes are checked before bytes are read.

use flate2::read::MultiGzDecoder;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use tar::{Archive, EntryType, PaxExtensions};

/// Most bytes of a path; bundles have short ones.
const MAX_PATH: usize = 1024;
/// Deepest nesting of folders.
const MAX_DEPTH: usize = 16;
/// Most bytes of a header's extensions.
const MAX_EXTENSIONS: u64 = 1 << 20;

/// Why the archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Neither a tar nor a compressed one.
    #[error("the file is no .tar, .tar.gz or .tar.zst")]
    NoArchive,
    /// The archive is damaged.
    #[error("the archive is damaged: {0}")]
    Damaged(io::Error),
    /// A name that leads out of the folder or is no name.
    #[error("the archive has an entry with the name {0:?}, which is not a plain path below its root")]
    Name(String),
    /// Something other than a file or a folder.
    #[error("the archive has {name:?}, which is a {kind}; only files and folders are unpacked")]
    Kind {
        /// Its name.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// The same name twice, or a file where a folder has to be.
    #[error("the archive has {0:?} twice")]
    Twice(String),
    /// Too many bytes.
    #[error("the archive unpacks to more than {limit} bytes (--max-bytes, maxSize)")]
    TooLarge {
        /// Most bytes.
        limit: u64,
    },
    /// Too many entries.
    #[error("the archive has more than {limit} entries")]
    TooMany {
        /// Most entries.
        limit: u64,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UnpackError {
    let path = path.to_owned();
    move |source| UnpackError::Io { action, path, source }
}

/// Unpacks the archive into a folder, which is created. At most `max_bytes` bytes of entries and `max_entries` entries,
/// headers' extensions counted.
///
/// # Errors
/// [`UnpackError`]; what was unpacked until then stays.
pub fn unpack(archive: &Path, into: &Path, max_bytes: u64, max_entries: u64) -> Result<Unpacked, UnpackError> {
    let reader = decompressed(archive)?;
    folder(into, "create")?;
    let mut unpacked = Unpacked { bytes: 0, files: 0 };
    let (mut declared, mut entries) = (0_u64, 0_u64);
    let mut long_name: Option<Vec<u8>> = None;
    let mut archive = Archive::new(reader);
    // Raw: extensions come as entries of their own, so that their sizes are bounded, too.
    for entry in archive.entries().map_err(UnpackError::Damaged)?.raw(true) {
        let mut entry = entry.map_err(UnpackError::Damaged)?;
        let size = entry.header().entry_size().map_err(UnpackError::Damaged)?;
        (declared, entries) = (declared.saturating_add(size), entries + 1);
        if declared > max_bytes {
            return Err(UnpackError::TooLarge { limit: max_bytes });
        }
        if entries > max_entries {
            return Err(UnpackError::TooMany { limit: max_entries });
        }
        let kind = entry.header().entry_type();
        match kind {
            EntryType::XGlobalHeader => continue,
            EntryType::GNULongName => {
                let mut name = extension(&mut entry, size)?;
                name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
                long_name = Some(name);
                continue;
            }
            EntryType::XHeader => {
                if let Some(name) = pax_path(&extension(&mut entry, size)?)? {
                    long_name = Some(name);
                }
                continue;
            }
            _ => {}
        }
        let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
        let shown = || String::from_utf8_lossy(&name).into_owned();
        let path = plain(&name).ok_or_else(|| UnpackError::Name(shown()))?;
        match kind {
            EntryType::Directory => folders(into, &path, &shown)?,
            EntryType::Regular | EntryType::Continuous => {
                let Some(leaf) = path.file_name() else {
                    return Err(UnpackError::Name(shown()));
                };
                let parent = path.parent().unwrap_or(Path::new(""));
                folders(into, parent, &shown)?;
                write(&mut entry, &into.join(parent).join(leaf), size, &shown)?;
                unpacked.bytes += size;
                unpacked.files += 1;
            }
            other => {
                return Err(UnpackError::Kind {
                    name: shown(),
                    kind: word(other),
                });
            }
        }
    }
    if unpacked.files == 0 {
        return Err(UnpackError::NoArchive);
    }
    Ok(unpacked)
}

/// Told by its first bytes, not by a name.
fn decompressed(path: &Path) -> Result<Box<dyn Read>, UnpackError> {
    let mut file = File::open(path).map_err(io_error("open", path))?;
    let mut start = Vec::new();
    let begins = file.by_ref().take(512).read_to_end(&mut start);
    begins.and_then(|_| file.rewind()).map_err(io_error("read", path))?;
    let file = BufReader::with_capacity(1 << 16, file);
    if start.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(MultiGzDecoder::new(file)))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = zstd::Decoder::with_buffer(file).map_err(UnpackError::Damaged)?;
        Ok(Box::new(decoder))
    } else if start.get(257..262) == Some(b"ustar") {
        Ok(Box::new(file))
    } else {
        Err(UnpackError::NoArchive)
    }
}

fn extension(entry: &mut impl Read, size: u64) -> Result<Vec<u8>, UnpackError> {
    if size > MAX_EXTENSIONS {
        return Err(UnpackError::TooLarge { limit: MAX_EXTENSIONS });
    }
    let mut bytes = Vec::new();
    entry.take(size).read_to_end(&mut bytes).map_err(UnpackError::Damaged)?;
    Ok(bytes)
}

/// The path that an extended header gives to the next entry. Sizes and maps of sparse files would change what the next
/// header says about its bytes, so they are refused; everything else is of no interest.
fn pax_path(bytes: &[u8]) -> Result<Option<Vec<u8>>, UnpackError> {
    let mut path = None;
    for pair in PaxExtensions::new(bytes).flatten() {
        match pair.key_bytes() {
            b"path" => path = Some(pair.value_bytes().to_vec()),
            key if key == b"size" || key.starts_with(b"GNU.sparse.") => {
                return Err(UnpackError::Kind {
                    name: "an extended header".to_owned(),
                    kind: "sparse or oversized file",
                });
            }
            _ => {}
        }
    }
    Ok(path)
}

/// A relative path of plain names. `./a` and `a/` are as good as `a`.
fn plain(name: &[u8]) -> Option<PathBuf> {
    if name.len() > MAX_PATH || name.contains(&0) {
        return None;
    }
    let mut path = PathBuf::new();
    for component in Path::new(std::ffi::OsStr::from_bytes(name)).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => path.push(part),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (path.components().count() <= MAX_DEPTH).then_some(path)
}

fn folder(path: &Path, action: &'static str) -> Result<(), UnpackError> {
    DirBuilder::new()
        .mode(0o755)
        .create(path)
        .map_err(io_error(action, path))
}

fn folders(into: &Path, path: &Path, shown: &impl Fn() -> String) -> Result<(), UnpackError> {
    let mut here = into.to_owned();
    for part in path.components() {
        here.push(part);
        // No link was ever made below this folder, so what is there is what it looks like.
        match fs::symlink_metadata(&here) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(UnpackError::Twice(shown())),
            Err(_) => folder(&here, "create")?,
        }
    }
    Ok(())
}

fn write(entry: &mut impl Read, path: &Path, size: u64, shown: &impl Fn() -> String) -> Result<(), UnpackError> {
    let mut options = OpenOptions::new();
    let mut file = match options.write(true).create_new(true).mode(0o644).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(UnpackError::Twice(shown())),
        Err(error) => return Err(io_error("create", path)(error)),
    };
    let mut left = size;
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let (space, _) = buffer.split_at_mut(most);
        let read = match entry.read(space) {
            Ok(0) => return Err(UnpackError::Damaged(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(UnpackError::Damaged(error)),
        };
        let (bytes, _) = space.split_at(read);
        io::Write::write_all(&mut file, bytes).map_err(io_error("write", path))?;
        left -= read as u64;
    }
    Ok(())
}

fn word(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Symlink => "symbolic link",
        EntryType::Link => "hard link",
        EntryType::Char | EntryType::Block => "device",
        EntryType::Fifo => "pipe",
        EntryType::GNUSparse => "sparse file",
        _ => "special entry",
    }
}
