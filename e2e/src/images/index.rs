//! Joins images for several architectures in an image index.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    Image,
    arch::Arch,
    hex, is_current, lock, read,
    work::{Strays, Work},
    write,
};
use crate::{
    command,
    error::{Error, IoContext, Result},
    paths::Cache,
    progress::Progress,
};

/// Joins the archives of `image` for each of `architectures`, which [`build_for`] left, in an image index, and returns its OCI
/// layout.
///
/// # Errors
/// When an archive is missing, or buildah is or fails.
pub fn join(cache: &Cache, image: Image, architectures: &[Arch], progress: Progress) -> Result<PathBuf> {
    let _lock = lock(cache, progress)?;
    let (target, archives) = (
        image.index(cache),
        architectures.iter().map(|&arch| image.archive(cache, arch)),
    );
    let archives: Vec<PathBuf> = archives.collect();
    let mut key = Sha256::new();
    for archive in &archives {
        let stamp = archive.with_extension("key");
        key.update(read(&stamp).or_else(|_| read(archive))?);
    }
    let (key, stamp) = (hex(key), target.with_extension("key"));
    if target.is_file() && is_current(&stamp, &key) {
        progress.step(format!("index {} is up to date", image.reference()));
        return Ok(target);
    }
    let names: Vec<&str> = architectures.iter().map(|arch| arch.name()).collect();
    progress.step(format!("index {} ({})", image.reference(), names.join(", ")));
    if command::find("buildah").is_none() {
        let (missing, packages) = ("buildah".to_owned(), "buildah".to_owned());
        return Err(Error::MissingPrograms { missing, packages });
    }
    let work = Work::new(cache.root().join("images/work/index"))?;
    let _strays = Strays::note();
    let list = image.reference();
    command::run(work.buildah().args(["manifest", "create", &list]))?;
    for archive in &archives {
        let archive = format!("docker-archive:{}", archive.display());
        command::run(work.buildah().args(["manifest", "add", &list, &archive]))?;
    }
    let next = work.0.join("index.tar");
    let layout = format!("oci-archive:{}:{list}", next.display());
    command::run(
        work.buildah()
            .args(["manifest", "push", "--all", "--format", "oci", &list, &layout]),
    )?;
    fs::create_dir_all(target.parent().unwrap_or(Path::new("/"))).context(|| target.display().to_string())?;
    fs::rename(&next, &target).context(|| format!("writing {}", target.display()))?;
    write(&stamp, key)?;
    Ok(target)
}
