//! A TorchScript module with what the bundle says about it.

use crate::{LoadError, LoadedModel, device::Device, int8, shim::InferenceMode};
use hawkeye_pipeline::{
    bundle::{Bundle, ChannelOrder, DType, Model, ModelFile},
    model::ModelError,
};
use image::RgbImage;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::{CModule, Kind, TchError, Tensor};

/// A loaded module. Its input is converted to its number format and device; its output comes back as `float32`.
#[derive(Debug)]
pub(crate) struct LoadedModule {
    module: CModule,
    device: tch::Device,
    kind: Kind,
    model: Model,
    dtype: DType,
    path: String,
    /// Mean and deviation of each plane, (1, 3, 1, 1), if the model has any.
    statistics: Option<(Tensor, Tensor)>,
}

impl LoadedModule {
    /// Reads and checks the file of the wanted number format, else the `float32` one, and puts it on the device. Weights of
    /// another number format are converted. [`Device::usable`] may choose another one.
    pub(crate) fn load(bundle: &Bundle, model: &Model, wanted: DType, device: &Device) -> Result<Self, LoadError> {
        let wanted = device.usable(model.role, wanted);
        let file = model
            .file(wanted)
            .ok_or_else(|| LoadError::NoFile(model.name.clone()))?;
        let mut loaded = Self::load_file(bundle, model, file, device)?;
        if file.dtype != wanted {
            loaded.convert(wanted)?;
        }
        Ok(loaded)
    }

    /// Puts the weights into another number format. The modules of our exporter take any: none of their sums is bound to one.
    fn convert(&mut self, wanted: DType) -> Result<(), LoadError> {
        let (kind, device) = (kind_of(wanted), self.device);
        let module = &mut self.module;
        // tch has no form of this that gives the error back.
        catch_unwind(AssertUnwindSafe(|| module.to(device, kind, false))).map_err(|_| LoadError::Torch {
            path: self.path.clone(),
            source: TchError::Torch(format!("the weights cannot be converted to {wanted}")),
        })?;
        (self.kind, self.dtype) = (kind, wanted);
        Ok(())
    }

    /// Reads and checks one file of a model, and puts it on the device.
    pub(crate) fn load_file(
        bundle: &Bundle,
        model: &Model,
        file: &ModelFile,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let bytes = bundle.read(&file.path, &file.sha256)?;
        let torch_error = |source| LoadError::Torch {
            path: file.path.clone(),
            source,
        };
        if file.dtype == DType::Int8 {
            int8::choose_engine();
        }
        let mut module = CModule::load_data_on_device(&mut bytes.as_slice(), device.torch()).map_err(torch_error)?;
        module.f_set_eval().map_err(torch_error)?;
        if file.dtype == DType::Int8 {
            int8::fit(&module).map_err(torch_error)?;
        }
        let kind = kind_of(file.dtype);
        let per_plane = |values: [f32; 3]| {
            Tensor::f_from_slice(&values)?
                .f_reshape([1, 3, 1, 1])?
                .f_to_device(device.torch())
        };
        let (mean, std) = (model.mean.unwrap_or([0.0; 3]), model.std.unwrap_or([1.0; 3]));
        let statistics = (model.mean.is_some() || model.std.is_some())
            .then(|| Ok((per_plane(mean)?, per_plane(std)?)))
            .transpose()
            .map_err(torch_error)?;
        Ok(Self {
            module,
            device: device.torch(),
            kind,
            model: model.clone(),
            dtype: file.dtype,
            path: file.path.clone(),
            statistics,
        })
    }

    /// A module of a test's own on the processor, in `float32`, from the model's entry of a `bundle.json`.
    #[cfg(test)]
    pub(crate) fn of_test(module: CModule, model: &str) -> Self {
        Self {
            module,
            device: tch::Device::Cpu,
            kind: Kind::Float,
            model: serde_json::from_str(model).unwrap(),
            dtype: DType::Float32,
            path: String::new(),
            statistics: None,
        }
    }

    pub(crate) const fn model(&self) -> &Model {
        &self.model
    }

    /// What runs, for reports.
    pub(crate) fn describe(&self) -> LoadedModel {
        LoadedModel {
            role: self.model.role,
            name: self.model.name.clone(),
            architecture: self.model.architecture.clone(),
            path: self.path.clone(),
            dtype: self.dtype,
        }
    }

    /// (B, H, W, 3) bytes on the device → (B, 3, H, W): planes in the model's order, 0–1, less its mean, over its deviation. The
    /// numbers of one pixel stay neighbours in memory, which is what convolutions on processors like best.
    pub(crate) fn normalised(&self, bytes: &Tensor) -> Result<Tensor, TchError> {
        let mut planes = bytes.f_permute([0, 3, 1, 2])?;
        if self.model.channel_order == ChannelOrder::Bgr {
            planes = planes.f_flip([1])?;
        }
        let mut scaled = planes.f_to_kind(Kind::Float)?.f_div_scalar(255.0)?;
        if let Some((mean, std)) = &self.statistics {
            scaled = scaled.f_sub(mean)?.f_div(std)?;
        }
        scaled.f_to_kind(self.kind)
    }

    /// Where it is, and the number format of what it takes and gives.
    pub(crate) const fn options(&self) -> (Kind, tch::Device) {
        (self.kind, self.device)
    }

