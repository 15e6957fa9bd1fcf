//! Prometheus metrics. Label values come from the enums here only, and from the machine's number of devices, so the number
//! of series is bounded.

mod devices;

pub use self::devices::DeviceMetrics;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)] // The names are the routes.
pub enum Route {
    Root,
    Health,
    Device,
    ModelsStatus,
    Parse,
    ParseUpload,
    /// `/parse/`, omnitool's.
    OmnitoolParse,
    /// `/probe/`, omnitool's.
    OmnitoolProbe,
    /// `/v2/models/{model}/infer`.
    V2Infer,
    /// The rest of `/v2`.
    V2,
    OpenApi,
    Docs,
    Livez,
    Readyz,
    Startupz,
    Metrics,
    Other,
}

impl Route {
    /// The route of a request path.
    pub fn of(path: &str) -> Self {
        match path {
            "/" => Self::Root,
            "/health" => Self::Health,
            "/device" => Self::Device,
            "/models/status" => Self::ModelsStatus,
            "/parse" => Self::Parse,
            "/parse/upload" => Self::ParseUpload,
            "/parse/" => Self::OmnitoolParse,
            "/probe/" => Self::OmnitoolProbe,
            "/openapi.json" => Self::OpenApi,
            "/docs" | "/redoc" => Self::Docs,
            "/livez" => Self::Livez,
            "/readyz" => Self::Readyz,
            "/startupz" => Self::Startupz,
            "/metrics" => Self::Metrics,
            "/v2" => Self::V2,
            path if path.starts_with("/v2/models/") && path.ends_with("/infer") => Self::V2Infer,
            path if path.starts_with("/v2/") => Self::V2,
            _ => Self::Other,
        }
    }

    /// Whether requests here are work, as opposed to probes and scrapes.
    pub fn is_parse(self) -> bool {
        matches!(
            self,
            Self::Parse | Self::ParseUpload | Self::OmnitoolParse | Self::V2Infer
        )
    }
}

/// First digit of the status, or that the client left before there was one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)]
pub enum Code {
    Success,
    ClientError,
    ServerError,
    ClientLeft,
}

/// What became of a request for a parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// Answered with elements.
    Parsed,
    /// Not an image, or not the schema (400, 422).
    Invalid,
    /// Over the size or pixel limit (413).
    TooLarge,
    /// Queue full (429).
    Busy,
    /// Models not loaded, or stopping (503).
    Unready,
    /// Over the time limit (504).
    TimedOut,
    /// The body did not come in time (408).
    SlowClient,
    /// The models failed (500).
    Failed,
    /// The client left first.
    ClientLeft,
}

/// A step of a parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Stage {
    /// Waiting for the device.
    Queue,
    /// JSON, base64 and image decoding.
    Decode,
    /// Icon detector.
    Detect,
    /// Text reader.
    Ocr,
    /// Merging icons and text.
    Merge,
    /// Captioner.
    Caption,
    /// Drawing and encoding the annotated picture.
    Encode,
}

/// What a client was too slow at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Slow {
    /// Sending the headers of a request, or of the next one on a connection that is kept.
    Headers,
    /// Sending the body.
    Body,
    /// Taking the answer.
    Answer,
}

/// Labels of HTTP series.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpLabels {
    route: Route,
    code: Code,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SlowLabels {
    at: Slow,
}

/// Counts seconds.
type Seconds = Counter<f64, AtomicU64>;

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    http_requests: Family<HttpLabels, Counter>,
    http_duration: Family<HttpLabels, Histogram>,
    outcomes: Family<OutcomeLabels, Counter>,
    stages: Family<StageLabels, Histogram>,
    elements: Histogram,
    cut: Family<SlowLabels, Counter>,
    /// Open connections.
    pub connections: Gauge,
    /// Icons that were described, those from the cache included.
    pub captions: Counter,
    /// Requests held, those on the device included.
    pub held: Gauge,
    /// Crops held: known ones, and those expected of requests that have not been searched yet.
    pub held_crops: Gauge,
    /// What the devices do.
    pub devices: DeviceMetrics,
    /// 1 once the models are loaded.
    pub models_loaded: Gauge,
    /// 1 when the device is not the expected one.
    pub device_mismatch: Gauge,
    load_seconds: Gauge<f64, AtomicU64>,
    warm_up_seconds: Gauge<f64, AtomicU64>,
}

