//! The devices: one thread each loads the models and takes work from one queue, a stage of a parse at a time.
//!
//! A parse has three stages: find its elements on a device, cut out the icons without words on the processor, have a device
//! describe them. Between stages a parse holds no device, so icons of many screenshots share one call of the captioner, and
//! screenshots are decoded, cut and drawn on meanwhile. The long queue in front is the [admission](crate::admission).

mod describe;
mod thread;
mod vitals;
mod work;

pub use self::describe::Screen;

use self::describe::Described;
use self::vitals::Vitals;
use self::work::{Expected, FindJob, Found, Request, Work};
use crate::admission::Admitted;
use crate::crop_cache::CropCache;
use crate::device::Cuda;
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::processor::ProcessorReport;
use hawkeye_pipeline::bundle::DType;
use hawkeye_pipeline::device::DeviceKind;
use hawkeye_pipeline::geometry::PixelRect;
use hawkeye_pipeline::model::CaptionPrompt;
use hawkeye_pipeline::parser::{self, ParseOptions, Parsed, Parser};
use image::RgbImage;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use tracing::{Instrument as _, info_span};

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
    /// Devices of this kind that are in use, at least one.
    pub devices: usize,
    /// Threads that work on each device, with models of their own: while one fills the device's small kernels, the other fills the gaps.
    pub workers_per_device: usize,
    /// Crops in one batch.
    pub batch_size: usize,
    /// CPU threads of one operation.
    pub threads: usize,
    /// The processor, and what was chosen by it.
    pub processor: Option<ProcessorReport>,
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

impl ModelInfo {
    /// Threads that work, on all devices together. The number of the device of each is its own modulo [`Self::devices`].
    pub const fn workers(&self) -> usize {
        self.devices * self.workers_per_device
    }
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

/// A screenshot whose elements are found, and its icons cut out.
#[derive(Debug)]
pub struct Searched {
    asked: describe::Asked,
    found: parser::Found,
    /// Until its crops are in the queue.
    expected: Option<Expected>,
    waited: Duration,
    begun: Instant,
    /// How long cutting took.
    cut: Duration,
}

impl Searched {
    /// Boxes of all elements, by their numbers on the annotated picture.
    pub fn marks(&self) -> &[PixelRect] {
        self.found.marks()
    }
}

/// A parse that is done.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// What was found.
    pub parsed: Parsed,
    /// How long it waited for a device, before both stages that need one.
    pub waited: Duration,
    /// When a device began with it.
    pub begun: Instant,
}

/// What the threads and the handles share.
#[derive(Debug)]
struct Shared {
    work: Arc<Work>,
    /// Of each thread, in the order in which they were started.
    vitals: Mutex<Vec<Arc<Vitals>>>,
    metrics: Arc<Metrics>,
}

impl Shared {
    fn vitals(&self) -> Vec<Arc<Vitals>> {
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those of one more thread.
    fn more_vitals(&self) -> Arc<Vitals> {
        let vitals = Arc::new(Vitals::new());
        let mut all = self.vitals.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Arc::clone(&vitals));
        vitals
    }
}

/// Ends the threads with the last handle.
#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.work.close();
    }
}

/// Handle to the devices. When the last clone is dropped, the threads end after their current job.
#[derive(Debug, Clone)]
pub struct Engine {
    handle: Arc<Handle>,
    state: watch::Receiver<ModelState>,
    pool: Pool,
    cache: Option<Arc<CropCache>>,
}

impl Engine {
    /// Starts the first thread, which calls `load` with its number, 0, and parses a made-up screenshot with the options
    /// `warm_up`. As many threads as [`ModelInfo::workers`] says do the same, side by side, with the next numbers.
    /// Captions are remembered in `cache`, if there is one.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start<L>(
        load: L,
        warm_up: ParseOptions,
        cache: Option<CropCache>,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self>
    where
        L: Fn(usize) -> Result<(Parser, ModelInfo), LoadError> + Send + Sync + 'static,
    {
        let (report, state) = watch::channel(ModelState::Loading);
        let shared = Arc::new(Shared {
            work: Arc::new(Work::new(Arc::clone(&metrics))),
            vitals: Mutex::default(),
            metrics,
        });
        thread::start(Arc::new(load), warm_up, Arc::clone(&shared), report)?;
        Ok(Self {
            handle: Arc::new(Handle(shared)),
            state,
            pool: Pool::default(),
            cache: cache.map(Arc::new),
        })
    }

