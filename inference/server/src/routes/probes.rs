//! `/startupz`, `/livez`, `/readyz`, `/metrics`.

use super::App;
use crate::engine::ModelState;
use crate::error::ApiError;
use crate::metrics::CONTENT_TYPE;
use crate::shutdown::Phase;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::time::Duration;

/// 200 unless the device has failed several times in a row: then a restart helps.
pub(super) async fn livez(State(app): State<App>) -> Response {
    if app.engine.is_alive() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the device keeps failing\n").into_response()
    }
}

/// 200 once it is settled what runs here, also when that is nothing, because the expected device is missing: another start
/// would not bring it, and `/readyz` says no.
pub(super) async fn startupz(State(app): State<App>) -> Response {
    match app.models() {
        Err(error) if !matches!(app.engine.state(), ModelState::Denied(_)) => error.into_response(),
        _ => "ok\n".into_response(),
    }
}

/// 200 when `/parse` would be served.
pub(super) async fn readyz(State(app): State<App>) -> Response {
    if *app.phase.borrow() != Phase::Running {
        let reason = "The service is stopping".to_owned();
        return ApiError::Unready {
            reason,
            retry_after: Duration::from_secs(1),
        }
        .into_response();
    }
    match app.models() {
        Ok(_) => "ok\n".into_response(),
        Err(error) => error.into_response(),
    }
}

pub(super) async fn metrics(State(app): State<App>) -> Response {
    match app.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