fn seconds_histogram() -> Histogram {
    // 0.1 ms to 105 s: from a merge to a large screen on a slow processor.
    Histogram::new(exponential_buckets(1e-4, 2.0, 21))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("hawkeye");
        let http_requests = Family::<HttpLabels, Counter>::default();
        let http_duration = Family::<HttpLabels, Histogram>::new_with_constructor(seconds_histogram);
        let outcomes = Family::<OutcomeLabels, Counter>::default();
        let stages = Family::<StageLabels, Histogram>::new_with_constructor(seconds_histogram);
        let elements = Histogram::new(exponential_buckets(1.0, 2.0, 10));
        let (held, held_crops) = (Gauge::default(), Gauge::default());
        let (models_loaded, device_mismatch) = (Gauge::default(), Gauge::default());
        let (load_seconds, warm_up_seconds) = (Gauge::default(), Gauge::default());
        let cut = Family::<SlowLabels, Counter>::default();
        let connections = Gauge::default();
        let captions = Counter::default();

        registry.register("http_requests", "HTTP requests", http_requests.clone());
        registry.register_with_unit(
            "http_request_duration",
            "Time from headers to answer",
            Unit::Seconds,
            http_duration.clone(),
        );
        registry.register("parse_requests", "Requests for a parse by outcome", outcomes.clone());
        registry.register_with_unit(
            "parse_stage_duration",
            "Time of each step",
            Unit::Seconds,
            stages.clone(),
        );
        registry.register("parse_elements", "Elements in an answer", elements.clone());
        registry.register(
            "parse_requests_held",
            "Requests held, those on the device included",
            held.clone(),
        );
        registry.register(
            "parse_crops_held",
            "Crops held: known ones, and those expected of requests that have not been searched yet",
            held_crops.clone(),
        );
        registry.register("models_loaded", "1 once the models are loaded", models_loaded.clone());
        registry.register_with_unit(
            "model_load",
            "Time that loading took",
            Unit::Seconds,
            load_seconds.clone(),
        );
        registry.register(
            "device_mismatch",
            "1 when the device is not the expected one",
            device_mismatch.clone(),
        );
        registry.register_with_unit(
            "warm_up",
            "Time of the first parse, of a made-up screenshot",
            Unit::Seconds,
            warm_up_seconds.clone(),
        );

        registry.register(
            "slow_clients_cut",
            "Clients that were cut off for being too slow",
            cut.clone(),
        );
        registry.register("connections", "Open connections", connections.clone());
        registry.register(
            "captions",
            "Icons described, from the cache or by a device",
            captions.clone(),
        );
        let devices = DeviceMetrics::register(&mut registry);
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What runs here", version);

        Self {
            registry,
            http_requests,
            http_duration,
            outcomes,
            stages,
            elements,
            cut,
            connections,
            captions,
            held,
            held_crops,
            devices,
            models_loaded,
            device_mismatch,
            load_seconds,
            warm_up_seconds,
        }
    }

    /// Counts an HTTP request.
    pub fn http(&self, route: Route, code: Code, took: Duration) {
        let labels = HttpLabels { route, code };
        self.http_requests.get_or_create(&labels).inc();
        self.http_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts what became of a parse.
    pub fn outcome(&self, outcome: Outcome) {
        self.outcomes.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Records the time of one step.
    pub fn stage(&self, stage: Stage, took: Duration) {
        self.stages
            .get_or_create(&StageLabels { stage })
            .observe(took.as_secs_f64());
    }

    /// Counts a client that was cut off.
    pub fn cut(&self, at: Slow) {
        self.cut.get_or_create(&SlowLabels { at }).inc();
    }

    /// Records the number of elements in an answer.
    pub fn elements(&self, count: usize) {
        self.elements.observe(count as f64);
    }

    /// Records that the models are loaded, and how long loading and the first parse took.
    pub fn loaded(&self, loading: Duration, warm_up: Duration) {
        self.models_loaded.set(1);
        self.load_seconds.set(loading.as_secs_f64());
        self.warm_up_seconds.set(warm_up.as_secs_f64());
    }

    /// The OpenMetrics text.
    ///
    /// # Errors
    /// When a metric cannot be written as text, which is a defect.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawkeye_pipeline::model::DeviceMemory;

    #[test]
    fn the_text_names_what_was_recorded() {
        let metrics = Metrics::new();
        metrics.http(Route::ParseUpload, Code::Success, Duration::from_millis(12));
        metrics.outcome(Outcome::TooLarge);
        metrics.stage(Stage::Detect, Duration::from_millis(3));
        metrics.loaded(Duration::from_secs(2), Duration::from_millis(500));
        metrics.cut(Slow::Body);
        metrics.devices.busy.inc_by(0.25);
        metrics.devices.batch(96, 128);
        metrics.devices.memory(
            1,
            DeviceMemory {
                used: 5 << 30,
                total: 80 << 30,
            },
        );
        let text = metrics.render().expect("renders");
        for line in [
            "hawkeye_http_requests_total{route=\"ParseUpload\",code=\"Success\"} 1",
            "hawkeye_parse_requests_total{outcome=\"TooLarge\"} 1",
            "hawkeye_parse_stage_duration_seconds_count{stage=\"Detect\"} 1",
            "hawkeye_models_loaded 1",
            "hawkeye_model_load_seconds 2.0",
            "hawkeye_warm_up_seconds 0.5",
            "hawkeye_device_mismatch 0",
            "hawkeye_slow_clients_cut_total{at=\"Body\"} 1",
            "hawkeye_device_busy_seconds_total 0.25",
            "hawkeye_captioner_crops_total 96",
            "hawkeye_captioner_batch_crops_bucket{le=\"128.0\"} 1",
            "hawkeye_captioner_batch_fill_ratios_sum 0.75",
            "hawkeye_device_memory_used_bytes{device=\"1\"} 5368709120",
            concat!("hawkeye_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn unknown_paths_share_one_label() {
        assert_eq!(Route::of("/wp-login.php"), Route::Other);
        assert_eq!(Route::of("/parse"), Route::Parse);
        assert_eq!(Route::of("/v2/models/omniparser/infer"), Route::V2Infer);
        assert_eq!(Route::of("/v2/models/omniparser"), Route::V2);
    }
}
