//! The HTTP surface: what is where, and what every request passes through.

mod docs;
mod info;
mod omnitool;
mod parse;
mod probes;
mod v2;
mod work;

use crate::admission::{Admission, Admitted};
use crate::device::Expectation;
use crate::engine::{Engine, ModelInfo, ModelState};
use crate::error::ApiError;
use crate::input::Settings;
use crate::metrics::{Code, Metrics, Outcome, Route};
use crate::openapi;
use crate::shutdown::PhaseReceiver;
use crate::telemetry;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use hawkeye_pipeline::decode::DecodeLimits;
use opentelemetry::trace::Status;
use serde_json::json;
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Decoded screenshots in memory at once, if all are as large as is allowed: at the default limit of pixels that makes 480 MB.
/// Of usual screens it is enough for a batch of crops; requests beyond it keep the encoded form.
const MAX_DECODED: u64 = 4;

/// Batches of crops that are held at once unless something else is set, for each device.
const BATCHES_HELD: usize = 50;

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
    /// Crops held at once; `None`: some batches for each device.
    pub queue_crops: Option<usize>,
    /// Time for a request, waiting included.
    pub timeout: Duration,
    /// Time for a request's body to arrive.
    pub body_timeout: Duration,
    /// Time for one call of the device, after which it is taken for wedged; `/readyz` says no after half of it.
    pub device_timeout: Duration,
}

impl RequestLimits {
    /// The bounds of a screenshot.
    fn decoding(&self) -> DecodeLimits {
        DecodeLimits {
            max_bytes: self.max_body_bytes,
            max_pixels: self.max_pixels,
            ..DecodeLimits::default()
        }
    }
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
    admission: Admission,
    decoded: PictureMemory,
    /// The OpenAPI document, as JSON.
    document: Bytes,
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
            admission: Admission::new(
                limits.queue,
                settings.profile.max_elements,
                limits.timeout,
                Arc::clone(&metrics),
            ),
            metrics,
            phase,
            settings,
            limits,
            device_setting: device_setting.into(),
            expectation,
            decoded: PictureMemory::new(limits.max_pixels.saturating_mul(MAX_DECODED)),
            document: Bytes::new(),
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

    /// A place among those that are held, or 429.
    fn admit(&self, info: &ModelInfo) -> Result<Admitted, ApiError> {
        let most_crops = self.limits.queue_crops;
        let most_crops = most_crops.unwrap_or(BATCHES_HELD * info.batch_size * info.workers());
        self.admission.admit(most_crops, info.warm_up)
    }

    /// Does work of the processor away from the async threads.
    async fn process<T, F>(&self, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, ApiError> + Send + 'static,
    {
        let ran = self.engine.pool().run(work).await;
        ran.unwrap_or_else(|error| Err(ApiError::Internal(error.to_string())))
    }

    /// Whether the device has been at one call for so long that it may hang.
    fn hangs(&self) -> bool {
        self.engine.busy_for() > self.limits.device_timeout / 2
    }

    /// The loaded models if a parse would be served, or 503.
    fn serving(&self) -> Result<Arc<ModelInfo>, ApiError> {
        if self.hangs() {
            return Err(ApiError::Unready {
                reason: "The device does not answer".to_owned(),
                retry_after: LOADING_RETRY,
            });
        }
        self.models()
    }
}

/// Memory for decoded screenshots, in pixels.
#[derive(Debug, Clone)]
struct PictureMemory(Arc<Semaphore>);

impl PictureMemory {
    /// Pixels that one permit stands for: enough for a permit to count in 32 bits, whatever the limit.
    const UNIT: u64 = 1 << 12;

    fn new(pixels: u64) -> Self {
        let permits = usize::try_from(pixels / Self::UNIT + MAX_DECODED).unwrap_or(usize::MAX);
        Self(Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))))
    }

    /// Waits until there is memory for this many pixels, in the order of asking. A quarter of it is enough for any picture
    /// that is allowed.
    async fn take(&self, pixels: u64) -> Result<OwnedSemaphorePermit, ApiError> {
        let permits = u32::try_from(pixels / Self::UNIT + 1).unwrap_or(u32::MAX);
        let taken = Arc::clone(&self.0).acquire_many_owned(permits).await;
        taken.map_err(|error| ApiError::Internal(error.to_string()))
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
    let (router, document) = described().split_for_parts();
    let app = App {
        document: as_json(&document),
        ..app
    };
    router
        .fallback(async |uri: Uri| plain(&uri, StatusCode::NOT_FOUND, "Not Found"))
        .method_not_allowed_fallback(async |uri: Uri| plain(&uri, StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"))
        .with_state(app)
        .layer(layers)
}

fn as_json(document: &utoipa::openapi::OpenApi) -> Bytes {
    match document.to_json() {
        Ok(text) => text.into(),
        Err(error) => {
            tracing::error!(%error, "the OpenAPI document cannot be written");
            Bytes::new()
        }
    }
}

/// The routes, each with its description.
fn described() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(parse::parse))
        .routes(routes!(parse::upload))
        .routes(routes!(info::root))
        .routes(routes!(info::health))
        .routes(routes!(info::device))
        .routes(routes!(info::models_status))
        .routes(routes!(probes::startupz))
        .routes(routes!(probes::livez))
        .routes(routes!(probes::readyz))
        .routes(routes!(probes::metrics))
        .routes(routes!(omnitool::parse))
        .routes(routes!(omnitool::probe))
        .routes(routes!(v2::server))
        .routes(routes!(v2::live))
        .routes(routes!(v2::ready))
        .routes(routes!(v2::model))
        .routes(routes!(v2::model_ready))
        .routes(routes!(v2::infer))
        .routes(routes!(docs::openapi_json))
        .routes(routes!(docs::page))
        .routes(routes!(docs::redoc))
}

/// The OpenAPI document, which `/openapi.json` answers.
pub fn document() -> utoipa::openapi::OpenApi {
    described().into_openapi()
}

/// An error in the form of the API that the path belongs to.
fn plain(uri: &Uri, status: StatusCode, detail: &str) -> Response {
    let path = uri.path();
    let key = if path == "/v2" || path.starts_with("/v2/") {
        "error"
    } else {
        "detail"
    };
    (status, Json(json!({ key: detail }))).into_response()
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
    let (method, path) = (request.method(), request.uri().path());
    let span = if watch.route.is_parse() {
        tracing::info_span!("request", id, %method, path)
    } else {
        // Probes and scrapes come every few seconds: no traces of those.
        tracing::debug_span!("request", id, %method, path)
    };
    telemetry::follow(&span, request.headers());

    let response = next.run(request).instrument(span.clone()).await;

    let status = response.status();
    span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.set_status(Status::error(""));
    }
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
    let steps = response.headers().get("server-timing");
    let steps = steps.and_then(|value| value.to_str().ok()).unwrap_or_default();
    match error {
        Some(error @ ApiError::Internal(_)) => tracing::error!(status, milliseconds, %error, "answered"),
        Some(ApiError::Schema(errors)) => tracing::info!(status, milliseconds, ?errors, "answered"),
        Some(error) if watch.route.is_parse() => tracing::info!(status, milliseconds, %error, "answered"),
        None if watch.route.is_parse() => tracing::info!(status, milliseconds, steps, "answered"),
        _ => tracing::debug!(status, milliseconds, "answered"),
    }
    response
}
