//! Wires libtorch in.

use hawkeye_inference::config::ModelArgs;
use hawkeye_inference::device::{Choice, Cuda, Expectation, choose};
use hawkeye_inference::engine::{LoadError, ModelEntry, ModelInfo, WARM_UP_SIZE};
use hawkeye_inference::processor::{Chosen, Processor, ProcessorReport, THREADS};
use hawkeye_inference::tune::{Outcome, Sample, search};
use hawkeye_pipeline::bundle::{Bundle, DType, Role};
use hawkeye_pipeline::device::{DeviceChoice, DeviceKind};
use hawkeye_pipeline::model::{Detector as _, ModelError};
use hawkeye_pipeline::parser::Parser;
use hawkeye_torch::{
    Device, LoadOptions, Loaded, LoadedModel, TorchCaptioner, TorchDetector, load, set_threads, threads,
};
use image::RgbImage;
use std::time::{Duration, Instant};

/// Batches of crops that are tried on a processor, besides the profile's own.
const BATCHES: [usize; 3] = [32, 16, 8];

/// A variable of this process.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A closure that loads the bundle for the worker of a number, from 0, onto its device; it must run on the thread that will parse.
pub fn loader(
    args: &ModelArgs,
    expectation: Expectation,
    processor: Processor,
) -> impl Fn(usize) -> Result<(Parser, ModelInfo), LoadError> + Send + Sync + 'static {
    let args = args.clone();
    // libtorch's own number, before anybody sets another one.
    let default = threads();
    // Who sets it, as the operator does, knows better.
    let count = environment(THREADS).is_none().then(|| processor.threads(default));
    move |number| {
        let bundle = Bundle::open(&args.bundle)?;
        bundle.refuse_test_weights(args.allow_test_bundle)?;
        let choice = choose(args.device, &expectation, |choice| {
            Device::open(choice).map(|device| device.kind())
        })?;
        let options = LoadOptions {
            threads: count,
            ..options(&args, &choice, number, &processor)
        };
        let mut loaded = load(&bundle, &options)?;
        let asked = if choice.mismatch.is_some() {
            Some(options.dtype)
        } else {
            args.dtype.named()
        };
        let mut report = processor.report(choice.kind, asked, default, environment);
        report.choose(chosen_batch(&args, options.batch_size));
        let mut batch_size = options.batch_size;
        if args.tune && choice.kind == DeviceKind::Cpu {
            if count.is_some() {
                tune_threads(&mut loaded.detector, &processor, default, &mut report);
            }
            if let (None, Some(captioner)) = (args.batch_size, &mut loaded.captioner) {
                batch_size = tune_batch(captioner, batch_size, &mut report);
            }
        }
        if number == 0 {
            report.tell();
        }
        let info = describe(&bundle, &loaded, &args, batch_size, report, choice.mismatch)?;
        Ok((loaded.into_parser().with_batch_size(batch_size), info))
    }
}

/// Number format and batch that were meant for another device do not suit the processor.
fn options(args: &ModelArgs, choice: &Choice, number: usize, processor: &Processor) -> LoadOptions {
    // The default depends on what `auto` turned out to be.
    let default = args.profile.batch_size(choice.kind);
    let asked = args.batch_size.map_or(default, |size| size as usize);
    let degraded = choice.mismatch.is_some() && choice.kind == DeviceKind::Cpu;
    let (dtype, batch_size) = if degraded {
        (DType::Float32, asked.min(default))
    } else {
        let dtype = args.dtype.named().unwrap_or_else(|| processor.dtype(choice.kind));
        (dtype, asked)
    };
    LoadOptions {
        device: DeviceChoice::Only(choice.kind),
        number,
        dtype,
        beside_int8: processor.dtype(choice.kind),
        batch_size,
        cuda_graphs: args.cuda_graphs,
        ..LoadOptions::default()
    }
}

fn chosen_batch(args: &ModelArgs, size: usize) -> Chosen {
    let reason = match args.batch_size {
        Some(asked) if asked as usize == size => "it is asked for",
        _ => "the profile's on this device",
    };
    Chosen::new("batch_size", size.to_string(), reason.to_owned())
}

/// Second threads of cores, and slow cores, may help or harm: the detector tells.
fn tune_threads(detector: &mut TorchDetector, processor: &Processor, default: usize, report: &mut ProcessorReport) {
    let first = processor.threads(default);
    let Some(all) = processor.more_threads(default) else {
        return;
    };
    let page = RgbImage::from_pixel(WARM_UP_SIZE.0, WARM_UP_SIZE.1, image::Rgb([255; 3]));
    let outcome = search(first, &[all], |count| {
        set_threads(count);
        let started = Instant::now();
        // What the first one prepares the second one finds.
        detector.detect(&page, 1.0)?;
        let again = Instant::now();
        detector.detect(&page, 1.0)?;
        Ok::<_, ModelError>(Sample {
            each: again.elapsed(),
            took: started.elapsed(),
        })
    });
    set_threads(settled("threads", "a search for icons", outcome, first, report));
}

fn tune_batch(captioner: &mut TorchCaptioner, first: usize, report: &mut ProcessorReport) -> usize {
    let outcome = search(first, &BATCHES, |crops| {
        let started = Instant::now();
        let step = captioner.step_time(crops)?;
        Ok::<_, ModelError>(Sample {
            each: step.div_f64(crops.max(1) as f64),
            took: started.elapsed(),
        })
    });
    settled("batch_size", "a crop and step", outcome, first, report)
}

/// The setting that was found, or the first one if that failed.
fn settled(
    setting: &'static str,
    unit: &str,
    outcome: Result<Outcome, ModelError>,
    first: usize,
    report: &mut ProcessorReport,
) -> usize {
    match outcome {
        Ok(outcome) => {
            report.choose(Chosen::new(setting, outcome.best.to_string(), outcome.reason(unit)));
            outcome.best
        }
        Err(error) => {
            tracing::warn!(%error, setting, "it could not be measured which one is fastest");
            first
        }
    }
}

fn describe(
    bundle: &Bundle,
    loaded: &Loaded,
    args: &ModelArgs,
    batch_size: usize,
    processor: ProcessorReport,
    mismatch: Option<String>,
) -> Result<ModelInfo, LoadError> {
    let entry = |model: &LoadedModel| ModelEntry {
        name: model.name.clone(),
        architecture: model.architecture.clone(),
        path: bundle.root().join(&model.path).display().to_string(),
        dtype: model.dtype,
    };
    let first = |role| loaded.models.iter().find(|model| model.role == role).map(entry);
    let is_reader = |model: &&LoadedModel| matches!(model.role, Role::OcrDetector | Role::OcrRecognizer);
    Ok(ModelInfo {
        device: loaded.device,
        device_name: loaded.device_name.clone(),
        devices: loaded.devices,
        workers_per_device: if loaded.device == DeviceKind::Cuda {
            args.workers_per_gpu.into()
        } else {
            1
        },
        batch_size,
        threads: threads(),
        processor: Some(processor),
        cuda: loaded.cuda.as_ref().map(|facts| Cuda {
            driver: facts.driver.clone(),
            version: facts.version.clone(),
            memory_bytes: facts.memory_bytes,
        }),
        mismatch,
        warm_up: Duration::ZERO,
        bundle: bundle.root().display().to_string(),
        detector: first(Role::Detector).ok_or("no detector was loaded")?,
        readers: loaded.models.iter().filter(is_reader).map(entry).collect(),
        captioner: first(Role::Captioner),
    })
}
