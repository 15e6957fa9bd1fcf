//! A worker's thread, bound to one device: it loads the models, then does one task after another.

use super::vitals::Vitals;
use super::work::{Batch, FindJob, Found, Task};
use super::{EngineError, LoadError, ModelInfo, ModelState, Shared, WARM_UP_SIZE, with_causes};
use crate::device::Denied;
use hawkeye_pipeline::device::DeviceKind;
use hawkeye_pipeline::parser::{ParseError, ParseOptions, Parser};
use image::{Rgb, RgbImage};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What a GPU parses before it is sent anything: common screens, for the first one of a size takes it seconds.
const GPU_WARM_UP: [(u32, u32); 4] = [WARM_UP_SIZE, (1280, 960), (1920, 1080), (2560, 1440)];

/// How often it parses each: it records what comes again.
const GPU_ROUNDS: usize = 2;

/// How often at most a device is asked for its memory.
const MEMORY_EVERY: Duration = Duration::from_secs(1);

/// Models on a device, and what is known about them.
type Loaded = (Parser, ModelInfo);

/// Starts the first thread, which starts the others and says when all are ready. The threads keep `report` for
/// as long as they live.
pub(super) fn start<L>(
    load: Arc<L>,
    warm_up: ParseOptions,
    shared: Arc<Shared>,
    report: watch::Sender<ModelState>,
) -> std::io::Result<()>
where
    L: Fn(usize) -> Result<Loaded, LoadError> + Send + Sync + 'static,
{
    spawn(0, move || {
        let started = Instant::now();
        let loaded = ready(load.as_ref(), 0, &warm_up).and_then(|(parser, info)| {
            start_others(&load, &info, &warm_up, &shared, &report)?;
            Ok((parser, info))
        });
        match loaded {
            Ok((parser, info)) => {
                tell(&info, started.elapsed(), &shared);
                let worker = Worker::new(0, parser, &info, shared);
                report.send_replace(ModelState::Ready(Arc::new(info)));
                worker.work();
            }
            Err(error) => refuse(error.as_ref(), &shared, &report),
        }
    })
}

fn spawn(number: usize, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new()
        .name(format!("device-{number}"))
        .spawn(run)
        .map(drop)
}

/// Starts the other threads, which load their models side by side; returns when all are at work.
fn start_others<L>(
    load: &Arc<L>,
    info: &ModelInfo,
    warm_up: &ParseOptions,
    shared: &Arc<Shared>,
    report: &watch::Sender<ModelState>,
) -> Result<(), LoadError>
where
    L: Fn(usize) -> Result<Loaded, LoadError> + Send + Sync + 'static,
{
    let (done, outcomes) = mpsc::channel();
    for number in 1..info.workers() {
        let (load, warm_up, shared) = (Arc::clone(load), *warm_up, Arc::clone(shared));
        let (done, report) = (done.clone(), report.clone());
        spawn(number, move || {
            let outcome = ready(load.as_ref(), number, &warm_up);
            let (outcome, worker) = match outcome {
                Ok((parser, info)) => (Ok(()), Some(Worker::new(number, parser, &info, shared))),
                Err(error) => (Err(error), None),
            };
            // The first thread waits for it.
            drop(done.send(outcome));
            drop(done);
            if let Some(worker) = worker {
                worker.work();
            }
            drop(report);
        })?;
    }
    drop(done);
    outcomes.into_iter().collect()
}

/// Loads and runs the models once, whatever that comes to.
fn ready<L>(load: &L, number: usize, warm_up: &ParseOptions) -> Result<Loaded, LoadError>
where
    L: Fn(usize) -> Result<Loaded, LoadError>,
{
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        let (mut parser, mut info) = load(number)?;
        parser
            .prepare(warm_up.profile.prompt)
            .map_err(|error| unusable(&error))?;
        let (sizes, rounds): (&[_], _) = if info.device == DeviceKind::Cuda {
            (&GPU_WARM_UP, GPU_ROUNDS)
        } else {
            (&[WARM_UP_SIZE], 1)
        };
        for &size in sizes.iter().flat_map(|size| std::iter::repeat_n(size, rounds)) {
            info.warm_up += first_parse(&mut parser, warm_up, size).map_err(|error| unusable(&error))?;
        }
        Ok::<_, LoadError>((parser, info))
    }));
    loaded.unwrap_or_else(|panic| Err(format!("the loader panicked: {}", panic_text(panic.as_ref())).into()))
}

