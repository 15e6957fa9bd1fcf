//! What every route that parses does: admit, read, decode, run on the device, draw, answer.

use super::App;
use crate::admission::Admitted;
use crate::engine::{EngineError, ModelInfo, Screen};
use crate::error::ApiError;
use crate::metrics::Slow;
use crate::steps::Steps;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header, request};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawkeye_pipeline::decode::{DecodeError, DecodeLimits, decode, dimensions, from_base64};
use hawkeye_pipeline::geometry::PixelRect;
use hawkeye_pipeline::overlay::{draw_marks, encode_png};
use hawkeye_pipeline::parser::{ParseOptions, Parsed};
use http_body_util::BodyExt;
use image::RgbImage;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{Instrument as _, info_span};

/// What is read and thrown away of a body that is refused: a client that is still sending when the connection closes
/// sees a reset instead of the answer.
const DISCARD_BYTES: usize = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// A request whose body is complete.
#[derive(Debug)]
struct Received {
    /// Its place among those that are held, until it is answered.
    place: Admitted,
    parts: request::Parts,
    /// The complete body.
    body: Bytes,
    /// When the body was complete.
    arrived: Instant,
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

/// Answers a request for a parse: lets it in, lets `read` make an order of its headers and its body, runs the order, and lets
/// `answer`, which came with the order, make the answer of what was found. All of it within the time limit.
///
/// # Errors
/// Whatever refuses the request or fails it.
pub(super) async fn serve<R, F, A>(app: &App, request: Request, read: R) -> Result<Response, ApiError>
where
    R: FnOnce(request::Parts, Bytes) -> F,
    F: Future<Output = Result<(Order, A), ApiError>>,
    A: FnOnce(Finished) -> Result<Response, ApiError> + Send + 'static,
{
    let limit = app.limits.timeout;
    let work = async {
        let Received {
            place,
            parts,
            body,
            arrived,
        } = receive(app, request).await?;
        let (order, answer) = read(parts, body).await?;
        run(app, &place, order, arrived, answer).await
    };
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or(Err(ApiError::TimedOut(limit)))
}

/// A place among those that are held and the whole body; or the answer that refuses it, once the client has sent it.
async fn receive(app: &App, request: Request) -> Result<Received, ApiError> {
    let admitted = app.serving().and_then(|info| app.admit(&info));
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

/// A screenshot whose size is known.
#[derive(Debug)]
enum Measured {
    /// A file, and its pixels.
    File(Bytes, u64),
    Pixels(RgbImage),
}

impl Measured {
    fn pixels(&self) -> u64 {
        match self {
            Self::File(_, pixels) => *pixels,
            Self::Pixels(picture) => u64::from(picture.width()) * u64::from(picture.height()),
        }
    }

    fn decode(self, limits: &DecodeLimits) -> Result<RgbImage, ApiError> {
        match self {
            Self::File(file, _) => decode(&file, limits).map_err(refusal),
            Self::Pixels(picture) => Ok(picture),
        }
    }
}

impl Screenshot {
    /// Checks the size, which takes no pixel decoded.
    fn measure(self, limits: &DecodeLimits) -> Result<Measured, ApiError> {
        let file = match self {
            Self::Base64(text) => from_base64(&text, limits).map_err(refusal)?.into(),
            Self::File(file) => file,
            // Checked against the limit when it was read.
            Self::Pixels(picture) => return Ok(Measured::Pixels(picture)),
        };
        let (width, height) = dimensions(&file, limits).map_err(refusal)?;
        Ok(Measured::File(file, u64::from(width) * u64::from(height)))
    }
}

fn refusal(error: DecodeError) -> ApiError {
    match error {
        DecodeError::BadImage(reason) => ApiError::BadImage(reason),
        DecodeError::TooLarge(reason) => ApiError::TooLarge(format!("Image too large: {reason}")),
    }
}

/// Runs an order and lets `answer` make the answer of it, away from the async threads.
async fn run<A>(app: &App, place: &Admitted, order: Order, arrived: Instant, answer: A) -> Result<Response, ApiError>
where
    A: FnOnce(Finished) -> Result<Response, ApiError> + Send + 'static,
{
    let info = app.models()?;
    let limits = app.limits.decoding();
    let Order {
        screenshot,
        options,
        include_som,
    } = order;
    let mut steps = Steps::default();
    let decoding = info_span!("decode");
    let measured = app
        .process(move || screenshot.measure(&limits))
        .instrument(decoding.clone())
        .await?;
    steps.decode = arrived.elapsed();

    let queued = Instant::now();
    let memory = app.decoded.take(measured.pixels()).await?;
    steps.queue = queued.elapsed();
    let started = Instant::now();
    let screen = app
        .process(move || Ok(Arc::new(Screen::new(measured.decode(&limits)?, memory))))
        .instrument(decoding)
        .await?;
    steps.decode += started.elapsed();

    let failed = |error: EngineError| ApiError::Internal(error.to_string());
    let searched = app.engine.find(&screen, options).await.map_err(failed)?;
    let marks = searched.marks().to_vec();
    // Beside the captions, which are not on it.
    let drawing = async {
        if !include_som {
            drop(screen);
            return Ok(None);
        }
        let drawn = app
            .process(move || draw(screen, &marks))
            .instrument(info_span!("encode"));
        drawn.await.map(Some)
    };
    let describing = async {
        let done = app.engine.describe(searched, place).await.map_err(failed)?;
        app.admission.answered(done.begun);
        Ok(done)
    };
    let (done, drawn) = tokio::try_join!(describing, drawing)?;
    app.metrics.elements(done.parsed.elements.len());
    app.metrics.captions.inc_by(done.parsed.captioned() as u64);
    steps.queue += done.waited;
    steps.models = done.parsed.times;

    let (som_image, memory) = match drawn {
        Some(Drawn { text, took, memory }) => {
            steps.encode = took;
            (Some(text), memory)
        }
        None => (None, None),
    };
    steps.record(&app.metrics);
    let finished = Finished {
        parsed: done.parsed,
        info,
        som_image,
        steps,
        arrived,
    };
    let answered = app.process(move || answer(finished)).await;
    drop(memory);
    answered
}

/// An annotated picture that waits for its captions.
struct Drawn {
    /// PNG in base64.
    text: String,
    took: Duration,
    /// The screenshot's share of the memory for pictures, which this takes from now on.
    memory: Option<OwnedSemaphorePermit>,
}

fn draw(screen: Arc<Screen>, marks: &[PixelRect]) -> Result<Drawn, ApiError> {
    let started = Instant::now();
    let (picture, memory) = screen.into_parts();
    let png = encode_png(&draw_marks(picture, marks)).map_err(|error| ApiError::Internal(error.to_string()))?;
    let text = STANDARD.encode(png);
    let took = started.elapsed();
    Ok(Drawn { text, took, memory })
}
