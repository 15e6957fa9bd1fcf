//! What the OpenAPI document says besides the routes: requests as they should be sent, and the answers that several routes
//! share. The routes themselves are described where they are handled.

use crate::api::API_VERSION;
use crate::error::FieldError;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use utoipa::openapi::header::Header;
use utoipa::openapi::schema::{KnownFormat, Object, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{ComponentsBuilder, ContentBuilder, HeaderBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoParams, IntoResponses, OpenApi, PartialSchema, ToSchema};

/// A picture of one pixel, for examples that work.
pub const EXAMPLE_IMAGE: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC";

/// Reads screenshots: where the icons and texts are, and what they say.
#[derive(OpenApi)]
#[openapi(
    info(title = "Hawkeye inference", license(name = "Apache-2.0", identifier = "Apache-2.0")),
    tags(
        (name = "parse", description = "Screenshots in, elements out. Field names and defaults are those of Bytebot's OmniParser service."),
        (name = "information", description = "What runs here. Never waits for the device."),
        (name = "probes", description = "For Kubernetes and Prometheus."),
        (name = "omnitool", description = "The API of OmniParser's own server."),
        (name = "open inference protocol", description = "Version 2, as KServe's clients speak it."),
        (name = "documentation", description = "This document."),
    )
)]
struct Base;

/// The document without routes.
pub fn base() -> utoipa::openapi::OpenApi {
    let mut document = Base::openapi();
    API_VERSION.clone_into(&mut document.info.version);
    // No route names these as its body: they belong to the refusals below.
    let shared = ComponentsBuilder::new()
        .schema_from::<Detail>()
        .schema_from::<ValidationErrors>()
        .schema_from::<FieldError>()
        .schema_from::<V2Error>();
    document.components = Some(shared.build());
    document
}

/// Why there is no result.
#[derive(Debug, Serialize, ToSchema)]
pub struct Detail {
    /// For people.
    pub detail: String,
}

/// What is wrong with a request.
#[derive(Debug, Serialize, ToSchema)]
pub struct ValidationErrors {
    /// One entry for each bad field.
    pub detail: Vec<FieldError>,
}

/// Why there is no result, in the Open Inference Protocol's form.
#[derive(Debug, Serialize, ToSchema)]
pub struct V2Error {
    /// For people.
    pub error: String,
}

/// Options of a parse. They may be left out.
#[derive(Debug, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(clippy::struct_excessive_bools)] // They are the fields of the API.
pub struct RequestOptions {
    /// Describe icons without text; `false` asks for the basic mode, icons only.
    #[schema(required = false, default = true)]
    #[param(required = false, default = true)]
    pub include_captions: bool,
    /// Answer with the annotated screenshot.
    #[schema(required = false, default = true)]
    #[param(required = false, default = true)]
    pub include_som: bool,
    /// Read text; the profile SPEED never does.
    #[schema(required = false, default = true)]
    #[param(required = false, default = true)]
    pub include_ocr: bool,
    /// `false` asks for the basic mode, icons only.
    #[schema(required = false, default = true)]
    #[param(required = false, default = true)]
    pub use_full_pipeline: bool,
    /// Icons of a lower detector score are dropped; null and 0 mean the service's setting.
    #[schema(minimum = 0.0, maximum = 1.0)]
    #[param(minimum = 0.0, maximum = 1.0)]
    pub min_confidence: Option<f32>,
    /// Of two icons that overlap more than this, the larger is dropped.
    #[schema(required = false, default = 0.1, minimum = 0.0, maximum = 1.0)]
    #[param(required = false, default = 0.1, minimum = 0.0, maximum = 1.0)]
    pub iou_threshold: f32,
    /// Accepted, without effect: there is one OCR engine.
    #[schema(required = false, default = true)]
    #[param(required = false, default = true)]
    pub use_paddleocr: bool,
}

/// The options with one more field, which is required.
fn with_field(name: &str, field: Object, description: &str) -> RefOr<Schema> {
    let mut schema = RequestOptions::schema();
    if let RefOr::T(Schema::Object(object)) = &mut schema {
        object
            .properties
            .insert(name.to_owned(), RefOr::T(Schema::Object(field)));
        object.required.push(name.to_owned());
        object.description = Some(description.to_owned());
    }
    schema
}