fn unusable(error: &(dyn std::error::Error + 'static)) -> LoadError {
    format!("the models were loaded but do not run: {}", with_causes(error)).into()
}

/// Parses a made-up screenshot, so that no request pays for kernels and memory, and a device that does not work is known
/// before it is sent any. How long that took.
fn first_parse(
    parser: &mut Parser,
    options: &ParseOptions,
    (width, height): (u32, u32),
) -> Result<Duration, ParseError> {
    // A light page with a column of dark bars.
    let screenshot = RgbImage::from_fn(width, height, |x, y| {
        let bar = (64..320).contains(&x) && y % 48 < 16;
        Rgb(if bar { [64; 3] } else { [240; 3] })
    });
    let started = Instant::now();
    parser.parse(&screenshot, options)?;
    Ok(started.elapsed())
}

fn tell(info: &ModelInfo, took: Duration, shared: &Shared) {
    let loading = took.saturating_sub(info.warm_up);
    tracing::info!(
        device = %info.device,
        device_name = info.device_name,
        devices = info.devices,
        workers_per_device = info.workers_per_device,
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
    shared.metrics.loaded(loading, info.warm_up);
    shared.metrics.device_mismatch.set(i64::from(info.mismatch.is_some()));
}

fn refuse(
    error: &(dyn std::error::Error + Send + Sync + 'static),
    shared: &Shared,
    report: &watch::Sender<ModelState>,
) {
    let reason = with_causes(error);
    if error.is::<Denied>() {
        tracing::error!(reason, "DENIED: nothing is served without the expected device");
        shared.metrics.device_mismatch.set(1);
        report.send_replace(ModelState::Denied(reason.into()));
    } else {
        report.send_replace(ModelState::Failed(reason.into()));
    }
}

/// A thread that works on a device.
struct Worker {
    number: usize,
    /// The number of its device.
    device: usize,
    parser: Parser,
    shared: Arc<Shared>,
    vitals: Arc<Vitals>,
    /// Crops in a batch, as last seen.
    batch_size: usize,
    /// When the memory was looked at.
    memory_seen: Option<Instant>,
}

impl Worker {
    /// `info` is what was asked for; loading may have shown that batches have to be smaller.
    fn new(number: usize, parser: Parser, info: &ModelInfo, shared: Arc<Shared>) -> Self {
        let vitals = shared.more_vitals();
        let batch_size = parser.batch_size();
        if batch_size < info.batch_size {
            vitals.shrink_batch(batch_size);
            shared.metrics.devices.batch_shrinks.inc();
        }
        Self {
            number,
            device: number % info.devices.max(1),
            batch_size,
            parser,
            vitals,
            shared,
            memory_seen: None,
        }
    }

    fn work(mut self) {
        self.report_memory();
        while let Some(task) = self.shared.work.take(self.batch_size) {
            match task {
                Task::Find(job) => self.find(job),
                Task::Caption(batch) => self.caption(batch),
            }
            self.report_memory();
        }
    }

    fn find(&mut self, job: FindJob) {
        let FindJob {
            screen,
            options,
            queued,
            reply,
        } = job;
        let waited = queued.elapsed();
        let begun = Instant::now();
        let outcome = self.run(|parser| parser.find(screen.picture(), &options));
        // Before the reply, so that whoever draws on the picture is the only one who has it.
        drop(screen);
        let found = outcome.map(|found| Found {
            expected: (found.wanted() > 0).then(|| self.shared.work.expect()),
            elements: found,
            waited,
            begun,
        });
        // A client that left meanwhile is no error.
        drop(reply.send(found));
    }

    fn caption(&mut self, batch: Batch) {
        batch.begin();
        let outcome = self.run(|parser| parser.describe(&batch.crops, batch.prompt));
        let metrics = &self.shared.metrics.devices;
        if outcome.is_ok() {
            metrics.batch(batch.crops.len(), self.batch_size);
        }
        let size = self.parser.batch_size();
        if size < self.batch_size {
            self.batch_size = size;
            self.vitals.shrink_batch(size);
            metrics.batch_shrinks.inc();
        }
        batch.answer(outcome);
    }

    /// One call of the models, whatever it comes to.
    fn run<T>(&mut self, call: impl FnOnce(&mut Parser) -> Result<T, ParseError>) -> Result<T, EngineError> {
        let begun = Instant::now();
        self.vitals.begin();
        // A parser holds models and no state between calls, so it is sound to go on with it.
        let outcome = catch_unwind(AssertUnwindSafe(|| call(&mut self.parser)));
        self.vitals.end();
        let metrics = &self.shared.metrics.devices;
        metrics.busy.inc_by(begun.elapsed().as_secs_f64());
        let outcome = match outcome {
            Ok(Ok(result)) => {
                self.vitals.succeeded();
                return Ok(result);
            }
            Ok(Err(error)) => EngineError::Parse(with_causes(&error)),
            Err(panic) => {
                metrics.panics.inc();
                EngineError::Panicked(panic_text(panic.as_ref()))
            }
        };
        let in_a_row = self.vitals.failed();
        tracing::error!(error = %outcome, device = self.device, worker = self.number, in_a_row, "failed on the device");
        Err(outcome)
    }

    fn report_memory(&mut self) {
        if self.memory_seen.is_some_and(|seen| seen.elapsed() < MEMORY_EVERY) {
            return;
        }
        self.memory_seen = Some(Instant::now());
        if let Some(memory) = self.parser.device_memory() {
            self.shared.metrics.devices.memory(self.device, memory);
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
