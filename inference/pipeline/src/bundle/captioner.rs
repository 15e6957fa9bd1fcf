//! What `bundle.json` says about a captioner beside its files, and the checks that this is of one piece.

use super::{DType, Model, ModelFile};
use crate::{caption::GenerationRules, model::CaptionPrompt, parser::CAPTION_CROP};
use serde::{Deserialize, Serialize};

/// Bound of every size below, so that a wrong file cannot ask for absurd memory. The largest real one is the vocabulary.
const MAX_SIZE: u32 = 1 << 20;

/// A captioner is three modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// (B, 3, 64, 64) → (B, image tokens, width).
    Vision,
    /// Image features and a prompt's embeddings → keys and values of the cross-attention.
    Encode,
    /// One token further.
    Step,
}

/// Sizes and rules of a captioner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaptionerSpec {
    /// Tokens of one crop in front of the prompt's.
    pub image_tokens: u32,
    /// Number of tokens.
    pub vocabulary: u32,
    /// Numbers of one embedding.
    pub width: u32,
    /// Layers of the decoder.
    pub layers: u32,
    /// Attention heads of the decoder.
    pub heads: u32,
    /// Numbers of one head's key.
    pub head_size: u32,
    /// Longest sequence of the encoder and of the decoder.
    pub positions: u32,
    /// How a caption grows.
    pub generation: GenerationRules,
    /// The questions.
    pub prompts: CaptionPrompts,
}

/// The questions that a captioner can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaptionPrompts {
    /// For [`CaptionPrompt::Caption`].
    pub caption: PromptTokens,
    /// For [`CaptionPrompt::DetailedCaption`].
    pub detailed_caption: PromptTokens,
}

impl CaptionPrompts {
    /// The question that stands for `prompt`.
    pub const fn of(&self, prompt: CaptionPrompt) -> &PromptTokens {
        match prompt {
            CaptionPrompt::Caption => &self.caption,
            CaptionPrompt::DetailedCaption => &self.detailed_caption,
        }
    }
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokens {
    /// In words.
    pub text: String,
    /// In the captioner's tokens, with the first and the last that the encoder expects.
    pub tokens: Vec<i64>,
}

/// The three files of one number format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptionerFiles<'a> {
    /// Number format of all three.
    pub dtype: DType,
    /// [`Part::Vision`].
    pub vision: &'a ModelFile,
    /// [`Part::Encode`].
    pub encode: &'a ModelFile,
    /// [`Part::Step`].
    pub step: &'a ModelFile,
}

impl Model {
    /// A captioner's files of the wanted number format, else those that [`Model::file`] finds.
    pub fn captioner_files(&self, wanted: DType) -> Option<CaptionerFiles<'_>> {
        let dtype = self.file(wanted)?.dtype;
        let part = |part| {
            self.files
                .iter()
                .find(|file| file.dtype == dtype && file.part == Some(part))
        };
        Some(CaptionerFiles {
            dtype,
            vision: part(Part::Vision)?,
            encode: part(Part::Encode)?,
            step: part(Part::Step)?,
        })
    }
}

/// What is wrong with the description of a captioner, if anything is.
pub(super) fn check(model: &Model) -> Result<(), String> {
    let name = &model.name;
    let wrong = |what: &str| Err(format!("the captioner {name:?} {what}"));
    let Some(spec) = &model.captioner else {
        return wrong("has no field \"captioner\"");
    };
    if model.tokenizer.is_none() {
        return wrong("has no tokenizer");
    }
    if model.image_size != Some(CAPTION_CROP) {
        return wrong(&format!("must have the imageSize {CAPTION_CROP}"));
    }
    if model.mean.is_none() || model.std.is_none() {
        return wrong("has no mean or no std");
    }
    if model.files.is_empty() {
        return wrong("has no files");
    }
    for file in &model.files {
        if file.part.is_none() {
            return wrong(&format!("has a file without \"part\": {:?}", file.path));
        }
        if model
            .captioner_files(file.dtype)
            .is_none_or(|files| files.dtype != file.dtype)
        {
            return wrong(&format!(
                "lacks a part in {}: it needs vision, encode and step",
                file.dtype
            ));
        }
        let same = |other: &&ModelFile| other.dtype == file.dtype && other.part == file.part;
        if model.files.iter().filter(same).count() > 1 {
            return wrong(&format!("has a part twice in {}", file.dtype));
        }
    }
    spec.check().or_else(|what| wrong(&what))
}

