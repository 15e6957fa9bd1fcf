//! The one thread that owns the device: it loads the models, then answers one job after another.
//!
//! Jobs come through a channel of one place, so that one is prepared while one runs; the long queue in front of it is
//! the admission in [`crate::routes`], where waiting costs no decoded picture.

use crate::device::{Cuda, Denied};
use crate::metrics::Metrics;
use hawkeye_pipeline::bundle::DType;
use hawkeye_pipeline::device::DeviceKind;
use hawkeye_pipeline::parser::{ParseOptions, Parsed, Parser};
use image::{Rgb, RgbImage};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// Failures of the device in a row, without a success between, after which the process is reported as not alive: a GPU
/// that faulted stays faulted for the life of the process.
const DEAD_AFTER: u32 = 5;

/// Width and height of the picture that is parsed once before the first request, in pixels: a common screen, so that
/// kernels, memory and caches are those of real work.
pub const WARM_UP_SIZE: (u32, u32) = (1280, 720);

/// One model of the bundle, as loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelEntry {
    /// Its name in the bundle.
    pub name: String,
    /// Network, e.g. `yolo11m`.
    pub architecture: String,
    /// File it was loaded from.
    pub path: String,
    /// What really runs, whatever was asked for.
    pub dtype: DType,
}

/// What was loaded, and where it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// Where the models run.
    pub device: DeviceKind,
    /// `NVIDIA …`, `Apple Silicon (arm64)`, `CPU (x86_64)`.
    pub device_name: String,
    /// Crops in one batch.
    pub batch_size: usize,
    /// CPU threads of one operation.
    pub threads: usize,
    /// The GPU, on CUDA.
    pub cuda: Option<Cuda>,
    /// Why the device is not the one that is expected, if it is not.
    pub mismatch: Option<String>,
    /// How long the first parse took; measured by the engine, whatever a loader says.
    pub warm_up: Duration,
    /// Folder of the bundle.
    pub bundle: String,
    /// The icon detector.
    pub detector: ModelEntry,
    /// Text detector and recogniser, in that order; empty without OCR.
    pub readers: Vec<ModelEntry>,
    /// The captioner, if the bundle has one.
    pub captioner: Option<ModelEntry>,
}

/// An error of a loader: any error, with its causes.
pub type LoadError = Box<dyn std::error::Error + Send + Sync>;

/// The models' state.
#[derive(Debug, Clone)]
pub enum ModelState {
    /// Being loaded.
    Loading,
    /// Ready for jobs.
    Ready(Arc<ModelInfo>),
    /// The device is not the one that is expected, and no other is wanted; for this reason.
    Denied(Arc<str>),
    /// Could not be loaded, for this reason.
    Failed(Arc<str>),
}

/// A job that got no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The pipeline's own error.
    #[error("{0}")]
    Parse(String),
    /// The backend panicked; the thread goes on.
    #[error("the backend panicked: {0}")]
    Panicked(String),
    /// The thread is gone.
    #[error("the device thread has ended")]
    Gone,
}

/// A job that is done.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// What was found.
    pub parsed: Parsed,
    /// How long the job waited for the device.
    pub waited: Duration,
    /// How long the device worked on it.
    pub took: Duration,
}

/// Since when the device thread has been at its current job.
#[derive(Debug)]
struct Busy {
    epoch: Instant,
    /// Milliseconds from the epoch to the job's begin, plus one; 0 between jobs.
    since: AtomicU64,
}

impl Busy {
    fn new() -> Self {
        Self {
            epoch: Instant::now(),
            since: AtomicU64::new(0),
        }
    }

    fn begin(&self) {
        let since = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.since.store(since + 1, Ordering::Relaxed);
    }

    fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    fn lasts(&self) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.epoch.elapsed().saturating_sub(Duration::from_millis(since - 1)),
        }
    }
}

#[derive(Debug)]
struct Job {
    screenshot: Arc<RgbImage>,
    options: ParseOptions,
    queued: Instant,
    reply: oneshot::Sender<Result<Done, EngineError>>,
}

/// Handle to the device thread. When the last clone is dropped, the thread ends after its current job.
#[derive(Debug, Clone)]
pub struct Engine {
    jobs: mpsc::Sender<Job>,
    state: watch::Receiver<ModelState>,
    failures: Arc<AtomicU32>,
    busy: Arc<Busy>,
}

