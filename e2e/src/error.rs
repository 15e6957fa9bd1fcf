//! What can go wrong while tools are built and clusters come and go.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every failure names what was tried, and where it helps, what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name cannot become part of interface, cgroup and node names.
    #[error(
        "`{0}` cannot name a cluster: at most 12 characters, lower-case letters, digits and dashes, a letter first"
    )]
    InvalidName(String),
    /// Neither provider can work here.
    #[error("no way to run a cluster here: no container engine answers `docker info`, and {0}")]
    NoProvider(&'static str),
    /// Programs that the local cluster calls are not installed.
    #[error("not installed: {missing}. On Debian: apt-get install -y --no-install-recommends {packages}")]
    MissingPrograms {
        /// The programs and plug-ins that were not found.
        missing: String,
        /// The packages that carry everything a local cluster needs.
        packages: String,
    },
    /// A file or process operation.
    #[error("{what}: {source}")]
    Io {
        /// The operation, with the path it was about.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("`{command}` failed ({status}){}", indented(output))]
    Command {
        /// Program and arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said, standard error last.
        output: String,
    },
    /// Something did not happen in time.
    #[error("{what} took longer than {} s; logs: {}", after.as_secs(), logs.display())]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
        /// Where the components' logs are.
        logs: PathBuf,
    },
    /// A component of the cluster ended by itself.
    #[error("{component} stopped; the end of {}:{}", log.display(), indented(tail))]
    Stopped {
        /// The component.
        component: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// Processes or mounts of a cluster could not be removed; its folder was left alone.
    #[error("cannot remove {what}: {why}")]
    Leftover {
        /// What is still there.
        what: String,
        /// Why it stays.
        why: String,
    },
    /// A platform that nothing is built for.
    #[error("`{0}` is no platform of these images: linux/amd64 or linux/arm64")]
    UnknownPlatform(String),
    /// This machine does not compile for another architecture.
    #[error("{0} cannot be built here: {1}")]
    NoCross(String, String),
    /// An image that would not run, or not wholly, on its platform.
    #[error("{image} is meant for {arch} and holds {found}")]
    WrongArchitecture {
        /// The image.
        image: String,
        /// Its platform.
        arch: String,
        /// What its configuration says, and files of another architecture.
        found: String,
    },
    /// The second node cannot be had on this machine.
    #[error("no arm64 node here: {0}")]
    NoArm64Node(String),
    /// All address blocks for clusters overlap with routes of this host.
    #[error("no free address block: every /22 of {0} overlaps with a route of this host")]
    NoAddresses(&'static str),
    /// No cluster of that name runs.
    #[error("there is no cluster `{0}`; `hawkeye-e2e cluster up --name {0}` starts it")]
    NotUp(String),
    /// `$HOME` and `$HAWKEYE_CACHE` are both unset.
    #[error("set HAWKEYE_CACHE (or HOME): the folder that keeps tools, images and clusters")]
    NoCache,
    /// A certificate could not be made.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The kubeconfig could not be read.
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The Kubernetes client.
    #[error("{0}")]
    Kube(#[from] Box<kube::Error>),
    /// A program's JSON output was not as expected.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Names the operation behind an [`io::Error`].
pub(crate) trait IoContext<T> {
    /// Wraps the error; `what` is only called when there is one.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { what: what(), source })
    }
}

fn indented(text: &str) -> String {
    text.trim_end()
        .lines()
        .fold(String::new(), |all, line| all + "\n  " + line)
}