impl CaptionerSpec {
    fn check(&self) -> Result<(), String> {
        let sizes = [
            ("imageTokens", self.image_tokens),
            ("vocabulary", self.vocabulary),
            ("width", self.width),
            ("layers", self.layers),
            ("heads", self.heads),
            ("headSize", self.head_size),
            ("positions", self.positions),
        ];
        if let Some((size, value)) = sizes.iter().find(|(_, value)| !(1..=MAX_SIZE).contains(value)) {
            return Err(format!("has {value} for {size}, not 1 to {MAX_SIZE}"));
        }
        if self.heads.checked_mul(self.head_size) != Some(self.width) {
            return Err("has a width that is not heads × headSize".to_owned());
        }
        let rules = &self.generation;
        if rules.max_new_tokens == 0 || rules.max_new_tokens > self.positions as usize {
            return Err(format!(
                "has {} for maxNewTokens, not 1 to its {} positions",
                rules.max_new_tokens, self.positions
            ));
        }
        let known = |token: i64| (0..i64::from(self.vocabulary)).contains(&token);
        let forced = rules.forced_first_token.into_iter().chain(rules.forced_last_token);
        if let Some(token) = forced
            .chain([rules.start_token, rules.end_token])
            .find(|token| !known(*token))
        {
            return Err(format!(
                "generates with token {token}, which its vocabulary does not have"
            ));
        }
        for PromptTokens { text, tokens } in [&self.prompts.caption, &self.prompts.detailed_caption] {
            let room = self.positions.saturating_sub(self.image_tokens) as usize;
            if tokens.is_empty() || tokens.len() > room {
                return Err(format!(
                    "has {} tokens for the prompt {text:?}, not 1 to {room}",
                    tokens.len()
                ));
            }
            if let Some(token) = tokens.iter().find(|token| !known(**token)) {
                return Err(format!(
                    "has token {token} in the prompt {text:?}, which its vocabulary does not have"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Bundle, BundleError, Role};
    use super::*;
    use serde_json::{Value, json};
    use std::{fs, path::Path};

    /// sha256 of nothing, from FIPS 180-2's algorithm.
    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest() -> Value {
        let file = |dtype: &str, part: &str| json!({"dtype": dtype, "part": part, "path": "m.pt", "sha256": EMPTY});
        let files: Vec<Value> = ["float32", "bfloat16"]
            .into_iter()
            .flat_map(|dtype| ["vision", "encode", "step"].map(|part| file(dtype, part)))
            .collect();
        json!({"formatVersion": 1, "name": "t", "testOnly": true, "models": [{
            "role": "captioner", "name": "c", "architecture": "florence-2", "licence": "MIT", "imageSize": 64,
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "files": files,
            "tokenizer": {"path": "m.pt", "sha256": EMPTY},
            "captioner": {
                "imageTokens": 5, "vocabulary": 100, "width": 8, "layers": 2, "heads": 2, "headSize": 4, "positions": 64,
                "generation": {"startToken": 2, "forcedFirstToken": 0, "forcedLastToken": 2, "endToken": 2,
                    "noRepeatNgram": 3, "maxNewTokens": 20},
                "prompts": {"caption": {"text": "What?", "tokens": [0, 7, 2]},
                    "detailedCaption": {"text": "Describe.", "tokens": [0, 8, 9, 2]}},
            },
        }]})
    }

    fn open(folder: &Path, manifest: &Value) -> Result<Bundle, BundleError> {
        fs::write(folder.join("bundle.json"), manifest.to_string()).unwrap();
        Bundle::open(folder)
    }

    #[test]
    fn a_sound_description_is_read() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("m.pt"), b"").unwrap();
        let bundle = open(folder.path(), &manifest()).unwrap();
        bundle.verify().unwrap();
        let model = bundle.require(Role::Captioner).unwrap();
        let spec = model.captioner.as_ref().unwrap();
        assert_eq!(spec.prompts.of(CaptionPrompt::Caption).tokens, [0, 7, 2]);
        assert_eq!(spec.prompts.of(CaptionPrompt::DetailedCaption).text, "Describe.");
        let dtype = |wanted| model.captioner_files(wanted).map(|files| files.dtype);
        assert_eq!(dtype(DType::BFloat16), Some(DType::BFloat16));
        assert_eq!(dtype(DType::Float16), Some(DType::Float32), "there is none of it");
    }

    #[test]
    fn int8_is_taken_where_it_is_asked_for_only() {
        let folder = tempfile::tempdir().unwrap();
        let mut manifest = manifest();
        for file in manifest["models"][0]["files"].as_array_mut().unwrap() {
            if file["dtype"] == "float32" {
                file["dtype"] = json!("int8");
            }
        }
        let mut model = open(folder.path(), &manifest).unwrap().manifest().models[0].clone();
        let dtype = |model: &Model, wanted| model.captioner_files(wanted).map(|files| files.dtype);
        assert_eq!(dtype(&model, DType::Int8), Some(DType::Int8));
        assert_eq!(dtype(&model, DType::Float16), Some(DType::BFloat16));
        model.files.retain(|file| file.dtype == DType::Int8);
        assert_eq!(dtype(&model, DType::Float32), None);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 15] = [
            (|model| model["captioner"] = Value::Null, "has no field \"captioner\""),
            (|model| model["tokenizer"] = Value::Null, "has no tokenizer"),
            (|model| model["imageSize"] = json!(768), "must have the imageSize 64"),
            (|model| model["std"] = Value::Null, "has no mean or no std"),
            (|model| model["files"] = json!([]), "has no files"),
            (
                |model| model["files"][0]["part"] = Value::Null,
                "without \"part\": \"m.pt\"",
            ),
            (
                |model| drop(model["files"].as_array_mut().map(|files| files.remove(4))),
                "lacks a part in bfloat16",
            ),
            (
                |model| model["files"][3]["dtype"] = json!("float32"),
                "has a part twice in float32",
            ),
            (|model| model["captioner"]["heads"] = json!(3), "not heads × headSize"),
            (|model| model["captioner"]["layers"] = json!(0), "has 0 for layers"),
            (
                |model| model["captioner"]["vocabulary"] = json!(4_000_000),
                "has 4000000 for vocabulary",
            ),
            (
                |model| model["captioner"]["generation"]["maxNewTokens"] = json!(65),
                "has 65 for maxNewTokens, not 1 to its 64 positions",
            ),
            (
                |model| model["captioner"]["generation"]["endToken"] = json!(100),
                "generates with token 100",
            ),
            (
                |model| model["captioner"]["prompts"]["caption"]["tokens"] = json!([]),
                "has 0 tokens for the prompt \"What?\"",
            ),
            (
                |model| model["captioner"]["prompts"]["detailedCaption"]["tokens"] = json!([0, -1]),
                "has token -1 in the prompt \"Describe.\"",
            ),
        ];
        let folder = tempfile::tempdir().unwrap();
        for (change, wanted) in cases {
            let mut manifest = manifest();
            change(&mut manifest["models"][0]);
            let error = open(folder.path(), &manifest).unwrap_err();
            assert!(matches!(error, BundleError::Manifest { .. }), "{error}");
            assert!(error.to_string().contains(wanted), "{wanted}: {error}");
        }
    }

    #[test]
    fn the_tokenizer_is_checked_like_any_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("m.pt"), b"").unwrap();
        let mut manifest = manifest();
        manifest["models"][0]["tokenizer"]["sha256"] = json!("0".repeat(64));
        let bundle = open(folder.path(), &manifest).unwrap();
        assert!(matches!(bundle.verify(), Err(BundleError::Checksum { .. })));
        manifest["models"][0]["tokenizer"]["path"] = json!("../tokenizer.json");
        assert!(open(folder.path(), &manifest).is_err());
    }

    #[test]
    fn test_weights_are_refused_unless_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut manifest = manifest();
        let bundle = open(folder.path(), &manifest).unwrap();
        let error = bundle.refuse_test_weights(false).unwrap_err();
        assert!(matches!(error, BundleError::TestOnly { .. }));
        assert!(error.to_string().contains("--allow-test-bundle"), "{error}");
        bundle.refuse_test_weights(true).unwrap();
        manifest["testOnly"] = json!(false);
        open(folder.path(), &manifest)
            .unwrap()
            .refuse_test_weights(false)
            .unwrap();
    }
}
