//! A service on a port of its own with a fake backend that a test steers.

#![allow(dead_code)] // Each test program uses a part.

use hawkeye_inference::crop_cache::CropCache;
use hawkeye_inference::device::{Expectation, OnMismatch};
use hawkeye_inference::engine::{Engine, LoadError, ModelEntry, ModelInfo, WARM_UP_SIZE};
use hawkeye_inference::input::Settings;
use hawkeye_inference::metrics::Metrics;
use hawkeye_inference::routes::{App, RequestLimits, router};
use hawkeye_inference::serve::{Ended, Limits, serve};
use hawkeye_inference::shutdown::{Phase, PhaseSender, phase};
use hawkeye_pipeline::bundle::DType;
use hawkeye_pipeline::device::DeviceKind;
use hawkeye_pipeline::geometry::Rect;
use hawkeye_pipeline::model::{CaptionPrompt, Captioner, Detection, Detector, ModelError, TextLine, TextReader};
use hawkeye_pipeline::parser::{ParseOptions, Parser};
use hawkeye_pipeline::profile::Profile;
use image::RgbImage;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Width of a picture that makes the fake detector panic.
pub const PANIC_WIDTH: u32 = 13;
/// Width of a picture that makes the fake detector fail.
pub const FAIL_WIDTH: u32 = 17;

/// How long the fake detector takes for the engine's first parse.
pub const WARM_UP_TIME: Duration = Duration::from_millis(20);

/// A gate that holds the fake detector until it is opened, and counts who came.
#[derive(Debug)]
pub struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
    entered: AtomicUsize,
}

impl Gate {
    pub fn new(open: bool) -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::new(open),
            changed: Condvar::new(),
            entered: AtomicUsize::new(0),
        })
    }

    pub fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    /// How many parses have reached the detector.
    pub fn entered(&self) -> usize {
        self.entered.load(Ordering::SeqCst)
    }

    fn pass(&self) {
        self.entered.fetch_add(1, Ordering::SeqCst);
        let guard = self.open.lock().unwrap();
        drop(self.changed.wait_while(guard, |open| !*open).unwrap());
    }
}

struct FakeDetector(Arc<Gate>);

impl Detector for FakeDetector {
    fn detect(&mut self, screenshot: &RgbImage, min_score: f32) -> Result<Vec<Detection>, ModelError> {
        // The first parse is the engine's own.
        if screenshot.dimensions() == WARM_UP_SIZE {
            std::thread::sleep(WARM_UP_TIME);
            return Ok(Vec::new());
        }
        self.0.pass();
        match screenshot.width() {
            PANIC_WIDTH => panic!("the fake was told to panic"),
            FAIL_WIDTH => Err(ModelError::Backend {
                model: "detector",
                message: "out of memory".to_owned(),
            }),
            _ => Ok([
                (Rect::new(10.0, 10.0, 50.0, 30.0), 0.9),
                (Rect::new(100.0, 60.0, 116.0, 76.0), 0.25),
            ]
            .into_iter()
            .map(|(rect, score)| Detection { rect, score })
            .filter(|found| found.score >= min_score)
            .collect()),
        }
    }
}

struct FakeReader;

impl TextReader for FakeReader {
    fn read(&mut self, _: &RgbImage, _: f32) -> Result<Vec<TextLine>, ModelError> {
        let line = |x: f32, y: f32, text: &str| TextLine {
            quad: [[x, y], [x + 30.0, y], [x + 30.0, y + 10.0], [x, y + 10.0]],
            text: text.to_owned(),
            score: 0.99,
        };
        Ok(vec![line(15.0, 15.0, "Save"), line(60.0, 100.0, "Ready")])
    }
}

/// A captioner that a test steers: it names each crop by the sum of its first row.
#[derive(Debug)]
pub struct Captions {
    gate: Arc<Gate>,
    /// Crops that memory holds.
    holds: usize,
    calls: Mutex<Vec<usize>>,
}

impl Captions {
    /// Held by `gate`; runs out of memory with more than `holds` crops.
    pub fn new(gate: &Arc<Gate>, holds: usize) -> Arc<Self> {
        Arc::new(Self {
            gate: Arc::clone(gate),
            holds,
            calls: Mutex::default(),
        })
    }

    /// How many crops each call had.
    pub fn calls(&self) -> Vec<usize> {
        self.calls.lock().unwrap().clone()
    }
}

struct FakeCaptioner(Arc<Captions>);

impl Captioner for FakeCaptioner {
    fn caption(&mut self, crops: &[RgbImage], _: CaptionPrompt) -> Result<Vec<String>, ModelError> {
        self.0.calls.lock().unwrap().push(crops.len());
        self.0.gate.pass();
        if crops.len() > self.0.holds {
            return Err(ModelError::OutOfMemory {
                model: "captioner",
                message: "CUDA out of memory".to_owned(),
            });
        }
        let name = |crop: &RgbImage| -> String {
            let row = crop.rows().next().unwrap();
            let sum: u32 = row.map(|pixel| u32::from(pixel.0[0])).sum();
            format!("icon {sum}")
        };
        Ok(crops.iter().map(name).collect())
    }
}

/// A parser with a captioner, whose batches have `batch_size` crops.
pub fn captioning(gate: &Arc<Gate>, captions: &Arc<Captions>, batch_size: usize) -> Parser {
    Parser::new(
        Box::new(FakeDetector(Arc::clone(gate))),
        Some(Box::new(FakeReader)),
        Some(Box::new(FakeCaptioner(Arc::clone(captions)))),
    )
    .with_batch_size(batch_size)
}

