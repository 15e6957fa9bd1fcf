//! The folder of one build, with buildah's store in it, and what buildah leaves elsewhere.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::error::{IoContext, Result};

/// Files that buildah writes outside its store whatever it is told, and their folders, as far as they were not there before;
/// removed when dropped.
pub(super) struct Strays(Vec<PathBuf>);

impl Strays {
    const FILES: [&str; 2] = [
        "/var/lib/containers/cache/blob-info-cache-v1.boltdb",
        "/etc/cni/net.d/cni.lock",
    ];

    pub(super) fn note() -> Self {
        let all = Self::FILES.iter().flat_map(|file| Path::new(file).ancestors());
        Self(all.filter(|path| !path.exists()).map(Path::to_owned).collect())
    }
}

impl Drop for Strays {
    fn drop(&mut self) {
        for path in &self.0 {
            // Not there, or a folder that someone else has put something into meanwhile: both are as they should be.
            let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
        }
    }
}

/// A folder for one build. Removed when dropped, and before, if a killed run left it.
pub(super) struct Work(pub(super) PathBuf);

impl Work {
    pub(super) fn new(folder: PathBuf) -> Result<Self> {
        let work = Self(folder);
        work.remove();
        fs::create_dir_all(&work.0).context(|| format!("creating {}", work.0.display()))?;
        Ok(work)
    }

    /// buildah with a store in this folder; vfs copies instead of mounting, so a killed build leaves files only.
    pub(super) fn buildah(&self) -> Command {
        let mut command = Command::new("buildah");
        command
            .args(["--storage-driver", "vfs", "--root"])
            .arg(self.0.join("store"));
        command.arg("--runroot").arg(self.0.join("run")).env("TMPDIR", &self.0);
        command
    }

    fn remove(&self) {
        // What stays is found by the next build, which then fails to create files and says so.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.remove();
    }
}
