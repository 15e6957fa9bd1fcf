//! The answers of the REST API, with the Python service's names. Optionals that are unset are `null`, not absent.

use crate::engine::{ModelEntry, ModelInfo};
use crate::steps::{Steps, TimingsMs};
use hawkeye_pipeline::parser::{Element, Parsed};
use serde::Serialize;
use std::time::Duration;
use utoipa::ToSchema;

/// Version in `/` and `/health`: the Python service's, whose API this is.
pub const API_VERSION: &str = "1.0.0";

/// Answer of `/parse` and `/parse/upload`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ParseResponse {
    /// What was found.
    pub elements: Vec<Element>,
    /// Number of `elements`.
    pub count: usize,
    /// Milliseconds from the complete request to this answer, waiting included; two decimals.
    pub processing_time_ms: f64,
    /// Where the time went.
    pub timings_ms: TimingsMs,
    /// Size of the screenshot.
    pub image_size: ImageSize,
    /// `cuda`, `mps` or `cpu`.
    pub device: &'static str,
    /// The device's own name.
    pub device_name: String,
    /// `gpu` or `cpu`.
    pub device_type: &'static str,
    /// Annotated picture, PNG in base64 without a `data:` prefix.
    #[schema(required)]
    pub som_image: Option<String>,
    /// Lines of text that OCR found; null in the basic mode, like the counts below.
    #[schema(required)]
    pub ocr_detected: Option<usize>,
    /// Icons among `elements`.
    #[schema(required)]
    pub icon_detected: Option<usize>,
    /// Texts among `elements`.
    #[schema(required)]
    pub text_detected: Option<usize>,
    /// Interactable elements.
    #[schema(required)]
    pub interactable_count: Option<usize>,
}

/// Pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct ImageSize {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl ParseResponse {
    /// Puts an answer together.
    pub fn new(parsed: Parsed, info: &ModelInfo, som_image: Option<String>, steps: &Steps, took: Duration) -> Self {
        let (width, height) = parsed.image_size;
        let full = |count: usize| parsed.full.then_some(count);
        Self {
            count: parsed.elements.len(),
            processing_time_ms: (took.as_secs_f64() * 1e5).round() / 1e2,
            timings_ms: steps.document(),
            image_size: ImageSize { width, height },
            device: info.device.name(),
            device_name: info.device_name.clone(),
            device_type: info.device.category(),
            som_image,
            ocr_detected: full(parsed.ocr_detected),
            icon_detected: full(parsed.icon_detected),
            text_detected: full(parsed.text_detected),
            interactable_count: full(parsed.interactable_count),
            elements: parsed.elements,
        }
    }
}

/// Answer of `/`.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct ServiceInfo {
    service: &'static str,
    version: &'static str,
    status: &'static str,
    endpoints: Endpoints,
}

#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
struct Endpoints {
    parse: &'static str,
    parse_upload: &'static str,
    health: &'static str,
    models: &'static str,
}

/// The Python service's words: clients may look for them.
pub const SERVICE_INFO: ServiceInfo = ServiceInfo {
    service: "Bytebot OmniParser",
    version: API_VERSION,
    status: "running",
    endpoints: Endpoints {
        parse: "/parse",
        parse_upload: "/parse/upload",
        health: "/health",
        models: "/models/status",
    },
};

/// Answer of `/health`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Health {
    /// `healthy` or `unhealthy`.
    pub status: &'static str,
    /// The Python service's.
    pub version: &'static str,
    /// `cuda`, `mps` or `cpu`; the setting (perhaps `auto`) until the models are loaded.
    pub device: String,
    /// Whether `/parse` would be answered.
    pub models_loaded: bool,
    /// Why the device is not the one that is expected; null when it is.
    #[schema(required)]
    pub device_mismatch: Option<String>,
}

/// Answer of `/models/status`.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelsStatus {
    icon_detector: DetectorStatus,
    caption_model: CaptionerStatus,
    text_readers: Vec<ReaderStatus>,
    #[schema(required)]
    weights_path: Option<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
struct DetectorStatus {
    loaded: bool,
    /// What the Python service says, whatever the network is.
    #[serde(rename = "type")]
    kind: &'static str,
    #[schema(required)]
    path: Option<String>,
    #[schema(required)]
    name: Option<String>,
    #[schema(required)]
    architecture: Option<String>,
    #[schema(required)]
    dtype: Option<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
struct CaptionerStatus {
    loaded: bool,
    #[serde(rename = "type")]
    kind: &'static str,
    #[schema(required)]
    path: Option<String>,
    #[schema(required)]
    device: Option<&'static str>,
    #[schema(required)]
    dtype: Option<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
struct ReaderStatus {
    name: String,
    architecture: String,
    path: String,
    dtype: String,
}

fn torch_dtype(entry: &ModelEntry) -> String {
    format!("torch.{}", entry.dtype)
}

impl ModelsStatus {
    /// From what is loaded; `None` before that.
    pub fn new(info: Option<&ModelInfo>) -> Self {
        let detector = info.map(|info| &info.detector);
        let captioner = info.and_then(|info| info.captioner.as_ref());
        Self {
            icon_detector: DetectorStatus {
                loaded: detector.is_some(),
                kind: "YOLOv8",
                path: detector.map(|entry| entry.path.clone()),
                name: detector.map(|entry| entry.name.clone()),
                architecture: detector.map(|entry| entry.architecture.clone()),
                dtype: detector.map(torch_dtype),
            },
            caption_model: CaptionerStatus {
                loaded: captioner.is_some(),
                kind: "Florence-2",
                path: captioner.map(|entry| entry.path.clone()),
                device: captioner.and(info).map(|info| info.device.name()),
                dtype: captioner.map(torch_dtype),
            },
            text_readers: info
                .into_iter()
                .flat_map(|info| &info.readers)
                .map(|entry| ReaderStatus {
                    name: entry.name.clone(),
                    architecture: entry.architecture.clone(),
                    path: entry.path.clone(),
                    dtype: torch_dtype(entry),
                })
                .collect(),
            weights_path: info.map(|info| info.bundle.clone()),
        }
    }
}