    /// The models' state now.
    pub fn state(&self) -> ModelState {
        self.state.borrow().clone()
    }

    /// Where work for the processor is done.
    pub const fn pool(&self) -> &Pool {
        &self.pool
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

    /// Whether every device answers, as far as its last jobs tell.
    pub fn is_alive(&self) -> bool {
        self.handle.0.vitals().iter().all(|vitals| vitals.is_alive())
    }

    /// How long the device that is longest at its current job has been at it; zero when none has one.
    pub fn busy_for(&self) -> Duration {
        let all = self.handle.0.vitals();
        all.iter().map(|vitals| vitals.busy_for()).max().unwrap_or_default()
    }

    /// Crops in a batch of the device whose batches are smallest, if that is fewer than it began with.
    pub fn shrunk_batch(&self) -> Option<usize> {
        let all = self.handle.0.vitals();
        all.iter().filter_map(|vitals| vitals.shrunk_batch()).min()
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

    /// Gives this handle up and waits until the threads have ended, their models dropped; that needs all other handles gone.
    pub async fn ended(self) {
        let mut state = self.state.clone();
        drop(self);
        while state.changed().await.is_ok() {}
    }

    /// Has the elements of a screenshot found, and cuts out the icons that are to be described. Dropping the future gives the parse up:
    /// what it has not begun with is left out.
    ///
    /// # Errors
    /// [`EngineError`] when the pipeline fails or the threads are gone.
    pub async fn find(&self, screen: &Arc<Screen>, options: ParseOptions) -> Result<Searched, EngineError> {
        let Found {
            elements: found,
            expected,
            waited,
            begun,
        } = self
            .find_elements(Arc::clone(screen), options)
            .instrument(info_span!("find"))
            .await?;
        let (screen, cache) = (Arc::clone(screen), self.cache.clone());
        let cutting = Instant::now();
        let cut = move || {
            let crops = found.crops(screen.picture());
            (describe::Asked::new(crops, found.prompt(), cache), found)
        };
        let (asked, found) = self.pool.run_at_once(cut).instrument(info_span!("crop")).await?;
        Ok(Searched {
            asked,
            found,
            expected,
            waited,
            begun,
            cut: cutting.elapsed(),
        })
    }

    /// Has the icons of a screenshot described, and tells its place among those that are held how many crops it has. Dropping the
    /// future gives them up, as above.
    ///
    /// # Errors
    /// [`EngineError`] when the pipeline fails or the threads are gone.
    pub async fn describe(&self, searched: Searched, place: &Admitted) -> Result<Done, EngineError> {
        let Searched {
            mut asked,
            found,
            expected,
            mut waited,
            begun,
            cut: mut took,
        } = searched;
        let crops = asked.take_crops();
        asked.count(&self.handle.0.metrics.devices);
        place.found(crops.len());
        if !crops.is_empty() {
            let described = self
                .describe_crops(crops, found.prompt(), expected)
                .instrument(info_span!("caption"))
                .await?;
            waited += described.waited;
            took += described.took;
            asked.answer(described.captions);
        }
        place.described();
        let took = if found.wanted() == 0 { Duration::ZERO } else { took };
        let parsed = found.described(asked.into_captions(), took);
        let parsed = parsed.map_err(|error| EngineError::Parse(error.to_string()))?;
        Ok(Done { parsed, waited, begun })
    }

    async fn find_elements(&self, screen: Arc<Screen>, options: ParseOptions) -> Result<Found, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.handle.0.work.find(FindJob {
            screen,
            options,
            queued: Instant::now(),
            reply,
        });
        answer.await.unwrap_or(Err(EngineError::Gone))
    }

    async fn describe_crops(
        &self,
        crops: Vec<RgbImage>,
        prompt: CaptionPrompt,
        expected: Option<Expected>,
    ) -> Result<Described, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.handle
            .0
            .work
            .describe(Request::new(crops.len(), prompt, reply), crops);
        drop(expected);
        answer.await.unwrap_or(Err(EngineError::Gone))
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
