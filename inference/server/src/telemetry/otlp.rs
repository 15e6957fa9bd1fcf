//! Sends what OpenTelemetry exports, with the HTTP and TLS that the service downloads models with.

use crate::http::{Http, SILENCE};
use axum::body::Bytes;
use axum::http::{HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use opentelemetry_http::{HttpClient, HttpError};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::timeout;
use url::Url;

/// Longest time for one export.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest answer of a collector, in bytes; it says little.
const ANSWER: usize = 1 << 20;

type Answer<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

/// A client that may be used from any thread: its work is done on the runtime that it was made on.
pub(super) struct Sender {
    http: Arc<Http>,
    runtime: Handle,
}

impl fmt::Debug for Sender {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl Sender {
    /// Has to be called on the runtime.
    ///
    /// # Errors
    /// When TLS cannot be set up, which only a defect can cause.
    pub(super) fn new() -> Result<Self, rustls::Error> {
        Ok(Self {
            http: Arc::new(Http::new()?),
            runtime: Handle::current(),
        })
    }
}

impl HttpClient for Sender {
    fn send_bytes<'a, 'b>(&'a self, request: Request<Bytes>) -> Answer<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        let http = Arc::clone(&self.http);
        // A timer, too, is made on the runtime.
        let task = self
            .runtime
            .spawn(async move { timeout(LIMIT, send(&http, request)).await });
        Box::pin(async move { task.await?? })
    }
}

async fn send(http: &Http, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (parts, body) = request.into_parts();
    let url: Url = parts.uri.to_string().parse()?;
    let headers: Vec<(HeaderName, HeaderValue)> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut connection = http.open(&url).await?;
    let response = connection.send(Method::POST, &url, &headers, body, SILENCE).await?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
    Ok(Response::from_parts(parts, body))
}
