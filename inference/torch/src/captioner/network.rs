//! The captioner's three modules and the two ways in which they generate: for a processor, where rows whose caption has ended drop
//! out, and for a GPU, where nothing is asked of the host until all tokens are there.

use crate::{
    LoadError,
    device::Device,
    module::{LoadedModule, values},
};
use hawkeye_pipeline::{
    bundle::{Bundle, CaptionerFiles, CaptionerSpec, DType, Model, PromptTokens},
    caption::{Decoding, GenerationRules},
    model::CaptionPrompt,
    parser::CAPTION_CROP,
};
use std::time::{Duration, Instant};
use tch::{Kind, TchError, Tensor};

/// Steps that are timed for a size of batches. The first has more to do than the later ones.
const STEPS_TIMED: usize = 4;

/// The network on a device.
#[derive(Debug)]
pub(super) struct Network {
    vision: LoadedModule,
    encode: LoadedModule,
    step: LoadedModule,
    spec: CaptionerSpec,
    /// Embeddings of the two questions, (tokens, width).
    caption: Tensor,
    detailed_caption: Tensor,
    /// 0, 1, 2 …: each place of a caption as a tensor that is on the device already.
    places: Tensor,
    /// Row n tells which places of the cache the token at place n may look at: none behind it.
    seen: Tensor,
}

