//! The model bundle: a folder with `bundle.json` and the files that it lists by sha256.

mod captioner;

pub use captioner::{CaptionPrompts, CaptionerFiles, CaptionerSpec, Part, PromptTokens};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fmt, fs,
    io::{self, Read},
    path::{Component, Path, PathBuf},
    str::FromStr,
};

/// The one layout of `bundle.json` that this release reads.
pub const FORMAT_VERSION: u32 = 1;
/// Most bytes of `bundle.json`; a real one has about 2 KiB.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// Number format of a model's weights and arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit IEEE.
    Float32,
    /// 16-bit IEEE.
    Float16,
    /// 16-bit with the exponent of 32-bit.
    BFloat16,
    /// Weights and the inputs of products in 8-bit integers, the rest in `float32`. Captioners only, on processors only.
    Int8,
}

impl fmt::Display for DType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::BFloat16 => "bfloat16",
            Self::Int8 => "int8",
        })
    }
}

/// A dtype name that is none of `float32`, `float16`, `bfloat16`, `int8`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown dtype {0:?}: expected float32, float16, bfloat16 or int8")]
pub struct UnknownDType(pub String);

impl FromStr for DType {
    type Err = UnknownDType;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name.to_ascii_lowercase().as_str() {
            "float32" => Ok(Self::Float32),
            "float16" => Ok(Self::Float16),
            "bfloat16" => Ok(Self::BFloat16),
            "int8" => Ok(Self::Int8),
            _ => Err(UnknownDType(name.to_owned())),
        }
    }
}

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Finds icons.
    Detector,
    /// Finds lines of text.
    OcrDetector,
    /// Reads a line of text.
    OcrRecognizer,
    /// Describes icons.
    Captioner,
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Detector => "detector",
            Self::OcrDetector => "ocr-detector",
            Self::OcrRecognizer => "ocr-recognizer",
            Self::Captioner => "captioner",
        })
    }
}

/// Order of the colour planes that a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ChannelOrder {
    /// Red first.
    #[default]
    #[serde(rename = "RGB")]
    Rgb,
    /// Blue first, as OpenCV loads pictures.
    #[serde(rename = "BGR")]
    Bgr,
}

/// What a recogniser gives for every step and class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecognizerOutput {
    /// Unnormalised; a softmax over the classes makes probabilities of them.
    Logits,
    /// Probabilities.
    #[default]
    Probabilities,
}

/// A TorchScript file of one number format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFile {
    /// Number format.
    pub dtype: DType,
    /// Captioner: which of its modules this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// Place below the bundle's folder.
    pub path: String,
    /// Lower-case hexadecimal sha256 of its bytes.
    pub sha256: String,
}

/// A file that is no model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraFile {
    /// Place below the bundle's folder.
    pub path: String,
    /// Lower-case hexadecimal sha256 of its bytes.
    pub sha256: String,
}

/// Where the weights came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelSource {
    /// Package and version, or a description.
    pub package: Option<String>,
    /// Path within it.
    pub path: Option<String>,
    /// sha256 of the published file, before conversion.
    pub sha256: Option<String>,
}

/// One model of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// What it is for.
    pub role: Role,
    /// Its published name.
    pub name: String,
    /// `yolo11m`, `db`, `ctc`, `florence-2`.
    pub architecture: String,
    /// SPDX identifier.
    pub licence: String,
    /// Where it came from.
    #[serde(default)]
    pub source: ModelSource,
    /// Detector: sides of the square that the screenshot is scaled into; captioner: sides of a crop. In pixels.
    pub image_size: Option<u32>,
    /// Detector: both sides of the input are multiples of this.
    pub stride: Option<u32>,
    /// Recogniser: height of a line in pixels.
    pub image_height: Option<u32>,
    /// Mean per plane, in the model's channel order, of pixel values scaled to 0–1.
    pub mean: Option<[f32; 3]>,
    /// Standard deviation per plane, in the model's channel order.
    pub std: Option<[f32; 3]>,
    /// Order of the colour planes.
    #[serde(default)]
    pub channel_order: ChannelOrder,
    /// Recogniser: what comes out.
    #[serde(default)]
    pub output: RecognizerOutput,
    /// Recogniser: one character a line in class order, without the blank (class 0).
    pub characters: Option<ExtraFile>,
    /// Captioner: its tokens, in the form of Hugging Face's `tokenizer.json`.
    pub tokenizer: Option<ExtraFile>,
    /// Captioner: sizes, rules and questions.
    pub captioner: Option<CaptionerSpec>,
    /// Captioner: what the exporter's own network said about drawn crops, and those crops, for tests.
    #[serde(default)]
    pub reference: Vec<ExtraFile>,
    /// One file per number format; of a captioner, one per number format and part.
    pub files: Vec<ModelFile>,
}

