//! `/parse` and `/parse/upload`.

use super::App;
use super::work::{Finished, Order, Screenshot, serve};
use crate::api::ParseResponse;
use crate::error::{ApiError, FieldError};
use crate::input::{self, Options};
use crate::openapi::{ParseErrors, ParseRequest, RequestOptions, UploadForm};
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Multipart, Query, Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

/// Elements of a screenshot sent as JSON
#[utoipa::path(
    post,
    path = "/parse",
    tag = "parse",
    request_body = ParseRequest,
    responses(
        (status = 200, description = "What is on the screen.", body = ParseResponse, headers(
            ("Server-Timing" = String, description = "Milliseconds of each step."),
            ("x-request-id" = String, description = "The one that was sent, or a new one."),
        )),
        ParseErrors,
    )
)]
pub(super) async fn parse(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    serve(&app, request, async |_, body| {
        let (image, options) = app.process(move || input::parse_body(&body)).await?;
        Ok((order(&app, Screenshot::Base64(image), options), answer))
    })
    .await
}

/// Elements of a screenshot sent as a file
#[utoipa::path(
    post,
    path = "/parse/upload",
    tag = "parse",
    params(RequestOptions),
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "What is on the screen.", body = ParseResponse, headers(
            ("Server-Timing" = String, description = "Milliseconds of each step."),
            ("x-request-id" = String, description = "The one that was sent, or a new one."),
        )),
        ParseErrors,
    )
)]
pub(super) async fn upload(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    serve(&app, request, async |parts, body| {
        let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|error| FieldError::new("query", "query", "", error.to_string()))?;
        let (file, form) = read_form(Request::from_parts(parts, Body::from(body))).await?;
        // The Python service reads the query only; its README says form fields. Both work, the form wins.
        let options = Options::default()
            .read("query", &strings(query.0))?
            .read("body", &form)?;
        Ok((order(&app, Screenshot::File(file), options), answer))
    })
    .await
}

fn order(app: &App, screenshot: Screenshot, options: Options) -> Order {
    Order {
        screenshot,
        include_som: options.include_som,
        options: options.for_pipeline(app.settings),
    }
}

fn strings(pairs: Vec<(String, String)>) -> Map<String, Value> {
    pairs
        .into_iter()
        .map(|(name, value)| (name, Value::String(value)))
        .collect()
}

/// The `file` of a form, and its other fields.
async fn read_form(request: Request) -> Result<(Bytes, Map<String, Value>), ApiError> {
    let missing = || ApiError::from(FieldError::new("missing", "body", "file", "Field required"));
    let bad = |error: axum::extract::multipart::MultipartError| ApiError::BadBody(error.body_text());
    // Not multipart at all: then there is no file.
    let mut form = Multipart::from_request(request, &()).await.map_err(|_| missing())?;
    let mut file = None;
    let mut fields = Map::new();
    while let Some(field) = form.next_field().await.map_err(bad)? {
        match field.name().map(str::to_owned) {
            Some(name) if name == "file" => file = Some(field.bytes().await.map_err(bad)?),
            Some(name) => {
                fields.insert(name, Value::String(field.text().await.map_err(bad)?));
            }
            None => {}
        }
    }
    Ok((file.ok_or_else(missing)?, fields))
}

fn answer(finished: Finished) -> Result<Response, ApiError> {
    let timing = finished.steps.header();
    json(&document(finished), &timing)
}

/// The document that `/parse` answers.
pub(super) fn document(finished: Finished) -> ParseResponse {
    let Finished {
        parsed,
        info,
        som_image,
        steps,
        arrived,
    } = finished;
    ParseResponse::new(parsed, &info, som_image, &steps, arrived.elapsed())
}

/// A document as an answer, with its `Server-Timing`.
pub(super) fn json(document: &impl Serialize, timing: &str) -> Result<Response, ApiError> {
    let text = serde_json::to_vec(document).map_err(|error| ApiError::Internal(error.to_string()))?;
    let mut response = ([(header::CONTENT_TYPE, "application/json")], text).into_response();
    if let Ok(value) = HeaderValue::from_str(timing) {
        response.headers_mut().insert("server-timing", value);
    }
    Ok(response)
}
