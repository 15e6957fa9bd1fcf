//! Detector, text reader and captioner on libtorch: a model bundle → the models of a [`Parser`] on a device.
//!
//! Everything here belongs on the one thread that owns the device: loading warms the modules up, and libtorch keeps both
//! warm-up and gradient mode per thread.

mod captioner;
mod detector;
mod device;
mod graphs;
mod int8;
mod module;
mod reader;
mod runner;
mod shim;

pub use captioner::TorchCaptioner;
pub use detector::TorchDetector;
pub use device::{
    CudaFacts, Device, DeviceError, device_memory, device_memory_used, reset_peak_memory, set_threads, threads,
};
pub use reader::TorchReader;
pub use shim::DeviceMemory;

use hawkeye_pipeline::{
    bundle::{Bundle, BundleError, DType, Role},
    device::{DeviceChoice, DeviceKind},
    model::{CaptionPrompt, Captioner, Detector, ModelError, TextReader},
    parser::{CAPTION_CROP, Parser},
};
use image::{Rgb, RgbImage};
use module::LoadedModule;

/// How to load a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// Where the models shall run.
    pub device: DeviceChoice,
    /// Which of the GPUs that this process sees, from 0; behind the last one comes the first again.
    pub number: usize,
    /// The number format wanted; a model without a file of it runs in `float32`. `int8` is for the captioner, on a processor.
    pub dtype: DType,
    /// Beside a captioner in `int8`, the number format of the other models.
    pub beside_int8: DType,
    /// Most lines of text per call of the recogniser on a processor; a GPU has sizes of its own. How many crops a call of the
    /// captioner has is the parser's.
    pub batch_size: usize,
    /// Threads of libtorch on the CPU; `None` leaves `OMP_NUM_THREADS` and libtorch's own choice.
    pub threads: Option<usize>,
    /// Whether models are recorded as CUDA graphs; without, every kernel is launched by itself. Only CUDA has them.
    pub cuda_graphs: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Auto,
            number: 0,
            dtype: DType::Float32,
            beside_int8: DType::Float32,
            batch_size: 16,
            threads: None,
            cuda_graphs: true,
        }
    }
}

/// A model as it really runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedModel {
    /// What it is for.
    pub role: Role,
    /// Its published name.
    pub name: String,
    /// Its architecture, e.g. `yolo11m`.
    pub architecture: String,
    /// Its file, below the bundle.
    pub path: String,
    /// The number format in use, which may not be the one wanted.
    pub dtype: DType,
}

/// A bundle on a device.
#[derive(Debug)]
pub struct Loaded {
    /// Finds icons.
    pub detector: TorchDetector,
    /// Finds and reads text, if the bundle has the models for it.
    pub reader: Option<TorchReader>,
    /// Describes icons, if the bundle has the model for it.
    pub captioner: Option<TorchCaptioner>,
    /// Where they run.
    pub device: DeviceKind,
    /// `NVIDIA …`, `Apple Silicon (arm64)` or `CPU (x86_64)`.
    pub device_name: String,
    /// Devices of this kind that this process sees; this bundle is on one of them.
    pub devices: usize,
    /// About the GPU, on CUDA.
    pub cuda: Option<CudaFacts>,
    /// The detector, then the text detector and recogniser, then the captioner, if the bundle has them.
    pub models: Vec<LoadedModel>,
}

impl Loaded {
    /// The models, bound together.
    pub fn into_parser(self) -> Parser {
        let reader = self.reader.map(|reader| Box::new(reader) as Box<dyn TextReader + Send>);
        let captioner = self
            .captioner
            .map(|captioner| Box::new(captioner) as Box<dyn Captioner + Send>);
        Parser::new(Box::new(self.detector), reader, captioner)
    }
}

