//! `/startupz`, `/livez`, `/readyz`, `/metrics`.

use super::App;
use crate::engine::ModelState;
use crate::error::ApiError;
use crate::metrics::CONTENT_TYPE;
use crate::openapi::Detail;
use crate::shutdown::Phase;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::time::Duration;

/// Whether a restart would not help
///
/// 200 unless the device has failed several times in a row.
#[utoipa::path(get, path = "/livez", tag = "probes", responses(
    (status = 200, body = String, description = "It would not."),
    (status = 503, body = String, description = "The device has failed five times in a row."),
))]
pub(super) async fn livez(State(app): State<App>) -> Response {
    if app.engine.is_alive() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the device keeps failing\n").into_response()
    }
}

/// Whether the start is over
///
/// 200 once it is settled what runs here, also when that is nothing, because the expected device is missing: another start
/// would not bring it, and `/readyz` says no.
#[utoipa::path(get, path = "/startupz", tag = "probes", responses(
    (status = 200, body = String, description = "It is."),
    (status = 503, body = Detail, description = "The models are being loaded.", headers(
        ("Retry-After" = u64, description = "Seconds until another try is worth it."),
    )),
))]
pub(super) async fn startupz(State(app): State<App>) -> Response {
    match app.models() {
        Err(error) if !matches!(app.engine.state(), ModelState::Denied(_)) => error.into_response(),
        _ => "ok\n".into_response(),
    }
}

/// Whether `/parse` would be served
#[utoipa::path(get, path = "/readyz", tag = "probes", responses(
    (status = 200, body = String, description = "It would."),
    (status = 503, body = Detail, description = "Models are being loaded, the device is missing or hangs, or the service stops.", headers(
        ("Retry-After" = u64, description = "Seconds until another try is worth it."),
    )),
))]
pub(super) async fn readyz(State(app): State<App>) -> Response {
    match ready(&app) {
        Ok(()) => "ok\n".into_response(),
        Err(error) => error.into_response(),
    }
}

/// Whether a parse would be served, or why not.
pub(super) fn ready(app: &App) -> Result<(), ApiError> {
    if *app.phase.borrow() != Phase::Running {
        return Err(ApiError::Unready {
            reason: "The service is stopping".to_owned(),
            retry_after: Duration::from_secs(1),
        });
    }
    app.serving().map(drop)
}

/// Metrics in the OpenMetrics text format
#[utoipa::path(get, path = "/metrics", tag = "probes", responses(
    (status = 200, body = String, description = "All series.", content_type = CONTENT_TYPE),
    (status = 500, body = String, description = "They cannot be written, which is a defect."),
))]
pub(super) async fn metrics(State(app): State<App>) -> Response {
    match app.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
