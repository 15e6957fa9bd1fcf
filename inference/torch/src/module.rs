//! A TorchScript module with what the bundle says about it.

use crate::{LoadError, LoadedModel, device::Device};
use hawkeye_pipeline::{
    bundle::{Bundle, ChannelOrder, DType, Model, ModelFile},
    model::ModelError,
};
use image::RgbImage;
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
}

impl LoadedModule {
    /// Reads and checks the file of the wanted number format, else the `float32` one, and puts it on the device.
    pub(crate) fn load(bundle: &Bundle, model: &Model, wanted: DType, device: &Device) -> Result<Self, LoadError> {
        let file = model
            .file(wanted)
            .ok_or_else(|| LoadError::NoFile(model.name.clone()))?;
        if file.dtype != wanted {
            tracing::warn!(
                model = model.name,
                wanted = %wanted,
                used = %file.dtype,
                "the bundle has no file of the wanted number format"
            );
        }
        Self::load_file(bundle, model, file, device)
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
        let mut module = CModule::load_data_on_device(&mut bytes.as_slice(), device.torch()).map_err(torch_error)?;
        module.f_set_eval().map_err(torch_error)?;
        let kind = match file.dtype {
            DType::Float32 => Kind::Float,
            DType::Float16 => Kind::Half,
            DType::BFloat16 => Kind::BFloat16,
        };
        let (path, dtype) = (file.path.clone(), file.dtype);
        Ok(Self {
            module,
            device: device.torch(),
            kind,
            model: model.clone(),
            dtype,
            path,
        })
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

    /// Pictures of one size → (B, 3, H, W) on the device: planes in the model's order, 0–1, less its mean, over its deviation.
    pub(crate) fn input(&self, pictures: &[RgbImage]) -> Result<Tensor, TchError> {
        let tensors = pictures
            .iter()
            .map(|picture| picture_tensor(picture)?.f_to_device(self.device))
            .collect::<Result<Vec<_>, _>>()?;
        let bytes = Tensor::f_stack(&tensors, 0)?.f_permute([0, 3, 1, 2])?;
        let planes = match self.model.channel_order {
            ChannelOrder::Rgb => bytes,
            ChannelOrder::Bgr => bytes.f_flip([1])?,
        };
        let mut scaled = planes.f_contiguous()?.f_to_kind(Kind::Float)?.f_div_scalar(255.0)?;
        if let Some(mean) = self.model.mean {
            scaled = scaled.f_sub(&self.per_plane(mean)?)?;
        }
        if let Some(std) = self.model.std {
            scaled = scaled.f_div(&self.per_plane(std)?)?;
        }
        Ok(scaled)
    }

    /// Where it is, and the number format of its weights.
    pub(crate) const fn options(&self) -> (Kind, tch::Device) {
        (self.kind, self.device)
    }

    /// One call with tensors as the module takes them, and back as it gives them: nothing is converted.
    pub(crate) fn call(&self, inputs: &[&Tensor]) -> Result<Tensor, TchError> {
        self.module.forward_ts(inputs)
    }

    /// One call of a method other than `forward`.
    pub(crate) fn method(&self, name: &str, inputs: &[&Tensor]) -> Result<Tensor, TchError> {
        self.module.method_ts(name, inputs)
    }

    /// One call; (B, …) in, whatever the module gives, as `float32` on the device, out.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        self.module
            .forward_ts(&[input.f_to_kind(self.kind)?])?
            .f_to_kind(Kind::Float)
    }

    fn per_plane(&self, values: [f32; 3]) -> Result<Tensor, TchError> {
        Tensor::f_from_slice(&values)?
            .f_reshape([1, 3, 1, 1])?
            .f_to_device(self.device)
    }
}

/// While it lives, modules run on this thread as they are written. Otherwise libtorch specialises a module for the first shapes
/// that it meets, and a captioner's batch shrinks with every caption that ends.
#[derive(Debug)]
pub(crate) struct AsWritten(());

impl AsWritten {
    pub(crate) fn begin() -> Result<Self, TchError> {
        tch::jit::f_set_graph_executor_optimize(false)?;
        Ok(Self(()))
    }
}

impl Drop for AsWritten {
    fn drop(&mut self) {
        // It sets a variable of the thread, which cannot fail.
        let _ = tch::jit::f_set_graph_executor_optimize(true);
    }
}

/// (H, W, 3) bytes.
fn picture_tensor(picture: &RgbImage) -> Result<Tensor, TchError> {
    let size = [i64::from(picture.height()), i64::from(picture.width()), 3];
    // The binding copies size[0] × size[1] × size[2] bytes without a check; an RgbImage holds at least these.
    let bytes = &picture.as_raw()[..picture.width() as usize * picture.height() as usize * 3];
    Tensor::f_from_data_size(bytes, &size, Kind::Uint8)
}

/// All values of a tensor, on the host, in order.
pub(crate) fn values<T: tch::kind::Element + Default + Clone>(tensor: &Tensor) -> Result<Vec<T>, TchError> {
    let tensor = tensor.f_to_device(tch::Device::Cpu)?.f_contiguous()?;
    let mut values = vec![T::default(); tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
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
        if is_out_of_memory(&text) {
            ModelError::OutOfMemory { model, message }
        } else {
            ModelError::Backend { model, message }
        }
    }
}

/// Whether libtorch's text says that memory was short, on a GPU or on the host: c10's allocators, cuBLAS and cuDNN.
fn is_out_of_memory(text: &str) -> bool {
    ["out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED"]
        .iter()
        .any(|words| text.contains(words))
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
        assert_eq!(
            other.to_string(),
            "captioner: Sizes of tensors must match except in dimension 1."
        );
    }

    #[test]
    fn libtorch_itself_says_so_in_these_words() {
        let error = Tensor::f_zeros([1 << 60], (Kind::Uint8, tch::Device::Cpu)).expect_err("an exabyte");
        assert!(matches!(backend("captioner")(error), ModelError::OutOfMemory { .. }));
    }
}