impl Network {
    /// Loads the three modules, every file only after its sha256 was found right.
    pub(super) fn load(
        bundle: &Bundle,
        model: &Model,
        spec: &CaptionerSpec,
        wanted: DType,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let files: CaptionerFiles<'_> = model
            .captioner_files(device.usable(model.role, wanted))
            .ok_or_else(|| LoadError::NoFile(model.name.clone()))?;
        if wanted == DType::Int8 && files.dtype != wanted {
            // Another one would need more memory than was planned for.
            return Err(LoadError::NoInt8(model.name.clone()));
        }
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
        let prompts = &spec.prompts;
        let (caption, detailed_caption) = (embedded(&prompts.caption)?, embedded(&prompts.detailed_caption)?);
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
            spec: spec.clone(),
            caption,
            detailed_caption,
            places,
            seen,
        })
    }

    /// The module that stands for all three in reports.
    pub(super) const fn first(&self) -> &LoadedModule {
        &self.vision
    }

    pub(super) const fn rules(&self) -> GenerationRules {
        self.spec.generation
    }

    pub(super) const fn device(&self) -> tch::Device {
        self.step.options().1
    }

    /// What the decoder looks at, (layers, 2, B, heads, S, head size), and its empty cache of the same shape but as long as a
    /// caption; from (B, 64, 64, 3) bytes on the device.
    fn begin(&self, crops: &Tensor, prompt: CaptionPrompt) -> Result<(Tensor, Tensor), TchError> {
        let question = match prompt {
            CaptionPrompt::Caption => &self.caption,
            CaptionPrompt::DetailedCaption => &self.detailed_caption,
        };
        let features = self.vision.call(&[&self.vision.normalised(crops)?])?;
        let memory = self.encode.call(&[&features, question])?;
        let CaptionerSpec {
            layers,
            heads,
            head_size,
            ..
        } = self.spec;
        let [layers, heads, head_size] = [layers, heads, head_size].map(i64::from);
        let rows = crops.size().first().copied().unwrap_or_default();
        let size = [layers, 2, rows, heads, self.rules().max_new_tokens as i64, head_size];
        // Zeros, because a place that is masked is still multiplied, by zero.
        let cache = Tensor::f_zeros(size, self.step.options())?;
        Ok((memory, cache))
    }

    /// (B, vocabulary rounded up) logits of the token behind `token`, which stands at `place`; those behind the vocabulary are never the
    /// best.
    fn step(&self, token: &Tensor, place: usize, cache: &Tensor, memory: &Tensor) -> Result<Tensor, TchError> {
        let place = place as i64;
        let position = self.places.f_narrow(0, place, 1)?;
        self.step
            .call(&[token, &position, cache, memory, &self.seen.f_get(place)?])
    }

    /// The least of a few steps of `rows` captions.
    pub(super) fn step_time(&self, rows: usize) -> Result<Duration, TchError> {
        let side = i64::from(CAPTION_CROP);
        let blank = Tensor::f_zeros([1, side, side, 3], (Kind::Uint8, self.device()))?;
        let (memory, cache) = self.begin(&blank, CaptionPrompt::Caption)?;
        let rows = rows as i64;
        let copies = |one: &Tensor| one.f_repeat([1, 1, rows, 1, 1, 1]);
        let (memory, cache) = (copies(&memory)?, copies(&cache)?);
        let token = Tensor::f_full([rows], self.rules().start_token, (Kind::Int64, self.device()))?;
        let mut least = Duration::MAX;
        for _ in 0..STEPS_TIMED {
            let started = Instant::now();
            best(&self.step(&token, 0, &cache, &memory)?, &[])?;
            least = least.min(started.elapsed());
        }
        Ok(least)
    }

    /// The tokens of each crop; a crop whose caption has ended costs nothing more. `crops` are (B, 64, 64, 3) bytes.
    pub(super) fn compacting(&self, crops: &Tensor, prompt: CaptionPrompt) -> Result<Vec<Vec<i64>>, TchError> {
        let (mut memory, mut cache) = self.begin(crops, prompt)?;
        let rows = crops.size().first().copied().unwrap_or_default();
        let mut decoding = Decoding::new(self.rules(), rows as usize);
        while !decoding.is_done() {
            let inputs = decoding.inputs();
            let mut chosen = Vec::new();
            if decoding.needs_model() {
                let token = Tensor::f_from_slice(&inputs)?.f_to_device(self.device())?;
                let logits = self.step(&token, decoding.place(), &cache, &memory)?;
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
                let kept = Tensor::f_from_slice(&kept)?.f_to_device(self.device())?;
                cache = cache.f_index_select(2, &kept)?;
                memory = memory.f_index_select(2, &kept)?;
            }
        }
        Ok(decoding.into_tokens())
    }

    /// (B, most tokens) tokens of each crop, on the device; what stands behind an end token means nothing. Asks nothing of the
    /// host, so that it can be recorded as a CUDA graph. `crops` are (B, 64, 64, 3) bytes on the device.
    pub(super) fn unrolled(&self, crops: &Tensor, prompt: CaptionPrompt) -> Result<Tensor, TchError> {
        let rules = self.rules();
        let (memory, cache) = self.begin(crops, prompt)?;
        let rows = crops.size().first().copied().unwrap_or_default();
        let length = rules.max_new_tokens;
        // The start token, then what is generated.
        let options = (Kind::Int64, self.device());
        let history = Tensor::f_full([rows, length as i64 + 1], rules.start_token, options)?;
        for place in 0..length {
            let forced = rules.forced(place);
            let mut next = history.f_select(1, place as i64 + 1)?;
            // A last token that is forced needs no logits, and nothing comes after it.
            if forced.is_none() || place + 1 < length {
                let token = history.f_select(1, place as i64)?;
                let logits = self.step(&token, place, &cache, &memory)?;
                if forced.is_none() {
                    let known = history.f_narrow(1, 0, place as i64 + 1)?;
                    next.f_copy_(&best_on_device(&logits, &known, rules.no_repeat_ngram)?)?;
                }
            }
            if let Some(token) = forced {
                // A view: what is filled is `history`.
                let _ = next.f_fill_(token)?;
            }
        }
        history.f_narrow(1, 1, length as i64)
    }

    /// Rows of `unrolled`, each up to its end token.
    pub(super) fn ended(&self, tokens: &Tensor) -> Result<Vec<Vec<i64>>, TchError> {
        let rules = self.rules();
        let all: Vec<i64> = values(tokens)?;
        let rows = all.chunks(rules.max_new_tokens.max(1));
        Ok(rows.map(|row| until_end(row, rules.end_token)).collect())
    }
}

/// (tokens, width), from the table in the step module.
fn embed(step: &LoadedModule, tokens: &[i64]) -> Result<Tensor, TchError> {
    let (_, device) = step.options();
    step.method("embed", &[&Tensor::f_from_slice(tokens)?.f_to_device(device)?])
}