impl Engine {
    /// Starts the thread, which first calls `load` and parses a made-up screenshot with the options `warm_up`.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start<L>(load: L, warm_up: ParseOptions, metrics: Arc<Metrics>) -> std::io::Result<Self>
    where
        L: FnOnce() -> Result<(Parser, ModelInfo), LoadError> + Send + 'static,
    {
        let (jobs, queue) = mpsc::channel(1);
        let (report, state) = watch::channel(ModelState::Loading);
        let failures = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&failures);
        let busy = Arc::new(Busy::new());
        let working = Arc::clone(&busy);
        thread::Builder::new().name("device".to_owned()).spawn(move || {
            if let Some(parser) = load_models(load, &warm_up, &report, &metrics) {
                work(parser, queue, &counter, &working, &metrics);
            }
        })?;
        Ok(Self {
            jobs,
            state,
            failures,
            busy,
        })
    }

    /// The models' state now.
    pub fn state(&self) -> ModelState {
        self.state.borrow().clone()
    }

    /// Waits until loading has failed, and says why; waits for ever once it has succeeded.
    pub async fn load_failure(&self) -> Arc<str> {
        let mut state = self.state.clone();
        loop {
            if let ModelState::Failed(reason) = &*state.borrow_and_update() {
                return Arc::clone(reason);
            }
            if state.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Whether the device answers, as far as the last jobs tell.
    pub fn is_alive(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < DEAD_AFTER
    }

    /// How long the device has been at its current job; zero between jobs.
    pub fn busy_for(&self) -> Duration {
        self.busy.lasts()
    }

    /// Waits until one job has taken longer than `bound`: the device hangs, and nothing in this process can free it.
    pub async fn wedged(&self, bound: Duration) {
        loop {
            let lasts = self.busy_for();
            if lasts > bound {
                return;
            }
            // No job can be over the bound before that.
            let wait = bound.saturating_sub(lasts) + Duration::from_millis(1);
            tokio::time::sleep(wait).await;
        }
    }

    /// Gives this handle up and waits until the thread has ended, its models dropped; that needs all other handles gone.
    pub async fn ended(self) {
        let mut state = self.state.clone();
        drop(self);
        while state.changed().await.is_ok() {}
    }

    /// Runs one job. Dropping the future gives the job up: it is not started if it still waits.
    ///
    /// # Errors
    /// [`EngineError`] when the pipeline fails or the thread is gone.
    pub async fn parse(&self, screenshot: Arc<RgbImage>, options: ParseOptions) -> Result<Done, EngineError> {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            screenshot,
            options,
            queued: Instant::now(),
            reply,
        };
        self.jobs.send(job).await.map_err(|_| EngineError::Gone)?;
        answer.await.unwrap_or(Err(EngineError::Gone))
    }
}

fn load_models<L>(
    load: L,
    warm_up: &ParseOptions,
    report: &watch::Sender<ModelState>,
    metrics: &Metrics,
) -> Option<Parser>
where
    L: FnOnce() -> Result<(Parser, ModelInfo), LoadError>,
{
    let started = Instant::now();
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        let (mut parser, mut info) = load()?;
        let loading = started.elapsed();
        info.warm_up = first_parse(&mut parser, warm_up)?;
        Ok::<_, LoadError>((parser, info, loading))
    }));
    let reason = match loaded {
        Ok(Ok((parser, info, loading))) => {
            tracing::info!(
                device = %info.device,
                device_name = info.device_name,
                bundle = info.bundle,
                detector = info.detector.name,
                dtype = %info.detector.dtype,
                batch_size = info.batch_size,
                threads = info.threads,
                seconds = loading.as_millis() as f64 / 1e3,
                warm_up_seconds = info.warm_up.as_millis() as f64 / 1e3,
                "models loaded"
            );
            if let Some(cause) = &info.mismatch {
                tracing::error!(
                    device = %info.device,
                    cause,
                    "DEGRADED: this is not the expected device, and it will be slow"
                );
            }
            metrics.loaded(loading, info.warm_up);
            metrics.device_mismatch.set(i64::from(info.mismatch.is_some()));
            report.send_replace(ModelState::Ready(Arc::new(info)));
            return Some(parser);
        }
        Ok(Err(error)) if error.is::<Denied>() => {
            let reason = with_causes(error.as_ref());
            tracing::error!(reason, "DENIED: nothing is served without the expected device");
            metrics.device_mismatch.set(1);
            report.send_replace(ModelState::Denied(reason.into()));
            return None;
        }
        Ok(Err(error)) => with_causes(error.as_ref()),
        Err(panic) => format!("the loader panicked: {}", panic_text(panic.as_ref())),
    };
    report.send_replace(ModelState::Failed(reason.into()));
    None
}

/// Parses a made-up screenshot, so that no request pays for kernels and memory, and a device that does not work is known
/// before it is sent any. How long that took.
fn first_parse(parser: &mut Parser, options: &ParseOptions) -> Result<Duration, LoadError> {
    let (width, height) = WARM_UP_SIZE;
    // A light page with a column of dark bars.
    let screenshot = RgbImage::from_fn(width, height, |x, y| {
        let bar = (64..320).contains(&x) && y % 48 < 16;
        Rgb(if bar { [64; 3] } else { [240; 3] })
    });
    let started = Instant::now();
    parser
        .parse(&screenshot, options)
        .map_err(|error| format!("the models were loaded but do not run: {}", with_causes(&error)))?;
    Ok(started.elapsed())
}

fn work(mut parser: Parser, mut queue: mpsc::Receiver<Job>, failures: &AtomicU32, busy: &Busy, metrics: &Metrics) {
    while let Some(job) = queue.blocking_recv() {
        if job.reply.is_closed() {
            metrics.abandoned.inc();
            continue;
        }
        let waited = job.queued.elapsed();
        let begun = Instant::now();
        busy.begin();
        // A parser holds models and no state between calls, so it is sound to go on with it.
        let outcome = catch_unwind(AssertUnwindSafe(|| parser.parse(&job.screenshot, &job.options)));
        let took = begun.elapsed();
        busy.end();
        metrics.device_busy.inc_by(took.as_secs_f64());
        let answer = match outcome {
            Ok(Ok(parsed)) => Ok(Done { parsed, waited, took }),
            Ok(Err(error)) => Err(EngineError::Parse(with_causes(&error))),
            Err(panic) => {
                metrics.panics.inc();
                Err(EngineError::Panicked(panic_text(panic.as_ref())))
            }
        };
        match &answer {
            Ok(_) => failures.store(0, Ordering::Relaxed),
            Err(error) => {
                let in_a_row = failures.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::error!(%error, in_a_row, "parse failed on the device");
            }
        }
        // A client that left meanwhile is no error.
        drop(job.reply.send(answer));
    }
}

/// `outer: cause: cause`, without repeating a cause that the outer text already ends with.
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
