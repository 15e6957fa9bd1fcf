//! Why a command could not do its work. Each message says what to try.

use super::{read::ParseError, schema::Violation};

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{file}: {source}")]
    File {
        /// Its name.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{file}: {source}\n  such a file is what this writes: {how}")]
    Parse {
        /// Its name.
        file: String,
        /// How to get one.
        how: &'static str,
        /// What is wrong.
        source: ParseError,
    },
    /// Objects that the API server would refuse.
    #[error("{}", invalid(.0))]
    Invalid(Vec<(String, Vec<Violation>)>),
    /// An option that makes no sense here.
    #[error("{0}")]
    Usage(String),
    /// There is no cluster to talk to.
    #[error("no cluster to ask: {0}\n  with --nodes FILE, a plan needs none: kubectl get nodes -o json > nodes.json")]
    NoCluster(String),
    /// A call to the API server failed.
    #[error("{action}: {source}{hint}")]
    Api {
        /// What was tried.
        action: String,
        /// What may help.
        hint: &'static str,
        /// What came back.
        source: Box<kube::Error>,
    },
    /// The definitions or classes that are built in do not decode, which the tests rule out.
    #[error("built-in: {0}")]
    BuiltIn(String),
    /// The output does not serialise.
    #[error("the output does not serialise: {0}")]
    Serialise(String),
    /// Standard output was closed.
    #[error("standard output: {0}")]
    Output(#[from] std::io::Error),
}

fn invalid(objects: &[(String, Vec<Violation>)]) -> String {
    let mut lines = Vec::new();
    for (object, violations) in objects {
        lines.push(format!("{object} is invalid; the API server would refuse it:"));
        lines.extend(violations.iter().map(|violation| format!("  {violation}")));
    }
    lines.join("\n")
}