/// Body of `/parse`.
#[derive(Debug)]
pub struct ParseRequest;

impl ToSchema for ParseRequest {}

impl PartialSchema for ParseRequest {
    fn schema() -> RefOr<Schema> {
        let image = ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(
                "The screenshot in base64: PNG, JPEG, WebP or BMP. Everything up to the first comma is dropped, so a data \
                 URL may be sent as it is.",
            ))
            .examples([json!(EXAMPLE_IMAGE)])
            .build();
        with_field(
            "image",
            image,
            "A screenshot and how to read it. Other fields are ignored.",
        )
    }
}

/// Form of `/parse/upload`.
#[derive(Debug)]
pub struct UploadForm;

impl ToSchema for UploadForm {}

impl PartialSchema for UploadForm {
    fn schema() -> RefOr<Schema> {
        let file = ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
            .description(Some("The screenshot: PNG, JPEG, WebP or BMP."))
            .build();
        with_field("file", file, "A screenshot; options here win over those of the query.")
    }
}

/// What every route that parses may answer: status, and when.
const COMMON: [(&str, &str); 6] = [
    ("408", "The body did not come in time."),
    (
        "413",
        "The body, or the number of the image's pixels, is over the limit.",
    ),
    (
        "429",
        "The queue is full, or so long that the request would not be answered in time.",
    ),
    ("500", "The models failed. The service goes on."),
    ("503", "The models are not loaded, or the device does not answer."),
    ("504", "Not finished within the time limit."),
];

/// The refusals of `/parse`, `/parse/upload` and `/parse/`.
#[derive(Debug)]
pub struct ParseErrors;

impl IntoResponses for ParseErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let own = [
            (
                "400",
                "Not base64, not an image that is read, or a body that breaks off.",
                "Detail",
            ),
            (
                "422",
                "A field is missing, of the wrong kind or out of range, or the body is no JSON.",
                "ValidationErrors",
            ),
        ];
        refusals(&own, "Detail")
    }
}

/// The refusals of the Open Inference Protocol's `infer`.
#[derive(Debug)]
pub struct InferErrors;

impl IntoResponses for InferErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let own = [
            (
                "400",
                "Not an inference request for this model, or not an image that is read.",
                "V2Error",
            ),
            ("404", "There is no such model.", "V2Error"),
        ];
        refusals(&own, "V2Error")
    }
}

fn refusals(own: &[(&str, &str, &str)], common: &str) -> BTreeMap<String, RefOr<Response>> {
    let common = COMMON.iter().map(|(status, when)| (*status, *when, common));
    own.iter()
        .copied()
        .chain(common)
        .map(|(status, when, schema)| (status.to_owned(), RefOr::T(refusal(status, when, schema))))
        .collect()
}

fn refusal(status: &str, when: &str, schema: &str) -> Response {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(schema)))
        .build();
    let response = ResponseBuilder::new()
        .description(when)
        .content("application/json", content);
    match status {
        "429" | "503" => response.header("Retry-After", retry_after()),
        _ => response,
    }
    .build()
}

fn retry_after() -> Header {
    let seconds = ObjectBuilder::new().schema_type(Type::Integer).build();
    HeaderBuilder::new()
        .schema(Some(seconds))
        .description(Some("Seconds until another try is worth it."))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Options;

    #[test]
    fn documented_defaults_are_the_real_ones() {
        let schema = serde_json::to_value(ParseRequest::schema()).expect("a document");
        let Options {
            include_captions,
            include_som,
            include_ocr,
            use_full_pipeline,
            min_confidence,
            iou_threshold,
        } = Options::default();
        for (name, value) in [
            ("include_captions", json!(include_captions)),
            ("include_som", json!(include_som)),
            ("include_ocr", json!(include_ocr)),
            ("use_full_pipeline", json!(use_full_pipeline)),
        ] {
            assert_eq!(schema["properties"][name]["default"], value, "{name}");
        }
        let iou = schema["properties"]["iou_threshold"]["default"]
            .as_f64()
            .expect("a number");
        assert!((iou - f64::from(iou_threshold)).abs() < 1e-6, "{iou}");
        assert!(min_confidence.is_none() && schema["properties"]["min_confidence"]["default"].is_null());
        assert_eq!(schema["required"], json!(["image"]));
    }
}
