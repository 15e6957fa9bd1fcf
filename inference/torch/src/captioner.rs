//! The captioner: Florence-2 in three TorchScript modules, greedy, a batch of crops at a time.

use crate::{
    LoadError, LoadedModel,
    device::Device,
    module::{AsWritten, LoadedModule, backend, values},
};
use hawkeye_pipeline::{
    bundle::{Bundle, CaptionerFiles, CaptionerSpec, DType, Model, PromptTokens},
    caption::Decoding,
    device::DeviceKind,
    model::{CaptionPrompt, Captioner, ModelError},
    parser::CAPTION_CROP,
};
use image::RgbImage;
use tch::{Kind, TchError, Tensor};
use tokenizers::Tokenizer;

/// Describes icons with the bundle's captioner.
#[derive(Debug)]
pub struct TorchCaptioner {
    vision: LoadedModule,
    encode: LoadedModule,
    step: LoadedModule,
    spec: CaptionerSpec,
    tokenizer: Tokenizer,
    /// Embeddings of the two questions, (tokens, width).
    caption: Tensor,
    detailed_caption: Tensor,
    /// 0, 1, 2 …: each place of a caption as a tensor that is on the device already.
    places: Tensor,
    /// Row n tells which places of the cache the token at place n may look at: none behind it.
    seen: Tensor,
    batch_size: usize,
}

impl TorchCaptioner {
    /// Loads a captioner, every file only after its sha256 was found right. On the CPU `float16` becomes `float32`.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(
        bundle: &Bundle,
        model: &Model,
        wanted: DType,
        batch_size: usize,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let missing = |what| LoadError::Incomplete {
            name: model.name.clone(),
            what,
        };
        let spec = model.captioner.clone().ok_or_else(|| missing("captioner"))?;
        let listed = model.tokenizer.as_ref().ok_or_else(|| missing("tokenizer"))?;
        let tokenizer = Tokenizer::from_bytes(bundle.read(&listed.path, &listed.sha256)?).map_err(|error| {
            LoadError::Tokenizer {
                path: listed.path.clone(),
                message: error.to_string(),
            }
        })?;
        // Processors compute float16 by way of float32, slowly.
        let slow = device.kind() == DeviceKind::Cpu && wanted == DType::Float16;
        let files: CaptionerFiles<'_> = model
            .captioner_files(if slow { DType::Float32 } else { wanted })
            .ok_or_else(|| LoadError::NoFile(model.name.clone()))?;
        if files.dtype != wanted {
            tracing::warn!(model = model.name, wanted = %wanted, used = %files.dtype, "the captioner runs in another number format");
        }
        let part = |file| LoadedModule::load_file(bundle, model, file, device);
        let (vision, encode, step) = (part(files.vision)?, part(files.encode)?, part(files.step)?);
        let torch_error = |source| LoadError::Torch {
            path: files.step.path.clone(),
            source,
        };
        let _guard = tch::no_grad_guard();
        let embedded = |prompt: &PromptTokens| embed(&step, &prompt.tokens).map_err(torch_error);
        let (caption, detailed_caption) = (
            embedded(&spec.prompts.caption)?,
            embedded(&spec.prompts.detailed_caption)?,
        );
        let length = spec.generation.max_new_tokens as i64;
        let (_, torch) = step.options();
        let places = Tensor::f_arange(length, (Kind::Int64, torch)).map_err(torch_error)?;
        let seen = Tensor::f_ones([length, length], (Kind::Bool, torch))
            .and_then(|all| all.f_tril(0))
            .map_err(torch_error)?;
        Ok(Self {
            vision,
            encode,
            step,
            spec,
            tokenizer,
            caption,
            detailed_caption,
            places,
            seen,
            batch_size: batch_size.max(1),
        })
    }

    /// What runs, for reports.
    pub(crate) fn describe(&self) -> LoadedModel {
        self.vision.describe()
    }

    /// The tokens of each crop's caption, in the crops' order, forced and special ones included.
    ///
    /// # Errors
    /// [`ModelError`] when a crop is no square of [`CAPTION_CROP`] pixels, or libtorch fails.
    pub fn tokens(&mut self, crops: &[RgbImage], prompt: CaptionPrompt) -> Result<Vec<Vec<i64>>, ModelError> {
        if let Some(crop) = crops
            .iter()
            .find(|crop| crop.dimensions() != (CAPTION_CROP, CAPTION_CROP))
        {
            let (width, height) = crop.dimensions();
            return Err(ModelError::Backend {
                model: "captioner",
                message: format!("a crop has {width}×{height} pixels, not {CAPTION_CROP}×{CAPTION_CROP}"),
            });
        }
        let mut tokens = Vec::with_capacity(crops.len());
        for batch in crops.chunks(self.batch_size) {
            tokens.extend(self.generate(batch, prompt).map_err(backend("captioner"))?);
        }
        Ok(tokens)
    }

    fn generate(&self, crops: &[RgbImage], prompt: CaptionPrompt) -> Result<Vec<Vec<i64>>, TchError> {
        let _guard = tch::no_grad_guard();
        let _as_written = AsWritten::begin()?;
        let (kind, device) = self.step.options();
        let question = match prompt {
            CaptionPrompt::Caption => &self.caption,
            CaptionPrompt::DetailedCaption => &self.detailed_caption,
        };
        let pixels = self.vision.input(crops)?.f_to_kind(kind)?;
        let features = self.vision.call(&[&pixels])?;
        // What the cross-attention looks at: (layers, 2, B, heads, S, head size).
        let mut memory = self.encode.call(&[&features, question])?;
        let rules = self.spec.generation;
        let [layers, heads, head_size] = [self.spec.layers, self.spec.heads, self.spec.head_size].map(i64::from);
        let size = [
            layers,
            2,
            crops.len() as i64,
            heads,
            rules.max_new_tokens as i64,
            head_size,
        ];
        // Zeros, because a place that is masked is still multiplied, by zero.
        let mut cache = Tensor::f_zeros(size, (kind, device))?;
        let mut decoding = Decoding::new(rules, crops.len());
        while !decoding.is_done() {
            let inputs = decoding.inputs();
            let mut chosen = Vec::new();
            if decoding.needs_model() {
                let place = decoding.place() as i64;
                let token = Tensor::f_from_slice(&inputs)?.f_to_device(device)?;
                let position = self.places.f_narrow(0, place, 1)?;
                let logits = self
                    .step
                    .call(&[&token, &position, &cache, &memory, &self.seen.f_get(place)?])?;
                if decoding.forced().is_none() {
                    chosen = best(&logits, &decoding.banned())?;
                }
            }
            if let Some(token) = decoding.forced() {
                chosen = vec![token; inputs.len()];
            }
            if let Some(kept) = decoding.accept(&chosen)
                && !decoding.is_done()
            {
                let kept = Tensor::f_from_slice(&kept)?.f_to_device(device)?;
                cache = cache.f_index_select(2, &kept)?;
                memory = memory.f_index_select(2, &kept)?;
            }
        }
        Ok(decoding.into_tokens())
    }

    fn text(&self, tokens: &[i64]) -> Result<String, ModelError> {
        // Every token comes from an argmax or from the checked rules, so it is no negative number.
        let tokens: Vec<u32> = tokens.iter().filter_map(|&token| u32::try_from(token).ok()).collect();
        let text = self
            .tokenizer
            .decode(&tokens, true)
            .map_err(|error| ModelError::Backend {
                model: "captioner",
                message: error.to_string(),
            })?;
        Ok(text.trim().to_owned())
    }
}

