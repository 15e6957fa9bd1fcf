//! `/openapi.json`, and a page that shows it. The page is a file of its own with nothing from elsewhere: clusters without
//! the internet have documentation, too.

use super::App;
use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse, Redirect, Response};

const PAGE: &str = include_str!("docs.html");

/// It loads nothing but the document, sends nothing anywhere else, and is shown in no frame.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "documentation", responses(
    (status = 200, body = serde_json::Value, description = "OpenAPI 3.1.", content_type = "application/json"),
))]
pub(super) async fn openapi_json(State(app): State<App>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], app.document).into_response()
}

/// A page that shows this document and tries the routes
#[utoipa::path(get, path = "/docs", tag = "documentation", responses(
    (status = 200, body = String, description = "HTML.", content_type = "text/html"),
))]
pub(super) async fn page() -> Response {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE)).into_response()
}

/// Leads to `/docs`
#[utoipa::path(get, path = "/redoc", tag = "documentation", responses(
    (status = 307, description = "To the page.", headers(("Location" = String, description = "`docs`"))),
))]
pub(super) async fn redoc() -> Redirect {
    // Relative: the service may stand behind a prefix.
    Redirect::temporary("docs")
}