/// A bundle that could not be put on a device.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The device is missing.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The bundle cannot be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A model has no file.
    #[error("the bundle has no file for the model {0:?}")]
    NoFile(String),
    /// `int8` on a device that does not compute it.
    #[error("int8 is for processors; on {0} use float16 or bfloat16")]
    Int8Device(DeviceKind),
    /// No captioner in `int8`.
    #[error(
        "the bundle has no int8 files of {0:?}: make it anew with `hawkeye-export bundle --caption … --caption-dtypes float32,int8`, \
         or use another number format"
    )]
    NoInt8(String),
    /// libtorch cannot load a file.
    #[error("libtorch cannot load {path}: {source}")]
    Torch {
        /// The file, below the bundle.
        path: String,
        /// What libtorch said.
        source: tch::TchError,
    },
    /// A model's description lacks something.
    #[error("the model {name:?} of the bundle lacks {what}")]
    Incomplete {
        /// The model.
        name: String,
        /// The missing field.
        what: &'static str,
    },
    /// A tokenizer cannot be read.
    #[error("the tokenizer {path} cannot be read: {message}")]
    Tokenizer {
        /// The file, below the bundle.
        path: String,
        /// What the library said.
        message: String,
    },
    /// A model does not run.
    #[error("the models were loaded but do not run: {0}")]
    WarmUp(#[from] ModelError),
}

/// Loads a bundle's models, every file only after its sha256 was found right, and runs each once.
///
/// A bundle without OCR models gives no reader, one without a captioner no captioner.
///
/// # Errors
/// [`LoadError`].
pub fn load(bundle: &Bundle, options: &LoadOptions) -> Result<Loaded, LoadError> {
    if let Some(threads) = options.threads {
        set_threads(threads);
    }
    let device = Device::open(options.device)?;
    let number = options.number % device.count();
    let mut device = device.numbered(number)?;
    if !options.cuda_graphs {
        device = device.without_graphs();
    }
    let others = match options.dtype {
        DType::Int8 if device.kind() != DeviceKind::Cpu => return Err(LoadError::Int8Device(device.kind())),
        DType::Int8 => options.beside_int8,
        dtype => dtype,
    };
    let detector = LoadedModule::load(bundle, bundle.require(Role::Detector)?, others, &device)?;
    let mut models = vec![detector.describe()];
    let mut detector = TorchDetector::new(detector, &device)?;
    let mut reader = None;
    if let (Some(finder), Some(recogniser)) = (bundle.model(Role::OcrDetector), bundle.model(Role::OcrRecognizer)) {
        let finder = LoadedModule::load(bundle, finder, others, &device)?;
        let recogniser = LoadedModule::load(bundle, recogniser, others, &device)?;
        models.extend([finder.describe(), recogniser.describe()]);
        reader = Some(TorchReader::new(
            bundle,
            finder,
            recogniser,
            options.batch_size,
            &device,
        )?);
    } else {
        tracing::warn!(
            bundle = bundle.manifest().name,
            "the bundle has no OCR models: no text will be found"
        );
    }
    let mut captioner = None;
    if let Some(model) = bundle.model(Role::Captioner) {
        let loaded = TorchCaptioner::load(bundle, model, options.dtype, &device)?;
        models.push(loaded.describe());
        captioner = Some(loaded);
    } else {
        tracing::info!(
            bundle = bundle.manifest().name,
            "the bundle has no captioner: icons without text get no caption"
        );
    }
    warm_up(&mut detector, reader.as_mut(), captioner.as_mut())?;
    Ok(Loaded {
        detector,
        reader,
        captioner,
        device: device.kind(),
        device_name: device.name().to_owned(),
        devices: device.count(),
        cuda: device.cuda().cloned(),
        models,
    })
}

/// Runs every model, so that the first request does not pay for kernels and memory. [`Parser::prepare`] records what captions need.
fn warm_up(
    detector: &mut TorchDetector,
    reader: Option<&mut TorchReader>,
    captioner: Option<&mut TorchCaptioner>,
) -> Result<(), ModelError> {
    let page = |width, height| RgbImage::from_pixel(width, height, Rgb([255; 3]));
    // A strip, because the detector's input is always scaled to its full width.
    detector.detect(&page(1280, 32), 1.0)?;
    if let Some(reader) = reader {
        reader.prepare()?;
        // A square is the text detector's smallest input.
        reader.read(&page(64, 64), 1.0)?;
        reader.recognise(&[page(64, 48)])?;
    }
    if let Some(captioner) = captioner {
        captioner.caption(&[page(CAPTION_CROP, CAPTION_CROP)], CaptionPrompt::Caption)?;
    }
    Ok(())
}
