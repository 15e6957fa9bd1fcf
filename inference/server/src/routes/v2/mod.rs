//! The Open Inference Protocol, version 2, over HTTP: what KServe's clients and routers speak. One model, `omniparser`.

mod tensors;

use self::tensors::{INPUT, InferRequest, InferResponse, OUTPUTS, TensorMetadata};
use super::probes::ready as readiness;
use super::work::{Finished, Order, discard, serve};
use super::{App, parse};
use crate::error::{ApiError, FieldError};
use crate::openapi::{InferErrors, V2Error};
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;
use utoipa::ToSchema;

/// The only model.
const MODEL: &str = "omniparser";

/// Of Triton's binary extension; its bodies are no JSON.
const BINARY_HEADER: &str = "inference-header-content-length";

/// Whether the process lives.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Live {
    live: bool,
}

/// Whether inference requests are answered.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Ready {
    ready: bool,
}

/// The server.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    extensions: Vec<String>,
}

/// The model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelMetadata {
    name: &'static str,
    /// Names of the loaded networks.
    versions: Vec<String>,
    platform: &'static str,
    inputs: Vec<TensorMetadata>,
    outputs: Vec<TensorMetadata>,
}

/// Whether the model answers inference requests.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelReady {
    name: &'static str,
    ready: bool,
}

/// An error in the protocol's form.
pub(super) struct Refused(ApiError);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, text) = match &self.0 {
            // The protocol has no 422 and no list of fields.
            ApiError::Schema(errors) => (StatusCode::BAD_REQUEST, sentence(errors)),
            other => (other.status(), other.to_string()),
        };
        self.0.respond(status, json!({ "error": text }))
    }
}

fn sentence(errors: &[FieldError]) -> String {
    let words = errors.iter().map(|error| {
        let place = error.loc.last().and_then(|place| place.as_str()).unwrap_or("body");
        match error.ctx.as_deref().and_then(|ctx| ctx["error"].as_str()) {
            Some(cause) => format!("{place}: {}: {cause}", error.msg),
            None => format!("{place}: {}", error.msg),
        }
    });
    words.collect::<Vec<_>>().join("; ")
}

fn known(model: &str) -> Result<(), Refused> {
    if model == MODEL {
        Ok(())
    } else {
        Err(Refused(ApiError::NoModel(model.chars().take(64).collect())))
    }
}

/// The server's name and version
#[utoipa::path(get, path = "/v2", tag = "open inference protocol", operation_id = "v2_server", responses(
    (status = 200, body = ServerMetadata, description = "Always."),
))]
pub(super) async fn server() -> Json<ServerMetadata> {
    Json(ServerMetadata {
        name: "hawkeye",
        version: env!("CARGO_PKG_VERSION"),
        extensions: Vec::new(),
    })
}

/// Whether the process lives
#[utoipa::path(get, path = "/v2/health/live", tag = "open inference protocol", operation_id = "v2_live", responses(
    (status = 200, body = Live, description = "It does."),
    (status = 503, body = V2Error, description = "The device has failed five times in a row."),
))]
pub(super) async fn live(State(app): State<App>) -> Response {
    if app.engine.is_alive() {
        Json(Live { live: true }).into_response()
    } else {
        let error = json!({ "error": "the device keeps failing" });
        (StatusCode::SERVICE_UNAVAILABLE, Json(error)).into_response()
    }
}

/// Whether inference requests are answered
#[utoipa::path(get, path = "/v2/health/ready", tag = "open inference protocol", operation_id = "v2_ready", responses(
    (status = 200, body = Ready, description = "They are."),
    (status = 503, body = V2Error, description = "They are not, for this reason."),
))]
pub(super) async fn ready(State(app): State<App>) -> Result<Json<Ready>, Refused> {
    readiness(&app).map_err(Refused)?;
    Ok(Json(Ready { ready: true }))
}

/// The model's inputs and outputs
#[utoipa::path(get, path = "/v2/models/{model}", tag = "open inference protocol", operation_id = "v2_model",
    params(("model" = String, Path, description = "`omniparser`", example = "omniparser")),
    responses(
        (status = 200, body = ModelMetadata, description = "What `infer` takes and gives."),
        (status = 404, body = V2Error, description = "There is no such model."),
    ))]
pub(super) async fn model(State(app): State<App>, Path(model): Path<String>) -> Result<Json<ModelMetadata>, Refused> {
    known(&model)?;
    let loaded = app.models().ok();
    Ok(Json(ModelMetadata {
        name: MODEL,
        versions: loaded.map(|info| info.detector.name.clone()).into_iter().collect(),
        platform: "torchscript",
        inputs: vec![INPUT.metadata()],
        outputs: OUTPUTS.iter().map(tensors::Tensor::metadata).collect(),
    }))
}

/// Whether the model answers inference requests
#[utoipa::path(get, path = "/v2/models/{model}/ready", tag = "open inference protocol", operation_id = "v2_model_ready",
    params(("model" = String, Path, description = "`omniparser`", example = "omniparser")),
    responses(
        (status = 200, body = ModelReady, description = "It does."),
        (status = 404, body = V2Error, description = "There is no such model."),
        (status = 503, body = V2Error, description = "It does not, for this reason."),
    ))]
pub(super) async fn model_ready(
    State(app): State<App>,
    Path(model): Path<String>,
) -> Result<Json<ModelReady>, Refused> {
    known(&model)?;
    readiness(&app).map_err(Refused)?;
    Ok(Json(ModelReady {
        name: MODEL,
        ready: true,
    }))
}

/// Elements of a screenshot, as tensors
///
/// The input `image` is either a BYTES tensor of one element, the file in base64, or a UINT8 tensor of the shape
/// [height, width, 3] with the pixels in RGB. `parameters` takes the options of `/parse`. Without `outputs`, all come.
#[utoipa::path(post, path = "/v2/models/{model}/infer", tag = "open inference protocol", operation_id = "v2_infer",
    params(("model" = String, Path, description = "`omniparser`", example = "omniparser")),
    request_body = InferRequest,
    responses((status = 200, body = InferResponse, description = "What is on the screen."), InferErrors))]
pub(super) async fn infer(
    State(app): State<App>,
    Path(model): Path<String>,
    request: Request,
) -> Result<Response, Refused> {
    if let Err(error) = known(&model) {
        let (parts, body) = request.into_parts();
        discard(body, &parts.headers).await;
        return Err(error);
    }
    serve(&app, request, async |parts, body| {
        if parts.headers.contains_key(BINARY_HEADER) {
            let reason = "Binary tensors are not supported: send JSON";
            return Err(ApiError::from(FieldError::new(
                "value_error",
                "header",
                BINARY_HEADER,
                reason,
            )));
        }
        let limits = app.limits.decoding();
        let asked = app.process(move || tensors::read(&body, &limits)).await?;
        let order = Order {
            screenshot: asked.screenshot,
            options: asked.options.for_pipeline(app.settings),
            include_som: asked.options.include_som,
        };
        let (id, wanted) = (asked.id, asked.wanted);
        Ok((order, move |finished| answer(finished, id, &wanted)))
    })
    .await
    .map_err(Refused)
}

fn answer(finished: Finished, id: Option<String>, wanted: &[&'static str]) -> Result<Response, ApiError> {
    let timing = finished.steps.header();
    let info = Arc::clone(&finished.info);
    let document = parse::document(finished);
    let response = InferResponse {
        model_name: MODEL,
        model_version: info.detector.name.clone(),
        id,
        outputs: tensors::outputs(&document, wanted)?,
    };
    parse::json(&response, &timing)
}
