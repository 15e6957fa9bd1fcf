//! The HTTP surface: what is where, and what every request passes through.

mod info;
mod parse;
mod probes;

use crate::device::Expectation;
use crate::engine::{Engine, ModelInfo, ModelState};
use crate::error::ApiError;
use crate::input::Settings;
use crate::metrics::{Code, Metrics, Outcome, Route};
use crate::shutdown::PhaseReceiver;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tracing::Instrument;

/// Decoded screenshots in memory at once: one on the device, one waiting for it, one being decoded and one being drawn on.
/// At the default pixel limit each is 120 MB, so waiting requests keep the encoded form.
const MAX_DECODED: usize = 4;

/// When to ask again while models load: loading takes seconds.
const LOADING_RETRY: Duration = Duration::from_secs(5);

/// Bounds of a request.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Largest body, bytes.
    pub max_body_bytes: usize,
    /// Largest screenshot, pixels.
    pub max_pixels: u64,
    /// Requests to `/parse` held at once.
    pub queue: usize,
    /// Time for a request, waiting included.
    pub timeout: Duration,
}

/// What the handlers share.
#[derive(Debug, Clone)]
pub struct App {
    engine: Engine,
    metrics: Arc<Metrics>,
    phase: PhaseReceiver,
    settings: Settings,
    limits: RequestLimits,
    /// The device that was asked for, shown until it is known which it is.
    device_setting: Arc<str>,
    expectation: Expectation,
    admission: Arc<Semaphore>,
    decoded: Arc<Semaphore>,
    /// Microseconds that the last parses took on the device: a moving average for `Retry-After`.
    mean_micros: Arc<AtomicU64>,
}

/// A place in the queue; given back when dropped.
struct Admitted {
    _place: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.metrics.held.dec();
    }
}

impl App {
    /// The state of a service. `device_setting` is `auto`, `cuda`, `mps` or `cpu`.
    pub fn new(
        engine: Engine,
        metrics: Arc<Metrics>,
        phase: PhaseReceiver,
        settings: Settings,
        limits: RequestLimits,
        device_setting: &str,
        expectation: Expectation,
    ) -> Self {
        Self {
            engine,
            metrics,
            phase,
            settings,
            limits,
            device_setting: device_setting.into(),
            expectation,
            admission: Arc::new(Semaphore::new(limits.queue.min(Semaphore::MAX_PERMITS))),
            decoded: Arc::new(Semaphore::new(MAX_DECODED)),
            mean_micros: Arc::new(AtomicU64::new(0)),
        }
    }

    /// The loaded models, or 503.
    fn models(&self) -> Result<Arc<ModelInfo>, ApiError> {
        let reason = match self.engine.state() {
            ModelState::Ready(info) => return Ok(info),
            ModelState::Loading => "The models are still being loaded".to_owned(),
            ModelState::Denied(reason) => format!("This service may run on no other device: {reason}"),
            ModelState::Failed(reason) => format!("The models could not be loaded: {reason}"),
        };
        Err(ApiError::Unready {
            reason,
            retry_after: LOADING_RETRY,
        })
    }

    /// A place in the queue, or 429.
    fn admit(&self) -> Result<Admitted, ApiError> {
        if let Ok(place) = Arc::clone(&self.admission).try_acquire_owned() {
            self.metrics.held.inc();
            return Ok(Admitted {
                _place: place,
                metrics: Arc::clone(&self.metrics),
            });
        }
        let held = self.limits.queue;
        // By then half of those that wait now are done.
        let wait = Duration::from_micros(self.mean_micros.load(Ordering::Relaxed) * held as u64 / 2);
        Err(ApiError::Busy {
            held,
            retry_after: wait.clamp(Duration::from_secs(1), Duration::from_secs(30)),
        })
    }

    fn record_device_time(&self, took: Duration) {
        let sample = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mean = self.mean_micros.load(Ordering::Relaxed);
        let next = if mean == 0 {
            sample
        } else {
            mean - mean / 8 + sample / 8
        };
        self.mean_micros.store(next, Ordering::Relaxed);
    }
}

/// All routes, with what every request passes through: request id, CORS, panics caught, metrics and log line.
pub fn router(app: App) -> Router {
    let layers = ServiceBuilder::new()
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(from_fn_with_state(app.clone(), observe))
        .layer(CatchPanicLayer::custom(caught))
        .layer(CorsLayer::permissive())
        // Bodies are bounded where they are read.
        .layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/", get(info::root))
        .route("/health", get(info::health))
        .route("/device", get(info::device))
        .route("/models/status", get(info::models_status))
        .route("/parse", post(parse::parse))
        .route("/parse/upload", post(parse::upload))
        .route("/startupz", get(probes::startupz))
        .route("/livez", get(probes::livez))
        .route("/readyz", get(probes::readyz))
        .route("/metrics", get(probes::metrics))
        .fallback(|| async { plain(StatusCode::NOT_FOUND, "Not Found") })
        .method_not_allowed_fallback(|| async { plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed") })
        .with_state(app)
        .layer(layers)
}

fn plain(status: StatusCode, detail: &str) -> Response {
    (status, Json(json!({ "detail": detail }))).into_response()
}

fn caught(_: Box<dyn Any + Send>) -> Response {
    ApiError::Internal("the request handler panicked; the log has the place".to_owned()).into_response()
}

/// Counts the request even if its client leaves and the handler is dropped.
struct Watch {
    metrics: Arc<Metrics>,
    route: Route,
    started: Instant,
    code: Code,
    outcome: Outcome,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.metrics.http(self.route, self.code, self.started.elapsed());
        if self.route.is_parse() {
            self.metrics.outcome(self.outcome);
        }
        if self.code == Code::ClientLeft {
            tracing::info!(route = ?self.route, "client left");
        }
    }
}

async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut watch = Watch {
        metrics: Arc::clone(&app.metrics),
        route: Route::of(request.uri().path()),
        started: Instant::now(),
        code: Code::ClientLeft,
        outcome: Outcome::ClientLeft,
    };
    let id = request
        .extensions()
        .get::<RequestId>()
        .and_then(|id| id.header_value().to_str().ok())
        .unwrap_or_default();
    let id: String = id.chars().take(64).collect();
    let span = tracing::info_span!("request", id, method = %request.method(), path = request.uri().path());

    let response = next.run(request).instrument(span.clone()).await;

    let status = response.status();
    let error = response.extensions().get::<ApiError>();
    watch.code = match status.as_u16() {
        500.. => Code::ServerError,
        400.. => Code::ClientError,
        _ => Code::Success,
    };
    watch.outcome = match error {
        Some(error) => error.outcome(),
        None if status.is_success() => Outcome::Parsed,
        None => Outcome::Invalid,
    };
    let _entered = span.enter();
    let milliseconds = (watch.started.elapsed().as_secs_f64() * 1e4).round() / 10.0;
    let status = status.as_u16();
    match error {
        Some(error @ ApiError::Internal(_)) => tracing::error!(status, milliseconds, %error, "answered"),
        Some(ApiError::Schema(errors)) => tracing::info!(status, milliseconds, ?errors, "answered"),
        Some(error) if watch.route.is_parse() => tracing::info!(status, milliseconds, %error, "answered"),
        None if watch.route.is_parse() => tracing::info!(status, milliseconds, "answered"),
        // Probes and scrapes come every few seconds.
        _ => tracing::debug!(status, milliseconds, "answered"),
    }
    response
}
