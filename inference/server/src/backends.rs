//! Wires libtorch in.

use hawkeye_inference::config::ModelArgs;
use hawkeye_inference::device::{Choice, Cuda, Expectation, choose};
use hawkeye_inference::engine::{LoadError, ModelEntry, ModelInfo};
use hawkeye_pipeline::bundle::{Bundle, DType, Role};
use hawkeye_pipeline::device::{DeviceChoice, DeviceKind};
use hawkeye_pipeline::parser::Parser;
use hawkeye_torch::{Device, LoadOptions, Loaded, LoadedModel, load, threads};
use std::time::Duration;

/// A closure that loads the bundle onto the device of a number, from 0; it must run on the thread that will parse.
pub fn loader(
    args: &ModelArgs,
    expectation: Expectation,
) -> impl Fn(usize) -> Result<(Parser, ModelInfo), LoadError> + Send + Sync + 'static {
    let args = args.clone();
    move |number| {
        let bundle = Bundle::open(&args.bundle)?;
        bundle.refuse_test_weights(args.allow_test_bundle)?;
        let choice = choose(args.device, &expectation, |choice| {
            Device::open(choice).map(|device| device.kind())
        })?;
        let options = options(&args, &choice, number);
        let loaded = load(&bundle, &options)?;
        let info = describe(&bundle, &loaded, options.batch_size, choice.mismatch)?;
        Ok((loaded.into_parser().with_batch_size(options.batch_size), info))
    }
}

/// Number format and batch that were meant for another device do not suit the processor.
fn options(args: &ModelArgs, choice: &Choice, number: usize) -> LoadOptions {
    // The default depends on what `auto` turned out to be.
    let default = args.profile.batch_size(choice.kind);
    let asked = args.batch_size.map_or(default, |size| size as usize);
    let degraded = choice.mismatch.is_some() && choice.kind == DeviceKind::Cpu;
    let (dtype, batch_size) = if degraded {
        (DType::Float32, asked.min(default))
    } else {
        (args.dtype, asked)
    };
    LoadOptions {
        device: DeviceChoice::Only(choice.kind),
        number,
        dtype,
        beside_int8: fastest(choice.kind),
        batch_size,
        cuda_graphs: args.cuda_graphs,
        ..LoadOptions::default()
    }
}

/// What models run in beside a captioner in `int8`.
fn fastest(kind: DeviceKind) -> DType {
    Device::open(DeviceChoice::Only(kind)).map_or(DType::Float32, |device| device.best_dtype())
}

fn describe(
    bundle: &Bundle,
    loaded: &Loaded,
    batch_size: usize,
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
        batch_size,
        threads: threads(),
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