impl Model {
    /// The file of the wanted number format, else the `float32` one, else the first that is not `int8`, which is never a
    /// substitute: it does not run everywhere.
    pub fn file(&self, wanted: DType) -> Option<&ModelFile> {
        let of = |dtype| self.files.iter().find(|file| file.dtype == dtype);
        of(wanted)
            .or_else(|| of(DType::Float32))
            .or_else(|| self.files.iter().find(|file| file.dtype != DType::Int8))
    }
}

/// `bundle.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Layout of this file: [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Name of the bundle.
    pub name: String,
    /// The program that wrote it, with its version.
    #[serde(default)]
    pub created_by: String,
    /// Weights without meaning, for tests only.
    #[serde(default)]
    pub test_only: bool,
    /// The models.
    pub models: Vec<Model>,
}

/// A bundle that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file is missing or cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `bundle.json` is not what it should be.
    #[error("{path} is no valid bundle description: {message}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A file's bytes are not those that `bundle.json` promises.
    #[error(
        "{path} has sha256 {found}, bundle.json says {expected}: the bundle is damaged or was changed; make it anew"
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// From `bundle.json`.
        expected: String,
        /// Of the bytes on disk.
        found: String,
    },
    /// Weights without meaning, where captions are meant to be read.
    #[error(
        "the bundle {bundle:?} is marked testOnly: some of its weights are random numbers; --allow-test-bundle loads it all the same"
    )]
    TestOnly {
        /// Name of the bundle.
        bundle: String,
    },
    /// No model for a role that is needed.
    #[error("the bundle {bundle:?} has no model for the role {role}")]
    MissingRole {
        /// Name of the bundle.
        bundle: String,
        /// What is missing.
        role: Role,
    },
}

/// An opened bundle: its description is read and checked, its files not yet.
#[derive(Debug, Clone)]
pub struct Bundle {
    root: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Reads and checks `bundle.json` in `root`.
    ///
    /// # Errors
    /// [`BundleError`] when it is missing, too big, malformed, of another version, or names files outside of the folder.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, BundleError> {
        let root = root.into();
        let path = root.join("bundle.json");
        let io_error = |source| BundleError::Io {
            path: path.clone(),
            source,
        };
        let invalid = |message: String| BundleError::Manifest {
            path: path.clone(),
            message,
        };
        let mut text = String::new();
        let file = fs::File::open(&path).map_err(io_error)?;
        file.take(MAX_MANIFEST_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(io_error)?;
        if text.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(invalid(format!("more than {MAX_MANIFEST_BYTES} bytes")));
        }
        let manifest: Manifest = serde_json::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        if manifest.format_version != FORMAT_VERSION {
            let version = manifest.format_version;
            return Err(invalid(format!(
                "formatVersion {version}; this release reads {FORMAT_VERSION}"
            )));
        }
        let bundle = Self { root, manifest };
        for (file, sha256) in bundle.files() {
            let plain = !file.is_empty()
                && Path::new(file)
                    .components()
                    .all(|part| matches!(part, Component::Normal(_)));
            if !plain {
                return Err(invalid(format!("{file:?} is not a path below the bundle")));
            }
            if sha256.len() != 64
                || !sha256
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
            {
                return Err(invalid(format!("{file:?} has no lower-case hexadecimal sha256")));
            }
        }
        let mut captioners = bundle
            .manifest
            .models
            .iter()
            .filter(|model| model.role == Role::Captioner);
        captioners.try_for_each(captioner::check).map_err(invalid)?;
        Ok(bundle)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What `bundle.json` says.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The first model for `role`.
    pub fn model(&self, role: Role) -> Option<&Model> {
        self.manifest.models.iter().find(|model| model.role == role)
    }

