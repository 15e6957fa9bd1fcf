//! What can go wrong while one HawkeyeDeployment is reconciled.

use std::time::Duration;

/// Why a reconcile did not come to its end. Each is retried with backoff.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call to the API server failed.
    #[error("{action} failed: {source}")]
    Api {
        /// What was tried.
        action: String,
        /// What came back.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server refused objects; the status says which.
    #[error("the API server refused: {0}")]
    Refused(String),
    /// An object could not be turned into JSON.
    #[error("an object does not serialise: {0}")]
    Json(#[from] serde_json::Error),
    /// It took too long as a whole.
    #[error("not done within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The object that came from the API server has no name, namespace or UID.
    #[error("the object has no {0}")]
    Incomplete(&'static str),
    /// The planner ended, so the process is about to.
    #[error("the planner has ended")]
    PlannerEnded,
}

impl Error {
    /// Wraps an error of the client; `action` says what was tried.
    pub fn api(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let action = action.into();
        move |source| Self::Api {
            action,
            source: Box::new(source),
        }
    }

    /// How long the API server asks to wait before the next try, up to a minute.
    pub fn retry_after(&self) -> Option<Duration> {
        let Self::Api { source, .. } = self else { return None };
        let kube::Error::Api(status) = &**source else {
            return None;
        };
        let seconds = status.details.as_ref()?.retry_after_seconds;
        (seconds > 0).then(|| Duration::from_secs(seconds.into()).min(Duration::from_mins(1)))
    }

    /// Its kind, for metrics: one of few words.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Api { .. } => ErrorKind::Api,
            Self::Refused(_) => ErrorKind::Refused,
            Self::Timeout(_) => ErrorKind::Timeout,
            Self::Json(_) | Self::Incomplete(_) | Self::PlannerEnded => ErrorKind::Internal,
        }
    }
}

/// Kinds of errors, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelValue)]
#[allow(missing_docs)]
pub enum ErrorKind {
    Api,
    Refused,
    Timeout,
    Internal,
}