impl Captioner for TorchCaptioner {
    fn caption(&mut self, crops: &[RgbImage], prompt: CaptionPrompt) -> Result<Vec<String>, ModelError> {
        let tokens = self.tokens(crops, prompt)?;
        tokens.iter().map(|tokens| self.text(tokens)).collect()
    }
}

/// (tokens, width), from the table in the step module.
fn embed(step: &LoadedModule, tokens: &[i64]) -> Result<Tensor, TchError> {
    let (_, device) = step.options();
    step.method("embed", &[&Tensor::f_from_slice(tokens)?.f_to_device(device)?])
}

/// The best token of each row of (B, vocabulary) logits that is not banned there.
fn best(logits: &Tensor, banned: &[(usize, i64)]) -> Result<Vec<i64>, TchError> {
    if !banned.is_empty() {
        let vocabulary = logits.size().last().copied().unwrap_or_default();
        let places: Vec<i64> = banned
            .iter()
            .map(|&(row, token)| row as i64 * vocabulary + token)
            .collect();
        let places = Tensor::f_from_slice(&places)?.f_to_device(logits.device())?;
        // A view: what is filled is `logits`.
        let _ = logits.f_view([-1_i64])?.f_index_fill_(0, &places, f64::NEG_INFINITY)?;
    }
    values(&logits.f_argmax(-1, false)?)
}
