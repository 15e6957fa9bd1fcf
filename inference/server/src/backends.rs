//! Wires libtorch in.

use hawkeye_inference::config::ModelArgs;
use hawkeye_inference::engine::{LoadError, ModelEntry, ModelInfo};
use hawkeye_pipeline::bundle::{Bundle, Role};
use hawkeye_pipeline::device::DeviceChoice;
use hawkeye_pipeline::parser::Parser;
use hawkeye_torch::{Device, LoadOptions, Loaded, LoadedModel, load};

/// A closure that loads the bundle; it must run on the thread that will parse.
pub fn loader(args: &ModelArgs) -> impl FnOnce() -> Result<(Parser, ModelInfo), LoadError> + Send + 'static {
    let args = args.clone();
    move || {
        let bundle = Bundle::open(&args.bundle)?;
        // The default batch depends on what `auto` turns out to be.
        let device = Device::open(args.device)?.kind();
        let batch = args.batch_size.map(|size| size as usize);
        let options = LoadOptions {
            device: DeviceChoice::Only(device),
            dtype: args.dtype,
            batch_size: batch.unwrap_or_else(|| args.profile.batch_size(device)),
            ..LoadOptions::default()
        };
        let loaded = load(&bundle, &options)?;
        let info = describe(&bundle, &loaded)?;
        Ok((loaded.into_parser(), info))
    }
}

fn describe(bundle: &Bundle, loaded: &Loaded) -> Result<ModelInfo, LoadError> {
    let entry = |model: &LoadedModel| ModelEntry {
        name: model.name.clone(),
        architecture: model.architecture.clone(),
        path: bundle.root().join(&model.path).display().to_string(),
        dtype: model.dtype,
    };
    let (detectors, readers): (Vec<_>, Vec<_>) = loaded.models.iter().partition(|model| model.role == Role::Detector);
    Ok(ModelInfo {
        device: loaded.device,
        device_name: loaded.device_name.clone(),
        bundle: bundle.root().display().to_string(),
        detector: detectors
            .first()
            .map(|model| entry(model))
            .ok_or("no detector was loaded")?,
        readers: readers.into_iter().map(entry).collect(),
        captioner: None,
    })
}
