//! Where everything that is built, fetched or running lies.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// The cache folder: `$HAWKEYE_CACHE`, else `~/.cache/hawkeye`.
#[derive(Debug, Clone)]
pub struct Cache(PathBuf);

impl Cache {
    /// Finds the folder; it need not exist yet.
    ///
    /// # Errors
    /// [`Error::NoCache`] when neither `HAWKEYE_CACHE` nor `HOME` is set.
    pub fn from_env() -> Result<Self> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = set("HAWKEYE_CACHE").or_else(|| set("HOME").map(|home| home.join(".cache/hawkeye")));
        let folder = folder.ok_or(Error::NoCache)?;
        Ok(Self(std::path::absolute(&folder).unwrap_or(folder)))
    }

    /// A cache in a folder of the caller's choice, which must be absolute.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// The Go-built tools: `bin`, `images`, `stamps`.
    pub fn tools(&self) -> PathBuf {
        self.0.join("tools")
    }

    /// One of the tools.
    pub fn tool(&self, name: &str) -> PathBuf {
        self.0.join("tools/bin").join(name)
    }

    /// Image archives made from single tools (pause, CoreDNS, kwok).
    pub fn tool_image(&self, name: &str) -> PathBuf {
        self.0.join("tools/images").join(format!("{name}.tar"))
    }

    /// One folder for each cluster.
    pub fn clusters(&self) -> PathBuf {
        self.0.join("clusters")
    }
}
