//! The API of OmniParser's own server (`omnitool/omniparserserver`): `POST /parse/`, with the slash, and `GET /probe/`.

use super::App;
use super::work::{Finished, Order, Screenshot, serve};
use crate::error::{ApiError, FieldError};
use crate::input::{Options, Settings, json_object};
use crate::openapi::ParseErrors;
use axum::Json;
use axum::extract::{Request, State};
use axum::response::Response;
use hawkeye_pipeline::parser::{Element, ElementKind, Source};
use hawkeye_pipeline::profile::ProfileSettings;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// Body of `/parse/`.
#[derive(Debug, ToSchema)]
#[schema(example = json!({ "base64_image": crate::openapi::EXAMPLE_IMAGE }))]
#[allow(dead_code)] // It describes what `image_of` reads.
struct OmnitoolRequest {
    /// The screenshot in base64.
    base64_image: String,
}

/// Answer of `/parse/`.
#[derive(Debug, Serialize, ToSchema)]
struct OmnitoolResponse {
    /// Annotated picture, PNG in base64.
    som_image_base64: String,
    /// All elements that were found; an element's index is its number on the picture.
    parsed_content_list: Vec<OmnitoolElement>,
    /// Seconds.
    latency: f64,
}

/// An element in omnitool's words.
#[derive(Debug, Serialize, ToSchema)]
struct OmnitoolElement {
    /// `text` or `icon`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// `[x1, y1, x2, y2]` as shares of the picture's width and height.
    bbox: [f32; 4],
    /// Whether it can be clicked.
    interactivity: bool,
    /// What it says or shows.
    #[schema(required)]
    content: Option<String>,
    /// Where box and content come from.
    source: Source,
}

/// Answer of `/probe/`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OmnitoolProbe {
    message: &'static str,
}

/// Elements of a screenshot, as OmniParser's own server answers
#[utoipa::path(
    post,
    path = "/parse/",
    tag = "omnitool",
    operation_id = "omnitool_parse",
    request_body = OmnitoolRequest,
    responses((status = 200, description = "What is on the screen.", body = OmnitoolResponse), ParseErrors)
)]
pub(super) async fn parse(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    serve(&app, request, async |_, body| {
        let image = app.process(move || image_of(&body)).await?;
        let order = Order {
            screenshot: Screenshot::Base64(image),
            options: Options::default().for_pipeline(uncut(app.settings)),
            include_som: true,
        };
        Ok((order, answer))
    })
    .await
}

/// Whether the server is there
#[utoipa::path(get, path = "/probe/", tag = "omnitool", operation_id = "omnitool_probe", responses(
    (status = 200, body = OmnitoolProbe, description = "Always, also while models are being loaded."),
))]
pub(super) async fn probe() -> Json<OmnitoolProbe> {
    Json(OmnitoolProbe {
        message: "Omniparser API ready",
    })
}

/// Its clients look elements up by their number, so none may be missing.
fn uncut(settings: Settings) -> Settings {
    Settings {
        profile: ProfileSettings {
            max_elements: usize::MAX,
            ..settings.profile
        },
        ..settings
    }
}

fn image_of(body: &[u8]) -> Result<String, ApiError> {
    let error = match json_object(body)?.remove("base64_image") {
        Some(Value::String(image)) => return Ok(image),
        Some(other) => {
            FieldError::new("string_type", "body", "base64_image", "Input should be a valid string").with_input(&other)
        }
        None => FieldError::new("missing", "body", "base64_image", "Field required"),
    };
    Err(error.into())
}

fn answer(finished: Finished) -> Result<Response, ApiError> {
    let (width, height) = finished.parsed.image_size;
    let latency = finished.arrived.elapsed().as_secs_f64();
    let response = OmnitoolResponse {
        som_image_base64: finished.som_image.unwrap_or_default(),
        parsed_content_list: finished
            .parsed
            .elements
            .into_iter()
            .map(|element| in_their_words(element, width as f32, height as f32))
            .collect(),
        latency,
    };
    super::parse::json(&response, &finished.steps.header())
}

fn in_their_words(element: Element, width: f32, height: f32) -> OmnitoolElement {
    let [x, y, w, h] = element.bbox.map(|pixels| pixels as f32);
    OmnitoolElement {
        kind: match element.kind {
            ElementKind::Text => "text",
            ElementKind::Icon | ElementKind::InteractiveElement => "icon",
        },
        bbox: [x / width, y / height, (x + w) / width, (y + h) / height],
        interactivity: element.interactable,
        content: element.content,
        source: element.source,
    }
}
