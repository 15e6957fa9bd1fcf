//! `/parse` and `/parse/upload`: admit, read, decode, run on the device, draw, answer.

use super::{Admitted, App};
use crate::api::ParseResponse;
use crate::engine::ModelInfo;
use crate::error::{ApiError, FieldError};
use crate::input::{self, Options};
use crate::metrics::Stage;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Multipart, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawkeye_pipeline::decode::{DecodeError, DecodeLimits, decode, decode_base64};
use hawkeye_pipeline::overlay::{draw_marks, encode_png};
use hawkeye_pipeline::parser::Parsed;
use http_body_util::BodyExt;
use image::RgbImage;
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is read and thrown away of a body that is refused: a client that is still sending when the connection closes
/// sees a reset instead of the answer.
const DISCARD_BYTES: usize = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(5);

pub(super) async fn parse(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let limit = app.limits.timeout;
    let work = async {
        let (_place, parts, body) = receive(&app, request).await?;
        drop(parts);
        let arrived = Instant::now();
        let (image, options) = blocking(move || input::parse_body(&body)).await?;
        run(&app, Screenshot::Base64(image), options, arrived).await
    };
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or(Err(ApiError::TimedOut(limit)))
}

pub(super) async fn upload(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let limit = app.limits.timeout;
    let work = async {
        let (_place, parts, body) = receive(&app, request).await?;
        let arrived = Instant::now();
        let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map_err(|error| FieldError::new("query", "query", "", error.to_string()))?;
        let (file, form) = read_form(Request::from_parts(parts, Body::from(body))).await?;
        // The Python service reads the query only; its README says form fields. Both work, the form wins.
        let options = Options::default()
            .read("query", &strings(query.0))?
            .read("body", &form)?;
        run(&app, Screenshot::File(file), options, arrived).await
    };
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or(Err(ApiError::TimedOut(limit)))
}

fn strings(pairs: Vec<(String, String)>) -> Map<String, Value> {
    pairs
        .into_iter()
        .map(|(name, value)| (name, Value::String(value)))
        .collect()
}

/// A place in the queue and the whole body; or the answer that refuses it, once the client has sent it.
async fn receive(app: &App, request: Request) -> Result<(Admitted, axum::http::request::Parts, Bytes), ApiError> {
    let admitted = app.models().and_then(|_| app.admit());
    let (parts, body) = request.into_parts();
    match admitted {
        Ok(place) => {
            let body = read_body(body, &parts.headers, app.limits.max_body_bytes).await?;
            Ok((place, parts, body))
        }
        Err(error) => {
            discard(body, &parts.headers).await;
            Err(error)
        }
    }
}

async fn read_body(mut body: Body, headers: &HeaderMap, limit: usize) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::TooLarge(format!("The request body is larger than {limit} bytes"));
    let announced: Option<usize> = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok());
    if announced.is_some_and(|length| length > limit) {
        discard(body, headers).await;
        return Err(too_large());
    }
    let mut read = Vec::with_capacity(announced.unwrap_or(0));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::BadBody(error.to_string()))?;
        if let Some(data) = frame.data_ref() {
            if read.len() + data.len() > limit {
                discard(body, headers).await;
                return Err(too_large());
            }
            read.extend_from_slice(data);
        }
    }
    Ok(read.into())
}

async fn discard(mut body: Body, headers: &HeaderMap) {
    // Such a client waits for leave to send and gets the answer instead.
    if headers.contains_key(header::EXPECT) {
        return;
    }
    let drain = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > DISCARD_BYTES {
                break;
            }
        }
    };
    // Out of time: the client gets what it gets.
    tokio::time::timeout(DISCARD_TIME, drain).await.unwrap_or_default();
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

enum Screenshot {
    Base64(String),
    File(Bytes),
}

impl Screenshot {
    fn decode(&self, limits: &DecodeLimits) -> Result<RgbImage, ApiError> {
        match self {
            Self::Base64(text) => decode_base64(text, limits),
            Self::File(bytes) => decode(bytes, limits),
        }
        .map_err(|error| match error {
            DecodeError::BadImage(reason) => ApiError::BadImage(reason),
            DecodeError::TooLarge(reason) => ApiError::TooLarge(format!("Image too large: {reason}")),
        })
    }
}

async fn run(app: &App, screenshot: Screenshot, options: Options, arrived: Instant) -> Result<Response, ApiError> {
    let info = app.models()?;
    let limits = DecodeLimits {
        max_bytes: app.limits.max_body_bytes,
        max_pixels: app.limits.max_pixels,
        ..DecodeLimits::default()
    };
    // The slot travels with the picture, also into a task whose client has left.
    let slot = Arc::clone(&app.decoded)
        .acquire_owned()
        .await
        .map_err(|error| ApiError::Internal(error.to_string()))?;
    let (picture, slot, decoding) = blocking(move || {
        let started = Instant::now();
        let picture = screenshot.decode(&limits)?;
        Ok((Arc::new(picture), slot, started.elapsed()))
    })
    .await?;
    app.metrics.stage(Stage::Decode, decoding);

    let parsed = app
        .engine
        .parse(Arc::clone(&picture), options.for_pipeline(app.settings))
        .await
        .map_err(|error| ApiError::Internal(error.to_string()))?;
    app.record_device_time(parsed.times.total());
    app.metrics.elements(parsed.elements.len());

    let metrics = Arc::clone(&app.metrics);
    blocking(move || {
        let started = Instant::now();
        let times = parsed.times;
        let marked = if options.include_som {
            Some(draw(&picture, &parsed)?)
        } else {
            None
        };
        drop((picture, slot));
        let drawing = started.elapsed();
        if marked.is_some() {
            metrics.stage(Stage::Overlay, drawing);
        }
        let timing = server_timing(&[
            ("decode", decoding),
            ("detect", times.detect),
            ("ocr", times.ocr),
            ("merge", times.merge),
            ("caption", times.caption),
            ("overlay", drawing),
        ]);
        answer(parsed, &info, marked, arrived, &timing)
    })
    .await
}

fn draw(picture: &RgbImage, parsed: &Parsed) -> Result<String, ApiError> {
    let png = encode_png(&draw_marks(picture, &parsed.marks)).map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok(STANDARD.encode(png))
}

fn answer(
    parsed: Parsed,
    info: &ModelInfo,
    marked: Option<String>,
    arrived: Instant,
    timing: &str,
) -> Result<Response, ApiError> {
    let document = ParseResponse::new(parsed, info, marked, arrived.elapsed());
    let json = serde_json::to_vec(&document).map_err(|error| ApiError::Internal(error.to_string()))?;
    let mut response = ([(header::CONTENT_TYPE, "application/json")], json).into_response();
    if let Ok(value) = HeaderValue::from_str(timing) {
        response.headers_mut().insert("server-timing", value);
    }
    Ok(response)
}

/// The steps that ran, in milliseconds, as browsers and proxies read them.
fn server_timing(steps: &[(&str, Duration)]) -> String {
    let mut text = String::new();
    for (name, took) in steps.iter().filter(|(_, took)| !took.is_zero()) {
        let separator = if text.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        write!(text, "{separator}{name};dur={:.1}", took.as_secs_f64() * 1e3).unwrap_or_default();
    }
    text
}

/// Runs work that would hold up the async threads.
async fn blocking<T, F>(work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ApiError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ApiError::Internal(error.to_string())),
    }
}
