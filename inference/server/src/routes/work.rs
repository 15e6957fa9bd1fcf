//! What every route that parses does: admit, read, decode, run on the device, draw, answer.

use super::App;
use crate::admission::Admitted;
use crate::engine::ModelInfo;
use crate::error::ApiError;
use crate::metrics::Slow;
use crate::steps::Steps;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header, request};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawkeye_pipeline::decode::{DecodeError, DecodeLimits, decode, decode_base64};
use hawkeye_pipeline::overlay::{draw_marks, encode_png};
use hawkeye_pipeline::parser::{ParseOptions, Parsed};
use http_body_util::BodyExt;
use image::RgbImage;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is read and thrown away of a body that is refused: a client that is still sending when the connection closes
/// sees a reset instead of the answer.
const DISCARD_BYTES: usize = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// A request whose body is complete.
#[derive(Debug)]
pub(super) struct Received {
    /// Its place in the queue, to be held until it is answered.
    pub place: Admitted,
    pub parts: request::Parts,
    /// The complete body.
    pub body: Bytes,
    /// When the body was complete.
    pub arrived: Instant,
}

/// A screenshot as it was sent.
#[derive(Debug)]
pub(super) enum Screenshot {
    Base64(String),
    File(Bytes),
    Pixels(RgbImage),
}

/// What a route asks for.
#[derive(Debug)]
pub(super) struct Order {
    pub screenshot: Screenshot,
    pub options: ParseOptions,
    /// Whether the annotated picture is wanted.
    pub include_som: bool,
}

/// A parse from which a route makes its answer.
#[derive(Debug)]
pub(super) struct Finished {
    pub parsed: Parsed,
    pub info: Arc<ModelInfo>,
    /// PNG in base64.
    pub som_image: Option<String>,
    pub steps: Steps,
    pub arrived: Instant,
}

/// Bounds the time of a request.
pub(super) async fn within(
    app: &App,
    work: impl Future<Output = Result<Response, ApiError>>,
) -> Result<Response, ApiError> {
    let limit = app.limits.timeout;
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or(Err(ApiError::TimedOut(limit)))
}

/// A place in the queue and the whole body; or the answer that refuses it, once the client has sent it.
pub(super) async fn receive(app: &App, request: Request) -> Result<Received, ApiError> {
    let admitted = app.serving().and_then(|info| app.admission.admit(info.warm_up));
    let (parts, body) = request.into_parts();
    let place = match admitted {
        Ok(place) => place,
        Err(error) => {
            discard(body, &parts.headers).await;
            return Err(error);
        }
    };
    // The place is taken meanwhile, so a slow sender must not keep it for as long as it likes.
    let limit = app.limits.body_timeout;
    let read = read_body(body, &parts.headers, app.limits.max_body_bytes);
    let Ok(body) = tokio::time::timeout(limit, read).await else {
        app.metrics.cut(Slow::Body);
        return Err(ApiError::SlowBody(limit));
    };
    Ok(Received {
        place,
        parts,
        body: body?,
        arrived: Instant::now(),
    })
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

/// Reads and drops the body of a request that is refused.
pub(super) async fn discard(mut body: Body, headers: &HeaderMap) {
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

impl Screenshot {
    fn decode(self, limits: &DecodeLimits) -> Result<RgbImage, ApiError> {
        match self {
            Self::Base64(text) => decode_base64(&text, limits),
            Self::File(bytes) => decode(&bytes, limits),
            // Checked against the limit when it was read.
            Self::Pixels(picture) => return Ok(picture),
        }
        .map_err(|error| match error {
            DecodeError::BadImage(reason) => ApiError::BadImage(reason),
            DecodeError::TooLarge(reason) => ApiError::TooLarge(format!("Image too large: {reason}")),
        })
    }
}

/// Runs an order and lets `answer` make the answer of it, away from the async threads.
pub(super) async fn run<F>(app: &App, order: Order, arrived: Instant, answer: F) -> Result<Response, ApiError>
where
    F: FnOnce(Finished) -> Result<Response, ApiError> + Send + 'static,
{
    let info = app.models()?;
    let limits = app.limits.decoding();
    let Order {
        screenshot,
        options,
        include_som,
    } = order;
    let mut steps = Steps {
        decode: arrived.elapsed(),
        ..Steps::default()
    };
    let queued = Instant::now();
    // The slot travels with the picture, also into a task whose client has left.
    let slot = Arc::clone(&app.decoded)
        .acquire_owned()
        .await
        .map_err(|error| ApiError::Internal(error.to_string()))?;
    steps.queue = queued.elapsed();
    let (picture, slot, decoding) = blocking(move || {
        let started = Instant::now();
        let picture = screenshot.decode(&limits)?;
        Ok((Arc::new(picture), slot, started.elapsed()))
    })
    .await?;
    steps.decode += decoding;

    let done = app
        .engine
        .parse(Arc::clone(&picture), options)
        .await
        .map_err(|error| ApiError::Internal(error.to_string()))?;
    app.admission.answered(done.took);
    app.metrics.elements(done.parsed.elements.len());
    app.metrics.captions.inc_by(done.parsed.captioned() as u64);
    steps.queue += done.waited;
    steps.models = done.parsed.times;

    let metrics = Arc::clone(&app.metrics);
    blocking(move || {
        let parsed = done.parsed;
        let som_image = if include_som {
            let started = Instant::now();
            let drawn = draw(&picture, &parsed)?;
            steps.encode = started.elapsed();
            Some(drawn)
        } else {
            None
        };
        drop((picture, slot));
        steps.record(&metrics);
        answer(Finished {
            parsed,
            info,
            som_image,
            steps,
            arrived,
        })
    })
    .await
}

fn draw(picture: &RgbImage, parsed: &Parsed) -> Result<String, ApiError> {
    let png = encode_png(&draw_marks(picture, &parsed.marks)).map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok(STANDARD.encode(png))
}

/// Runs work that would hold up the async threads.
pub(super) async fn blocking<T, F>(work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ApiError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ApiError::Internal(error.to_string())),
    }
}