fn until_end(row: &[i64], end: i64) -> Vec<i64> {
    let length = row
        .iter()
        .position(|&token| token == end)
        .map_or(row.len(), |at| at + 1);
    row[..length].to_vec()
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

/// The best token of each row of (B, vocabulary) logits, (B,), that repeats no `ngram` tokens in a row of `history`, (B, tokens so
/// far). What is banned is found on the device, so that nothing waits for it.
fn best_on_device(logits: &Tensor, history: &Tensor, ngram: usize) -> Result<Tensor, TchError> {
    let known = history.size().last().copied().unwrap_or_default();
    let ngram = ngram as i64;
    let windows = known - ngram + 1;
    if ngram == 0 || windows < 1 {
        return logits.f_argmax(-1, false);
    }
    // Window w of the history repeats if all but its last token are the latest tokens; that last one is then banned.
    let (kind, device) = (logits.kind(), logits.device());
    let mut differs = Tensor::f_zeros([logits.size()[0], windows], (Kind::Bool, device))?;
    for at in 0..ngram - 1 {
        let latest = history.f_narrow(1, known - ngram + 1 + at, 1)?;
        differs = differs.f_logical_or(&history.f_narrow(1, at, windows)?.f_ne_tensor(&latest)?)?;
    }
    let lasts = history.f_narrow(1, ngram - 1, windows)?;
    let penalty = Tensor::f_full([1], f64::NEG_INFINITY, (kind, device))?;
    // Adding 0 changes nothing, so a token that several windows end with is banned if one of them repeats.
    let penalty = penalty.f_expand(differs.size(), false)?.f_masked_fill(&differs, 0.0)?;
    logits.f_scatter_add(1, &lasts, &penalty)?.f_argmax(-1, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: GenerationRules = GenerationRules {
        start_token: 2,
        forced_first_token: None,
        forced_last_token: None,
        end_token: 2,
        no_repeat_ngram: 3,
        max_new_tokens: 12,
    };

    /// Greedy from the same logits at every step, which makes repeats as likely as can be: by the rules of the pipeline, and on the
    /// device.
    #[test]
    fn what_the_device_bans_is_what_the_rules_ban() {
        for ngram in 0..5 {
            let rules = GenerationRules {
                no_repeat_ngram: ngram,
                ..RULES
            };
            let (rows, vocabulary) = (4_i64, 6_i64);
            let numbers: Vec<f32> = (0..rows * vocabulary).map(|n| ((n * 7919) % 101) as f32).collect();
            let logits = Tensor::f_from_slice(&numbers)
                .and_then(|flat| flat.f_reshape([rows, vocabulary]))
                .unwrap();
            let mut histories = vec![vec![rules.start_token]; rows as usize];
            for step in 0..rules.max_new_tokens {
                // Another order of preference in odd steps, so that two tokens take turns.
                let logits = if step % 2 == 0 {
                    logits.copy()
                } else {
                    logits.f_flip([0]).unwrap()
                };
                let flat: Vec<i64> = histories.concat();
                let known = Tensor::f_from_slice(&flat)
                    .and_then(|flat| flat.f_reshape([rows, -1]))
                    .unwrap();
                let on_device: Vec<i64> = values(&best_on_device(&logits, &known, ngram).unwrap()).unwrap();
                let banned: Vec<(usize, i64)> = histories
                    .iter()
                    .enumerate()
                    .flat_map(|(row, history)| rules.banned(history).map(move |token| (row, token)))
                    .collect();
                let by_rules = best(&logits, &banned).unwrap();
                assert_eq!(on_device, by_rules, "{ngram}, {histories:?}");
                for (history, token) in histories.iter_mut().zip(by_rules) {
                    history.push(token);
                }
            }
        }
    }

    #[test]
    fn a_row_ends_with_its_end_token() {
        assert_eq!(until_end(&[0, 5, 2, 7, 2], 2), [0, 5, 2]);
        assert_eq!(until_end(&[0, 5], 2), [0, 5]);
        assert_eq!(until_end(&[2], 2), [2]);
    }
}