pub fn parser(gate: &Arc<Gate>) -> Parser {
    Parser::new(
        Box::new(FakeDetector(Arc::clone(gate))),
        Some(Box::new(FakeReader)),
        None,
    )
}

pub fn model_info() -> ModelInfo {
    let entry = |name: &str, architecture: &str| ModelEntry {
        name: name.to_owned(),
        architecture: architecture.to_owned(),
        path: format!("/models/{name}.float32.pt"),
        dtype: DType::Float32,
    };
    ModelInfo {
        device: DeviceKind::Cpu,
        device_name: "CPU (fake)".to_owned(),
        devices: 1,
        workers_per_device: 1,
        batch_size: 16,
        threads: 2,
        processor: None,
        cuda: None,
        mismatch: None,
        warm_up: Duration::ZERO,
        bundle: "/models".to_owned(),
        detector: entry("icons", "yolo11m"),
        readers: vec![entry("lines", "db"), entry("letters", "ctc")],
        captioner: None,
    }
}

/// Loads the models of the only device.
pub type Load = Box<dyn FnOnce() -> Result<(Parser, ModelInfo), LoadError> + Send>;

/// Loads the models of each device by its number.
pub type LoadEach = Box<dyn Fn(usize) -> Result<(Parser, ModelInfo), LoadError> + Send + Sync>;

/// A running service.
pub struct Service {
    pub url: String,
    pub port: u16,
    pub engine: Engine,
    pub phase: PhaseSender,
    pub client: reqwest::Client,
    pub router: axum::Router,
    pub ended: JoinHandle<Ended>,
}

/// Limits small enough to be reached.
pub fn limits() -> RequestLimits {
    RequestLimits {
        max_body_bytes: 1 << 20,
        max_pixels: 250_000,
        queue: 8,
        queue_crops: None,
        timeout: Duration::from_secs(20),
        body_timeout: Duration::from_secs(5),
        device_timeout: Duration::from_mins(10),
    }
}

/// Nothing that `model_info` does not fulfil.
pub fn expectation() -> Expectation {
    Expectation {
        device: None,
        dtype: Some(DType::Float32),
        batch_size: None,
        on_mismatch: OnMismatch::Exit,
    }
}

pub async fn start_with(load: Load, limits: RequestLimits) -> Service {
    start_expecting(load, limits, expectation()).await
}

pub async fn start_expecting(load: Load, limits: RequestLimits, expectation: Expectation) -> Service {
    let once = Mutex::new(Some(load));
    let load = move |_| {
        let load = once.lock().unwrap().take();
        load.expect("one device")()
    };
    start_each(Box::new(load), None, limits, expectation).await
}

pub async fn start_each(
    load: LoadEach,
    cache: Option<CropCache>,
    limits: RequestLimits,
    expectation: Expectation,
) -> Service {
    let metrics = Arc::new(Metrics::new());
    let engine = Engine::start(load, ParseOptions::default(), cache, Arc::clone(&metrics)).unwrap();
    let (stop, phase) = phase();
    let settings = Settings {
        profile: Profile::Balanced.settings(),
        min_confidence: 0.05,
        max_detections: 100,
    };
    let app = App::new(
        engine.clone(),
        Arc::clone(&metrics),
        phase,
        settings,
        limits,
        "auto",
        expectation,
    );
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let times = Limits {
        header_timeout: Duration::from_millis(600),
        write_timeout: Duration::from_millis(600),
        lame_duck: Duration::from_millis(400),
        drain: Duration::from_secs(10),
    };
    let to_serve = stop.clone();
    let router = router(app);
    let served = router.clone();
    let ended = tokio::spawn(async move { serve(listener, served, &to_serve, times, &metrics).await });
    Service {
        url: format!("http://127.0.0.1:{port}"),
        port,
        engine,
        phase: stop,
        client: reqwest::Client::new(),
        router,
        ended,
    }
}

/// A service whose models are loaded and whose detector is held by `gate`.
pub async fn start_gated(gate: &Arc<Gate>, limits: RequestLimits) -> Service {
    let held = Arc::clone(gate);
    let service = start_with(Box::new(move || Ok((parser(&held), model_info()))), limits).await;
    eventually("the models are loaded", || {
        matches!(service.engine.state(), hawkeye_inference::engine::ModelState::Ready(_))
    })
    .await;
    service
}

/// A service that answers at once.
pub async fn start() -> Service {
    start_gated(&Gate::new(true), limits()).await
}

impl Service {
    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: &serde_json::Value) -> reqwest::Response {
        self.client
            .post(format!("{}{path}", self.url))
            .json(body)
            .send()
            .await
            .unwrap()
    }

    /// The value of one line of /metrics; 0 if it is not there.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").await.text().await.unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
            .map_or(0.0, |value| value.parse().unwrap())
    }

    pub fn stop(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }
}

/// Waits up to ten seconds for `holds`.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 10 s: {what}");
}

/// A PNG of one colour.
pub fn png(width: u32, height: u32) -> Vec<u8> {
    let picture = RgbImage::from_pixel(width, height, image::Rgb([240, 240, 240]));
    let mut bytes = Vec::new();
    picture
        .write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png)
        .unwrap();
    bytes
}

/// The body of a /parse request.
pub fn body(file: &[u8]) -> serde_json::Value {
    use base64::Engine as _;
    serde_json::json!({ "image": base64::engine::general_purpose::STANDARD.encode(file) })
}

/// `value` with `name` set.
pub fn with(mut value: serde_json::Value, name: &str, set: impl Into<serde_json::Value>) -> serde_json::Value {
    value[name] = set.into();
    value
}