    /// The first model for `role`, or an error that names it.
    ///
    /// # Errors
    /// [`BundleError::MissingRole`].
    pub fn require(&self, role: Role) -> Result<&Model, BundleError> {
        self.model(role).ok_or_else(|| BundleError::MissingRole {
            bundle: self.manifest.name.clone(),
            role,
        })
    }

    /// Stops here for a bundle of random weights, unless those are `allowed`.
    ///
    /// # Errors
    /// [`BundleError::TestOnly`].
    pub fn refuse_test_weights(&self, allowed: bool) -> Result<(), BundleError> {
        if self.manifest.test_only && !allowed {
            return Err(BundleError::TestOnly {
                bundle: self.manifest.name.clone(),
            });
        }
        Ok(())
    }

    /// The bytes of a listed file, after their sha256 was found right. What is loaded is what was checked: the file is read once.
    ///
    /// # Errors
    /// [`BundleError::Io`] or [`BundleError::Checksum`].
    pub fn read(&self, path: &str, sha256: &str) -> Result<Vec<u8>, BundleError> {
        let path = self.root.join(path);
        let bytes = fs::read(&path).map_err(|source| BundleError::Io {
            path: path.clone(),
            source,
        })?;
        let found = hex(&Sha256::digest(&bytes));
        if found != sha256 {
            return Err(BundleError::Checksum {
                path,
                expected: sha256.to_owned(),
                found,
            });
        }
        Ok(bytes)
    }

    /// Checks the sha256 of every listed file.
    ///
    /// # Errors
    /// The first [`BundleError`].
    pub fn verify(&self) -> Result<(), BundleError> {
        self.files()
            .try_for_each(|(path, sha256)| self.read(path, sha256).map(drop))
    }

    /// Path and sha256 of every listed file.
    fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.manifest.models.iter().flat_map(|model| {
            let extra = model.characters.iter().chain(&model.tokenizer).chain(&model.reference);
            let models = model
                .files
                .iter()
                .map(|file| (file.path.as_str(), file.sha256.as_str()));
            models.chain(extra.map(|file| (file.path.as_str(), file.sha256.as_str())))
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, sha256: &str, file: &str) {
        let text = format!(
            r#"{{"formatVersion":1,"name":"t","models":[{{"role":"ocr-recognizer","name":"n","architecture":"ctc",
                "licence":"MIT","channelOrder":"BGR","output":"logits",
                "files":[{{"dtype":"float32","path":"{file}","sha256":"{sha256}"}}]}}]}}"#
        );
        fs::write(dir.join("bundle.json"), text).unwrap();
        fs::write(dir.join("m.pt"), b"abc").unwrap();
    }

    /// sha256 of "abc", from FIPS 180-2.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn reads_what_it_promises() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), ABC, "m.pt");
        let bundle = Bundle::open(dir.path()).unwrap();
        bundle.verify().unwrap();
        let model = bundle.require(Role::OcrRecognizer).unwrap();
        assert_eq!(
            (model.channel_order, model.output),
            (ChannelOrder::Bgr, RecognizerOutput::Logits)
        );
        assert_eq!(model.file(DType::BFloat16).unwrap().dtype, DType::Float32);
        assert!(matches!(
            bundle.require(Role::Detector),
            Err(BundleError::MissingRole { .. })
        ));
        fs::write(dir.path().join("m.pt"), b"abd").unwrap();
        assert!(matches!(bundle.verify(), Err(BundleError::Checksum { .. })));
    }

    #[test]
    fn refuses_other_folders_and_bad_sums() {
        let dir = tempfile::tempdir().unwrap();
        for (sum, file) in [(ABC, "../m.pt"), (ABC, "/m.pt"), (ABC, ""), ("AB", "m.pt")] {
            write(dir.path(), sum, file);
            assert!(
                matches!(Bundle::open(dir.path()), Err(BundleError::Manifest { .. })),
                "{sum} {file}"
            );
        }
        assert!(matches!(
            Bundle::open(dir.path().join("none")),
            Err(BundleError::Io { .. })
        ));
    }
}