    /// One call with tensors as the module takes them, and back as it gives them: nothing is converted.
    pub(crate) fn call(&self, inputs: &[&Tensor]) -> Result<Tensor, TchError> {
        self.module.forward_ts(inputs)
    }

    /// What it makes of (B, H, W, 3) bytes on the device, as `float32`: the [`crate::runner::Work`] of detectors.
    pub(crate) fn of_pictures(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
        let outputs = inputs
            .iter()
            .map(|bytes| self.call(&[&self.normalised(bytes)?])?.f_to_kind(Kind::Float));
        outputs.collect()
    }

    /// One call of a method other than `forward`.
    pub(crate) fn method(&self, name: &str, inputs: &[&Tensor]) -> Result<Tensor, TchError> {
        self.module.method_ts(name, inputs)
    }
}

/// What a module of this number format takes and gives.
const fn kind_of(dtype: DType) -> Kind {
    match dtype {
        DType::Float32 | DType::Int8 => Kind::Float,
        DType::Float16 => Kind::Half,
        DType::BFloat16 => Kind::BFloat16,
    }
}

/// While it lives, this thread only computes: nothing is kept for gradients, and modules run as they are written. Otherwise libtorch
/// specialises a module for the shapes that it meets first, which takes seconds on a GPU, and shapes change from screen to screen.
#[derive(Debug)]
pub(crate) struct Inference {
    _mode: InferenceMode,
}

impl Inference {
    pub(crate) fn begin() -> Result<Self, TchError> {
        tch::jit::f_set_graph_executor_optimize(false)?;
        Ok(Self {
            _mode: InferenceMode::begin(),
        })
    }
}

impl Drop for Inference {
    fn drop(&mut self) {
        // It sets a variable of the thread, which cannot fail.
        let _ = tch::jit::f_set_graph_executor_optimize(true);
    }
}

/// Pictures of one size → (B, H, W, 3) bytes on the host.
pub(crate) fn pictures(pictures: &[RgbImage]) -> Result<Tensor, TchError> {
    let (width, height) = pictures.first().map_or((0, 0), RgbImage::dimensions);
    let size = [pictures.len() as i64, i64::from(height), i64::from(width), 3];
    let length = width as usize * height as usize * 3;
    // An RgbImage may hold more than its pixels.
    if let [picture] = pictures {
        return Tensor::f_from_data_size(&picture.as_raw()[..length], &size, Kind::Uint8);
    }
    let mut bytes = Vec::with_capacity(pictures.len() * length);
    for picture in pictures {
        if picture.dimensions() != (width, height) {
            return Err(TchError::Shape("the pictures of a batch differ in size".to_owned()));
        }
        bytes.extend_from_slice(&picture.as_raw()[..length]);
    }
    Tensor::f_from_data_size(&bytes, &size, Kind::Uint8)
}

/// The only tensor of an outcome.
pub(crate) fn single(outcome: &[Tensor]) -> Result<&Tensor, TchError> {
    match outcome {
        [tensor] => Ok(tensor),
        other => Err(TchError::Shape(format!("{} tensors instead of one", other.len()))),
    }
}

/// All values of a tensor, on the host, in order.
pub(crate) fn values<T: tch::kind::Element + Default + Clone>(tensor: &Tensor) -> Result<Vec<T>, TchError> {
    let tensor = tensor.f_to_device(tch::Device::Cpu)?.f_contiguous()?;
    let mut values = vec![T::default(); tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}

/// Whether libtorch says that memory was short, on a GPU or on the host (c10's allocators, cuBLAS, cuDNN): a smaller batch may fit.
pub(crate) fn is_out_of_memory(error: &TchError) -> bool {
    let text = error.to_string();
    ["out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED"]
        .iter()
        .any(|words| text.contains(words))
}

/// libtorch's error as the pipeline's: the first line, without the C++ stack below it.
pub(crate) fn backend(model: &'static str) -> impl Fn(TchError) -> ModelError {
    move |error| {
        let text = error.to_string();
        let message = text
            .lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default()
            .to_owned();
        tracing::debug!(model, error = text, "libtorch failed");
        if is_out_of_memory(&error) {
            ModelError::OutOfMemory { model, message }
        } else {
            ModelError::Backend { model, message }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_short_is_told_apart() {
        let failed = |text: &str| backend("captioner")(TchError::Torch(text.to_owned()));
        for text in [
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.19 GiB",
            "The following operation failed in the TorchScript interpreter.\nRuntimeError: CUDA out of memory.",
            "CUDA error: out of memory",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate",
        ] {
            assert!(matches!(failed(text), ModelError::OutOfMemory { .. }), "{text}");
        }
        let other = failed("Sizes of tensors must match except in dimension 1.\nException raised from ...");
        assert!(matches!(other, ModelError::Backend { .. }));
        assert!(
            other
                .to_string()
                .ends_with("Sizes of tensors must match except in dimension 1."),
            "{other}"
        );
    }

    #[test]
    fn libtorch_itself_says_so_in_these_words() {
        let error = Tensor::f_zeros([1 << 60], (Kind::Uint8, tch::Device::Cpu)).expect_err("an exabyte");
        assert!(matches!(backend("captioner")(error), ModelError::OutOfMemory { .. }));
    }
}
